"""Random histories of calls: every answer is right, and reuse happens where it can."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from dit_compile.errors import DitcWarning
from tests.runtime.histories.conftest import Workshop
from tests.runtime.histories.drawn import PAINTERS, history
from tests.runtime.histories.faults import FAULTS, LASTING, Fault
from tests.runtime.histories.history import History
from tests.runtime.histories.shrunk import shrink
from tests.runtime.histories.studio import Painters, Tally, replay

#: Of the reuse that requests would have had alone.
ENOUGH = 0.95
#: Histories among which each fault shows.
SOON = 200
#: Those that the quick test has time to compile.
FEW = ("interval", "other", "taylor")


def go_through(painters: Painters, seeds: Sequence[int], names: Sequence[str] = PAINTERS) -> Tally:
    """The histories of these seeds; the first one that fails is shrunk.

    Raises:
        WrongAnswer: with the smallest history that fails, as the Python that makes it.
    """
    tally = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DitcWarning)  # most histories deserve some
        for seed in seeds:
            drawn = history(seed, names)
            try:
                replay(painters, drawn, tally)
            except Exception:
                replay(painters, shrink(drawn, lambda other: not _holds(painters, other)))
                raise  # a rare one, that fails within its history alone
    return tally


def _holds(painters: Painters, history: History) -> bool:
    try:
        replay(painters, history)
    except Exception:  # a fault may also make sizes that do not go together
        return False
    return True


def assert_enough(tally: Tally) -> None:
    """Neither is the cache switched off, nor the oracle blind."""
    calls = tally.verdicts.total()
    assert tally.verdicts["moot"] <= 0.01 * calls
    assert tally.wanted > 0.1 * calls
    worst = "".join(f"\n{asked} of {history}" for history, asked in tally.short[:3])
    assert tally.reused >= ENOUGH * tally.wanted, f"{tally.reused} of {tally.wanted}{worst}"


def test_some(painters: Painters) -> None:
    assert_enough(go_through(painters, range(200), FEW))


@pytest.mark.full
@pytest.mark.parametrize("part", range(4))
def test_many(painters: Painters, part: int) -> None:
    """All 2,000, a quarter at a time."""
    assert_enough(go_through(painters, range(500 * part, 500 * (part + 1))))


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_finds_each_fault(
    painters: Painters,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With one mend taken back, one of the first histories has an answer that is wrong."""
    if fault in LASTING:  # its traces stay with the models
        painters = Workshop(tmp_path)
    fault(monkeypatch)
    assert any(not _holds(painters, history(seed)) for seed in range(SOON))
