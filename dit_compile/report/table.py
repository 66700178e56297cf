"""The pass table: what each pass fired on, cost and moved."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dit_compile.pipeline.base import Kind
from dit_compile.report.diff import pass_diff
from dit_compile.report.model import PassEntry, Report
from dit_compile.report.terminal import plain
from dit_compile.report.trajectory import decibels, print_trajectory
from dit_compile.shown import shown, shown_on_a_line

#: What the columns of the table are called.
COLUMNS = ("#", "pass", "kind", "nodes", "hit/miss", "cost", "error", "notes")
_SHOWN_MISSES = 3


def print_report(report: Report, console: Console, *, diffs: bool = False) -> None:
    """Write the tables, and with ``diffs`` each pass's diff."""
    console.print(plain(header(report)))
    console.print(pass_table(report))
    print_trajectory(report.trajectory, console)
    if diffs:
        console.print(Text(pass_diff(report)), soft_wrap=True)


def header(report: Report) -> str:
    """One line about the whole run."""
    before, after = report.stages[0].cost, report.stages[-1].cost
    passes = report.passes
    nodes = f"{passes[0].nodes_before} -> {passes[-1].nodes_after} nodes" if passes else ""
    seconds = report.seconds
    return "   ".join(
        part
        for part in (
            shown(report.model),
            f"torch {shown(report.torch)}",
            nodes,
            f"{flops(before.flops)} -> {flops(after.flops)} a step",
            f"{seconds.pipeline:.2f} s (verify {seconds.verify:.2f} s)",
        )
        if part
    )


def pass_table(report: Report) -> Table:
    """One row a pass: kind, nodes, hits and misses, cost, error, notes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(COLUMNS[0], justify="right")
    for title in COLUMNS[1:]:
        table.add_column(title, overflow="fold")
    for position, entry in enumerate(report.passes):
        approximates = entry.kind == Kind.APPROX.value
        style = "bold yellow" if approximates else "green" if entry.changed else "dim"
        number, name, *rest = row(report, position)
        table.add_row(number, plain(name, style), *map(plain, rest))
    return table


def row(report: Report, position: int) -> tuple[str, ...]:
    """The cells of one pass."""
    entry = report.passes[position]
    return (
        str(position),
        shown(entry.name),
        shown(entry.kind),
        nodes_cell(entry),
        f"{len(entry.rewrites)}/{len(entry.misses)}",
        cost_cell(report, position),
        error_cell(report, position),
        notes_cell(entry),
    )


def nodes_cell(entry: PassEntry) -> str:
    """``412 -> 364``, or ``412 = 412`` where nothing changed."""
    arrow = "->" if entry.changed else "="
    return f"{entry.nodes_before} {arrow} {entry.nodes_after}"


def cost_cell(report: Report, position: int) -> str:
    """What the pass saved of a step, in operations or else in bytes moved."""
    if not report.passes[position].changed:
        return "-"
    before, after = report.before(position).cost, report.after(position).cost
    computed = after.flops - before.flops
    if computed and abs(computed) >= 0.005 * before.flops:
        return flops(computed, signed=True)
    moved = after.bytes_moved - before.bytes_moved
    return f"{moved / 1e6:+.1f} MB moved" if abs(moved) >= 5e4 else "-"


def error_cell(report: Report, position: int) -> str:
    """Error against float64 in units of the error before; of an approximation what samples tell."""
    entry, share = report.passes[position], report.share(position)
    if entry.kind == Kind.APPROX.value and entry.changed:
        return "by schedule" if share is None else f"PSNR {decibels(share)}"
    return "-" if entry.error_growth is None else f"{entry.error_growth:.1f}x noise"


def notes_cell(entry: PassEntry) -> str:
    """Notes, failures, and near misses by reason."""
    parts = list(entry.notes)
    if entry.failure:
        parts.append(f"FAILED: {entry.failure.splitlines()[0]}")
    if entry.skipped:
        parts.append(f"skipped: {entry.skipped}")
    reasons = Counter(miss.reason for miss in entry.misses)
    for reason, count in reasons.most_common(_SHOWN_MISSES):
        where = next(miss.path for miss in entry.misses if miss.reason == reason)
        plural = "es" if count > 1 else ""
        parts.append(f"{count} near miss{plural}: {reason} ({where or 'top level'})")
    if not parts and not entry.changed:
        return "(no change)"
    return shown_on_a_line("; ".join(parts))


def flops(value: float, *, signed: bool = False) -> str:
    """Operations in the unit that reads best."""
    sign = "+" if signed else ""
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("KFLOP", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:{sign}.1f} {unit}"
    return f"{value:{sign}.0f} FLOP"
