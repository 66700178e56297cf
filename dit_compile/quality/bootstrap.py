"""Intervals by resampling: what a number would be on other samples of the same kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: A statistic of the samples at the given places, int64 [N].
Statistic = Callable[[Tensor], float]


def bootstrap(
    count: int, statistic: Statistic, *, draws: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of a statistic (Efron, 1979).

    For the difference of two ways on the same seeds, let the statistic compute both from the same
    places: pairs are then drawn together.

    Args:
        count: number of samples.
        statistic: computes the number from the samples at given places, with repetition.
        draws: how often samples are drawn.
        confidence: share of the draws that lie in the interval.

    Returns:
        The interval's ends.

    Raises:
        ValueError: there is no sample, less than one draw, or ``confidence`` is not in (0, 1).
    """
    if count < 1 or draws < 1 or not 0 < confidence < 1:
        raise ValueError(
            "a bootstrap needs a sample, a draw and a confidence in (0, 1), "
            f"not {count}, {draws} and {confidence}"
        )
    generator = torch.Generator().manual_seed(0)
    values = sorted(
        statistic(torch.randint(count, (count,), generator=generator)) for _ in range(draws)
    )
    outside = (1 - confidence) / 2
    return values[math.floor(outside * draws)], values[math.ceil((1 - outside) * draws) - 1]
