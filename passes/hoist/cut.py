"""Where to cut a graph so that what is known early is computed early.

The cut goes *before* views and broadcasts: a mask is kept as it came, not as ``[N, N]``, and a
modulation as ``[B, D]``, not as ``[B, N, D]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from dit_compile.analysis.binding import node_bindings
from dit_compile.analysis.cost import CostValue, node_cost
from dit_compile.analysis.cost_rules import is_view, stored_bytes
from dit_compile.ir.hints import Hints, symbol_hints
from dit_compile.ir.memory import is_returned
from dit_compile.ir.program import Binding, Program
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True)
class Value:
    """A value to compute ahead.

    Attributes:
        node: what the main graph computes today.
        kept_bytes: bytes to keep for one step.
        work: cost of computing it, with all that it needs.
    """

    node: fx.Node
    kept_bytes: int
    work: CostValue


def worthwhile(
    program: Program, binding: Binding, rw: Rewriter, why_not: Callable[[Value], str]
) -> list[Value]:
    """The values to compute ahead, in graph order: those on the cut, or what they are made of.

    Args:
        program: the Program; its main graph is cut.
        binding: everything that is known by then may be computed ahead.
        rw: told of the values on the cut that stay.
        why_not: a reason not to compute a value ahead, empty if there is none.
    """
    hints = symbol_hints(program.main)
    early = _early(program, binding)
    costs = _Costs(program, hints)
    cut = set(_cut(program, early, hints))
    order = {node: i for i, node in enumerate(program.main.nodes)}
    pending, seen, found = sorted(cut, key=order.__getitem__), set(cut), list[Value]()
    for node in pending:  # which grows
        value = Value(node, _bytes(node, hints), costs.with_ancestors(node))
        if value.work.bytes_moved == 0:
            continue  # views of an input
        reason = "the caller gets it, and may write into it" if is_returned(node) else ""
        reason = reason or why_not(value)
        if not reason:
            found.append(value)
            continue
        if node in cut:
            rw.miss(node, reason)
        behind = {_behind_views(arg, early) for arg in node.all_input_nodes if arg in early}
        fresh = {each for each in behind if _is_tensor(each)} - seen
        seen |= fresh
        pending += fresh
    return sorted(found, key=lambda value: order[value.node])


def more_to_read(value: Value) -> str:
    """The reason to stay of a value of which more is kept than computing it moves; else empty."""
    if value.work.bytes_moved < value.kept_bytes:
        return f"reading {value.kept_bytes:,} bytes costs more than computing it"
    return ""


def within(values: list[Value], max_bytes: int, rw: Rewriter, *, rows: int = 1) -> list[fx.Node]:
    """The values that fit ``max_bytes`` together, in graph order; the largest are left first.

    Args:
        values: candidates.
        max_bytes: bytes that may be kept.
        rw: told of the values that do not fit.
        rows: how many times each value is kept.
    """
    total = sum(value.kept_bytes for value in values) * rows
    kept = {value.node: value for value in values}
    for value in sorted(values, key=lambda v: -v.kept_bytes):
        if total <= max_bytes:
            break
        total -= value.kept_bytes * rows
        del kept[value.node]
        times = f" for each of {rows} steps" if rows > 1 else ""
        rw.miss(value.node, f"{value.kept_bytes:,} bytes{times} exceed max-bytes={max_bytes}")
    if kept:
        noun = "value" if len(kept) == 1 else "values"
        rw.note(f"{len(kept)} {noun}, {total / 1e6:.1f} MB kept")
    return list(kept)


def _early(program: Program, binding: Binding) -> set[fx.Node]:
    """What is known by the time of ``binding``, inputs apart."""
    times = node_bindings(program)
    return {n for n, time in times.items() if n.op == "call_function" and time <= binding}


def _cut(program: Program, early: set[fx.Node], hints: Hints) -> Iterator[fx.Node]:
    """Tensors that later values read, behind views where that is smaller."""
    leaves: dict[fx.Node, list[fx.Node]] = {}
    for node in program.main.nodes:
        if node in early:
            continue
        for arg in node.all_input_nodes:
            if arg in early and _is_tensor(arg):
                group = leaves.setdefault(_behind_views(arg, early), [])
                group.extend([arg] if arg not in group else [])
    for root, views in leaves.items():
        whole = _bytes(root, hints) <= sum(_bytes(view, hints) for view in views)
        yield from [root] if whole else views


def _bytes(node: fx.Node, hints: Hints) -> int:
    return int(stored_bytes(node).xreplace(dict(hints)))


def _behind_views(node: fx.Node, early: set[fx.Node]) -> fx.Node:
    """The tensor that ``node`` is a view of."""
    found = node
    while is_view(node):
        node = node.all_input_nodes[0]
        if node not in early:
            break
        if _is_tensor(node):
            found = node
    return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


class _Costs:
    """Costs of nodes together with all that they need."""

    def __init__(self, program: Program, hints: Hints) -> None:
        self._weights = set(program.weight_nodes(program.main))
        self._hints = hints
        self._own: dict[fx.Node, CostValue] = {}

    def with_ancestors(self, node: fx.Node) -> CostValue:
        """The cost of a node and of everything behind it."""
        needed = _with_ancestors(node)
        for each in needed - self._own.keys():
            self._own[each] = node_cost(each, self._weights).evaluate(self._hints)
        return CostValue.sum(self._own[each] for each in needed)


def _with_ancestors(node: fx.Node) -> set[fx.Node]:
    seen = {node}
    pending = [node]
    while pending:
        fresh = [n for n in pending.pop().all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return seen
