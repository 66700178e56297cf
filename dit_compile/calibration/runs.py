"""Running the user's sampling with one pipeline after another."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from torch._C._dynamo.eval_frame import reset_code

from dit_compile.calibration.depth import Depths, depths_of
from dit_compile.calibration.fitting import fit, record_together
from dit_compile.calibration.measured import Measured
from dit_compile.calibration.meter import Meter
from dit_compile.calibration.recorder import Recorder
from dit_compile.errors import OptionError, PlanError
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.session import session
from dit_compile.runtime.steps import Served
from dit_compile.runtime.watch import watching

#: Steps that a recording looks back at most.
_DISTANCES = 8

#: Runs the user's sampling once, with noise from the given seed, and returns the samples.
Sample = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """What sampling with one pipeline gave.

    Attributes:
        samples: the samples of each seed.
        flops: operations of all steps.
        seconds: wall time; compilation apart.
        program: what the model became.
    """

    samples: Sequence[torch.Tensor]
    flops: float
    seconds: float
    program: Program


class Runs:
    """Samples with one pipeline after another, on the same seeds.

    Args:
        sample: runs one generation.
        model: the module that ``sample`` calls; compiled in place while it runs.
        seeds: the seeds.
        options: further options of the backend.
        progress: shows how far it is.
    """

    def __init__(
        self,
        sample: Sample,
        model: nn.Module,
        seeds: Sequence[int],
        options: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self._sample = sample
        self._model = model
        self._seeds = seeds
        self._options = options
        self._progress = progress
        #: What was recorded, by the text of the pipeline that recorded it.
        self.measured: dict[str, Measured] = {}
        #: Steps of a generation, once one has run.
        self.steps = 0
        #: How deep the graphs were that ran.
        self.depths: list[Depths] = []

    def fit(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline with all that its passes must be told, one after the other in its order.

        Raises:
            PlanError: the model was not called, or has nothing to record.
        """
        return fit(pipeline, self._measured)

    def record(self, pipelines: Sequence[Pipeline]) -> None:
        """Record in as few runs as possible what several pipelines must be told.

        Raises:
            PlanError: the model was not called, or has nothing to record.
        """
        self.measured |= record_together(pipelines, functools.cache(self._recorded))

    def _measured(self, recording: Pipeline) -> Measured:
        """What sampling with a recording pipeline tells; sampled once for each."""
        if str(recording) not in self.measured:
            self.measured[str(recording)] = self._recorded(recording)
        return self.measured[str(recording)]

    def _recorded(self, recording: Pipeline) -> Measured:
        recorder = Recorder(_DISTANCES)
        with self._compiled(recording), watching(recorder):
            self._samples("recording", self._seeds)
        if not recorder.steps:
            raise PlanError(f"{recording} found nothing to record; ditc.explain says why")
        self.steps = recorder.steps
        return recorder.measured()

    def plain(self) -> list[torch.Tensor]:
        """The samples of each seed by the model itself."""
        return self._samples("uncompiled", self._seeds)

    def outcome(self, pipeline: Pipeline, *, timed: bool = True) -> Outcome:
        """Sample with a pipeline that is calibrated; unless ``timed``, compilation counts too."""
        meter, name = Meter(), str(pipeline.passes[-1]) if pipeline.passes else "uncached"
        with self._compiled(pipeline):
            if timed:
                self._samples(f"compiling for {name}", self._seeds[:1])
            started = time.perf_counter()
            with watching(meter):
                samples = self._samples(name, self._seeds)
            seconds = time.perf_counter() - started
        self.steps = meter.steps
        assert meter.program is not None
        return Outcome(samples, meter.flops, seconds, meter.program)

    def _samples(self, what: str, seeds: Sequence[int]) -> list[torch.Tensor]:
        bar = self._progress.add_task(what, total=len(seeds))
        made = []
        for seed in seeds:
            with session(self._model):
                samples = self._sample(seed)
            if not isinstance(samples, torch.Tensor):
                raise OptionError(
                    "the sampling function must return its samples as one tensor, not "
                    f"{type(samples).__name__}; with diffusers pass output_type='pt', and "
                    "value_range=(0, 1) with a budget"
                )
            made.append(samples.detach())
            self._progress.advance(bar)
        self._progress.remove_task(bar)
        return made

    @contextmanager
    def _compiled(self, pipeline: Pipeline) -> Iterator[None]:
        """Compile the model in place, and put it back.

        Raises:
            PlanError: nobody called it.
        """
        options = {**self._options, "passes": str(pipeline), "strict": True}
        fast = torch.compile(self._model._call_impl, backend="ditc", options=options)
        calls = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return fast(*args, **kwargs)

        seen: dict[int, Program] = {}

        def look(program: Program, served: Served) -> None:
            if id(program) not in seen and (depths := depths_of(program)) not in self.depths:
                self.depths.append(depths)
            seen[id(program)] = program

        before, self._model._compiled_call_impl = self._model._compiled_call_impl, call
        try:
            with watching(look):
                yield
        finally:
            self._model._compiled_call_impl = before
            for code in _codes(self._model):
                reset_code(code)  # else each pipeline counts as a recompile
        if not calls:
            raise PlanError(
                "the sampling function did not call the model; pass the very module that it calls "
                "at each step, such as pipe.transformer"
            )


def _codes(model: nn.Module) -> Iterator[CodeType]:
    """The code that Dynamo may compile when ``model`` is called: the outermost that is not torch's.

    Which one it is depends on hooks and on decorators of ``forward``.
    """
    function: Any = nn.Module._call_impl
    yield function.__code__
    function = model.forward
    while function is not None:
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            yield code
        function = getattr(function, "__wrapped__", None)
