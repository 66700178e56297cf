"""What ``ditc bench cache`` found: rows, comparisons, tables and the trade-off plot."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dit_compile.bench.caching.scores import ImageScores, Interval
from dit_compile.files import write_atomically
from dit_compile.optional import require
from dit_compile.quality.bootstrap import bootstrap


@dataclass(frozen=True)
class Row:
    """What was measured of one setting in one form.

    Attributes:
        model, group, method, setting: as in ``contenders.Contender``.
        form: ``eager`` or ``compiled``.
        seconds: median wall time of an image, first call apart.
        speed_up: median ratio of the plain model's wall time in eager to its own, taking turns.
        speed_up_interval: its 95 % interval.
        flop_ratio: operations of the plain model over its own.
        scores: of the images.
        drift: relative L2 error of the latents against the plain model's after each step.
        kept_bytes: of tensors that live from step to step.
        first_call: seconds of the first generation; 0 where nothing is compiled.
        graph_breaks: places where Dynamo gave up a single graph.
        recompiles: compilations after the first generation.
    """

    model: str
    group: str
    method: str
    setting: str
    form: str
    seconds: float
    speed_up: float
    speed_up_interval: Interval
    flop_ratio: float
    scores: ImageScores
    drift: Sequence[float]
    kept_bytes: int
    first_call: float
    graph_breaks: int
    recompiles: int

    @property
    def name(self) -> str:
        """Its group and method."""
        return self.group if self.group == self.method else f"{self.group} {self.method}"


def speed_up(base: Sequence[float], own: Sequence[float]) -> tuple[float, Interval]:
    """The median ratio of wall times that were taken in turns, and its 95 % interval."""
    ratios = [theirs / ours for theirs, ours in zip(base, own, strict=True)]
    interval = bootstrap(len(ratios), lambda at: statistics.median(ratios[i] for i in at.tolist()))
    return statistics.median(ratios), interval


@dataclass(frozen=True)
class Comparison:
    """A setting of ditc and the best of the others at one ratio of operations.

    Attributes:
        model: its name.
        ratio: both reach it.
        ours, theirs: what they are.
        psnr_gain: difference of their PSNR in dB with its 95 % interval; above 0 if ditc is better.
        frechet_gain: the same of the Fréchet distance; below 0 if ditc is better.
        time_ratio: their wall time over ditc's.
    """

    model: str
    ratio: float
    ours: str
    theirs: str
    psnr_gain: tuple[float, Interval]
    frechet_gain: tuple[float, Interval]
    time_ratio: float


@dataclass
class Results:
    """All rows, and what they hold for.

    Attributes:
        refused: by model: what could not run, and why.
    """

    date: str
    command: str
    options: dict[str, Any]
    setup: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)


def compare(model: str, rows: Sequence[Row], ratio: float, near: float) -> Iterator[Comparison]:
    """Set compiled rows of a model against the others' row of best PSNR, if there is one.

    They are ditc's of best PSNR, and its best of no greater Fréchet distance than theirs.
    """
    able = [row for row in rows if row.form == "compiled" and row.flop_ratio >= near * ratio]
    own = [row for row in able if row.group == "ditc"]
    others = [row for row in able if row.group not in ("ditc", "uncached")]
    if not own or not others:
        return
    theirs, shown = _best(others), [_best(own)]
    nearer = [row for row in own if row.scores.frechet <= theirs.scores.frechet]
    if nearer and _best(nearer) is not shown[0]:
        shown.append(_best(nearer))
    for ours in shown:
        yield Comparison(
            model,
            ratio,
            f"{ours.name} {ours.setting}",
            f"{theirs.name} {theirs.setting}",
            ours.scores.psnr_gain(theirs.scores),
            ours.scores.frechet_gain(theirs.scores),
            theirs.seconds / ours.seconds,
        )


def _best(rows: Iterable[Row]) -> Row:
    return max(rows, key=lambda row: row.scores.psnr)


def save(results: Results, out: Path) -> None:
    """Write ``cache.json`` and a plot for each model."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "cache.json", json.dumps(_plain(results), indent=2) + "\n")
    for model in dict.fromkeys(row.model for row in results.rows):
        _plot(out / f"cache_{model}.png", [row for row in results.rows if row.model == model])


def _plain(value: Any) -> Any:
    """Data classes as what JSON has."""
    if isinstance(value, ImageScores):
        return value.summary()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value


def _plot(path: Path, rows: Sequence[Row]) -> None:
    """PSNR over the ratio of operations, and over wall time, a line for each group."""
    cached = [row for row in rows if row.group != "uncached" and row.form == "compiled"]
    if not cached:
        return
    figure = require("matplotlib.figure", "bench").Figure(figsize=(11, 4.5), layout="constrained")
    work, time = figure.subplots(1, 2, sharey=True)
    for group in dict.fromkeys(row.group for row in cached):
        mine = [row for row in cached if row.group == group]
        for axes, value in ((work, "flop_ratio"), (time, "speed_up")):
            points = sorted(mine, key=lambda row: getattr(row, value))
            decibels = [row.scores.psnr for row in points]
            reach = [
                [row.scores.psnr - row.scores.psnr_interval[0] for row in points],
                [row.scores.psnr_interval[1] - row.scores.psnr for row in points],
            ]
            places = [getattr(row, value) for row in points]
            axes.errorbar(places, decibels, yerr=reach, marker="o", capsize=2, label=group)
    work.set_xlabel("fewer operations than uncached (ratio)")
    time.set_xlabel("wall time: speed-up over uncached eager, both compiled")
    work.set_ylabel("PSNR against uncached (dB)")
    for row in rows:
        if row.group == "uncached" and row.form == "compiled":
            time.axvline(row.speed_up, color="gray", linestyle=":", label="torch.compile, uncached")
    for axes in (work, time):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def print_results(results: Results, console: Console) -> None:
    """The rows, the comparisons, and what could not run."""
    options = results.options
    title = (
        f"{options['images']} images of {options['steps']} steps, guidance "
        f"{options['guidance_scale']:g}, {results.setup['processor']}, "
        f"torch {results.setup['torch']}, {results.date}"
    )
    console.print(_table(title, ("model", "way", "setting", "form"), _COLUMNS, _row_cells(results)))
    if results.comparisons:
        title = "ditc by PSNR, and where its Fréchet distance is no greater; the others by PSNR"
        cells = map(_comparison_cells, results.comparisons)
        console.print(_table(title, ("model", "at least", "ditc", "other"), _GAINS, cells))
    for model, refused in results.refused.items():
        for name, reason in refused.items():
            console.print(f"{model}: {name} did not run: {reason}", highlight=False, markup=False)


_COLUMNS = (
    "s/image",
    "speed-up",
    "95 %",
    "FLOP ratio",
    "PSNR",
    "95 %",
    "SSIM",
    "rel. L2",
    "Fréchet",
    "class acc.",
    "kept",
    "first call",
    "breaks",
    "recompiles",
)
_GAINS = ("PSNR gain", "95 %", "Fréchet gain", "95 %", "time")


def _table(
    title: str, names: Sequence[str], numbers: Sequence[str], rows: Iterable[Iterable[str]]
) -> Table:
    table = Table(title=title, box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    for cells in rows:
        table.add_row(*cells)
    return table


def _row_cells(results: Results) -> Iterator[Iterator[str]]:
    return (_cells(row) for row in results.rows)


def _cells(row: Row) -> Iterator[str]:
    scores, exact = row.scores, math.isinf(row.scores.psnr)
    yield from (row.model, row.name, row.setting, row.form)
    yield f"{row.seconds:.4f}"
    yield f"{row.speed_up:.2f}x"
    yield _between(row.speed_up_interval, ".2f")
    yield f"{row.flop_ratio:.2f}x"
    yield "-" if exact else f"{scores.psnr:.1f} dB"
    yield "-" if exact else _between(scores.psnr_interval, ".1f")
    yield f"{scores.ssim:.4f}"
    yield "-" if exact else f"{row.drift[-1]:.3g}"
    yield f"{scores.frechet:.1f}"
    yield f"{100 * scores.accuracy:.1f} %"
    yield f"{row.kept_bytes / 1e6:.1f} MB"
    yield f"{row.first_call:.1f} s" if row.form == "compiled" else "-"
    yield str(row.graph_breaks) if row.form == "compiled" else "-"
    yield str(row.recompiles) if row.form == "compiled" else "-"


def _comparison_cells(found: Comparison) -> Iterator[str]:
    yield from (found.model, f"{found.ratio:g}x", found.ours, found.theirs)
    for (gain, interval), unit in ((found.psnr_gain, " dB"), (found.frechet_gain, "")):
        yield f"{gain:+.1f}{unit}"
        yield _between(interval, "+.1f")
    yield f"{found.time_ratio:.2f}x"


def _between(interval: Interval, form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"
