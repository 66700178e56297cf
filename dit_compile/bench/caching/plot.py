"""The trade-off between what a cache saves and how near its pictures stay to the uncached ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dit_compile.bench.caching.row import Row
from dit_compile.bench.caching.tuning import Tried
from dit_compile.files import replaced
from dit_compile.optional import require


def save_plot(path: Path, rows: Sequence[Row], tried: Sequence[Tried]) -> None:
    """PSNR over the ratio of operations and over wall time, measured points with 95 % intervals.

    Lines are what a group reaches at a ratio or a higher one: on the left by all settings that were
    tried on the tuning seed, on the right by what was measured, in the faster of its forms.
    """
    measured = {row.title: row for row in sorted(rows, key=lambda row: row.speed_up)}
    cached = [row for row in measured.values() if row.group != "uncached"]
    if not cached:
        return
    figure = require("matplotlib.figure", "bench").Figure(figsize=(11, 4.5), layout="constrained")
    work, time = figure.subplots(1, 2, sharey=True)
    for number, group in enumerate(sorted({row.group for row in cached})):
        mine = [row for row in cached if row.group == group]
        decibels = [row.scores.psnr for row in mine]
        lows, highs = zip(*(row.scores.psnr_interval for row in mine), strict=True)
        reach = [
            [value - low for value, low in zip(decibels, lows, strict=True)],
            [high - value for value, high in zip(decibels, highs, strict=True)],
        ]
        style = {"color": f"C{number}", "drawstyle": "steps-pre", "linewidth": 1}
        dots = {"color": f"C{number}", "fmt": "o", "capsize": 2, "label": group}
        of_group = [each for each in tried if each.contender.group == group]
        work.plot(*_frontier((each.flop_ratio, each.psnr) for each in of_group), **style)
        work.errorbar([row.flop_ratio for row in mine], decibels, yerr=reach, **dots)
        time.plot(*_frontier((row.speed_up, row.scores.psnr) for row in mine), **style)
        time.errorbar([row.speed_up for row in mine], decibels, yerr=reach, **dots)
    work.set_xlabel("fewer operations than uncached (ratio)")
    time.set_xlabel("wall time: speed-up over uncached eager")
    work.set_ylabel("PSNR against uncached (dB)")
    least = min(row.scores.psnr for row in cached)
    work.set_ylim(bottom=least - 5)
    for row in rows:
        if row.group == "uncached" and row.form == "compiled":
            time.axvline(row.speed_up, color="gray", linestyle=":", label="torch.compile, uncached")
    for axes in (work, time):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with replaced(Path(path)) as draft:
        figure.savefig(draft, dpi=150)


def _frontier(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Places and values of those that no other exceeds in both, by growing place."""
    places, values = list[float](), list[float]()
    for place, value in sorted(points, reverse=True):
        if not values or value > values[0]:
            places.insert(0, place)
            values.insert(0, value)
    return places, values
