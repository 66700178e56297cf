"""Positions in the steps of a calibrated generation, for one of another length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dit_compile.ir.schedule import Step


def position(step: Step, count: int, times: Sequence[float] = ()) -> float:
    """Where ``step`` would be in a generation of ``count`` steps, from 0 to ``count`` - 1.

    Args:
        step: a step of a generation that may have another length.
        count: steps of the calibrated generation.
        times: their timesteps, if they were recorded; they tell where nobody said how many steps
            the generation has.
    """
    if step.total is not None and step.total != count:
        return step.index * (count - 1) / max(1, step.total - 1)
    if step.total is None and step.time is not None and len(times) == count:
        return _between(step.time, times)
    return min(step.index, count - 1)


def _between(time: float, times: Sequence[float]) -> float:
    for index, (before, after) in enumerate(pairwise(times)):
        low, high = sorted((before, after))
        if low <= time <= high and before != after:
            return index + (time - before) / (after - before)
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - time))
    return float(nearest)
