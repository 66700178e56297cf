"""Moving computations into a graph that runs ahead of the steps.

Such a graph returns values under names; the graphs of the steps read them as inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from dit_compile.errors import PassError
from dit_compile.ir.fake import evaluate, unify_sizes
from dit_compile.ir.origin import Origin, identifier
from dit_compile.ir.program import (
    AHEAD,
    Input,
    InputKind,
    Output,
    OutputKind,
    Program,
    add_outputs,
    output_node,
    placeholders,
)


class AheadGraph:
    """One of the graphs ``AHEAD``, made if it is missing.

    Args:
        program: the Program.
        name: which of its graphs.
    """

    def __init__(self, program: Program, name: str) -> None:
        self.program = program
        self.name = name
        if name not in program.graphs:
            graph = fx.Graph()
            graph.output(())
            program.graphs[name] = fx.GraphModule({}, graph)
            program.outputs[name] = ()
        self.graph = program.graphs[name].graph
        self._became: dict[fx.Node, fx.Node] = {}

    def move(self, value: fx.Node, path: str) -> str:
        """Compute ``value``, a node of another graph, here.

        Args:
            value: the node; it stays where it is.
            path: a readable path; a number is added if it is taken.

        Returns:
            The name under which other graphs read it.
        """
        paths = {spec.path for spec in self.program.of_kind(InputKind.DERIVED)}
        unique, number = path, 1
        while unique in paths:
            number += 1
            unique = f"{path}.{number}"
        return self._publish(self._copied(value), unique)

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], path: str) -> str:
        """Compute one operator on inputs of the program here, once for each path.

        Returns:
            The name under which other graphs read it.

        Raises:
            PassError: ``path`` names another value already.
        """
        inner = fx.map_arg(args, self._input)
        for spec in self.program.of_kind(InputKind.DERIVED):
            if spec.path != path:
                continue
            known = self.program.producer(spec.name)
            if known.target is not target or known.args != inner:
                raise PassError(f"{path!r} is the path of another value already; give a unique one")
            return spec.name
        with self.graph.inserting_before(output_node(self.graph)):
            node = self.graph.create_node("call_function", target, inner, None, identifier(path))
        node.meta["origin"] = Origin(path, "", tuple(dict.fromkeys(map(str, node.all_input_nodes))))
        node.meta["val"] = evaluate(node, self.program.fake_mode)
        return self._publish(node, path)

    def _publish(self, node: fx.Node, path: str) -> str:
        """Return ``node`` under a new name."""
        name, number = identifier(path), 1
        while name in self.program.inputs:
            number += 1
            name = f"{identifier(path)}_{number}"
        add_outputs(self.program, self.name, [(Output(OutputKind.DERIVED, name), node)])
        self.program.inputs[name] = Input(
            name, InputKind.DERIVED, path, AHEAD[self.name], settled=True
        )
        return name

    def _copied(self, value: fx.Node) -> fx.Node:
        """The copy of ``value`` here, after copies of all that it needs."""
        for node in _with_ancestors(value, known=self._became):
            if node.op == "placeholder":
                self._became[node] = self._input(node)
                continue
            with self.graph.inserting_before(output_node(self.graph)):
                copy = self.graph.node_copy(node, self._became.__getitem__)
            # A rewrite upstream may have changed the strides, and compiled readers rely on them.
            copy.meta["val"] = evaluate(copy, self.program.fake_mode)
            unify_sizes(copy, node, self.program.fake_mode)
            self._became[node] = copy
        return self._became[value]

    def _input(self, source: fx.Node) -> fx.Node:
        """What stands here for a placeholder of another graph."""
        name = str(source.target)
        if any(output.name == name for output in self.program.outputs[self.name]):
            return self.program.producer(name)
        for node in placeholders(self.graph):
            if node.target == name:
                return node
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.placeholder(name)
        node.meta.update(source.meta)
        return node


def _with_ancestors(value: fx.Node, known: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """``value`` and all that it needs and is not ``known``, arguments first."""
    order: dict[fx.Node, None] = {}
    pending = [value]
    while pending:
        node = pending[-1]
        missing = [n for n in node.all_input_nodes if n not in order and n not in known]
        if missing and node not in order:
            pending.extend(missing)
            continue
        pending.pop()
        if node not in known:
            order.setdefault(node)
    return list(order)
