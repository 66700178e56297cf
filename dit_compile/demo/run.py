"""``ditc demo``: sample a bundled model in four ways, and compare time, work and pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dit_compile.demo import digits
from dit_compile.demo.bundled import BundledModel
from dit_compile.demo.models import BUNDLED
from dit_compile.demo.sheet import save_sheet
from dit_compile.errors import OptionError, find_named
from dit_compile.explanation import Explanation, explain
from dit_compile.ir.program import MAIN
from dit_compile.quality.compilations import Compilations
from dit_compile.quality.metrics import class_accuracy, frechet_distance, psnr
from dit_compile.report.terminal import PlainProgress, terminal
from dit_compile.runtime.session import session


@dataclass(frozen=True)
class DemoOptions:
    """What the demo does.

    Attributes:
        model: name of the bundled model.
        out: folder that the pictures are written to.
        num_inference_steps: denoising steps of a generation.
        images: images of a generation; classes take turns.
        interval: steps from one computed step to the next with the cache.
        guidance_scale: weight of classifier-free guidance.
        seed: seed of the first generation's noise.
        repeats: generations of each way, with different seeds; the ways take turns.
    """

    model: str = "digits"
    out: str = "demo_out"
    num_inference_steps: int = 50
    images: int = 40
    interval: int = 3
    guidance_scale: float = 3.0
    seed: int = 0
    repeats: int = 2


@dataclass
class Way:
    """One way to run the model, and what was measured of it."""

    name: str
    model: Callable[..., Any]
    optimised: bool = False
    first_call: float = 0.0
    seconds: list[float] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)
    compilations: Compilations = field(default_factory=Compilations)
    late: Compilations = field(default_factory=Compilations)
    counts: dict[str, int] = field(default_factory=dict)


def run_demo(options: DemoOptions) -> list[Way]:
    """Run the demo and print its tables.

    Returns:
        The measured ways, in the order of the table.

    Raises:
        OptionError: the model is unknown, or a number is out of range.
        MissingDependencyError: diffusers, scikit-learn or pillow is missing.
    """
    if options.images < 10 or options.num_inference_steps < 2:
        raise OptionError("the demo needs at least 10 images (one of each digit) and 2 steps")
    bundled = find_named("model", options.model, BUNDLED)
    console = terminal()
    labels = torch.arange(options.images) % digits.NUM_CLASSES
    ways = _ways(options, bundled)
    with PlainProgress() as progress:
        steps = options.repeats * options.num_inference_steps
        bars = [progress.add_task(way.name, total=steps + 1) for way in ways]
        for way, bar in zip(ways, bars, strict=True):
            _warm_up(way, bundled, labels)
            progress.advance(bar)
        for repeat in range(options.repeats):
            for way, bar in zip(ways, bars, strict=True):
                advance = partial(progress.advance, bar)
                _generate(way, bundled, labels, options, repeat, advance)
    found = _explanation(bundled, labels, options)
    console.print(_table(ways, labels.repeat(options.repeats), options, found))
    sheet = Path(options.out) / f"{bundled.name}.png"
    save_sheet(sheet, [(way.name, way.images[0][: digits.NUM_CLASSES]) for way in ways])
    console.print(f"pictures: {sheet}", highlight=False)
    found.print(console)
    return ways


def _pipeline(options: DemoOptions) -> str:
    return f"exact,insert-block-cache{{method=interval,interval={options.interval}}}"


def _ways(options: DemoOptions, bundled: BundledModel) -> list[Way]:
    """Four ways, each with its own copy of the model so that nothing is shared."""

    def compiled(**how: Any) -> Any:
        return torch.compile(bundled.load(), fullgraph=True, dynamic=False, **how)

    cached = {"passes": _pipeline(options), "strict": True}
    return [
        Way("eager", bundled.load()),
        Way("torch.compile", compiled()),
        Way("ditc exact", compiled(backend="ditc", options={"strict": True}), True),
        Way(f"ditc interval {options.interval}", compiled(backend="ditc", options=cached), True),
    ]


def _warm_up(way: Way, bundled: BundledModel, labels: torch.Tensor) -> None:
    """The first call, in which compilation happens."""
    call = bundled.example(labels)
    started = time.perf_counter()
    with way.compilations, torch.no_grad(), session():
        way.model(*call.args, **call.kwargs)
    way.first_call = time.perf_counter() - started


def _generate(
    way: Way,
    bundled: BundledModel,
    labels: torch.Tensor,
    options: DemoOptions,
    repeat: int,
    advance: Callable[[], None],
) -> None:
    stated = session(timesteps=bundled.timesteps(options.num_inference_steps))
    started = time.perf_counter()
    with way.late, stated:
        images = bundled.sample(
            way.model,
            labels,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            seed=options.seed + repeat,
            on_step=lambda *_: advance(),
        )
        way.counts = stated.summary()
    way.seconds.append(time.perf_counter() - started)
    way.images.append(images)


def _explanation(bundled: BundledModel, labels: torch.Tensor, options: DemoOptions) -> Explanation:
    call = bundled.example(labels)
    return explain(bundled.load(), call.args, call.kwargs, passes=_pipeline(options))


def _table(
    ways: list[Way], labels: torch.Tensor, options: DemoOptions, found: Explanation
) -> Table:
    """One row a way."""
    table = Table(
        title=f"{options.repeats} x {options.images} images, {options.num_inference_steps} steps, "
        f"guidance {options.guidance_scale:g}",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    table.add_column("way")
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    base = ways[0]
    for way in ways:
        table.add_row(way.name, *_cells(way, base, labels, options, found))
    return table


_COLUMNS = (
    "s/image",
    "speed-up",
    "first call",
    "FLOP ratio",
    "computed",
    "PSNR",
    "Fréchet",
    "class acc.",
    "breaks",
    "recompiles",
)


def _cells(
    way: Way, base: Way, labels: torch.Tensor, options: DemoOptions, found: Explanation
) -> Iterator[str]:
    seconds = statistics.median(way.seconds)
    images, reference = torch.cat(way.images), torch.cat(base.images)
    classifier = digits.load_classifier()
    real, _ = digits.real_digits("test")
    with torch.no_grad():
        features, real_features = classifier.features(images), classifier.features(real)
        accuracy = class_accuracy(classifier(images), labels)
    steps = options.num_inference_steps
    computed = way.counts.get("computed") or steps
    yield f"{seconds / options.images:.4f}"
    yield f"{statistics.median(base.seconds) / seconds:.2f}x"
    yield f"{way.first_call:.1f} s"
    yield f"{_flop_ratio(way, computed, steps, found):.2f}x"
    yield f"{computed}/{steps}"
    yield "-" if way is base else f"{psnr(images, reference):.1f} dB"
    yield f"{frechet_distance(features, real_features):.2f}"
    yield f"{100 * accuracy:.1f} %"
    yield str(way.compilations.graph_breaks + way.late.graph_breaks)
    yield str(max(way.late.dynamo_graphs, way.late.inductor_calls))


def _flop_ratio(way: Way, computed: int, steps: int, found: Explanation) -> float:
    """Operations of the plain model over those of ``way``, for a whole generation."""
    if not way.optimised:
        return 1.0
    graphs = found.report.stages[-1].cost.graphs
    reused = sum(value.flops for name, value in graphs.items() if name != MAIN)
    spent = computed * graphs[MAIN].flops + (steps - computed) * reused
    return found.report.stages[0].cost.flops * steps / spent
