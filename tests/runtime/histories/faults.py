"""Faults that a runtime could have: each takes one mend back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dit_compile.runtime import generation, session
from dit_compile.runtime.content import same_value
from dit_compile.runtime.descent import Point
from dit_compile.runtime.generation import Generation, Lane, Tracker
from dit_compile.runtime.held import Held
from dit_compile.runtime.identity import Seen
from dit_compile.runtime.timetable import Timetable

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


def any_latent_goes_on(patch: Patch) -> None:
    """A cancelled generation is gone on with by the next one."""
    patch.setattr(Point, "leads_to", lambda self, latent: latent.shape == self.latent.shape)


def noise_goes_on(patch: Patch) -> None:
    """What a generation began with is taken for one more of its steps."""
    patch.setattr(Generation, "_begins_again", lambda self, row: False)


def state_outlives_weights(patch: Patch) -> None:
    patch.setattr(generation, "_renew", lambda kept, form: "")


def reset_leaves_state(patch: Patch) -> None:
    patch.setattr(Tracker, "reset", lambda self: None)


def writes_unseen(patch: Patch) -> None:
    patch.setattr(Seen, "still", Seen.same_memory)


def steps_by_number(patch: Patch) -> None:
    """Stated timesteps are not compared: another one is the next one."""
    last: dict[int, Any] = {}

    def step(self: Timetable, times: Any, current: int) -> int:
        moved = last.get(id(self)) != times
        last[id(self)] = times
        return min(current + 1 if moved else max(current, 0), len(self) - 1)

    patch.setattr(Timetable, "step", step)


def steps_left_out_unseen(patch: Patch) -> None:
    patch.setattr(generation, "_why_not", lambda *args, **kwargs: "")


def one_session_for_all_generators(patch: Patch) -> None:
    patch.setattr(session, "enclosing_generator", lambda: None)


def one_session_for_all_models(patch: Patch) -> None:
    patch.setattr(session.Session, "owns", lambda self, weights: True)
    patch.setattr(session._Model, "includes", lambda self, program, objects: True)


def one_session_for_all_threads(patch: Patch) -> None:
    class Everywhere:
        value: Any = None

        def get(self) -> Any:
            return self.value

        def set(self, value: Any) -> None:
            self.value = self.value or value

    class Holder:
        pass

    holder = Holder()
    patch.setattr(session, "_default", Everywhere())
    patch.setattr(session.threading, "current_thread", lambda: holder)
    patch.setattr(session.asyncio, "current_task", lambda: holder)


def forms_count_by_themselves(patch: Patch) -> None:
    patch.setattr(session._Model, "includes", lambda *args: False)


def forms_share_state(patch: Patch) -> None:
    patch.setattr(Lane, "of", lambda self, form: self.kept.setdefault(None, generation.Kept()))


def _serves(self: Lane, call: Any, clock: Any, *, blind: str) -> bool:
    if blind == "sizes":
        self.sizes = call.sizes
    if blind == "name":
        self.name = call.lane
    if blind == "context":
        self.context = {name: Held.of(value) for name, value in call.context.items()}
    return _really_serves(self, call, clock)


_really_serves = Lane.serves


def sizes_not_compared(patch: Patch) -> None:
    patch.setattr(Lane, "serves", lambda *args: _serves(*args, blind="sizes"))


def conditions_not_compared(patch: Patch) -> None:
    patch.setattr(Lane, "serves", lambda *args: _serves(*args, blind="context"))


def conditions_by_address(patch: Patch) -> None:
    """Whoever gets the memory of another has its content."""

    def of(value: Any) -> Held:
        tensor = isinstance(value, torch.Tensor)
        return Held(value.data_ptr() if tensor else value, (tensor and tuple(value.shape)) or None)

    def same(self: Held, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return (self.value, self.facts) == (value.data_ptr(), tuple(value.shape))
        return self.facts is None and same_value(self.value, value)

    patch.setattr(Held, "of", of)
    patch.setattr(Held, "same", same)


def second_evaluations_in_the_first_ones_lane(patch: Patch) -> None:
    def again(self: Tracker, found: Any, lanes: list[Lane], call: Any, form: Any) -> Any:
        return self._settle(found, lanes[0], call, form, None)

    patch.setattr(Tracker, "_again", again)


def moved_twice_is_moving(patch: Patch) -> None:
    """A prompt changed now and then is no condition any more."""

    def moving(self: Tracker) -> set[str]:
        moved = self.generation.moved if self.generation is not None else {}
        return {name for name, steps in moved.items() if len(steps) > 1}

    patch.setattr(Tracker, "moving", property(moving))


FAULTS: tuple[Fault, ...] = (
    any_latent_goes_on,
    noise_goes_on,
    state_outlives_weights,
    reset_leaves_state,
    writes_unseen,
    steps_by_number,
    steps_left_out_unseen,
    one_session_for_all_generators,
    one_session_for_all_models,
    one_session_for_all_threads,
    forms_count_by_themselves,
    forms_share_state,
    sizes_not_compared,
    conditions_not_compared,
    conditions_by_address,
    second_evaluations_in_the_first_ones_lane,
    moved_twice_is_moving,
)

#: Those that change models for good, as they have them compiled otherwise.
LASTING = (moved_twice_is_moving,)
