"""Telling passes what was measured for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dit_compile.calibration.measured import Measured
from dit_compile.pipeline.base import Pass
from dit_compile.pipeline.pipeline import Pipeline


def fit(pipeline: Pipeline, measured: Callable[[Pipeline], Measured]) -> Pipeline:
    """The pipeline with all that its passes must be told, one after the other in its order.

    Args:
        pipeline: the pipeline.
        measured: what sampling with a pipeline that records tells.
    """
    passes = list(pipeline.passes)
    for position, item in enumerate(passes):
        if item.uncalibrated:
            passes[position] = item.fitted(measured(_recording(passes[:position], item)))
    return Pipeline(tuple(passes)).validated()


def record_together(
    pipelines: Sequence[Pipeline], measured: Callable[[Pipeline], Measured]
) -> Mapping[str, Measured]:
    """What the first passes of several pipelines that must be told something are to be told.

    Passes of one kind behind equal pipelines are recorded in one.

    Args:
        pipelines: the pipelines.
        measured: what sampling with a pipeline that records tells.

    Returns:
        For each pipeline that records for :func:`fit`, by its text, what it would measure.
    """
    found = {}
    wanting = list(filter(None, map(_first_uncalibrated, pipelines)))
    for before, item in wanting:
        also = [other for theirs, other in wanting if (theirs, type(other)) == (before, type(item))]
        joint = measured(Pipeline((*before, item.recorder(also))))
        found[str(_recording(before, item))] = item.own(joint)
    return found


def _recording(before: Sequence[Pass], item: Pass) -> Pipeline:
    return Pipeline((*before, item.recorder()))


def _first_uncalibrated(pipeline: Pipeline) -> tuple[Sequence[Pass], Pass] | None:
    for position, item in enumerate(pipeline.passes):
        if item.uncalibrated:
            return pipeline.passes[:position], item
    return None
