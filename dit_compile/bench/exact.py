"""``ditc bench exact``: the default preset against eager and torch.compile, on full-size models."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import Progress

from dit_compile.analysis.roofline import Roofline, load_or_measure
from dit_compile.bench.cases import find_case
from dit_compile.bench.plot import save_plot
from dit_compile.bench.process import run_apart
from dit_compile.bench.results import Results, between, gibibytes
from dit_compile.bench.ways import find_way
from dit_compile.bench.worker import Job, Measured
from dit_compile.config import environment_with
from dit_compile.errors import OptionError
from dit_compile.optional import require
from dit_compile.quality.bootstrap import bootstrap
from dit_compile.report.terminal import JobProgress, terminal


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        models, ways: names; see ``cases`` and ``ways``.
        dtype, device, batch, steps, repeats, blocks: see :class:`~dit_compile.bench.worker.Job`.
        compile_times: also measure first calls with an empty cache and with a full one.
        out: folder for ``exact.json`` and ``exact.png``.
        command: what the user typed, kept with the results.
    """

    models: tuple[str, ...]
    ways: tuple[str, ...]
    dtype: str = "bfloat16"
    device: str = "cpu"
    batch: int = 2
    steps: int = 50
    repeats: int = 7
    blocks: int | None = None
    compile_times: bool = True
    out: str = "bench_out"
    command: str = ""

    def job(self, model: str, ways: Sequence[str], repeats: int) -> Job:
        """One process's work."""
        return Job(
            model,
            tuple(ways),
            self.dtype,
            self.device,
            self.batch,
            self.steps,
            repeats,
            self.blocks,
            torch.get_num_threads(),  # those that the roofline was measured with
        )


@dataclass
class Row:
    """What was measured of one model and one way.

    Attributes:
        model, way: names.
        seconds: median time of a step.
        speedup: median ratio of default's time to this way's, step by step; and its 95 % interval.
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
    table = results.table(what, ("model", "way"), _COLUMNS, (_cells(row) for row in results.rows))
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
    for way, seconds in steady.seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(base, seconds, strict=True)]
        median = statistics.median(seconds)
        row = Row(
            model,
            way,
            median,
            statistics.median(ratios),
            _interval(ratios),
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


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median."""
    return bootstrap(len(ratios), lambda at: statistics.median(ratios[i] for i in at.tolist()))


_COLUMNS = ("s/step", "speed-up", "95 %", "roofline", "error", "cold", "warm", "peak")


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        row.way,
        f"{row.seconds:.3f}",
        f"{row.speedup:.2f}x",
        between(row.interval),
        f"{100 * row.share:.0f} %",
        f"{row.error:.0e}",
        f"{row.cold:.1f} s" if row.cold is not None else "-",
        f"{row.warm:.1f} s" if row.warm is not None else "-",
        gibibytes(row.peak_bytes) if row.peak_bytes is not None else "-",
    ]
