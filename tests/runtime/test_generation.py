"""The tracker by itself: steps, lanes and what is certain, for any sequence of calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.errors import DitcWarning
from dit_compile.runtime.generation import Call, Place, Tracker
from dit_compile.runtime.held import Held


def call(t: float | Sequence[float], lane: object = "a", size: int = 4) -> Call:
    times = tuple(t) if isinstance(t, Sequence) else (t,)
    return Call({"t": times}, (size,), {"prompt": lane})


def tracker(timesteps: Sequence[float] | None = None) -> Tracker:
    return Tracker(timesteps, clock=("t",), loud=False, hold=Held.of)


def steps(places: Sequence[Place]) -> list[int]:
    return [place.step.index for place in places]


falling = st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True).map(
    lambda times: sorted(times, reverse=True)
)


@st.composite
def generations(draw: st.DrawFn) -> list[list[int]]:
    """Falling timesteps, each generation starting above where the one before it ended."""
    made = [draw(falling)]
    for times in draw(st.lists(falling, max_size=3)):
        shift = max(0, made[-1][-1] + 1 - times[0])
        made.append([t + shift for t in times])
    return made


@given(generations(), st.integers(1, 4))
def test_each_generation_counts_its_own_steps(loops: list[list[int]], lanes: int) -> None:
    seen = tracker()
    for number, times in enumerate(loops):
        for index, t in enumerate(times):
            for lane in range(lanes):
                place = seen.place(call(t, lane))
                assert (place.step.index, place.certain) == (index, True)
                assert place.boundary == (index == 0)
        assert seen.generations == number + 1


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.sampled_from([4, 4, 4, 8])),
        max_size=30,
    )
)
def test_certain_means_one_move_since_the_lanes_last_call(
    calls: list[tuple[int, str, int]],
) -> None:
    """Whatever comes: reuse only at the same shapes, across exactly one move, no way turned."""
    seen = tracker()
    for position, (t, lane, size) in enumerate(calls):
        place = seen.place(call(t, lane, size))
        if place.step.index == 0 or not place.certain:
            continue
        before = [i for i in range(position) if calls[i][1] == lane]
        assert before, "there was no call of this lane to reuse from"
        since = calls[before[-1] : position + 1]
        assert {item[2] for item in since} == {size}
        moves = [b[0] - a[0] for a, b in pairwise(since) if b[0] != a[0]]
        assert len(moves) == 1


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), min_size=1))
def test_stated_steps_stay_in_range(moments: list[int], stated: list[int]) -> None:
    seen = tracker(stated)
    for t in moments:
        place = seen.place(call(t))
        assert place.step.total == len(stated)
        assert 0 <= place.step.index < max(len(stated), len(moments))
        assert place.step.last == (place.step.index == len(stated) - 1)


class TestLastStep:
    def test_stated(self) -> None:
        seen = tracker([9, 5, 4])
        assert [seen.place(call(t)).step.last for t in (9, 5, 4)] == [False, False, True]

    def test_guessed_where_the_next_step_would_fall_below_zero(self) -> None:
        seen = tracker()
        assert [seen.place(call(t)).step.last for t in (901, 601, 301, 1)] == [False] * 3 + [True]

    def test_not_guessed_for_inversions(self) -> None:
        seen = tracker()
        assert not any(seen.place(call(t)).step.last for t in (0, 300, 600, 900))


class TestDirection:
    def test_first_inversion_needs_two_rises(self) -> None:
        seen = tracker()
        places = [seen.place(call(t)) for t in (1, 2, 3, 4)]
        assert steps(places) == [0, 0, 1, 2]

    def test_next_inversion_is_expected(self) -> None:
        seen = tracker()
        for t in (1, 2, 3):
            seen.place(call(t))
        assert steps([seen.place(call(t)) for t in (1, 2, 3)]) == [0, 1, 2]

    def test_sampling_after_inversions(self) -> None:
        seen = tracker()
        for t in (1, 2, 3, 9):
            seen.place(call(t))
        assert steps([seen.place(call(t)) for t in (8, 7, 6, 5)]) == [0, 0, 1, 2]

    def test_stated_either_way(self) -> None:
        seen = tracker([0.1, 0.2, 0.3])
        assert steps([seen.place(call(t)) for t in (1, 2, 3)]) == [0, 1, 2]

    def test_samples_that_go_both_ways(self) -> None:
        seen = tracker()
        places = [seen.place(call(t)) for t in ((9, 9), (8, 8), (7, 9), (6, 8))]
        assert steps(places) == [0, 1, 0, 1]

    def test_tokens_that_stay_clean(self) -> None:
        """Image-to-video models hold the first frame's tokens at timestep zero."""
        seen = tracker()
        assert steps([seen.place(call((0, t))) for t in (9, 8, 7)]) == [0, 1, 2]


class TestClock:
    """Which of several candidates is the timestep."""

    def watch(self, *times: tuple[float, float]) -> Tracker:
        seen = Tracker(loud=False, hold=Held.of)
        for t, g in times:
            place = seen.place(Call({"t": (t,), "g": (g,)}, (), {}))
            assert seen.clock is not None or not place.certain
        return seen

    def test_moves_twice_alone(self) -> None:
        assert self.watch((9, 3), (8, 3)).clock is None
        assert self.watch((9, 3), (8, 3), (7, 3)).clock == ("t",)

    def test_two_that_always_move_together(self) -> None:
        assert self.watch((9, 3), (8, 2), (7, 1)).clock == ("t", "g")

    def test_lanes_do_not_count(self) -> None:
        assert self.watch((9, 3), (9, 1), (8, 3), (8, 1), (7, 3), (7, 1)).clock is None


class TestDoubt:
    def test_state_is_dropped(self) -> None:
        seen = tracker()
        first = seen.place(call(9))
        first.lane.state["x"] = torch.zeros(1)
        again = seen.place(call(9))
        assert again.lane is first.lane
        assert not first.lane.state
        assert not again.certain

    def test_no_timestep_at_all(self) -> None:
        seen = Tracker(clock=(), hold=Held.of)
        with pytest.warns(DitcWarning, match="no input is known to be the timestep") as caught:
            places = [seen.place(Call({}, (), {"prompt": "a"})) for _ in range(3)]
        assert len(caught) == 1
        assert [(p.certain, p.boundary) for p in places] == [(False, True)] * 3

    def test_repeated_step_may_begin_a_generation(self) -> None:
        """One-step models never move in time, but their weights may change between the calls."""
        seen = tracker()
        assert [seen.place(call(9)).boundary for _ in range(3)] == [True] * 3

    @pytest.mark.filterwarnings("error")
    def test_quiet_where_nothing_is_ever_reused(self) -> None:
        seen = tracker()
        for _ in range(3):
            seen.place(call(9))


class TestEnd:
    def test_frees_and_keeps_counters(self) -> None:
        seen = tracker()
        lane = seen.place(call(9)).lane
        lane.state["x"] = torch.zeros(1)
        lane.served["computed"] = 3
        seen.end()
        assert (lane.state, lane.context, lane.served["computed"]) == ({}, {}, 3)
        assert steps([seen.place(call(8))]) == [0]
        assert seen.generations == 2

    def test_before_any_call(self) -> None:
        seen = tracker()
        seen.end()
        assert seen.generations == 0
