"""The pass table: what each pass fired on, cost and moved."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dit_compile.analysis.step_cost import StepCost
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.pipeline import PassRecord

if TYPE_CHECKING:
    from dit_compile.explanation import Explanation

_SHOWN_MISSES = 3
_FILE_WIDTH = 160


def terminal(*, stderr: bool = False) -> Console:
    """A console; as wide as the terminal, or wide enough for the tables when piped to a file.

    What is printed is shown as it is: shapes such as ``f32[s0,4]`` are no markup.
    """
    console = Console(stderr=stderr)
    width = None if console.is_terminal else _FILE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def header(explanation: Explanation) -> str:
    """One line about the whole run."""
    before, after = explanation.costs[0], explanation.costs[-1]
    records = explanation.run.records
    nodes = f"{records[0].nodes_before} -> {records[-1].nodes_after} nodes" if records else ""
    return "   ".join(
        part
        for part in (
            f"{explanation.name}",
            f"torch {explanation.torch_version}",
            nodes,
            f"{flops(before.flops)} -> {flops(after.flops)} a step",
            f"{explanation.run.seconds:.2f} s (verify {explanation.verify_seconds:.2f} s)",
        )
        if part
    )


def pass_table(explanation: Explanation) -> Table:
    """One row a pass: kind, nodes, hits and misses, cost, error, notes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right")
    for title in ("pass", "kind", "nodes", "hit/miss", "cost", "error", "notes"):
        table.add_column(title, overflow="fold")
    for position, record in enumerate(explanation.run.records):
        kind = record.item.kind
        style = "bold yellow" if kind is Kind.APPROX else "green" if record.changed else "dim"
        table.add_row(
            str(position),
            Text(record.item.name, style=style),
            kind.value,
            nodes_cell(record),
            f"{len(record.rewrites)}/{len(record.misses)}",
            cost_cell(record),
            error_cell(record),
            Text(notes_cell(record)),
        )
    return table


def nodes_cell(record: PassRecord) -> str:
    """``412 -> 364``, or ``412 = 412`` where nothing changed."""
    arrow = "->" if record.changed else "="
    return f"{record.nodes_before} {arrow} {record.nodes_after}"


def cost_cell(record: PassRecord) -> str:
    """What the pass saved of a step, in operations or else in bytes moved."""
    costs = record.details.get("cost")
    if not record.changed or not isinstance(costs, tuple):
        return "-"
    before, after = costs
    assert isinstance(before, StepCost)
    assert isinstance(after, StepCost)
    computed = after.flops - before.flops
    if computed and abs(computed) >= 0.005 * before.flops:
        return flops(computed, signed=True)
    moved = after.bytes_moved - before.bytes_moved
    return f"{moved / 1e6:+.1f} MB moved" if abs(moved) >= 5e4 else "-"


def error_cell(record: PassRecord) -> str:
    """Error against float64 in units of the error before the pass."""
    if record.item.kind is Kind.APPROX and record.changed:
        return "by schedule"
    growth = record.details.get("error_growth")
    return f"{growth:.1f}x noise" if isinstance(growth, float) else "-"


def notes_cell(record: PassRecord) -> str:
    """Notes, failures, and near misses by reason."""
    parts = list(record.notes)
    if record.failure:
        parts.append(f"FAILED: {record.failure.splitlines()[0]}")
    if record.skipped:
        parts.append(f"skipped: {record.skipped}")
    reasons = Counter(miss.reason for miss in record.misses)
    for reason, count in reasons.most_common(_SHOWN_MISSES):
        where = next(miss.path for miss in record.misses if miss.reason == reason)
        plural = "es" if count > 1 else ""
        parts.append(f"{count} near miss{plural}: {reason} ({where or 'top level'})")
    if not parts and not record.changed:
        return "(no change)"
    return "; ".join(parts)


def flops(value: float, *, signed: bool = False) -> str:
    """Operations in the unit that reads best."""
    sign = "+" if signed else ""
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("KFLOP", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:{sign}.1f} {unit}"
    return f"{value:{sign}.0f} FLOP"
