"""Choosing a pipeline under a budget: the trade-off between quality and work."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dit_compile.calibration.plan import Trial
from dit_compile.calibration.runs import Outcome, Runs
from dit_compile.errors import DitcWarning, OptionError, PlanError
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.presets import SEARCHED
from dit_compile.quality.metrics import psnr, relative_l2


@dataclass(frozen=True)
class Budget:
    """What a pipeline must reach.

    Attributes:
        min_psnr: dB against the uncached samples, at least.
        max_rel_l2: relative L2 error against them, at most.
        min_speedup: ratio of operations to the uncached sampling, at least.
    """

    min_psnr: float | None = None
    max_rel_l2: float | None = None
    min_speedup: float | None = None

    def __bool__(self) -> bool:
        return self != Budget()

    def is_good(self, trial: Trial) -> bool:
        """Whether the samples are good enough."""
        return trial.psnr >= (self.min_psnr or 0) and (
            self.max_rel_l2 is None or trial.rel_l2 <= self.max_rel_l2
        )

    def is_fast(self, trial: Trial) -> bool:
        """Whether enough work is saved."""
        return trial.flop_ratio >= (self.min_speedup or 0)

    def best(self, curve: Sequence[Trial]) -> Trial:
        """Of those that meet the budget the one of least work; with no bound on quality, the best.

        Raises:
            PlanError: none meets the budget; the message has the nearest.
        """
        met = [trial for trial in curve if self.is_good(trial) and self.is_fast(trial)]
        if not met:
            near = max(curve, key=lambda t: (self.is_fast(t), t.psnr))
            raise PlanError(
                f"nothing that was tried meets the budget; the nearest is {near.passes} with "
                f"{near.psnr:.1f} dB, relative error {near.rel_l2:.3g} at {near.flop_ratio:.2f}x "
                "fewer operations; loosen the budget or try other passes"
            )
        bounded = self.min_psnr is not None or self.max_rel_l2 is not None
        return max(met, key=lambda t: (t.flop_ratio, t.psnr) if bounded else (t.psnr, t.flop_ratio))


#: Samples that overshoot are clipped; more than this share beyond this, in [-1, 1], are no images.
_FEW, _FAR = 0.01, 2.0


@dataclass(frozen=True)
class Scale:
    """What samples go from and to: PSNR is of images in [-1, 1], and clips what lies beyond."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise OptionError(
                f"value_range goes from the darkest to the brightest value, such as (0, 1), not "
                f"({self.low:g}, {self.high:g})"
            )

    def images(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """All samples as images in [-1, 1]."""
        return (torch.cat(list(samples)) - self.low) * (2 / (self.high - self.low)) - 1

    def misfit(self, samples: Sequence[torch.Tensor]) -> str:
        """Why these samples have another scale, empty if they may have this one."""
        images = self.images(samples)
        low, high = (float(end) for end in torch.cat(list(samples)).aminmax())
        shown = f"the samples go from {low:.3g} to {high:.3g}"
        if (self.low, self.high) == (-1, 1) and 0 <= low < high <= 1:
            return f"{shown}; if they are images in [0, 1], give value_range=(0, 1)"
        if float((images.abs() > _FAR).float().mean()) > _FEW:
            return (
                f"{shown}, far beyond value_range=({self.low:g}, {self.high:g}); return images, "
                "or bound max_rel_l2, which latents have too"
            )
        return ""


def search(
    run: Runs, budget: Budget, asked: Pipeline | None, scale: Scale
) -> tuple[Pipeline, list[Trial]]:
    """Try pipelines of growing approximation, until they stop being good enough.

    Args:
        run: runs them.
        budget: what to reach.
        asked: the pipeline whose last approximation is varied; ``None`` to vary all caching
            methods behind the exact passes.
        scale: of the samples.

    Returns:
        The pipeline to use, and all that was tried, the uncached one first.

    Raises:
        PlanError: nothing meets the budget.
    """
    starts = [asked] if asked else [Pipeline.parse(text) for text in SEARCHED]
    ladders = [list(_ladder(start)) for start in starts]
    exact = Pipeline(tuple(item for item in starts[0].passes if item.kind is not Kind.APPROX))
    reference = run.outcome(exact)
    if budget.min_psnr is not None and (misfit := scale.misfit(reference.samples)):
        warnings.warn(f"ditc: PSNR may mean little: {misfit}", DitcWarning, stacklevel=3)
    run.record(starts)
    curve = [_trial(exact, reference, reference, scale)]
    tried = {curve[0].passes: exact}
    for ladder in ladders:
        for rung in ladder:
            pipeline = run.fit(rung)
            trial = _trial(pipeline, run.outcome(pipeline), reference, scale)
            curve.append(trial)
            tried[trial.passes] = pipeline
            if not budget.is_good(trial):
                break
    return tried[budget.best(curve).passes], curve


def _ladder(start: Pipeline) -> Iterator[Pipeline]:
    """The pipeline with its last approximation from gentle to strong."""
    at = [i for i, item in enumerate(start.passes) if item.kind is Kind.APPROX]
    if not at:
        raise OptionError(f"nothing in {str(start)!r} approximates, so there is nothing to choose")
    for item in start.passes[at[-1]].ladder():
        yield Pipeline((*start.passes[: at[-1]], item, *start.passes[at[-1] + 1 :]))


def _trial(pipeline: Pipeline, outcome: Outcome, reference: Outcome, scale: Scale) -> Trial:
    got, want = (torch.cat(list(each.samples)) for each in (outcome, reference))
    return Trial(
        passes=str(pipeline),
        psnr=psnr(scale.images(outcome.samples), scale.images(reference.samples)),
        rel_l2=relative_l2(got, want),
        flop_ratio=reference.flops / outcome.flops,
        seconds=outcome.seconds,
        speed_up=reference.seconds / outcome.seconds,
    )
