"""``ditc bench export``: bundles against ``torch.onnx.export``, in ONNX Runtime."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from rich.table import Table

from dit_compile.analysis.roofline import describe_setup
from dit_compile.bench.cases import find_case
from dit_compile.bench.exported import PLAIN, ExportJob, Opened, Sampled, Wrote
from dit_compile.bench.process import run_apart
from dit_compile.errors import OptionError
from dit_compile.files import write_atomically
from dit_compile.optional import require
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.quality.bootstrap import bootstrap
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
        seconds: mean time of a step of a generation.
        speedup: the plain way's time for a generation over this way's, and its 95 % interval.
    """

    way: str
    wrote: Wrote
    opened: Opened
    seconds: float
    speedup: float
    interval: tuple[float, float]


@dataclass
class Results:
    """All rows, and what they hold for."""

    date: str
    command: str
    options: dict[str, Any]
    setup: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def run_export_bench(options: ExportBenchOptions) -> Results:
    """Measure, print the table and write JSON.

    Raises:
        MissingDependencyError: diffusers or onnxruntime is missing.
        DitcError: a measurement failed; what it printed is part of the message.
    """
    for module, extra in (("diffusers", "bench"), ("onnxruntime", "onnx"), ("onnxscript", "onnx")):
        require(module, extra)
    date = datetime.date.today().isoformat()
    results = Results(date, options.command, asdict(options), describe_setup("cpu"))
    with JobProgress() as progress, tempfile.TemporaryDirectory() as folder:
        results.rows += _rows(options, folder, progress)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "export.json", json.dumps(asdict(results), indent=2) + "\n")
    terminal().print(_table(results))
    return results


def _rows(options: ExportBenchOptions, folder: str, progress: Progress) -> Iterator[Row]:
    ways = (PLAIN, *options.passes)
    threads = torch.get_num_threads()
    job = ExportJob(
        "", folder, options.model, ways, options.batch, options.steps, options.blocks, threads
    )
    bar = progress.add_task(options.model, total=2 * len(ways) + 1)

    def run(phase: str, *ways: str) -> dict[str, Any]:
        work = replace(job, phase=phase, ways=ways)
        found = run_apart("dit_compile.bench.exported", asdict(work), f"{phase} {', '.join(ways)}")
        progress.advance(bar)
        return found

    wrote = {way: Wrote(**run("write", way)) for way in ways}
    opened = {way: Opened(**run("open", way)) for way in ways}
    sampled = Sampled(**run("sample", *ways))
    base = sampled.seconds[PLAIN]
    for way, seconds in sampled.seconds.items():
        speedup, interval = _ratio(base, seconds)
        mean = sum(seconds) / len(seconds)
        yield Row(way, wrote[way], opened[way], mean, speedup, interval)


def _ratio(base: Sequence[float], own: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The ratio of two generations whose steps took turns, and its 95 % interval."""
    theirs, ours = torch.tensor(base), torch.tensor(own)
    interval = bootstrap(len(base), lambda at: float(theirs[at].sum() / ours[at].sum()))
    return float(theirs.sum() / ours.sum()), interval


def _table(results: Results) -> Table:
    options = results.options
    table = Table(
        title=f"{options['model']}, float32, batch {options['batch']}, {options['steps']} steps, "
        f"{results.setup['processor']}, torch {results.setup['torch']}, {results.date}",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    table.add_column("way")
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    for row in results.rows:
        table.add_row(row.way, *_cells(row))
    return table


_COLUMNS = ("export", "peak", "on disk", "load", "resident", "s/step", "speed-up", "95 %", "error")


def _cells(row: Row) -> Iterator[str]:
    yield f"{row.wrote.seconds:.1f} s"
    yield _gib(row.wrote.peak_bytes)
    yield _gib(row.wrote.disk_bytes)
    yield f"{row.opened.seconds:.1f} s"
    yield _gib(row.opened.resident_bytes)
    yield f"{row.seconds:.3f}"
    yield f"{row.speedup:.2f}x"
    yield f"{row.interval[0]:.2f} to {row.interval[1]:.2f}"
    yield f"{row.opened.error:.0e}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
