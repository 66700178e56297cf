"""Where to cut a graph so that what is known early is computed early.

The cut goes *before* views and broadcasts: a mask is kept as it came, not as ``[N, N]``, and a
modulation as ``[B, D]``, not as ``[B, N, D]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from dit_compile.analysis.binding import node_bindings
from dit_compile.analysis.cost import Hints, node_cost, symbol_hints
from dit_compile.analysis.cost_rules import is_view, stored_bytes
from dit_compile.ir.memory import is_returned
from dit_compile.ir.program import Binding, Program
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True)
class Value:
    """A value to compute ahead.

    Attributes:
        node: what the main graph computes today.
        kept_bytes: bytes to keep for one step.
        work_bytes: bytes moved to compute it, with what only it needs.
    """

    node: fx.Node
    kept_bytes: int
    work_bytes: int


def worthwhile(program: Program, binding: Binding, rw: Rewriter) -> list[Value]:
    """The values on the cut that cost more to compute at each step than to read.

    Args:
        program: the Program; its main graph is cut.
        binding: everything that is known by then may be computed ahead.
        rw: told of the values that stay.
    """
    graph = program.main
    hints = symbol_hints(graph)
    weights = set(program.weight_nodes(graph))
    moved: dict[fx.Node, int] = {}
    found = []
    for node in _cut(program, binding, hints):
        kept = _bytes(node, hints)
        needed = _with_ancestors(node)
        for other in needed - moved.keys():
            moved[other] = node_cost(other, weights).evaluate(hints).bytes_moved
        work = sum(moved[other] for other in needed)
        if work == 0:
            continue  # views of an input
        if is_returned(node):
            rw.miss(node, "the caller gets it, and may write into it")
        elif work < kept:
            rw.miss(node, f"reading {kept:,} bytes costs more than computing it")
        else:
            found.append(Value(node, kept, work))
    return found


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


def _cut(program: Program, binding: Binding, hints: Hints) -> list[fx.Node]:
    """Tensors of at most ``binding`` that later values read, behind views where that is smaller."""
    times = node_bindings(program)
    early = {n for n, time in times.items() if n.op == "call_function" and time <= binding}
    leaves: dict[fx.Node, list[fx.Node]] = {}
    for node in program.main.nodes:
        if node in early:
            continue
        for arg in node.all_input_nodes:
            if arg in early and _is_tensor(arg):
                group = leaves.setdefault(_behind_views(arg, early), [])
                group.extend([arg] if arg not in group else [])
    order = {node: i for i, node in enumerate(program.main.nodes)}
    return sorted(_smaller(leaves, hints), key=order.__getitem__)


def _smaller(leaves: dict[fx.Node, list[fx.Node]], hints: Hints) -> Iterator[fx.Node]:
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


def _with_ancestors(node: fx.Node) -> set[fx.Node]:
    seen = {node}
    pending = [node]
    while pending:
        fresh = [n for n in pending.pop().all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return seen
