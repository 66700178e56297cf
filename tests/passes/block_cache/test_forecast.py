"""Forecasts on trajectories whose future is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.ir.schedule import Step
from dit_compile.ops import forecast
from dit_compile.passes.block_cache.first_block import FirstBlock
from dit_compile.passes.block_cache.forecast import BASES, newton, taylor
from dit_compile.passes.block_cache.forecasting import Forecasting
from dit_compile.passes.block_cache.taylor import Taylor


def published(
    values: Sequence[float], places: Sequence[float], at: float, settled: float = -math.inf
) -> float:
    """TaylorSeer's recursion, told step by step: old factors are updated at each computed step.

    ``values`` and ``places`` in the order of time; differences are taken behind ``settled`` only.
    """
    factors: list[float] = []
    for i, value in enumerate(values):
        updated = [value]
        for order in range(len(factors)):
            if order + 1 < len(values) and places[i] > settled:
                distance = places[i] - places[i - 1]
                updated.append((updated[order] - factors[order]) / distance)
        factors = updated
    away = at - places[-1]
    return sum(factor / math.factorial(i) * away**i for i, factor in enumerate(factors))


def combined(basis: str, values: Sequence[float], places: Sequence[float], at: float) -> float:
    coefficients = BASES[basis](at, places[::-1])
    return sum(c * v for c, v in zip(coefficients, values[::-1], strict=True))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[float], list[float], float]:
    count = draw(st.integers(1, 4))
    gaps = draw(st.lists(st.integers(1, 7), min_size=count, max_size=count))
    places = [float(sum(gaps[: i + 1])) for i in range(count)]
    values = draw(st.lists(st.floats(-3, 3), min_size=count, max_size=count))
    return values, places, places[-1] + draw(st.integers(1, 5))


@given(histories())
def test_taylor_is_the_published_recursion(made: tuple[list[float], list[float], float]) -> None:
    values, places, at = made
    want = published(values, places, at)
    assert combined("taylor", values, places, at) == pytest.approx(want, rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=10), st.integers(0, 9), st.integers(0, 4))
def test_differences_begin_where_values_are_known_from(
    values: list[float], known_from: int, order: int
) -> None:
    steps = [Step(i, None, False) for i in range(len(values) + 2)]
    want = published(values[-order - 1 :], range(len(values))[-order - 1 :], len(values) + 1)
    late = published(values, range(len(values)), len(values) + 1, settled=known_from)
    policy = Taylor(order=order, known_from=known_from)
    computed = steps[len(values) - 1 :: -1][: policy.depth]
    row = policy.coefficients(steps[-1], computed)
    assert len(row) == len(computed)
    found = sum(c * v for c, v in zip(row, values[::-1], strict=False))
    if known_from <= computed[-1].index:
        assert found == pytest.approx(want, rel=1e-9, abs=1e-9), "not one of them is left out"
    if known_from >= computed[-1].index:
        assert found == pytest.approx(late, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("warmup", "first"), [(1, 0), (2, 0), (3, 1), (5, 3)])
def test_taylorseer_begins_at_the_last_step_but_one_of_the_warm_up(warmup: int, first: int) -> None:
    policy = Taylor(order=4, warmup_steps=warmup)
    computed = [Step(i, None, False) for i in range(4, -1, -1)]
    row = policy.coefficients(Step(6, None, False), computed)
    assert [bool(factor) for factor in row] == [each.index >= first for each in computed]
    same = replace(policy, known_from=first).coefficients(Step(6, None, False), computed)
    assert row == same


@given(histories(), st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_newton_is_exact_on_polynomials_with_uneven_steps(
    made: tuple[list[float], list[float], float], factors: list[float]
) -> None:
    _, places, at = made

    def polynomial(x: float) -> float:
        return sum(f * (x / 10) ** i for i, f in enumerate(factors[: len(places)]))

    values = [polynomial(place) for place in places]
    assert combined("newton", values, places, at) == pytest.approx(
        polynomial(at), rel=1e-6, abs=1e-6
    )


def test_taylor_is_exact_on_lines_and_not_on_parabolas() -> None:
    places = [0.0, 2.0, 5.0]
    lines = [3 * p - 1 for p in places]
    assert combined("taylor", lines, places, 7) == pytest.approx(20)
    parabola = [p * p for p in places]
    assert combined("newton", parabola, places, 7) == pytest.approx(49)
    assert abs(combined("taylor", parabola, places, 7) - 49) > 1


@given(st.floats(-10, 10), st.lists(st.integers(-20, 20), min_size=1, max_size=4, unique=True))
def test_every_basis_keeps_a_constant_and_the_known_values(at: float, known: list[int]) -> None:
    for basis in (taylor, newton):
        assert sum(basis(at, known)) == pytest.approx(1, rel=1e-6, abs=1e-6)
        assert basis(known[0], known) == pytest.approx([1.0] + [0.0] * (len(known) - 1))


@pytest.mark.parametrize("policy", [Taylor, FirstBlock])
def test_the_axis_is_steps_or_timesteps(policy: type[Forecasting]) -> None:
    steps = [Step(6, 9, False, 400.0), Step(5, 9, False, 500.0), Step(1, 9, False, 950.0)]
    now = Step(7, 9, False, 250.0)
    by_step = policy(basis="newton", order=2).coefficients(now, steps)
    by_time = policy(basis="newton", order=2, axis="timestep").coefficients(now, steps)
    assert policy(order=2).coefficients(now, steps) == taylor(7, [6, 5, 1])
    assert by_step == newton(7, [6, 5, 1])
    assert by_time == newton(250, [400, 500, 950])


def test_the_axis_may_be_the_noise_level_that_the_session_states() -> None:
    now, *steps = (Step(i, 9, False, sigma=2.0**-i) for i in (7, 6, 5, 1))
    found = Taylor(basis="newton", order=2, axis="sigma").coefficients(now, steps)
    assert found == newton(2.0**-7, [2.0**-6, 2.0**-5, 2.0**-1])


@pytest.mark.parametrize(
    "steps",
    [
        [Step(6, 9, False), Step(5, 9, False)],
        [Step(6, 9, False, 400.0), Step(5, 9, False, 400.0)],
    ],
)
@pytest.mark.parametrize("axis", ["timestep", "sigma"])
def test_where_the_axis_does_not_tell_steps_apart_steps_are_counted(
    steps: list[Step], axis: str
) -> None:
    policy = Taylor(axis=axis, order=1)
    assert policy.coefficients(Step(7, 9, False, 300.0), steps) == taylor(7, [6, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_operator_adds_up_in_float32(dtype: torch.dtype) -> None:
    values = [torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([0.5, -4.0], dtype=dtype)]
    got = forecast(torch.tensor([3.0, -2.0]), values)
    assert got.dtype is dtype
    torch.testing.assert_close(got, torch.tensor([2.0, 14.0], dtype=dtype))
    close = [torch.full((1,), 256.0, dtype=torch.bfloat16)] * 2
    # in bfloat16 257 * 256 would be rounded before the difference is taken
    assert float(forecast(torch.tensor([257.0, -256.0]), close)) == 256.0
