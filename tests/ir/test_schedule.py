"""Which graph runs at which step."""

from __future__ import annotations

from dit_compile.ir.schedule import Schedule, Step
from dit_compile.passes.block_cache.interval import Interval

CACHED = Schedule("full", Interval(interval=3), (((1,), "full"), ((0,), "reuse")))


def test_without_a_policy_every_step_is_full() -> None:
    plain = Schedule("full")
    assert not plain.stateful
    assert plain.choose(Step(7, None, False)) == "full"
    assert plain.mask(3) == [(1,)] * 3


def test_a_policy_chooses_by_step() -> None:
    assert CACHED.stateful
    assert [row for (row,) in CACHED.mask(9)] == [1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert CACHED.choose(Step(4, None, False)) == "reuse"
    assert CACHED.choose(Step(4, 5, True)) == "full"


def test_a_generation_of_one_step_is_full() -> None:
    assert CACHED.mask(1) == [(1,)]
    assert CACHED.mask(0) == []
