"""Stretches of a graph that repeat: the same operators on the same shapes, over and over.

Found from the sequence of nodes alone, after all passes, so a fusion that joined the end of one
block to the beginning of the next is part of the period and the border lies elsewhere. No module
path and no name is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import leaves
from dit_compile.ir.memory import owner_of
from dit_compile.ir.purity import is_pure

#: Nodes that must match in a row before a distance counts as a period.
_WINDOW = 6
#: Periods that are tried, most frequent first.
_CANDIDATES = 8

Slot = tuple[int, int]


@dataclass(frozen=True)
class Repeat:
    """Isomorphic regions that lie one after the other.

    Attributes:
        regions: the nodes of each region, in order; equal positions correspond.
    """

    regions: tuple[tuple[fx.Node, ...], ...]

    @cached_property
    def operands(self) -> dict[tuple[fx.Node, ...], list[Slot]]:
        """What the regions read from outside: one node a region, and the places that read it.

        A place is a position in the region and an index among that node's arguments.
        """
        inner = [set(region) for region in self.regions]
        found: dict[tuple[fx.Node, ...], list[Slot]] = {}
        for position, nodes in enumerate(zip(*self.regions, strict=True)):
            for index, reads in enumerate(zip(*map(arguments, nodes), strict=True)):
                if reads[0] not in inner[0]:
                    found.setdefault(reads, []).append((position, index))
        return found

    @cached_property
    def results(self) -> list[int]:
        """Positions whose values are read outside their region, in any of the regions."""
        inner = [set(region) for region in self.regions]
        return [
            position
            for position, nodes in enumerate(zip(*self.regions, strict=True))
            if any(set(node.users) - own for node, own in zip(nodes, inner, strict=True))
        ]


def find_repeats(graph: fx.Graph, heavy: Collection[Any]) -> list[Repeat]:
    """All stretches of ``graph`` worth computing as calls of one region, in order.

    Args:
        graph: nodes with fake values.
        heavy: operators that no compiler fuses with what surrounds them. A border is put where it
            separates the fewest bytes that would have been fused.
    """
    # A view of an input costs nothing and is not repeated work: regions are given it.
    nodes = [node for node in graph.nodes if owner_of(node).op == "call_function"]
    return list(_Finder(nodes, heavy).within(0, len(nodes)))


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among ``node``'s arguments, each as often as it is read."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


class _Finder:
    """The search in one sequence of nodes."""

    def __init__(self, nodes: list[fx.Node], heavy: Collection[Any]) -> None:
        self.nodes = nodes
        self.at = {node: index for index, node in enumerate(nodes)}
        self.heavy = [node.target in heavy for node in nodes]
        self._heavy_before, self._heavy_after = _nearest(self.heavy)
        known: dict[Any, int] = {}
        self.kinds = [known.setdefault(_signature(node), len(known)) for node in nodes]

    def within(self, start: int, end: int) -> Iterator[Repeat]:
        """Repeats in ``nodes[start:end]``: the one that saves most, then those on either side."""
        best = max(self._candidates(start, end), key=_saved, default=None)
        if best is None:
            return
        first, last = self.at[best.regions[0][0]], self.at[best.regions[-1][-1]]
        yield from self.within(start, first)
        yield best
        yield from self.within(last + 1, end)

    def _candidates(self, start: int, end: int) -> Iterator[Repeat]:
        for period in self._periods(start, end):
            for low, high in self._stretches(period, start, end):
                for begin in self._borders(period, low, high):
                    repeat = self._checked(period, begin, high)
                    if repeat is not None:
                        yield repeat
                        break

    def _periods(self, start: int, end: int) -> list[int]:
        """Distances at which runs of ``_WINDOW`` kinds of node come again, most frequent first."""
        last: dict[tuple[int, ...], int] = {}
        distances: Counter[int] = Counter()
        for index in range(start, end - _WINDOW + 1):
            window = tuple(self.kinds[index : index + _WINDOW])
            if window in last:
                distances[index - last[window]] += 1
            last[window] = index
        return [period for period, _ in distances.most_common(_CANDIDATES) if period >= _WINDOW]

    def _stretches(self, period: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where the kinds of node go on with ``period``, for two periods at least."""
        low = start
        for index in range(start, end):
            if index + period >= end or self.kinds[index] != self.kinds[index + period]:
                if index - low >= period:
                    yield low, index + period
                low = index + 1

    def _borders(self, period: int, low: int, high: int) -> list[int]:
        """Where the first region may begin: least fusion lost first, then most regions.

        A lost fusion costs time at each step; one region less, which stays as it is, only when
        compiling.
        """

        def cost(begin: int) -> tuple[int, int, int]:
            lost, crossing = self._crossing(begin + period)
            return lost, -((high - begin) // period), crossing

        begins = [b for b in range(low, low + period) if (high - b) // period >= 2]
        return sorted(begins, key=cost)

    def _crossing(self, border: int) -> tuple[int, int]:
        """Bytes made since the last heavy node and read after ``border``.

        Returns:
            those that are read before the next heavy node too, so would be fused; and all.
        """
        since, until = self._heavy_before[border], self._heavy_after[border]
        lost = crossing = 0
        for index in range(since, border):
            readers = [self.at.get(user, len(self.nodes)) for user in self.nodes[index].users]
            if any(reader >= border for reader in readers):
                size = _bytes(self.nodes[index])
                crossing += size
                if not self.heavy[index] and any(border <= reader < until for reader in readers):
                    lost += size
        return lost, crossing

    def _checked(self, period: int, begin: int, high: int) -> Repeat | None:
        """The longest run of regions that also read from one another alike."""
        count = (high - begin) // period
        starts = [begin + period * turn for turn in range(count)]
        forms = [self._form(start, period) for start in starts]
        runs, run = [], [0]
        for before, after in pairwise(range(count)):
            if forms[before] != forms[after]:
                runs.append(run)
                run = []
            run.append(after)
        longest = max([*runs, run], key=len)
        regions = tuple(tuple(self.nodes[starts[turn] : starts[turn] + period]) for turn in longest)
        if len(regions) < 2 or not any(self.heavy[begin : begin + period]):
            return None
        repeat = Repeat(regions)
        return repeat if _can_be_called(repeat) else None

    def _form(self, start: int, period: int) -> list[list[int]]:
        """For each node of a region, where in the region its arguments are; -1 if outside."""
        return [
            [
                where - start if (where := self.at.get(arg, -1)) >= start else -1
                for arg in arguments(node)
            ]
            for node in self.nodes[start : start + period]
        ]


def _nearest(marked: list[bool]) -> tuple[list[int], list[int]]:
    """For each border: the last marked index before it or 0, the first one after it or the end."""
    before, after = [0], [len(marked)]
    for index, mark in enumerate(marked):
        before.append(index if mark else before[-1])
    for index in reversed(range(len(marked))):
        after.append(index if marked[index] else after[-1])
    return before, after[::-1]


def _can_be_called(repeat: Repeat) -> bool:
    """Whether a call can stand for a region: it is pure, and returns tensors of its own memory.

    A view is no such tensor, even of memory of its own: Inductor counts its offset twice.
    """
    if not all(map(is_pure, repeat.regions[0])):
        return False
    results = [region[position] for region in repeat.regions for position in repeat.results]
    return all(
        owner_of(node) is node and isinstance(node.meta["val"], torch.Tensor) for node in results
    )


def _saved(repeat: Repeat) -> tuple[int, int]:
    period = len(repeat.regions[0])
    return (len(repeat.regions) - 1) * period, -period


def _signature(node: fx.Node) -> Any:
    """What a node does, whatever it reads: equal for corresponding nodes of equal regions."""
    args = fx.map_arg((node.args, node.kwargs), lambda _: "%")
    layouts = [_layout(v) for v in leaves(node.meta["val"])]
    reads = [_layout(v) for arg in arguments(node) for v in leaves(arg.meta["val"])]
    return str(node.target), repr(args), repr(layouts), repr(reads)


def _layout(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), str(value.device), tuple(value.shape), tuple(value.stride())
    return type(value).__name__


def _bytes(node: fx.Node) -> int:
    """Size of a node's value, a symbolic size counted by its hint."""
    total = 0
    for value in leaves(node.meta["val"]):
        if isinstance(value, torch.Tensor):
            total += value.element_size() * _hint(value.numel())
    return total


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    return size.node.hint if size.node.has_hint() else 1
