"""Caching by ditc, by diffusers' hooks and by cache-dit, on bundled models.

Each group first tries its settings on one seed; the best at each ratio of operations is then
measured on others, where nothing was chosen.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from dit_compile.analysis.machine import describe_setup
from dit_compile.bench.caching.contenders import Contender, Subject, Uncached, ditc_contenders
from dit_compile.bench.caching.generation import Footprint, generate, weigh
from dit_compile.bench.caching.hooks import cache_dit_contenders, hook_contenders
from dit_compile.bench.caching.report import Results, Row, compare, print_results, save, speed_up
from dit_compile.bench.caching.scores import ImageScores
from dit_compile.demo import digits
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import MissingDependencyError, OptionError, find_named
from dit_compile.optional import require
from dit_compile.quality.compilations import Compilations
from dit_compile.quality.metrics import relative_l2
from dit_compile.report.terminal import JobProgress, terminal

_TUNED_ON = 0
_GROUPS: dict[str, Callable[[], list[Contender]]] = {
    "ditc": ditc_contenders,
    "diffusers": hook_contenders,
    "cache-dit": cache_dit_contenders,
}
#: A setting stands for a ratio of operations if it comes this near.
_NEAR = 0.97


@dataclass(frozen=True)
class CacheBenchOptions:
    """What is measured.

    Attributes:
        models: names of bundled models.
        groups: whose caching takes part.
        methods: of these groups; all of them if empty.
        ratios: of operations, at each of which every group shows its best setting.
        images: images that results are reported on.
        batch: images of a generation.
        tuned: images that settings are chosen on.
        steps: denoising steps.
        guidance_scale: weight of classifier-free guidance.
        timed: generations that are timed, of each form.
        out: folder for results.
        command: what the user typed, kept with the results.
    """

    models: tuple[str, ...] = ("digits", "digits-flow")
    groups: tuple[str, ...] = tuple(_GROUPS)
    methods: tuple[str, ...] = ()
    ratios: tuple[float, ...] = (1.5, 2.0, 3.0)
    images: int = 500
    batch: int = 50
    tuned: int = 50
    steps: int = 50
    guidance_scale: float = 3.0
    timed: int = 5
    out: str = "bench_out"
    command: str = ""

    def __post_init__(self) -> None:
        for name in self.models:
            find_named("model", name, BUNDLED)
        for name in self.groups:
            find_named("group", name, _GROUPS)
        offered = {each.method: each for name in self.groups for each in _GROUPS[name]()}
        for name in self.methods:
            find_named("method", name, offered)
        if self.batch < 1 or self.images < self.timed * self.batch or self.images % self.batch:
            raise OptionError(
                f"images must be a multiple of batch, {self.timed} batches at least, "
                f"not {self.images} with batch {self.batch}"
            )
        if min(self.timed, self.steps - 1, self.tuned) < 1 or not self.ratios:
            raise OptionError("give a timed generation, 2 steps, an image to tune on and a ratio")

    def subject(self, model: str, images: int) -> Subject:
        """The model with labels for ``images`` pictures a generation."""
        labels = torch.arange(images) % digits.NUM_CLASSES
        return Subject(BUNDLED[model], labels, self.steps, self.guidance_scale)

    def contenders(self) -> list[Contender]:
        """All settings that take part."""
        offered = (each for name in self.groups for each in _GROUPS[name]())
        return [each for each in offered if not self.methods or each.method in self.methods]

    @property
    def seeds(self) -> range:
        """Seeds that results are reported on; none is the one that settings are chosen on."""
        return range(_TUNED_ON + 1, _TUNED_ON + 1 + self.images // self.batch)


@dataclass(frozen=True)
class Tried:
    """A setting on the tuning seed.

    Attributes:
        contender: the setting.
        flop_ratio: operations of the plain model over its own.
        psnr: dB against the plain model.
        frechet: Fréchet distance to real digits.
    """

    contender: Contender
    flop_ratio: float
    psnr: float
    frechet: float


@dataclass
class Bench:
    """The measurements on one model."""

    model: str
    options: CacheBenchOptions
    progress: Progress
    refused: dict[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[list[Row]]:
        """Tune, then measure what was chosen, one after the other; the plain model comes first."""
        tried = self._tune()
        chosen = list(chosen_from(tried, self.options.ratios))
        subject = self.options.subject(self.model, self.options.batch)
        base = Uncached().build(subject, compiled=False)
        bar = self.progress.add_task(f"{self.model}: reference", total=len(self.options.seeds))
        reference = []
        for seed in self.options.seeds:
            reference.append(generate(Uncached(), base, subject, seed).images)
            self.progress.advance(bar)
        plain_run = weigh(Uncached(), base, subject, self.options.seeds[0])
        bar = self.progress.add_task(f"{self.model}: measuring", total=len(chosen) + 1)
        for contender in (Uncached(), *chosen):
            measure = partial(
                self._measure, contender, subject, base, torch.cat(reference), plain_run
            )
            yield self._attempt(contender, measure)
            self.progress.advance(bar)

    def _tune(self) -> list[Tried]:
        subject = self.options.subject(self.model, self.options.tuned)
        plain = Uncached()
        want = weigh(plain, plain.build(subject, compiled=False), subject, _TUNED_ON)
        contenders = self.options.contenders()
        bar = self.progress.add_task(f"{self.model}: tuning", total=len(contenders))

        def attempt(contender: Contender) -> list[Tried]:
            have = weigh(contender, contender.build(subject, compiled=False), subject, _TUNED_ON)
            scores = ImageScores.of(have.images, want.images, subject.labels)
            return [Tried(contender, want.flops / have.flops, scores.psnr, scores.frechet)]

        tried = []
        for contender in contenders:
            tried += self._attempt(contender, partial(attempt, contender))
            self.progress.advance(bar)
        return tried

    def _attempt(self, contender: Contender, run: Callable[[], list[Any]]) -> list[Any]:
        """Run; what a contender cannot do is noted and not hidden."""
        torch._dynamo.reset()
        try:
            return run()
        except MissingDependencyError:
            raise
        except Exception as error:
            if contender.group in ("ditc", "uncached"):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.refused.setdefault(f"{contender.group} {contender.method}", reason[:160])
            return []

    def _measure(
        self,
        contender: Contender,
        subject: Subject,
        base: torch.nn.Module,
        reference: torch.Tensor,
        plain_run: Footprint,
    ) -> list[Row]:
        """A row for each form of a contender; they and the plain model take turns."""
        seeds, timed = self.options.seeds, self.options.timed
        forms = ("compiled",) if contender.group == "ditc" else ("eager", "compiled")
        plain = contender.build(subject, compiled=False)
        weighed = weigh(contender, plain, subject, seeds[0])
        compiled = contender.build(subject, compiled=True)
        compilations, late = Compilations(), Compilations()
        with compilations:
            first = generate(contender, compiled, subject, _TUNED_ON).seconds
        seconds: dict[str, list[float]] = {"eager": [], "compiled": [], "base": []}
        images = []
        with late:
            for turn, seed in enumerate(seeds):
                done = generate(contender, compiled, subject, seed)
                images.append(done.images)
                if turn < timed:
                    seconds["compiled"].append(done.seconds)
                    seconds["base"].append(generate(Uncached(), base, subject, seed).seconds)
                    if "eager" in forms:
                        seconds["eager"].append(generate(contender, plain, subject, seed).seconds)
        scores = ImageScores.of(
            torch.cat(images), reference, subject.labels.repeat(len(self.options.seeds))
        )
        return [
            Row(
                self.model,
                contender.group,
                contender.method,
                contender.setting,
                form,
                statistics.median(seconds[form]) / self.options.batch,
                *speed_up(seconds["base"], seconds[form]),
                plain_run.flops / weighed.flops,
                scores,
                list(map(relative_l2, weighed.trajectory, plain_run.trajectory)),
                weighed.kept_bytes,
                first,
                compilations.graph_breaks + late.graph_breaks,
                max(late.dynamo_graphs, late.inductor_calls),
            )
            for form in forms
        ]


def chosen_from(tried: Iterable[Tried], ratios: Sequence[float]) -> Iterable[Contender]:
    """What is measured, from what was tried.

    Of each group, the setting of best PSNR at each ratio of operations or a higher one; of ditc
    also the best of those whose Fréchet distance is no greater than that of such a setting of
    another group.
    """
    tried = list(tried)
    chosen: dict[Contender, None] = {}

    def choose(group: str, ratio: float, frechet: float = math.inf) -> Tried | None:
        able = (
            each
            for each in tried
            if each.contender.group == group
            and each.flop_ratio >= _NEAR * ratio
            and each.frechet <= frechet
        )
        best = max(able, key=lambda each: each.psnr, default=None)
        if best is not None:
            chosen[best.contender] = None
        return best

    for group in dict.fromkeys(each.contender.group for each in tried):
        for ratio in ratios:
            best = choose(group, ratio)
            if best is not None and group != "ditc":
                choose("ditc", ratio, best.frechet)
    return chosen


def run_cache_bench(options: CacheBenchOptions) -> Results:
    """Measure, print the tables, and write JSON and plots, anew after each setting.

    Raises:
        MissingDependencyError: diffusers, cache-dit, scikit-image or matplotlib is missing.
    """
    needed = ["diffusers", "matplotlib.figure", "skimage.metrics"]
    if "cache-dit" in options.groups:
        needed.append("cache_dit")
    for module in needed:
        require(module, "bench")  # now, and not after the first contenders were measured
    date = datetime.date.today().isoformat()
    results = Results(date, options.command, asdict(options), describe_setup("cpu"))
    with JobProgress() as progress:
        for model in options.models:
            bench = Bench(model, options, progress)
            results.refused[model] = bench.refused
            earlier, rows = results.comparisons, list[Row]()
            for measured in bench.rows():
                rows += measured
                results.rows += measured
                found = (compare(model, rows, ratio, _NEAR) for ratio in options.ratios)
                results.comparisons = [*earlier, *chain.from_iterable(found)]
                save(results, Path(options.out))
    print_results(results, terminal())
    return results
