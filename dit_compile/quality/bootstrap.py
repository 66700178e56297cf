"""Intervals by resampling: what a number would be on other samples of the same kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

#: A statistic of the samples at the given places, int64 [N].
Statistic = Callable[[Tensor], float]


def bootstrap(
    count: int,
    statistic: Statistic,
    *,
    kinds: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile interval of a statistic (Efron, 1979).

    For the difference of two ways on the same seeds, let the statistic compute both from the same
    places: pairs are then drawn together.

    Args:
        count: number of samples.
        statistic: computes the number from the samples at given places, with repetition.
        kinds: of each sample, where there are several: each draw has as many of each kind as there
            are.
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
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds or [None] * count):
        places.setdefault(kind, []).append(place)
    strata = [torch.tensor(each) for each in places.values()]

    def drawn(stratum: Tensor) -> Tensor:
        return stratum[torch.randint(len(stratum), (len(stratum),), generator=generator)]

    values = sorted(statistic(torch.cat([drawn(each) for each in strata])) for _ in range(draws))
    outside = (1 - confidence) / 2
    return values[math.floor(outside * draws)], values[math.ceil((1 - outside) * draws) - 1]
