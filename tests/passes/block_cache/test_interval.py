"""interval: which steps are computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.errors import PipelineError
from dit_compile.passes.block_cache.interval import Interval
from tests.passes.block_cache.masks import computed_steps


def mask(interval: int, steps: int) -> str:
    return computed_steps(Interval(interval=interval), steps)["blocks"]


def test_masks_are_those_of_the_paper_with_the_last_step_computed() -> None:
    assert mask(3, 10) == "1001001001"
    assert mask(3, 9) == "100100101"
    assert mask(2, 6) == "101011"
    assert mask(1, 4) == "1111"
    assert mask(9, 3) == "101"
    assert mask(4, 1) == "1"


@given(interval=st.integers(1, 12), steps=st.integers(1, 60))
def test_no_reuse_is_older_than_the_interval(interval: int, steps: int) -> None:
    row = mask(interval, steps)
    assert len(row) == steps
    assert row[0] == row[-1] == "1"
    assert "0" * interval not in row
    assert row.count("1") <= -(-steps // interval) + 1


@given(interval=st.integers(1, 12), steps=st.integers(1, 60))
def test_rows_lists_every_row_that_comes_up(interval: int, steps: int) -> None:
    assert {(int(item),) for item in mask(interval, steps)} <= set(
        Interval(interval=interval).rows(["blocks"])
    )


@pytest.mark.parametrize("interval", [0, -2])
def test_an_interval_below_one_is_refused(interval: int) -> None:
    with pytest.raises(PipelineError, match=f"interval must be at least 1, not {interval}$"):
        Interval(interval=interval)
