"""Caching by ditc, by diffusers' hooks and by cache-dit, on bundled models.

Each group first tries its settings on one seed; the best at each ratio of operations is then
measured on others, where nothing was chosen, in turns with a setting of ditc that computes no more
and keeps no more, or little.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from rich.progress import Progress

from dit_compile.analysis.machine import describe_setup
from dit_compile.bench.caching.contenders import Contender, Subject, Uncached, ditc_contenders
from dit_compile.bench.caching.generation import generate, weigh
from dit_compile.bench.caching.hooks import cache_dit_contenders, hook_contenders
from dit_compile.bench.caching.lineup import line_up
from dit_compile.bench.caching.report import (
    Comparison,
    Results,
    compare,
    print_results,
    save,
    tried_before,
)
from dit_compile.bench.caching.row import Row
from dit_compile.bench.caching.tuning import Tried, try_all
from dit_compile.bench.caching.turns import COMPILED, EAGER, Player, Reference
from dit_compile.demo import digits
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import MissingDependencyError, OptionError, find_named
from dit_compile.optional import require
from dit_compile.report.terminal import JobProgress, terminal

_TUNED_ON, _REPORTED_FROM = 0, 1000
_GROUPS: dict[str, Callable[[], list[Contender]]] = {
    "ditc": ditc_contenders,
    "diffusers": hook_contenders,
    "cache-dit": cache_dit_contenders,
}
_T = TypeVar("_T")


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
        timed: generations of the plain model, and of others in eager, that are timed; all compiled
            ones are.
        kept_mb: what ditc may keep from step to step for a batch, if what it is set against keeps
            less.
        out: folder for results.
        resume: do not try settings again that the results in ``out`` tell of.
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
    kept_mb: float = 16.0
    out: str = "bench_out"
    resume: bool = False
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

    def tried_before(self) -> dict[str, list[Tried]]:
        """By model what results in ``out`` tell of settings, whether they take part or not."""
        known = [each for offered in _GROUPS.values() for each in offered()]
        return {
            model: tried_before(Path(self.out), model, asdict(self), known) for model in BUNDLED
        }

    @property
    def seeds(self) -> range:
        """Seeds that results are reported on; none is the one that settings are chosen on."""
        return range(_REPORTED_FROM, _REPORTED_FROM + self.images // self.batch)


@dataclass
class Bench:
    """The measurements on one model.

    Attributes:
        tried: settings on the tuning seed; those that take no part stay as they are.
        refused: what could not run, and why.
    """

    model: str
    options: CacheBenchOptions
    progress: Progress
    tried: list[Tried] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def run(self) -> Iterator[tuple[list[Row], list[Comparison]]]:
        """Tune, then measure what was chosen, one line-up after the other.

        First comes what was tried, each time without a row, then the plain model. A setting that
        meets several others has the rows of the first time.
        """
        for _ in self._tune():
            yield [], []
        kept = 1e6 * self.options.kept_mb * self.options.tuned / self.options.batch
        taking_part = set(self.options.contenders())
        tried = [each for each in self.tried if each.contender in taking_part]
        chosen = [(Uncached(),), *line_up(tried, self.options.ratios, kept)]
        subject = self.options.subject(self.model, self.options.batch)
        base = Uncached().build(subject, compiled=False)
        reference = self._reference(subject, base)
        bar = self.progress.add_task(f"{self.model}: measuring", total=len(chosen))
        shown = set[Contender]()
        for together in chosen:
            rows = self._measure(together, subject, base, reference)
            new = [row for each in rows if each not in shown for row in rows[each]]
            met = [compare(rows[ours][0], rows[other]) for ours, other in pairwise(rows)]
            yield new, met
            shown.update(rows)
            self.progress.advance(bar)

    def _tune(self) -> Iterator[Contender]:
        subject = self.options.subject(self.model, self.options.tuned)
        contenders = self.options.contenders()
        known = {each.contender for each in self.tried}
        contenders = [each for each in contenders if each not in known]
        bar = self.progress.add_task(f"{self.model}: tuning", total=len(contenders))
        for contender, trial in try_all(contenders, subject, _TUNED_ON):
            if isinstance(trial.exception(), BrokenProcessPool):
                trial.result()  # no fault of this one's: nothing more can be tried
            self.tried += self._attempt(contender, trial.result)
            self.progress.advance(bar)
            yield contender

    def _reference(self, subject: Subject, base: torch.nn.Module) -> Reference:
        seeds = self.options.seeds
        bar = self.progress.add_task(f"{self.model}: reference", total=len(seeds))
        images = []
        for seed in seeds:
            images.append(generate(Uncached(), base, subject, seed).images)
            self.progress.advance(bar)
        weighed = weigh(Uncached(), base, subject, seeds[0])
        return Reference(torch.cat(images), subject.labels.repeat(len(seeds)), weighed)

    def _measure(
        self,
        together: Sequence[Contender],
        subject: Subject,
        base: torch.nn.Module,
        reference: Reference,
    ) -> dict[Contender, list[Row]]:
        """Rows of the forms of each; they and the plain model take turns."""
        seeds, seconds = self.options.seeds, list[float]()
        with ExitStack() as stack:
            players = list[Player]()
            for each in together:
                ready = partial(Player.ready, each, subject, seeds[0], _TUNED_ON)
                players += map(stack.enter_context, self._attempt(each, ready))
            for turn, seed in enumerate(seeds):
                timed = turn < self.options.timed
                forms = (COMPILED, EAGER) if timed else (COMPILED,)
                for player in list(players):
                    if not self._attempt(player.contender, partial(player.turn, seed, forms)):
                        players.remove(player)
                if timed:
                    seconds.append(generate(Uncached(), base, subject, seed).seconds)
            return {each.contender: list(each.rows(reference, seconds)) for each in players}

    def _attempt(self, contender: Contender, run: Callable[[], _T]) -> list[_T]:
        """The result; what a contender of others cannot do is noted and not hidden."""
        try:
            return [run()]
        except MissingDependencyError:
            raise
        except Exception as error:
            if contender.group in ("ditc", "uncached"):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.refused.setdefault(f"{contender.group} {contender.method}", reason[:160])
            return []


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
    if options.resume:
        results.tried = options.tried_before()
    with JobProgress() as progress:
        for model in options.models:
            bench = Bench(model, options, progress, results.tried.setdefault(model, []))
            results.refused[model] = bench.refused
            for rows, comparisons in bench.run():
                results.rows += rows
                results.comparisons += comparisons
                save(results, Path(options.out))
    print_results(results, terminal())
    return results
