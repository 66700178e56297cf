"""Random histories of calls: every answer is right, and reuse happens where it can."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dit_compile.errors import DitcWarning
from tests.runtime.histories.drawn import histories
from tests.runtime.histories.history import History
from tests.runtime.histories.studio import Compiled, Tally, replay

#: Of the reuse that requests would have had alone.
ENOUGH = 0.95


def go_through(painters: dict[str, Compiled], count: int) -> Tally:
    """That many histories, always the same ones."""
    tally = Tally()

    def check(history: History) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DitcWarning)  # most histories deserve some
            replay(painters, history, tally)

    settled: Callable[..., None] = settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(given(histories())(check))
    settled()
    return tally


def assert_enough(tally: Tally) -> None:
    """Neither is the cache switched off, nor the oracle blind."""
    calls = tally.verdicts.total()
    assert tally.verdicts["moot"] <= 0.01 * calls
    assert tally.wanted > 0.05 * calls
    worst = "".join(f"\n{got} of {of}:{history}" for history, got, of in tally.short[:3])
    assert tally.reused >= ENOUGH * tally.wanted, f"{tally.reused} of {tally.wanted}{worst}"


def test_some(painters: dict[str, Compiled]) -> None:
    assert_enough(go_through(painters, 200))


@pytest.mark.slow
def test_many(painters: dict[str, Compiled]) -> None:
    assert_enough(go_through(painters, 2000))
