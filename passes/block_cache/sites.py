"""Sites: the values of a graph that are worth reusing across steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from dit_compile.analysis.blocks import Block, Stack, find_stacks
from dit_compile.analysis.branches import Branch, work_of
from dit_compile.analysis.cost_rules import stored_bytes
from dit_compile.analysis.flow import Flow, carriers, is_heavy, is_move, sizes
from dit_compile.analysis.tokens import find_tokens
from dit_compile.errors import AnalysisError, PassError
from dit_compile.ir.fake import tensor_of
from dit_compile.ir.hints import symbol_hints
from dit_compile.ir.program import Program


@dataclass(frozen=True)
class Kept:
    """One value of a site, as state.

    Attributes:
        value: the value, in the main graph.
        base: what it is kept relative to: the state is ``value - base``, and a step that reuses it
            adds its own ``base`` back; ``None`` to keep the value itself.
    """

    value: fx.Node
    base: fx.Node | None = None


@dataclass(frozen=True)
class Site:
    """Values that are reused together.

    Attributes:
        path: readable and unique in the model, such as ``transformer_blocks.7.attn1``.
        group: the sites that a policy decides on together have one group.
        kept: the values that cut its work off.
        work: what dies when they are reused.
    """

    path: str
    group: str
    kept: tuple[Kept, ...]
    work: frozenset[fx.Node]


class Candidates:
    """What may be reused in a Program: its branches, and spans of its blocks.

    Args:
        program: the Program; its main graph is looked at.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._flow = Flow(program, program.main)
        self._hints = symbol_hints(program.main)

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of blocks that were found."""
        return find_stacks(self.program)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks that the latent goes through one after the other, over all stacks.

        Stacks beside it, such as one that refines a text first, are not among them.
        """
        found = [block for stack in self.stacks for block in stack.blocks if block.branches]
        found.sort(key=lambda block: self._flow.at[block.branches[0].residual])
        chain: list[Block] = []
        for block in reversed(found):
            if chain and not self._leads(block, chain[0]):
                break
            chain.insert(0, block)
        return chain

    @cached_property
    def temporal(self) -> frozenset[str]:
        """Paths of the branches that attend over frames alone."""
        try:
            axes = find_tokens(self.program).axes
        except AnalysisError:
            return frozenset()
        return frozenset(
            branch.path
            for branch in self.all_branches()
            if branch.output in axes and axes[branch.output].role == "temporal"
        )

    def all_branches(self) -> Iterator[Branch]:
        """The branches of all blocks."""
        for stack in self.stacks:
            for block in stack.blocks:
                yield from block.branches

    def branches(self, group_of: Callable[[Branch], str]) -> list[Site]:
        """A site for each residual branch's output, before its gate.

        Args:
            group_of: the group of a branch; "" leaves it out.
        """
        return [
            Site(branch.path, group, (Kept(branch.output),), branch.nodes)
            for branch in self.all_branches()
            if (group := group_of(branch))
        ]

    def span(self, start: int, stop: int, group: str, *, residual: bool = True) -> Site:
        """The site that cuts off the blocks from ``start`` up to ``stop``.

        It keeps each value that is computed from the streams inside and used afterwards.

        Args:
            start: the first block.
            stop: the block after the last.
            group: the site's group.
            residual: keep what the span adds to a stream, rather than the stream.
        """
        entering = self.blocks[start].streams_in
        inside = self._inside(start, stop)
        leaving = dict.fromkeys(self._narrowed(value) for value in self._leaving(inside))
        kept = (Kept(v, self._source(v, entering) if residual else None) for v in leaving)
        first, last = self.blocks[start].path, self.blocks[stop - 1].path
        path = first if start == stop - 1 else f"{first}..{last}"
        return Site(path, group, tuple(kept), work_of(self._flow, *leaving))

    def largest(self, kept: Sequence[Kept]) -> Kept:
        """The value of most elements: the latent's tokens rather than a prompt's."""
        return max(kept, key=lambda each: self._size(each.value))

    def first_product(self) -> fx.Node:
        """What the first matrix product of the first block is taken of."""
        entering = self.blocks[0].streams_in
        for node in sorted(self.blocks[0].nodes, key=self._flow.at.__getitem__):
            source = node.all_input_nodes[0] if is_heavy(node) else None
            if source is not None and any(self._flow.depends(source, each) for each in entering):
                return source
        raise PassError(f"{self.blocks[0].path} has no matrix product to measure at")

    def _leads(self, block: Block, later: Block) -> bool:
        """Whether what leaves ``block`` flows into ``later`` without further work."""
        pending, seen = list(later.streams_in), set[fx.Node]()
        while pending:
            node = pending.pop()
            if node in block.streams_out:
                return True
            if node not in seen:
                seen.add(node)
                pending += carriers(node)
        return False

    def _inside(self, start: int, stop: int) -> set[fx.Node]:
        """The nodes between the streams that enter and the last values of the last block."""
        flow = self._flow
        downstream = upstream = ends = 0
        for node in self.blocks[start].streams_in:
            downstream |= flow.after[flow.at[node]]
            upstream |= flow.before[flow.at[node]]
        for block in self.blocks[start:stop]:
            for node in block.streams_out:
                ends |= flow.before[flow.at[node]]
        inside = set(flow.members(downstream & ends & ~upstream))
        for node in reversed(flow.nodes):  # and what serves these alone, over shapes and dtypes too
            if node.op == "call_function" and inside.issuperset(flow.users(node)):
                inside.add(node)
        return inside

    def _leaving(self, inside: set[fx.Node]) -> Iterator[fx.Node]:
        """The tensors made inside that are read outside."""
        for node in self._flow.members(self._flow.bits(inside)):
            outside = [user for user in self._flow.users(node) if user not in inside]
            if isinstance(node.meta["val"], torch.Tensor):
                yield from [node] if outside else []
            elif isinstance(node.meta["val"], (list, tuple)):
                yield from outside  # each picks one

    def _narrowed(self, value: fx.Node) -> fx.Node:
        """The part of ``value`` that is used, where a single operator picks it."""
        while True:
            users = self._flow.users(value)
            if (
                len(users) != 1
                or not is_move(users[0])
                or self._size(users[0]) >= self._size(value)
            ):
                return value
            value = users[0]

    def _size(self, node: fx.Node) -> int:
        return int(stored_bytes(node).xreplace(self._hints))

    def _source(self, value: fx.Node, entering: Sequence[fx.Node]) -> fx.Node | None:
        """The stream that ``value`` is the later state of: it flows there by additions alone."""
        dtype = tensor_of(value).dtype
        fits = {n for n in entering if sizes(n) == sizes(value) and tensor_of(n).dtype == dtype}
        pending, seen = [value], set[fx.Node]()
        for node in pending:  # nearest first: the list grows while it is walked
            if node in fits:
                return node
            if node not in seen:
                seen.add(node)
                pending += carriers(node)
        return None
