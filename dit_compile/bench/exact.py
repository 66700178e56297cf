"""``ditc bench exact``: the default preset against eager and torch.compile, on full-size models."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress

from dit_compile.analysis.roofline import Roofline, load_or_measure
from dit_compile.bench.cases import find_case
from dit_compile.bench.plot import save_plot
from dit_compile.bench.process import run_apart
from dit_compile.bench.results import Results, between, gibibytes, turn_ratio
from dit_compile.bench.ways import STOCK, find_way
from dit_compile.bench.worker import Job, Measured, Setting
from dit_compile.config import environment_with
from dit_compile.errors import OptionError
from dit_compile.optional import require
from dit_compile.report.terminal import JobProgress, terminal


@dataclass(frozen=True)
class BenchOptions(Setting):
    """What is measured.

    Attributes:
        models, ways: names; see ``cases`` and ``ways``.
        repeats: timed steps of each way.
        compile_times: also measure first calls with an empty cache and with a full one.
    """

    models: tuple[str, ...]
    ways: tuple[str, ...]
    repeats: int = 7
    compile_times: bool = True


@dataclass
class Row:
    """What was measured of one model and one way.

    Attributes:
        model, way: names.
        seconds: median time of a step.
        speedup: median ratio of default's time to this way's, step by step; and its 95 % interval.
        lead: the same against the fastest way of torch.compile's own, and its 95 % interval.
        share: of the roofline's arithmetic peak, by the plain model's operations.
        error: relative error against eager.
        cold, warm: seconds of the first call with an empty cache and with a full one.
        peak_bytes: most memory held by a process that starts warm.
    """

    model: str
    way: str
    seconds: float
    speedup: float
    interval: tuple[float, float]
    lead: float
    lead_interval: tuple[float, float]
    share: float
    error: float
    cold: float | None = None
    warm: float | None = None
    peak_bytes: int | None = None


def run_bench(options: BenchOptions) -> Results[Row]:
    """Measure, print the table, and write JSON and a plot, anew after each model.

    Raises:
        OptionError: an unknown model or way, or a number out of range.
        MissingDependencyError: diffusers or matplotlib is missing.
        DitcError: a measurement failed; what it printed is part of the message.
    """
    _check(options)
    roofline = load_or_measure(options.device)
    results = Results[Row](options.command, asdict(options), roofline.setup)
    with JobProgress() as progress:
        for model in options.models:
            results.rows += _rows(model, options, roofline, progress)
            results.save(Path(options.out) / "exact.json")
            save_plot(Path(options.out) / "exact.png", results.rows)
    what = f"{options.dtype}, batch {options.batch}"
    cells = (*map(_cells, results.rows), *_means(results.rows))
    table = results.table(what, ("model", "way"), _COLUMNS, cells)
    terminal().print(table)
    return results


def _check(options: BenchOptions) -> None:
    require("matplotlib.figure", "bench")
    for model in options.models:
        find_case(model)
    for way in options.ways:
        find_way(way)
    if options.repeats < 5 or options.batch < 1 or options.steps < 2:
        raise OptionError("the bench needs at least 5 repeats, a batch of 1 and 2 steps")


def _rows(
    model: str, options: BenchOptions, roofline: Roofline, progress: Progress
) -> Iterator[Row]:
    compiled = [way for way in options.ways if way != "eager"] if options.compile_times else []
    bar = progress.add_task(model, total=2 * len(compiled) + 1)
    first: dict[str, tuple[Measured, Measured]] = {}
    for way in compiled:
        with tempfile.TemporaryDirectory() as cache:
            job = options.job(model, [way], 0)
            pair = []
            for _ in ("cold", "warm"):
                pair.append(_spawn(job, cache))
                progress.advance(bar)
            first[way] = pair[0], pair[1]
    with tempfile.TemporaryDirectory() as cache:
        steady = _spawn(options.job(model, options.ways, options.repeats), cache)
    progress.advance(bar)
    base = steady.seconds["default" if "default" in options.ways else options.ways[0]]
    stock = [seconds for way, seconds in steady.seconds.items() if way in STOCK] or [base]
    fastest = min(stock, key=statistics.median)
    for way, seconds in steady.seconds.items():
        median = statistics.median(seconds)
        row = Row(
            model,
            way,
            median,
            *turn_ratio(base, seconds),
            *turn_ratio(fastest, seconds),
            steady.flops / median / roofline.peak(options.dtype),
            steady.error[way],
        )
        if way in first:
            cold, warm = first[way]
            row.cold, row.warm = cold.first_call[way], warm.first_call[way]
            row.peak_bytes = warm.peak_bytes
        yield row


def _spawn(job: Job, cache: str) -> Measured:
    """Measure in a process of its own, with Inductor's cache in the folder ``cache``."""
    what = f"measuring {job.case} as {', '.join(job.ways)}"
    env = environment_with(TORCHINDUCTOR_CACHE_DIR=cache)
    return Measured(**run_apart("dit_compile.bench.worker", asdict(job), what, env))


_COLUMNS = (
    *("s/step", "speed-up", "95 %", "over best", "95 %"),
    *("roofline", "error", "cold", "warm", "peak"),
)


def _means(rows: Sequence[Row]) -> Iterator[list[str]]:
    """The geometric means over all models, where there are several."""
    if len({row.model for row in rows}) < 2:
        return
    for way in dict.fromkeys(row.way for row in rows):
        mine = [row for row in rows if row.way == way]
        speedup = statistics.geometric_mean(row.speedup for row in mine)
        lead = statistics.geometric_mean(row.lead for row in mine)
        blank = [""] * (len(_COLUMNS) - 4)
        yield ["geometric mean", way, "", f"{speedup:.2f}x", "", f"{lead:.2f}x", *blank]


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        row.way,
        f"{row.seconds:.3f}",
        f"{row.speedup:.2f}x",
        between(row.interval),
        f"{row.lead:.2f}x",
        between(row.lead_interval),
        f"{100 * row.share:.0f} %",
        f"{row.error:.0e}",
        f"{row.cold:.1f} s" if row.cold is not None else "-",
        f"{row.warm:.1f} s" if row.warm is not None else "-",
        gibibytes(row.peak_bytes) if row.peak_bytes is not None else "-",
    ]
