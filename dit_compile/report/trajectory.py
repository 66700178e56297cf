"""What a pipeline costs of the final samples, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from dit_compile.errors import OptionError
from dit_compile.report.model import Report, Share, Trajectory
from dit_compile.report.terminal import plain
from dit_compile.shown import shown, shown_on_a_line

#: What the columns of the tables are called, behind the one of the pass or block.
COLUMNS = ("FLOP ratio", "PSNR", "rel. L2")


def panels(trajectory: Trajectory | None) -> Iterator[tuple[str, str, list[Share]]]:
    """The title of each table, what its rows are of, and the rows."""
    if trajectory is None:
        return
    if trajectory.passes:
        times = f"{trajectory.generations} x {trajectory.steps} steps"
        yield f"final samples after {times}, with all passes up to each", "pass", trajectory.passes
    if trajectory.blocks:
        title = f"final samples, with {shown(trajectory.approximation)} in one block alone"
        yield title, "block", trajectory.blocks


def print_trajectory(trajectory: Trajectory | None, console: Console) -> None:
    """Write a table by pass and one by block; nothing without numbers."""
    for title, first, shares in panels(trajectory):
        console.print(plain(title), soft_wrap=True)
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(first)
        for name in COLUMNS:
            table.add_column(name, justify="right")
        for share in shares:
            table.add_row(*map(plain, share_row(share)))
        console.print(table)


def share_row(share: Share) -> tuple[str, str, str, str]:
    """The cells of one pass or block."""
    error = "-" if share.rel_l2 is None else f"{share.rel_l2:.2g}"
    return shown_on_a_line(share.name), f"{share.flop_ratio:.2f}x", decibels(share), error


def decibels(share: Share) -> str:
    """``41.2 dB``, or a dash where nothing bounds it."""
    return "-" if share.psnr is None else f"{share.psnr:.1f} dB"


def check_belongs(trajectory: Trajectory, report: Report) -> None:
    """Check that it was measured with the report's own passes.

    Raises:
        OptionError: it was not.
    """
    names: dict[int | None, str] = dict(enumerate(entry.name for entry in report.passes))
    for share in trajectory.passes:
        has = names.get(share.position, "no pass")
        if has != share.name:
            raise OptionError(
                f"the samples were made with {share.name} at #{share.position}, where this report "
                f"has {has}; measure with its own passes: {report.pipeline}"
            )
