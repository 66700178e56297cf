"""Telling passes what was measured for them."""

from __future__ import annotations

from collections.abc import Callable

from dit_compile.calibration.measured import Measured
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
            recording = Pipeline((*passes[:position], item.recorder()))
            passes[position] = item.fitted(measured(recording))
    return Pipeline(tuple(passes)).validated()
