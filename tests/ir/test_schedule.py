"""Which graph runs at which step."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from dit_compile.ir.schedule import Row, Schedule, Step
from dit_compile.passes.block_cache.first_block import FirstBlock
from dit_compile.passes.block_cache.interval import Interval

VARIANTS = (((1,), "full"), ((0,), "reuse"))
CACHED = Schedule("full", Interval(interval=3), ("blocks",), variants=VARIANTS)


def test_without_a_policy_every_step_is_full() -> None:
    plain = Schedule("full")
    assert not plain.stateful
    assert plain.row(Step(7, None, False), []) == ()
    assert plain.choose(()) == ((), "full")
    assert plain.mask(3) == [()] * 3
    assert list(plain.graphs()) == ["full"]


def test_a_policy_chooses_by_step() -> None:
    assert CACHED.stateful
    assert CACHED.mask(9) == [(1,), (0,), (0,), (1,), (0,), (0,), (1,), (0,), (1,)]
    assert CACHED.row(Step(4, None, False), []) == (0,)
    assert CACHED.row(Step(4, 5, True), []) == (1,)
    assert CACHED.choose((0,)) == ((0,), "reuse")
    assert CACHED.choose((1,)) == ((1,), "full")


def test_a_generation_of_one_step_is_full() -> None:
    assert CACHED.mask(1) == [(1,)]
    assert CACHED.mask(0) == []


def test_only_running_tells_what_a_dynamic_policy_computes() -> None:
    dynamic = replace(CACHED, policy=FirstBlock(), full="rest", probe="probe", judge="judge")
    assert dynamic.mask(9) is None
    assert list(dynamic.graphs()) == ["rest", "full", "reuse", "probe", "judge"]


ROWS = list(product((1, 0), repeat=3))


@given(kept=st.sets(st.sampled_from(ROWS[1:])), asked=st.sampled_from(ROWS))
def test_a_row_without_a_variant_is_served_by_one_that_computes_a_little_more(
    kept: set[Row], asked: Row
) -> None:
    variants = ((ROWS[0], "full"), *((row, f"reuse_{i}") for i, row in enumerate(sorted(kept))))
    schedule = Schedule("full", Interval(), ("a", "b", "c"), variants=variants)
    row, name = schedule.choose(asked)
    assert dict(variants)[row] == name
    able = [has for has, _ in variants if all(h >= a for h, a in zip(has, asked, strict=True))]
    assert row in able
    assert sum(row) == min(map(sum, able))
    if asked in kept:
        assert row == asked
    assert schedule.computed((1, 0, 1)) == {"a", "c"}
