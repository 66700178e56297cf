"""The trade-off that calibration found, as a table and as a plot."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dit_compile.files import replaced
from dit_compile.optional import require
from dit_compile.report.terminal import plain
from dit_compile.shown import shown

if TYPE_CHECKING:
    from dit_compile.calibration.plan import Trial

#: Options that are lists, which calibration made.
_LISTS = re.compile(r",[\w-]+=\[[^]]*\]")


def curve_table(curve: Sequence[Trial], chosen: str) -> Table:
    """A row for each trial, the uncached one first; an arrow marks the chosen one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("what varies")
    for title in ("FLOP ratio", "speed-up", "PSNR", "rel. L2"):
        table.add_column(title, justify="right")
    for number, trial in enumerate(curve):
        table.add_row(
            "->" if trial.passes == chosen else "",
            plain(_varied(trial) if number else "uncached"),
            f"{trial.flop_ratio:.2f}x",
            f"{trial.speed_up:.2f}x",
            "-" if math.isinf(trial.psnr) else f"{trial.psnr:.1f} dB",
            f"{trial.rel_l2:.3g}",
        )
    return table


def save_curve(path: str | os.PathLike[str], curve: Sequence[Trial]) -> Path:
    """Plot PSNR over the ratio of operations, a line for each method.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    figure = require("matplotlib.figure", "bench").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Trial]] = {}
    for trial in curve:
        if not math.isinf(trial.psnr):
            lines.setdefault(_method(trial), []).append(trial)
    for method, trials in lines.items():
        trials.sort(key=lambda trial: trial.flop_ratio)
        axes.plot(
            [trial.flop_ratio for trial in trials],
            [trial.psnr for trial in trials],
            marker="o",
            label=shown(method).replace("$", r"\$"),  # else it is read as a formula
        )
    axes.set_xlabel("fewer operations than uncached (ratio)")
    axes.set_ylabel("PSNR against uncached (dB)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replaced(Path(path)) as draft:
        figure.savefig(draft, dpi=150)
    return Path(path)


def _last(trial: Trial) -> str:
    """The text of the pipeline's last pass."""
    head, brace, options = trial.passes.rpartition("{")
    return head.rpartition(",")[2] + brace + options if brace else trial.passes


def _varied(trial: Trial) -> str:
    options = _LISTS.sub("", _last(trial).rpartition("{")[2].rstrip("}"))
    return options if len(options) < 60 else f"{options[:57]}..."


def _method(trial: Trial) -> str:
    options = _last(trial).rpartition("{")[2].rstrip("}").split(",")
    return next((o.removeprefix("method=") for o in options if o.startswith("method=")), "other")
