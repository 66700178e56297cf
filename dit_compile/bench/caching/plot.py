"""The trade-off between what a cache saves and how near its pictures stay to the uncached ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dit_compile.bench.caching.row import Row
from dit_compile.bench.caching.tuning import Tried
from dit_compile.optional import require


def save_plot(path: Path, rows: Sequence[Row], tried: Sequence[Tried]) -> None:
    """PSNR over the ratio of operations and over wall time, a line with intervals for each group.

    Small dots are settings on the tuning seed. Wall time is that of the faster form.
    """
    fastest: dict[tuple[str, str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row.speed_up):
        if row.group != "uncached":
            fastest[row.group, row.method, row.setting] = row
    if not fastest:
        return
    figure = require("matplotlib.figure", "bench").Figure(figsize=(11, 4.5), layout="constrained")
    work, time = figure.subplots(1, 2, sharey=True)
    for number, group in enumerate(sorted({row.group for row in fastest.values()})):
        color = f"C{number}"
        dots = [each for each in tried if each.contender.group == group]
        places, decibels = [each.flop_ratio for each in dots], [each.psnr for each in dots]
        work.scatter(places, decibels, s=6, color=color, alpha=0.4, linewidths=0)
        mine = [row for row in fastest.values() if row.group == group]
        for axes, value in ((work, "flop_ratio"), (time, "speed_up")):
            points = sorted(mine, key=lambda row: getattr(row, value))
            axes.errorbar(
                [getattr(row, value) for row in points],
                [row.scores.psnr for row in points],
                yerr=[
                    [row.scores.psnr - row.scores.psnr_interval[0] for row in points],
                    [row.scores.psnr_interval[1] - row.scores.psnr for row in points],
                ],
                color=color,
                marker="o",
                capsize=2,
                label=group,
            )
    work.set_xlabel("fewer operations than uncached (ratio); dots: tried on the tuning seed")
    time.set_xlabel("wall time of the faster form: speed-up over uncached eager")
    work.set_ylabel("PSNR against uncached (dB)")
    for row in rows:
        if row.group == "uncached" and row.form == "compiled":
            time.axvline(row.speed_up, color="gray", linestyle=":", label="torch.compile, uncached")
    for axes in (work, time):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
