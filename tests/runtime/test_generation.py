"""The tracker by itself: steps, lanes and what is certain, for any sequence of calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.errors import DitcWarning
from dit_compile.ir.schedule import Done
from dit_compile.runtime.descent import Row
from dit_compile.runtime.generation import Call, Form, Place, Tracker
from dit_compile.runtime.held import Held
from dit_compile.runtime.timetable import Timetable


def call(
    t: float | Sequence[float],
    lane: object = "a",
    size: int = 4,
    *,
    latent: Row | None = None,
    caller: object = None,
) -> Call:
    """A call of a model whose latents are not looked at, or of one sample with this latent."""
    times = tuple(t) if isinstance(t, Sequence) else (t,)
    rows = None if latent is None else [latent]
    return Call({"t": times}, (size,), {"prompt": lane}, rows=rows, caller=caller)


class Calls:
    """A Tracker, and the calls of one form of its model."""

    def __init__(self, timesteps: Sequence[float] | None = None, **options: Any) -> None:
        timetable = Timetable.of(timesteps) if timesteps else None
        options = {"clock": ("t",), "loud": False} | options
        self.tracker = Tracker(timetable, hold=Held.of, **options)
        self.form = Form()

    def __call__(self, *args: Any, **kwargs: Any) -> Place:
        """Place one call, made of what :func:`call` takes."""
        return self.place(call(*args, **kwargs))

    def place(self, made: Call, form: Form | None = None) -> Place:
        """Place one call and have it served, so that there is something to reuse."""
        place = self.tracker.place(made, form or self.form)
        place.kept.past.append(Done(place.step, frozenset()))
        return place


def latents(steps: int, seed: int) -> list[Row]:
    """Those of a sampler that moves little."""
    one, other = np.random.default_rng(seed).standard_normal((2, 64))
    return [one + 0.01 * step * other for step in range(steps)]


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
    seen = Calls()
    for number, times in enumerate(loops):
        for index, t in enumerate(times):
            for lane in range(lanes):
                place = seen(t, lane)
                assert (place.step.index, place.certain) == (index, True)
                assert place.boundary == (index == 0)
        assert seen.tracker.generations == number + 1


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.sampled_from([4, 4, 4, 8])),
        max_size=30,
    )
)
def test_certain_means_one_move_since_the_lanes_last_call(
    calls: list[tuple[int, str, int]],
) -> None:
    """Whatever comes: reuse only across exactly one move."""
    seen = Calls()
    for position, (t, lane, size) in enumerate(calls):
        place = seen(t, lane, size)
        if not (place.certain and place.kept.past[:-1]):
            continue
        before = [i for i in range(position) if calls[i][1:] == (lane, size)]
        assert before, "there was no call of this lane to reuse from"
        since = calls[before[-1] : position + 1]
        moves = [b[0] - a[0] for a, b in pairwise(since) if b[0] != a[0]]
        assert len(moves) == 1


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), min_size=1))
def test_stated_steps_are_found_by_value(moments: list[int], stated: list[int]) -> None:
    """Whatever comes, in whatever order; what was not stated reuses nothing."""
    seen = Calls([100 * t for t in stated])
    distinct = [t for i, t in enumerate(stated) if i == 0 or t != stated[i - 1]]
    for t in moments:
        place = seen(100 * t)
        assert place.step.total == len(distinct)
        assert place.step.last == (place.step.index == len(distinct) - 1)
        if t in distinct:
            assert distinct[place.step.index] == t
        elif t != 10 - t:  # 1000 - t is a way to state them
            assert not place.certain


class TestStated:
    def test_those_left_out_are_not_served_as_the_next_one(self) -> None:
        seen = Calls([9, 7, 5, 3])
        places = [seen(t) for t in (9, 5, 3)]
        assert steps(places) == [0, 2, 3]
        assert [place.doubt for place in places] == ["", "a step was left out", ""]

    def test_the_last_ones_alone(self) -> None:
        """Image-to-image runs the end of the loop, and so does the second of two experts."""
        seen = Calls([9, 7, 5, 3])
        places = [seen(t) for t in (5, 3)]
        assert [(p.step.index, p.step.last, p.certain) for p in places] == [
            (2, False, True),
            (3, True, True),
        ]

    def test_one_that_is_not_there(self) -> None:
        seen = Calls([900, 700, 500], loud=True)
        seen(900)
        with pytest.warns(DitcWarning, match=r"none of those stated \(t=800\), so .* in full"):
            assert seen(800).doubt
        assert [seen(t).doubt for t in (700, 500)] == ["a step was left out", ""]

    def test_beginning_again(self) -> None:
        seen = Calls([9, 7, 5])
        assert steps([seen(t) for t in (9, 7, 5, 9, 7, 5)]) == [0, 1, 2, 0, 1, 2]
        assert seen.tracker.generations == 2

    def test_evaluations_at_one_timestep_are_lanes_by_order(self) -> None:
        seen = Calls([9, 7, 7, 5, 5])
        places = [seen(t) for t in (9, 7, 7, 5, 5)]
        assert steps(places) == [0, 1, 1, 2, 2]
        assert [place.lane.order for place in places] == [0, 0, 1, 0, 1]
        assert all(place.certain for place in places)

    def test_the_last_one_twice_begins_a_generation(self) -> None:
        """Of one step, as a rule: there is no other way to see that."""
        seen = Calls([9])
        assert [seen(9).boundary for _ in range(3)] == [True] * 3
        assert seen.tracker.generations == 3

    def test_another_caller_must_have_the_lanes_latent(self) -> None:
        """Two threads share a Session: neither is served what the other one left."""
        seen = Calls([9, 7, 5])
        mine, other = latents(3, seed=1), latents(3, seed=2)
        seen(9, latent=mine[0], caller=1)
        assert seen(9, latent=other[0], caller=2).boundary
        assert not seen(7, latent=mine[1], caller=1).kept.state


class TestLastStep:
    def test_stated(self) -> None:
        seen = Calls([9, 5, 4])
        assert [seen(t).step.last for t in (9, 5, 4)] == [False, False, True]

    def test_guessed_where_the_next_step_would_fall_below_zero(self) -> None:
        seen = Calls()
        assert [seen(t).step.last for t in (901, 601, 301, 1)] == [False] * 3 + [True]

    def test_not_guessed_for_inversions(self) -> None:
        seen = Calls()
        assert not any(seen(t).step.last for t in (0, 300, 600, 900))


class TestDirection:
    def test_first_inversion_needs_two_rises(self) -> None:
        seen = Calls()
        places = [seen(t) for t in (1, 2, 3, 4)]
        assert steps(places) == [0, 0, 1, 2]

    def test_next_inversion_is_expected(self) -> None:
        seen = Calls()
        for t in (1, 2, 3):
            seen(t)
        assert steps([seen(t) for t in (1, 2, 3)]) == [0, 1, 2]

    def test_sampling_after_inversions(self) -> None:
        seen = Calls()
        for t in (1, 2, 3, 9):
            seen(t)
        assert steps([seen(t) for t in (8, 7, 6, 5)]) == [0, 0, 1, 2]

    def test_stated_either_way(self) -> None:
        seen = Calls([100, 200, 300])
        assert steps([seen(t) for t in (0.1, 0.2, 0.3)]) == [0, 1, 2]

    def test_samples_that_go_both_ways(self) -> None:
        seen = Calls()
        places = [seen(t) for t in ((9, 9), (8, 8), (7, 9), (6, 8))]
        assert steps(places) == [0, 1, 0, 1]

    def test_tokens_that_stay_clean(self) -> None:
        """Image-to-video models hold the first frame's tokens at timestep zero."""
        seen = Calls()
        assert steps([seen((0, t)) for t in (9, 8, 7)]) == [0, 1, 2]


class TestClock:
    """Which of several candidates is the timestep: those that move when the latent does."""

    def watch(self, *times: tuple[float, float]) -> Calls:
        seen = Calls(clock=None)
        moving = iter(latents(len(times), seed=0))
        latent, last = next(moving), times[0][0]
        for t, g in times:
            latent, last = (next(moving), t) if t != last else (latent, last)
            seen.place(Call({"t": (t,), "g": (g,)}, (), {}, rows=[latent]))
        return seen

    def test_the_one_that_moves(self) -> None:
        assert self.watch((9, 3)).tracker.clock is None
        assert self.watch((9, 3), (8, 3)).tracker.clock == ("t",)

    def test_two_that_always_move_together(self) -> None:
        assert self.watch((9, 3), (8, 2), (7, 1)).tracker.clock == ("t", "g")

    def test_lanes_do_not_count(self) -> None:
        seen = self.watch((9, 3), (9, 1), (8, 3), (8, 1), (7, 3), (7, 1)).tracker
        assert seen.clock == ("t",)
        assert seen.generation is not None
        assert (seen.index, len(seen.generation.lanes), seen.generations) == (2, 2, 1)


class TestDescent:
    """What the latents say where nobody states the loop."""

    def test_another_generation_at_falling_timesteps(self) -> None:
        """One was cancelled; the next one starts from a picture, with the same prompt."""
        seen = Calls()
        first, second = latents(6, seed=1), latents(6, seed=2)
        places = [seen(t, latent=x) for t, x in zip((9, 8, 7), first, strict=False)]
        assert steps(places) == [0, 1, 2]
        places = [seen(t, latent=x) for t, x in zip((6, 5, 4), second, strict=False)]
        assert steps(places) == [0, 1, 2]
        assert seen.tracker.generations == 2

    def test_two_in_turns(self) -> None:
        """Neither is certain to be alone, so each call begins a generation."""
        seen = Calls()
        pairs = zip(latents(4, seed=1), latents(4, seed=2), strict=True)
        calls = [(9 - i, x) for i, pair in enumerate(pairs) for x in pair]
        places = [seen(t, latent=x) for t, x in calls]
        assert not any(place.certain and place.step.index for place in places[2:])

    def test_inversion_needs_one_rise(self) -> None:
        seen = Calls()
        calls = zip((1, 2, 3), latents(3, seed=1), strict=True)
        assert steps([seen(t, latent=x) for t, x in calls]) == [0, 1, 2]

    def test_noise_is_said_once(self) -> None:
        seen = Calls(loud=True)
        calls = [call(900 - seed, latent=latents(1, seed)[0]) for seed in range(8)]
        with pytest.warns(DitcWarning, match="samplers that add noise do that") as caught:
            assert steps(list(map(seen.place, calls))) == [0] * 8
        assert len(caught) == 1

    def test_second_evaluations_follow_from_both_results(self) -> None:
        """Heun's method, of a model that returns something else at each call."""
        seen, rng = Calls(), np.random.default_rng(1)

        def evaluate(t: int, latent: Row) -> tuple[Place, Row]:
            place, result = seen(t, latent=latent), rng.standard_normal(64)
            seen.tracker.observe(place, [result])
            return place, result

        x = rng.standard_normal(64)
        place, slope = evaluate(9, x)
        places = [place]
        for t in (8, 7, 6, 5):
            place, other = evaluate(t, x - 0.3 * slope)
            x = x - 0.15 * (slope + other)
            again, slope = evaluate(t, x)
            places += [place, again]
        assert [place.lane.order for place in places] == [0, *[0, 1] * 4]
        assert (steps(places)[-1], seen.tracker.generations) == (4, 1)

    def test_the_same_noise_again_is_another_generation(self) -> None:
        """Though time goes on, and the loop can be followed back: the sampler has scaled it."""
        seen = Calls()
        drawn = latents(6, seed=1)
        places = [seen(t, latent=x) for t, x in zip((9, 8, 7, 6), drawn, strict=False)]
        assert steps(places) == [0, 1, 2, 3]
        assert steps([seen(5, latent=0.7 * drawn[0]), seen(4, latent=0.7 * drawn[1])]) == [0, 1]
        assert seen.tracker.generations == 2

    def test_what_stays_is_not_the_noise_again(self) -> None:
        """Of several latents that are looked at, one may be a picture to go by."""
        seen = Calls()
        (picture,) = latents(1, seed=2)
        for t, latent in zip((9, 8, 7, 6), latents(4, seed=1), strict=True):
            place = seen.place(Call({"t": (t,)}, (), {}, rows=[latent, picture]))
        assert (place.step.index, seen.tracker.generations) == (3, 1)

    def test_the_same_latent_at_another_time_is_another_generation(self) -> None:
        """As calibrations and training call models: each time with the same latent."""
        seen = Calls()
        (latent,) = latents(1, seed=1)
        assert steps([seen(t, latent=latent) for t in (9, 8, 7)]) == [0, 0, 0]


class TestForms:
    """One generation is counted once for all forms of a model."""

    def test_they_share_steps_and_not_state(self) -> None:
        seen, other = Calls(), Form()
        seen(9)
        place = seen.place(call(8), other)
        assert (place.step.index, place.kept.past[:-1]) == (1, [])
        place = seen(7)
        assert (place.step.index, place.doubt) == (2, "another form of the model did the last step")
        assert (seen(6).doubt, seen.tracker.generations) == ("", 1)

    def test_state_belongs_to_the_weights_that_made_it(self) -> None:
        seen = Calls()
        seen(9).kept.state["x"] = torch.zeros(1)
        seen.form.stamp = object()
        place = seen(8)
        assert (place.doubt, place.kept.state) == ("a weight was written to", {})
        assert seen(7).certain

    def test_a_form_may_come_in_between_two_evaluations_of_a_step(self) -> None:
        """It does the second one, which the first form has not done either."""
        times, drawn, other = (9, 9, 7, 7, 5, 5), latents(6, seed=1), Form()
        calls = [call(t, latent=x) for t, x in zip(times, drawn, strict=True)]
        seen = Calls(times)
        forms = (None, None, None, other, None, other)
        places = [seen.place(made, form) for made, form in zip(calls, forms, strict=True)]
        assert steps(places) == [0, 0, 1, 1, 2, 2]
        assert [place.lane.order for place in places] == [0, 1] * 3
        assert seen.tracker.generations == 1
        assert len({id(place.kept) for place in places}) == 3

    def test_sizes_belong_to_the_lane(self) -> None:
        """Two guidance calls whose texts differ in length."""
        seen = Calls()
        places = [seen(t, size, size) for t in (9, 8, 7) for size in (4, 6)]
        assert steps(places) == [0, 0, 1, 1, 2, 2]
        assert all(place.certain for place in places)


class TestMoving:
    """Which inputs change from step to step, so that they are no condition."""

    def watch(self, *prompts: str) -> set[str]:
        """Of a loop whose steps are called with these prompts, a letter for each call."""
        seen = Calls()
        for step, several in enumerate(prompts):
            for prompt in several:
                seen(100 - step, prompt)
        return seen.tracker.moving

    def test_new_at_each_step(self) -> None:
        assert self.watch("a", "b", "c") == set()
        assert self.watch("a", "b", "c", "d") == {"prompt"}
        assert self.watch("ax", "by", "cz", "dw") == {"prompt"}

    def test_prompts_that_change_now_and_then(self) -> None:
        assert self.watch("a", "b", "b", "c", "c", "d", "d") == set()

    def test_a_prompt_that_changes_and_a_lane_that_begins(self) -> None:
        """At steps that follow each other; what is taken for a latent is compared no more."""
        assert self.watch("a", "b", "xb", "xc", "xc") == set()
        assert self.watch("a", "a", "xa", "xb", "yb", "yb") == set()


class TestDoubt:
    def test_state_is_dropped(self) -> None:
        seen = Calls()
        first = seen(9)
        first.kept.state["x"] = torch.zeros(1)
        again = seen(9)
        assert again.lane is first.lane
        assert not first.kept.state
        assert not again.certain

    def test_no_timestep_at_all(self) -> None:
        seen = Calls(clock=(), loud=True)
        with pytest.warns(DitcWarning, match="no input is known to be the timestep") as caught:
            places = [seen.place(Call({}, (), {"prompt": "a"})) for _ in range(3)]
        assert len(caught) == 1
        assert [(p.certain, p.boundary) for p in places] == [(False, True)] * 3

    def test_repeated_step_may_begin_a_generation(self) -> None:
        """One-step models never move in time, but their weights may change between the calls."""
        seen = Calls()
        assert [seen(9).boundary for _ in range(3)] == [True] * 3

    @pytest.mark.filterwarnings("error")
    def test_quiet_where_nothing_is_ever_reused(self) -> None:
        seen = Calls()
        for _ in range(3):
            seen(9)


class TestEnd:
    def test_frees_and_keeps_counters(self) -> None:
        seen = Calls()
        lane = seen(9).lane
        lane.served["computed"] = 3
        seen.tracker.end()
        assert (lane.kept, lane.context, lane.served["computed"]) == ({}, {}, 3)
        assert steps([seen(8)]) == [0]
        assert seen.tracker.generations == 2

    def test_before_any_call(self) -> None:
        seen = Calls()
        seen.tracker.end()
        assert seen.tracker.generations == 0
