"""Contenders that take turns, each in a process of its own.

What Dynamo caches belongs to the code of a class, and so to all of its models in a process: where
it has given up on one contender, it would give up on the next.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from dit_compile.bench.caching.contenders import Contender, Subject
from dit_compile.bench.caching.generation import Footprint, Generation, generate, weigh
from dit_compile.bench.caching.processes import spawn, told_plainly
from dit_compile.bench.caching.row import Row
from dit_compile.bench.caching.scores import ImageScores
from dit_compile.bench.results import turn_ratio
from dit_compile.quality.compilations import Compilations
from dit_compile.quality.metrics import relative_l2

EAGER, COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Reference:
    """The plain model's generations.

    Attributes:
        images: [N, 1, 8, 8], of all seeds one after the other.
        labels: [N].
        weighed: one generation, counted.
    """

    images: Tensor
    labels: Tensor
    weighed: Footprint


@dataclass
class Runner:
    """A contender and its models by form; ditc has no form but compiled."""

    contender: Contender
    subject: Subject
    models: dict[str, nn.Module]

    @classmethod
    def of(cls, contender: Contender, subject: Subject) -> Runner:
        """Build all forms."""
        models = {COMPILED: contender.build(subject, compiled=True)}
        if contender.group != "ditc":
            models[EAGER] = contender.build(subject, compiled=False)
        return cls(contender, subject, models)

    def weigh(self, seed: int) -> Footprint:
        """Count a generation, in eager."""
        model = self.models.get(EAGER) or self.contender.build(self.subject, compiled=False)
        return weigh(self.contender, model, self.subject, seed)

    def generate(self, form: str, seed: int) -> tuple[Generation, Compilations]:
        """One generation, and what was compiled in it."""
        with Compilations() as counted:
            done = generate(self.contender, self.models[form], self.subject, seed)
        return done, counted


#: Of this process, if it is a contender's.
_runner: Runner


@told_plainly
def _start(contender: Contender, subject: Subject, threads: int) -> list[str]:
    """Make this process a contender's, and return the forms that it has."""
    global _runner
    torch.set_num_threads(threads)
    _runner = Runner.of(contender, subject)
    return list(_runner.models)


@told_plainly
def _weigh(seed: int) -> Footprint:
    return _runner.weigh(seed)


@told_plainly
def _generate(form: str, seed: int) -> tuple[Generation, Compilations]:
    return _runner.generate(form, seed)


@dataclass
class Player:
    """A contender that takes turns with others, and what was measured of it.

    It is a context manager that ends its process.

    Attributes:
        contender: the setting.
        subject: what it runs.
        pool: its process.
        weighed: one generation, counted.
        first: the first generation of the compiled form.
        compiled: what was compiled in it.
        seconds: wall time of each turn, by form.
        images: of each turn, of the compiled form.
        late: what was compiled in each turn.
    """

    contender: Contender
    subject: Subject
    pool: ProcessPoolExecutor
    weighed: Footprint
    first: Generation
    compiled: Compilations
    seconds: dict[str, list[float]]
    images: list[Tensor] = field(default_factory=list)
    late: list[Compilations] = field(default_factory=list)

    @classmethod
    def ready(cls, contender: Contender, subject: Subject, seed: int, first_seed: int) -> Player:
        """Start, count a generation of ``seed``, compile, and run ``first_seed`` once."""
        pool = spawn(1)
        try:
            threads = torch.get_num_threads()
            forms = pool.submit(_start, contender, subject, threads).result()
            weighed = pool.submit(_weigh, seed).result()
            first, compiled = pool.submit(_generate, COMPILED, first_seed).result()
        except BaseException:
            pool.shutdown()
            raise
        return cls(contender, subject, pool, weighed, first, compiled, {form: [] for form in forms})

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def turn(self, seed: int, forms: Sequence[str]) -> None:
        """A generation of each of ``forms`` that it has."""
        for form in forms:
            if form in self.seconds:
                done, compiled = self.pool.submit(_generate, form, seed).result()
                self.seconds[form].append(done.seconds)
                if form == COMPILED:
                    self.images.append(done.images)
                    self.late.append(compiled)

    def rows(self, reference: Reference, base: Sequence[float]) -> Iterator[Row]:
        """What was measured of each form; ``base`` is the plain model's time in the first turns."""
        scores = ImageScores.of(torch.cat(self.images), reference.images, reference.labels)
        drift = map(relative_l2, self.weighed.trajectory, reference.weighed.trajectory)
        measured = partial(
            Row,
            model=self.subject.bundled.name,
            group=self.contender.group,
            method=self.contender.method,
            setting=self.contender.setting,
            flop_ratio=reference.weighed.flops / self.weighed.flops,
            scores=scores,
            drift=list(drift),
            kept_bytes=self.weighed.kept_bytes,
        )
        compiled = partial(
            measured,
            first_call=self.first.seconds,
            graph_breaks=sum(each.graph_breaks for each in (self.compiled, *self.late)),
            recompiles=max(
                sum(each.dynamo_graphs for each in self.late),
                sum(each.inductor_calls for each in self.late),
            ),
        )
        for form, seconds in self.seconds.items():
            ratio, interval = turn_ratio(base, seconds[: len(base)])
            row = compiled if form == COMPILED else measured
            yield row(
                form=form,
                turns=seconds,
                seconds=statistics.median(seconds) / len(self.subject.labels),
                speed_up=ratio,
                speed_up_interval=interval,
            )
