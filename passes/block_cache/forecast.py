"""Forecasts of a value from its last computed ones, as coefficients of a sum.

All of these are linear in the values, so a graph needs only their weighted sum, and the history is
kept as it is. Positions are those of computed steps on some axis, the latest first; none repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import factorial, prod

#: Coefficients for the values at ``known`` that give the forecast at ``at``.
Basis = Callable[[float, Sequence[float]], list[float]]


def taylor(at: float, known: Sequence[float]) -> list[float]:
    """``sum_i D_i / i! * (at - known[0])^i`` with the published differences.

    ``D_0`` is the value, and ``D_(i+1)`` the change of ``D_i`` since the previous computed step
    over the distance between the two: every order is divided by that same distance, so uneven steps
    and degrees above 1 are not exact.

    Source: "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", Liu et
    al., 2025.
    """
    count = len(known)
    # differences[j] holds D_i at the j-th latest computed step, as coefficients of the values
    differences = [[float(i == j) for i in range(count)] for j in range(count)]
    total = list(differences[0])
    for order in range(1, count):
        differences = [
            [(a - b) / (known[j] - known[j + 1]) for a, b in zip(new, old, strict=True)]
            for j, (new, old) in enumerate(pairwise(differences))
        ]
        scale = (at - known[0]) ** order / factorial(order)
        total = [t + scale * d for t, d in zip(total, differences[0], strict=True)]
    return total


def newton(at: float, known: Sequence[float]) -> list[float]:
    """The polynomial through all known values: divided differences on the true spacing.

    Exact on polynomials of a degree below the number of values, however uneven the steps.
    """
    return [
        prod((at - other) / (own - other) for j, other in enumerate(known) if j != i)
        for i, own in enumerate(known)
    ]


BASES: dict[str, Basis] = {"taylor": taylor, "newton": newton}
