"""How values map from the stage before a pass to the stage after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import networkx as nx

from dit_compile.pipeline.rewriter import Rewrite
from dit_compile.report.identity import Identities
from dit_compile.report.model import Graph, Move, PassEntry, Report


def find_moves(
    rewrites: Sequence[Rewrite], known: Identities, before: set[int], after: set[int]
) -> list[Move]:
    """What became of each value that is not simply kept.

    Rewrites that share a value which lives in neither stage are one move. Each value that goes or
    comes is in exactly one move, so that with the kept ones the mapping is total.

    Args:
        rewrites: what the pass did, in order.
        known: the identities of nodes.
        before: values of the stage before the pass.
        after: values of the stage after it.
    """
    gone, new = before - after, after - before
    links = nx.Graph()
    targets: dict[int, set[int]] = {}
    for position, rewrite in enumerate(rewrites):
        links.add_node(position)
        for node in (*rewrite.before, *rewrite.after):
            value = known.get(node)
            if value is not None and value in before and value in after:
                targets.setdefault(position, set()).add(value)
            else:  # a node that came and went within the pass stands for itself
                links.add_edge(position, ("value", node if value is None else value))
    moves = [_move(group, gone, new, targets) for group in nx.connected_components(links)]
    found = [move for move in moves if move.before or move.after]
    left = gone.difference(*(move.before for move in found))
    come = new.difference(*(move.after for move in found))
    found += [Move([value], []) for value in sorted(left)]
    return found + [Move([], [value]) for value in sorted(come)]


def _move(
    group: Iterable[object], gone: set[int], new: set[int], targets: dict[int, set[int]]
) -> Move:
    positions = sorted(item for item in group if isinstance(item, int))
    values = {item[1] for item in group if isinstance(item, tuple)}
    removed = sorted(value for value in values if value in gone)
    added = {value for value in values if value in new}
    if removed:  # what was kept stands for what went
        added.update(*(targets.get(position, ()) for position in positions))
    return Move(removed, sorted(added), positions)


class Mapping:
    """The relation between the values before a pass and those after it.

    It is total: each value of either stage is asked for without an error; those that went or came
    map to nothing. It is symmetric: ``b in forward(a)`` just if ``a in backward(b)``.
    """

    def __init__(self, report: Report, position: int) -> None:
        self.before = _values(report, report.before(position).graphs)
        self.after = _values(report, report.after(position).graphs)
        self._forward: dict[int, dict[int, None]] = {value: {} for value in self.before}
        self._backward: dict[int, dict[int, None]] = {value: {} for value in self.after}
        for value in self.before & self.after:
            self._link(value, value)
        for move in report.passes[position].moves:
            for old in move.before:
                for new in move.after:
                    self._link(old, new)
        for graph in report.after(position).graphs:
            for node in report.nodes_of(graph):
                source = node.copy_of
                if source in self.before and node.id not in self.before:
                    self._link(source, node.id)

    def forward(self, value: int) -> list[int]:
        """The values after the pass that stand for ``value``."""
        return list(self._forward[value])

    def backward(self, value: int) -> list[int]:
        """The values before the pass that ``value`` stands for."""
        return list(self._backward[value])

    def _link(self, old: int, new: int) -> None:
        self._forward[old][new] = None
        self._backward[new][old] = None


def _values(report: Report, graphs: Sequence[Graph]) -> set[int]:
    return {value for graph in graphs for node in report.nodes_of(graph) for value in node.values()}


def ancestry(report: Report, value: int, stage: int) -> list[tuple[int, list[int]]]:
    """For each stage from ``stage`` back to the captured one, the values that ``value`` stands for.

    Returns:
        Pairs of a stage's index and identities, the newest first.
    """
    found = [(stage, [value])]
    for position in reversed(range(len(report.passes))):
        entry: PassEntry = report.passes[position]
        if entry.stage > stage or not entry.changed:
            continue
        mapping = Mapping(report, position)
        values = dict.fromkeys(old for new in found[-1][1] for old in mapping.backward(new))
        found.append((entry.stage - 1, list(values)))
    return found
