"""The Rewriter: the only way in which a pass edits a graph.

It records what each rewrite removed and added, makes new nodes inherit their metadata, counts
rewrites, keeps near misses, and can stop after a given number of rewrites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dit_compile.errors import PassError
from dit_compile.ir.fake import describe, evaluate
from dit_compile.ir.origin import Origin, merge_origins, origin_of
from dit_compile.ir.printer import is_unpacked, node_text, target_name
from dit_compile.ir.program import (
    WEIGHTS,
    Program,
    placeholders,
)
from dit_compile.ir.purity import is_pure
from dit_compile.ir.recompute import inherit_marks
from dit_compile.pipeline.ahead import AheadGraph


class RewriteLimitReached(Exception):  # noqa: N818 - a signal between Rewriter and runner
    """Ends a pass that has done as many rewrites as it may."""


@dataclass
class Rewrite:
    """One rewrite: where it was, and the lines of IR it took away and put in their place.

    Attributes:
        graph: the graph.
        path: the module.
        source: the user's line.
        removed, added: the lines.
        before, after: the nodes that went, and those that stand for them; some were there before.
    """

    graph: str
    path: str
    source: str = ""
    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    before: list[fx.Node] = field(default_factory=list, repr=False, compare=False)
    after: list[fx.Node] = field(default_factory=list, repr=False, compare=False)


@dataclass(frozen=True)
class Miss:
    """A place that nearly matched, and why it did not."""

    graph: str
    path: str
    node: str
    reason: str
    culprit: str = ""
    source: str = ""


class Rewriter:
    """Edits one Program on behalf of one pass.

    Args:
        program: the Program to edit.
        limit: the number of rewrites after which the pass is ended, ``None`` for no limit.
    """

    def __init__(self, program: Program, *, limit: int | None = None) -> None:
        self.program = program
        self.limit = limit
        self.graph_name = ""
        self.rewrites: list[Rewrite] = []
        self.misses: list[Miss] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._made: list[fx.Node] = []

    # -- walking ---------------------------------------------------------------------------------

    def graphs(self) -> Iterator[fx.Graph]:
        """Each graph of the Program that serves steps, made the current one in turn."""
        for name, module in list(self.program.step_graphs()):
            self.graph_name = name
            yield module.graph
            self._close()

    @property
    def graph(self) -> fx.Graph:
        """The current graph."""
        return self.program.graphs[self.graph_name].graph

    # -- editing ---------------------------------------------------------------------------------

    @property
    def left(self) -> int | None:
        """Rewrites that may still be begun, ``None`` for any number.

        A pass whose rewrites are worth nothing without what comes after them begins just so many,
        and then does what comes after them, so that bisection can switch each one off.
        """
        return None if self.limit is None else max(0, self.limit - len(self.rewrites))

    def begin(self, anchor: fx.Node) -> None:
        """Start one rewrite at ``anchor``; everything until the next ``begin`` belongs to it.

        Raises:
            RewriteLimitReached: the limit is used up; the pass must let it through.
        """
        self._close()
        if self.limit is not None and len(self.rewrites) >= self.limit:
            raise RewriteLimitReached
        origin = origin_of(anchor)
        self.rewrites.append(Rewrite(self.graph_name, origin.path, origin.source))

    def call(
        self,
        target: Callable[..., Any],
        *args: Any,
        before: fx.Node,
        replaces: Sequence[fx.Node],
        **kwargs: Any,
    ) -> fx.Node:
        """Insert a call of ``target`` before the node ``before``.

        Args:
            target: the operator.
            args: its arguments; nodes of the current graph, or constants.
            before: the node it is placed in front of.
            replaces: the nodes it stands for; their origins and metadata are inherited.
            kwargs: its keyword arguments.

        Returns:
            The new node, with its fake value.
        """
        with self.graph.inserting_before(before):
            name = target_name(target).rpartition(".")[2]
            node = self.graph.create_node("call_function", target, args, kwargs, name)
        self._inherit(node, replaces)
        node.meta["val"] = evaluate(node, self.program.fake_mode)
        self._made.append(node)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all users of ``old`` read ``new``, then drop ``old`` and what only it needed."""
        old.replace_all_uses_with(new, propagate_meta=False)
        self._current().after.append(new)
        self.sweep(old)

    def replace_input(self, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Let one user read ``new`` where it read ``old``."""
        if user not in self._made:
            self._current().removed.append(self._text(user))
            self._made.append(user)
        user.replace_input_with(old, new)

    def sweep(self, node: fx.Node) -> None:
        """Erase ``node`` if nobody uses it and it is pure, then its producers likewise."""
        removed: list[str] = []
        pending: dict[fx.Node, None] = {node: None}
        while pending:
            dead, _ = pending.popitem()
            if dead.users or not is_pure(dead):
                continue
            producers = dead.all_input_nodes
            self._current().before.append(dead)
            if dead in self._made:
                self._made.remove(dead)
            else:
                removed.append(self._text(dead))
            self.graph.erase_node(dead)
            pending |= dict.fromkeys(producers)
        self._current().removed.extend(reversed(removed))

    def show(self, removed: fx.Node, *added: str) -> None:
        """Let the diff say what stands for ``removed`` in graphs that are still to be made."""
        self._current().removed.append(self._text(removed))
        self._current().added.extend(added)

    def derive(self, target: Callable[..., Any], *args: Any, path: str, before: fx.Node) -> fx.Node:
        """A value computed from weights alone, ahead of the loop.

        Args:
            target: the operator.
            args: its arguments; weight placeholders of the current graph, or constants.
            path: a readable, unique path for the value.
            before: a node of the current graph.

        Returns:
            A placeholder of the current graph that holds the value.
        """
        sources = [arg for arg in torch.utils._pytree.tree_leaves(args) if isinstance(arg, fx.Node)]
        if not all(self.program.is_weight(node) for node in sources):
            raise PassError(f"{path}: only weights can be computed ahead of the loop")
        name = self._ahead(WEIGHTS).call(target, args, path)
        made = self.placeholder(name, like=sources)
        self._current().after.append(made)
        return made

    def hoist(self, values: Sequence[fx.Node], to: str) -> None:
        """Move values of the current graph into a graph that runs ahead of the steps.

        Each value is one rewrite: it and what only it needed go, a placeholder comes.

        Args:
            values: tensors that depend on nothing that is known later than the graph ``to`` runs.
            to: ``WEIGHTS``, ``PROLOGUE`` or ``TABLE``.
        """
        if not values:
            return
        ahead = self._ahead(to)
        for value in values:
            self.begin(value)
            path = origin_of(value).path
            name = ahead.move(value, f"{to}.{path or value.name}")
            made = self.placeholder(name, like=[value])
            self._current().added.append(f"%{made.name} : {describe(made.meta['val'])} of @{to}")
            self.replace(value, made)

    def placeholder(self, name: str, *, like: Sequence[fx.Node]) -> fx.Node:
        """The current graph's placeholder for the Program's input ``name``, made if missing."""
        for node in placeholders(self.graph):
            if node.target == name:
                return node
        spec = self.program.inputs[name]
        producer = self.program.producer(name)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        node.meta["val"] = producer.meta["val"]
        merged = merge_origins(like)
        node.meta["origin"] = Origin(spec.path, merged.source, merged.parents)
        return node

    def miss(self, node: fx.Node, reason: str, culprit: fx.Node | None = None) -> None:
        """Record that the pass nearly fired at ``node``, why it did not, and because of whom."""
        origin = origin_of(node)
        shown = self._name(culprit) if culprit is not None else ""
        self.misses.append(
            Miss(self.graph_name, origin.path, node.name, reason, shown, origin.source)
        )

    def note(self, text: str) -> None:
        """Tell the user something about this pass's work as a whole."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """A note that users must see who read no report, since they asked for something else."""
        self.note(text)
        self.warnings.append(text)

    def finish(self) -> None:
        """Close the last rewrite."""
        self._close()

    # -- inside ----------------------------------------------------------------------------------

    def _current(self) -> Rewrite:
        if not self.rewrites:
            raise PassError("a pass must call Rewriter.begin before it edits")
        return self.rewrites[-1]

    def _close(self) -> None:
        if self._made:
            shown = [self._text(node) for node in self._made if not is_unpacked(node)]
            self._current().added.extend(shown)
            self._current().after.extend(self._made)
            self._made.clear()

    def _text(self, node: fx.Node) -> str:
        return node_text(node, self.program)

    def _name(self, node: fx.Node) -> str:
        spec = self.program.inputs.get(str(node.target)) if node.op == "placeholder" else None
        return f"@{spec.path}" if spec and self.program.is_weight(node) else f"%{node.name}"

    def _inherit(self, node: fx.Node, replaces: Sequence[fx.Node]) -> None:
        for key in ("nn_module_stack", "stack_trace"):
            for old in replaces:
                if key in old.meta:
                    node.meta[key] = old.meta[key]
                    break
        node.meta["origin"] = merge_origins(replaces)
        inherit_marks(node, replaces)

    def _ahead(self, name: str) -> AheadGraph:
        if self.program.training:
            raise PassError("nothing can be computed ahead of the loop while autograd records")
        return AheadGraph(self.program, name)
