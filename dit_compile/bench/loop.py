"""``ditc bench loop``: what a cache saves in a generation of a full-size model, and what it should.

Weights are random, so quality is not measured; ``ditc bench cache`` does that on trained models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dit_compile.analysis.machine import describe_setup
from dit_compile.bench.cases import find_case
from dit_compile.bench.looped import Looped, LoopedAll
from dit_compile.bench.process import run_apart
from dit_compile.bench.results import Results, between, generation_ratio
from dit_compile.bench.worker import Setting
from dit_compile.errors import OptionError
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.terminal import JobProgress, terminal

#: What all pipelines are set against.
BASE = "exact"


@dataclass(frozen=True)
class LoopBenchOptions(Setting):
    """What is measured.

    Attributes:
        models: their names; see :mod:`dit_compile.bench.cases`.
        passes: pipelines as text, each with a cache.
        generations: that are timed, after one that is not.
    """

    models: tuple[str, ...]
    passes: tuple[str, ...]
    generations: int = 1
    steps: int = field(default=20, kw_only=True)

    def __post_init__(self) -> None:
        for name in self.models:
            find_case(name)
        for text in self.passes:
            Pipeline.parse(text)
        if self.batch < 1 or self.steps < 5 or self.generations < 1:
            raise OptionError("the bench needs a batch of 1, 5 steps and a generation")


@dataclass(frozen=True)
class Row:
    """What was measured of one pipeline on one model.

    Attributes:
        model, passes: names.
        seconds: mean time of a step of a generation.
        speedup: time of a generation with exact passes alone over its own; and its 95 % interval.
        flop_ratio: the same of operations: what the speed-up would be if nothing else took time.
        computed: steps that were computed in full.
        variants: graphs that can serve a step.
        state_bytes: kept from step to step, for each lane.
        recompiles: what torch compiled after the first generation, for all pipelines of the model.
    """

    model: str
    passes: str
    seconds: float
    speedup: float
    interval: tuple[float, float]
    flop_ratio: float
    computed: int
    variants: int
    state_bytes: int
    recompiles: int


def run_loop_bench(options: LoopBenchOptions) -> Results[Row]:
    """Measure, print the table, and write JSON anew after each model.

    Raises:
        MissingDependencyError: diffusers is missing.
        DitcError: a measurement failed; what it printed is part of the message.
    """
    results = Results[Row](options.command, asdict(options), describe_setup(options.device))
    with JobProgress() as progress:
        bar = progress.add_task("models", total=len(options.models))
        for model in options.models:
            results.rows += _rows(model, options)
            results.save(Path(options.out) / "loop.json")
            progress.advance(bar)
    what = f"{options.dtype}, batch {options.batch}, {options.steps} steps"
    cells = (_cells(row, options.steps) for row in results.rows)
    terminal().print(results.table(what, ("model", "passes"), _COLUMNS, cells))
    return results


def _rows(model: str, options: LoopBenchOptions) -> Iterator[Row]:
    job = options.job(model, (BASE, *options.passes), options.generations)
    done = run_apart("dit_compile.bench.looped", asdict(job), f"measuring {model}")
    found = LoopedAll({way: Looped(**one) for way, one in done["ways"].items()}, done["recompiles"])
    base = found.ways[BASE]
    for way, one in found.ways.items():
        speedup, interval = generation_ratio(base.seconds, one.seconds, one.graphs)
        yield Row(
            model,
            way,
            sum(one.seconds) / len(one.seconds),
            speedup,
            interval,
            base.flops / one.flops,
            one.computed,
            one.variants,
            one.state_bytes,
            found.recompiles,
        )


_COLUMNS = (
    "s/step",
    "speed-up",
    "95 %",
    "FLOP ratio",
    "share",
    "computed",
    "variants",
    "state",
    "recompiles",
)


def _cells(row: Row, steps: int) -> list[str]:
    return [
        row.model,
        row.passes.removeprefix("exact,insert-block-cache"),
        f"{row.seconds:.3f}",
        f"{row.speedup:.2f}x",
        between(row.interval),
        f"{row.flop_ratio:.2f}x",
        f"{100 * row.speedup / row.flop_ratio:.0f} %",
        f"{row.computed}/{steps}",
        str(row.variants),
        f"{row.state_bytes / 1e6:.1f} MB",
        str(row.recompiles),
    ]
