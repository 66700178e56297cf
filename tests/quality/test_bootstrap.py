"""Intervals by resampling."""

from __future__ import annotations

import math

import pytest
import torch

from dit_compile.quality.bootstrap import bootstrap


def test_the_interval_of_a_mean() -> None:
    """1.96 standard errors on either side, for many samples of a Gaussian."""
    x = torch.randn(900, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = bootstrap(len(x), lambda at: float(x[at].mean()))
    reach = 1.96 * float(x.std()) / math.sqrt(len(x))
    assert low == pytest.approx(float(x.mean()) - reach, abs=0.1 * reach)
    assert high == pytest.approx(float(x.mean()) + reach, abs=0.1 * reach)


def test_pairs_are_drawn_together() -> None:
    """A constant difference has no spread, however much both sides vary."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x + 1
    low, high = bootstrap(len(x), lambda at: float((y[at] - x[at]).mean()))
    assert (low, high) == pytest.approx((1.0, 1.0))


def test_it_is_repeatable_and_grows_with_confidence() -> None:
    x = torch.arange(30.0)

    def interval(confidence: float) -> tuple[float, float]:
        return bootstrap(30, lambda at: float(x[at].mean()), confidence=confidence)

    assert interval(0.9) == interval(0.9)
    assert interval(0.99)[0] < interval(0.9)[0] < interval(0.9)[1] < interval(0.99)[1]
    assert bootstrap(1, lambda at: float(at.sum())) == (0, 0)


def test_each_draw_has_as_many_of_each_kind() -> None:
    x = torch.tensor([1.0, 100.0, 1.0, 100.0, 1.0, 1.0])
    kinds = ["low" if value == 1 else "high" for value in x.tolist()]
    assert bootstrap(6, lambda at: float(x[at].sum()), kinds=kinds) == (204, 204)
    low, high = bootstrap(6, lambda at: float(x[at].sum()))
    assert low < 204 < high
    spread = torch.tensor([1.0, 100.0, 2.0, 101.0, 3.0, 4.0])
    low, high = bootstrap(6, lambda at: float(spread[at].sum()), kinds=kinds)
    assert 204 <= low < float(spread.sum()) < high <= 218


@pytest.mark.parametrize("wrong", [{"count": 0}, {"draws": 0}, {"confidence": 1.0}])
def test_nothing_to_draw_from(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a bootstrap needs"):
        bootstrap(**{"count": 3, "statistic": lambda at: 0.0, **wrong})
