"""Stated timesteps: which of them a call is at, however the model gets to see them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.runtime.timetable import Timetable

SHIFTED = (1000.0, 963.3, 909.1, 820.9, 652.2, 201.7)
SIGMAS = tuple(t / 1000 for t in SHIFTED)

WAYS: dict[str, Callable[[float], float]] = {
    "as it is": lambda t: t,
    "a share": lambda t: t / 1000,
    "a share from the end": lambda t: 1 - t / 1000,
    "from the end": lambda t: 1000 - t,
    "bfloat16": lambda t: float(torch.tensor(t, dtype=torch.bfloat16)),
    "a share in bfloat16": lambda t: float(torch.tensor(t / 1000, dtype=torch.bfloat16)),
    "rounded to an integer": round,
    "cut to an integer": int,
}


def test_evaluations_that_follow_each_other_at_one_timestep_are_one_step() -> None:
    table = Timetable.of([9.0, 7.0, 7.0, 5.0, 7.0], [4.0, 3.0, 3.0, 2.0, 3.0, 0.0])
    assert (table.timesteps, table.evaluations) == ((9.0, 7.0, 5.0, 7.0), (1, 2, 1, 1))
    assert table.sigmas == (4.0, 3.0, 2.0, 3.0)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("first", [0, 3])
def test_however_the_model_sees_them(way: Callable[[float], float], first: int) -> None:
    """From the first step on, or from a later one, as image-to-image does."""
    table, current = Timetable.of(SHIFTED), -1
    for index in range(first, len(SHIFTED)):
        current = table.step({"t": (way(SHIFTED[index]),)}, current)  # type: ignore[assignment]
        assert current == index


@pytest.mark.parametrize("way", [lambda s: s, lambda s: 1 - s, lambda s: s / (1 + s), np.arctan])
def test_by_noise_level(way: Callable[[float], float]) -> None:
    """EDM's models get a function of it."""
    scale = 2 / np.pi if way is np.arctan else 1
    table, current = Timetable.of(range(6, 0, -1), SIGMAS), -1
    for index, sigma in enumerate(SIGMAS):
        current = table.step({"t": (scale * way(sigma),)}, current)  # type: ignore[assignment]
        assert current == index


def test_flow_models_state_shares() -> None:
    table = Timetable.of(SIGMAS)
    assert [table.step({"t": (1000 * s,)}, i - 1) for i, s in enumerate(SIGMAS)] == [*range(6)]


@given(
    st.lists(st.integers(1, 999), min_size=1, max_size=20, unique=True),
    st.integers(1, 999),
)
def test_what_was_not_stated_is_not_found(stated: list[int], time: int) -> None:
    """Beyond rounding, that is; time as it is, which the first step has shown."""
    stated = sorted(stated, reverse=True)
    table = Timetable.of(stated)
    assert table.step({"t": (float(stated[0]),)}, -1) == 0
    found = table.step({"t": (float(time),)}, 0)
    if time in stated:
        assert found == stated.index(time)
    if min(abs(time - t) for t in stated) > max(time / 256, stated[0] / 1000) + 1:
        readings = {reading.way(np.array([5.0]))[0] for reading in table._readings}
        assert found is None or readings != {5.0}


class TestSeveralCandidates:
    """A guidance scale has a timestep's form."""

    def test_the_timestep_is_known_by_its_value(self) -> None:
        table = Timetable.of(SHIFTED)
        for index, t in enumerate(SHIFTED):
            assert table.step({"guidance": (3500.0,), "t": (t / 1000,)}, index - 1) == index
        assert {reading.name for reading in table._readings} == {"t"}

    def test_one_that_has_a_stated_value_by_chance(self) -> None:
        """At the second step it is seen not to move."""
        table = Timetable.of(SHIFTED)
        steps = [
            table.step({"g": (SHIFTED[0],), "t": (t,)}, index - 1)
            for index, t in enumerate(SHIFTED)
        ]
        assert steps == [*range(6)]
        assert {reading.name for reading in table._readings} == {"t"}


class TestForeseen:
    def test_every_step_in_the_type_of_the_input(self) -> None:
        """Scaled as the model's caller scales them, in the type that the input has."""
        table = Timetable.of(SHIFTED)
        stated = torch.tensor(SHIFTED)
        call = {"t": tuple((stated[:1] / 1000).tolist()), "g": (3.5,)}
        table.step(call, -1)
        table.step({**call, "t": tuple((stated[1:2] / 1000).tolist())}, 0)
        rows = table.foreseen(call, ("t",), lambda _, numbers: torch.tensor(numbers))
        assert [row["t"] for row in rows] == [(t,) for t in (stated / 1000).tolist()]
        assert {row["g"] for row in rows} == {(3.5,)}, "what does not move stays in each row"

    def test_a_batch(self) -> None:
        table = Timetable.of(SHIFTED)
        call = {"t": (SHIFTED[0],) * 3}
        table.step(call, -1)
        rows = table.foreseen(call, ("t",), lambda _, numbers: torch.tensor(numbers))
        assert len(rows) == 6
        assert all(len({*row["t"]}) == 1 and len(row["t"]) == 3 for row in rows)

    def test_nothing_where_samples_differ(self) -> None:
        table = Timetable.of(SHIFTED)
        call = {"t": (0.0, SHIFTED[0])}
        table.step(call, -1)
        assert table.foreseen(call, ("t",), lambda _, numbers: torch.tensor(numbers)) == []


def test_samples_at_their_own_timesteps_follow_the_latest() -> None:
    """The first frame of image-to-video stays clean."""
    table = Timetable.of(SHIFTED)
    steps = [table.step({"t": (0.0, t)}, index - 1) for index, t in enumerate(SHIFTED)]
    assert steps == [*range(6)]
