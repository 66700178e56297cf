"""The plot of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dit_compile.files import replaced
from dit_compile.optional import require


class _Bar(Protocol):
    model: str
    way: str
    speedup: float
    interval: tuple[float, float]


def save_plot(path: Path, rows: Sequence[_Bar]) -> None:
    """Bars of the speed-up over torch.compile by model and way, with their intervals."""
    models = list(dict.fromkeys(row.model for row in rows))
    ways = list(dict.fromkeys(row.way for row in rows))
    figure = require("matplotlib.figure", "bench").Figure(
        figsize=(2 + 1.6 * len(models), 4), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(ways)
    for number, way in enumerate(ways):
        mine = [row for row in rows if row.way == way]
        places = [models.index(row.model) + (number - (len(ways) - 1) / 2) * width for row in mine]
        heights = [row.speedup for row in mine]
        low = [max(0.0, row.speedup - row.interval[0]) for row in mine]
        high = [max(0.0, row.interval[1] - row.speedup) for row in mine]
        axes.bar(places, heights, width, yerr=[low, high], capsize=2, label=way)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(models)), models, rotation=20, ha="right")
    axes.set_ylabel("speed-up over torch.compile")
    axes.legend(frameon=False, ncols=len(ways))
    with replaced(Path(path)) as draft:
        figure.savefig(draft, dpi=150)
