"""``ditc bench export``: bundles against ``torch.onnx.export``, in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from dit_compile.analysis.machine import describe_setup
from dit_compile.bench.cases import find_case
from dit_compile.bench.exported import PLAIN, ExportJob, Opened, Sampled, Wrote
from dit_compile.bench.process import run_apart
from dit_compile.bench.results import Results, between, generation_ratio, gibibytes
from dit_compile.config import environment_with
from dit_compile.errors import OptionError
from dit_compile.optional import require
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.terminal import JobProgress, terminal


@dataclass(frozen=True)
class ExportBenchOptions:
    """What is measured, in float32 on the CPU.

    Attributes:
        model: its name; see :mod:`dit_compile.bench.cases`.
        passes: pipelines as text; each is exported, and set against the model as it is.
        batch, steps, blocks: see :class:`~dit_compile.bench.exported.ExportJob`.
        out: folder for ``export.json``.
        command: what the user typed, kept with the results.
    """

    model: str
    passes: tuple[str, ...] = ("exact", "fast")
    batch: int = 2
    steps: int = 50
    blocks: int | None = None
    out: str = "bench_out"
    command: str = ""

    def __post_init__(self) -> None:
        find_case(self.model)
        for text in self.passes:
            Pipeline.parse(text)
        if self.batch < 1 or self.steps < 5:
            raise OptionError("the bench needs a batch of 1 and 5 steps")


@dataclass(frozen=True)
class Row:
    """What was measured of one way.

    Attributes:
        way: ``torch.onnx.export``, or a pipeline.
        wrote, opened: of the export, and of the session.
        mapped: of a session on weights that were laid out before; bundles alone can have that.
        seconds: mean time of a step of a generation.
        speedup: the plain way's time for a generation over this way's, and its 95 % interval.
    """

    way: str
    wrote: Wrote
    opened: Opened
    mapped: Opened | None
    seconds: float
    speedup: float
    interval: tuple[float, float]


def run_export_bench(options: ExportBenchOptions) -> Results[Row]:
    """Measure, print the table and write JSON.

    Raises:
        MissingDependencyError: diffusers or onnxruntime is missing.
        DitcError: a measurement failed; what it printed is part of the message.
    """
    for module, extra in (("diffusers", "bench"), ("onnxruntime", "onnx"), ("onnxscript", "onnx")):
        require(module, extra)
    results = Results[Row](options.command, asdict(options), describe_setup("cpu"))
    with JobProgress() as progress, tempfile.TemporaryDirectory() as folder:
        results.rows += _rows(options, folder, progress)
    results.save(Path(options.out) / "export.json")
    what = f"{options.model}, float32, batch {options.batch}, {options.steps} steps"
    table = results.table(what, ("way",), _COLUMNS, (_cells(row) for row in results.rows))
    terminal().print(table)
    return results


def _rows(options: ExportBenchOptions, folder: str, progress: Progress) -> Iterator[Row]:
    ways = (PLAIN, *options.passes)
    threads = torch.get_num_threads()
    job = ExportJob(
        "", folder, options.model, ways, options.batch, options.steps, options.blocks, threads
    )
    bar = progress.add_task(options.model, total=2 * len(ways) + 2 * len(options.passes) + 1)

    env = environment_with(DITC_CACHE_DIR=folder)

    def run(phase: str, *ways: str, once: bool = False) -> dict[str, Any]:
        work = asdict(replace(job, phase=phase, ways=ways, once=once))
        what = f"{phase} {', '.join(ways)}"
        found = run_apart("dit_compile.bench.exported", work, what, env)
        progress.advance(bar)
        return found

    wrote = {way: Wrote(**run("write", way)) for way in ways}
    opened = {way: Opened(**run("open", way)) for way in ways}
    for way in options.passes:
        run("open", way, once=True)  # lays it out
    mapped = {way: Opened(**run("open", way, once=True)) for way in options.passes}
    sampled = Sampled(**run("sample", *ways))
    base = sampled.seconds[PLAIN]
    for way, seconds in sampled.seconds.items():
        speedup, interval = generation_ratio(base, seconds, sampled.computed[way])
        mean = sum(seconds) / len(seconds)
        yield Row(way, wrote[way], opened[way], mapped.get(way), mean, speedup, interval)


_COLUMNS = (
    *("export", "peak", "on disk", "load", "resident", "load mapped", "resident"),
    *("s/step", "speed-up", "95 %", "error"),
)


def _cells(row: Row) -> list[str]:
    return [
        row.way,
        f"{row.wrote.seconds:.1f} s",
        gibibytes(row.wrote.peak_bytes),
        gibibytes(row.wrote.disk_bytes),
        f"{row.opened.seconds:.1f} s",
        gibibytes(row.opened.resident_bytes),
        f"{row.mapped.seconds:.1f} s" if row.mapped else "",
        gibibytes(row.mapped.resident_bytes) if row.mapped else "",
        f"{row.seconds:.3f}",
        f"{row.speedup:.2f}x",
        between(row.interval),
        f"{row.opened.error:.0e}",
    ]
