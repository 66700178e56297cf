"""Where a call stands in the sampling loop: its generation, step and lane.

The rule is: reuse only what is certain. Where a call cannot be placed, it is computed in full.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dit_compile.errors import DitcWarning
from dit_compile.ir.schedule import Step

#: Tensors up to this many elements are compared by content when their identity does not settle it.
_SMALL = 1 << 16
#: More lanes than any guidance scheme has: the conditions are not what tells lanes apart.
_MAX_LANES = 8


@dataclass(frozen=True)
class Call:
    """What a Session sees of one call.

    Attributes:
        timesteps: host values of the inputs that may be the timestep, by name.
        shapes: sizes of all inputs; a change starts a new generation.
        context: the inputs that tell lanes apart (neither timestep nor latent), by name.
    """

    timesteps: Mapping[str, float]
    shapes: tuple[object, ...]
    context: Mapping[str, object]


@dataclass
class Lane:
    """One stream of evaluations within a generation, such as the unconditional half of guidance.

    Attributes:
        context: the inputs that identify it; held, so that their addresses cannot be reused.
        versions: version counters of those inputs when they were stored.
        state: state tensors by name, from its last computed step.
        computed, reused: calls so far.
        last_step: index of the step of its latest call.
    """

    context: Mapping[str, object]
    versions: Mapping[str, int | None]
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    computed: int = 0
    reused: int = 0
    last_step: int = -1


@dataclass
class Generation:
    """One run of the sampling loop, as far as it has been seen."""

    shapes: tuple[object, ...]
    seen: list[float] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    ambiguous: str = ""


@dataclass(frozen=True)
class Place:
    """Where a call stands.

    Attributes:
        step: the step within the generation.
        lane: the lane within the generation.
        certain: whether state of the lane's last step may be reused.
        boundary: whether a generation begins here, or may: the first step, or time going up.
    """

    step: Step
    lane: Lane
    certain: bool
    boundary: bool


class Tracker:
    """Places each call of one compiled Program in its generation.

    Args:
        timesteps: the timesteps of the generation, if the caller has stated them.
        loud: warn when a call cannot be placed; off for Programs that never reuse anything.
    """

    def __init__(self, timesteps: Sequence[float] | None = None, *, loud: bool = True) -> None:
        self.timesteps = list(timesteps) if timesteps is not None else None
        self.loud = loud
        self.generation: Generation | None = None
        self.generations = 0
        self._moving: str | None = None
        self._previous: dict[str, float] = {}
        self._warned: set[str] = set()

    def place(self, call: Call) -> Place:
        """Find the step and lane of ``call``; starts a new generation where one begins."""
        now = self._timestep(call.timesteps)
        if self._begins(call, now):
            self.generation = Generation(call.shapes)
            self.generations += 1
        generation = self.generation
        assert generation is not None
        boundary = not generation.seen or now > generation.seen[-1]
        if not generation.seen or self._advances(generation, now):
            generation.seen.append(now)
        step = self._step(generation)
        lane = self._lane(generation, call)
        if not call.timesteps:
            self._doubt(generation, "no input is known to be the timestep")
        elif lane.last_step == step.index:
            self._doubt(generation, "one step was evaluated twice with the same conditions")
        elif len(generation.lanes) > _MAX_LANES:
            self._doubt(generation, "the conditions change at every call")
        certain = not generation.ambiguous and lane.last_step == step.index - 1
        lane.last_step = step.index
        return Place(step, lane, certain, boundary)

    def end(self) -> None:
        """Forget the current generation and its state, for example after an exception."""
        self.generation = None

    def _timestep(self, candidates: Mapping[str, float]) -> float:
        """The timestep's value; among several candidates, the one that was seen to move."""
        if self._moving is None and len(candidates) > 1:
            moved = [n for n, v in candidates.items() if self._previous.get(n, v) != v]
            if len(moved) == 1:
                self._moving = moved[0]
                if self.generation is not None and self.generation.seen:
                    self.generation.seen[-1] = self._previous[self._moving]
            self._previous = dict(candidates)
        name = self._moving or next(iter(candidates), None)
        return candidates[name] if name is not None else 0.0

    def _begins(self, call: Call, now: float) -> bool:
        """Whether ``call`` starts a new generation: other shapes, or time turns back."""
        generation = self.generation
        if generation is None or generation.shapes != call.shapes:
            return True
        seen = generation.seen
        if self._finished(generation) and self._all_ran(generation):
            return True
        if now == seen[-1] or len(seen) == 1:
            return False
        travel = next((b - a for a, b in zip(seen[-2::-1], seen[:0:-1], strict=True) if a != b), 0)
        return (now - seen[-1]) * travel < 0

    def _advances(self, generation: Generation, now: float) -> bool:
        """Whether ``call`` is at a later step than the one before it."""
        if now != generation.seen[-1]:
            return True
        done = len(generation.seen)
        stated = self.timesteps or []
        repeats = done < len(stated) and stated[done] == stated[done - 1]
        return repeats and self._all_ran(generation)

    def _finished(self, generation: Generation) -> bool:
        return self.timesteps is not None and len(generation.seen) >= len(self.timesteps)

    @staticmethod
    def _all_ran(generation: Generation) -> bool:
        """Whether every lane has already run at the current step."""
        index = len(generation.seen) - 1
        return all(lane.last_step == index for lane in generation.lanes)

    def _step(self, generation: Generation) -> Step:
        index = max(len(generation.seen) - 1, 0)
        if self.timesteps is not None:
            return Step(index, len(self.timesteps), index == len(self.timesteps) - 1)
        return Step(index, None, _seems_last(generation.seen))

    def _lane(self, generation: Generation, call: Call) -> Lane:
        for lane in generation.lanes:
            if _same_context(lane, call.context):
                return lane
        lane = Lane(dict(call.context), {k: _version(v) for k, v in call.context.items()})
        generation.lanes.append(lane)
        return lane

    def _doubt(self, generation: Generation, reason: str) -> None:
        """Compute the rest of this generation in full, and say so once."""
        generation.ambiguous = reason
        for lane in generation.lanes:
            lane.state.clear()
        del generation.lanes[_MAX_LANES:]
        if self.loud and reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(
                f"ditc: {reason}, so nothing is reused in this generation; state the loop with "
                "ditc.session(model, timesteps=...) to cache it",
                DitcWarning,
                stacklevel=2,
            )


def _seems_last(seen: Sequence[float]) -> bool:
    """Whether the next timestep, at the last spacing, would leave the range.

    Samplers end near zero and inversions end near the top, whose value is not known here; only the
    former is recognised. A stated loop needs no guess.
    """
    if len(seen) < 2:
        return False
    spacing = seen[-1] - seen[-2]
    return spacing < 0 and seen[-1] + spacing < 0


def _same_context(lane: Lane, context: Mapping[str, object]) -> bool:
    if lane.context.keys() != context.keys():
        return False
    return all(
        same_value(lane.context[name], lane.versions[name], value)
        for name, value in context.items()
    )


def same_value(old: object, version: int | None, new: object) -> bool:
    """Whether an input is certainly the same as an earlier one that is still held.

    The same object or view at the same version is the same value; small tensors are compared by
    content, in which case an in-place change between the calls is not mistaken for equality,
    because the old tensor is compared at its stored version only.
    """
    if not isinstance(new, torch.Tensor) or not isinstance(old, torch.Tensor):
        return type(old) is type(new) and old == new
    if old.shape != new.shape or old.dtype != new.dtype or old.device != new.device:
        return False
    unchanged = version is not None and version == _version(old)
    if unchanged and _same_memory(old, new):
        return _version(new) == version
    if not unchanged and version is not None:
        return False
    return new.numel() <= _SMALL and version is not None and bool(torch.equal(old, new))


def _same_memory(old: torch.Tensor, new: torch.Tensor) -> bool:
    if old is new:
        return True
    return (
        old.data_ptr() == new.data_ptr()
        and old.stride() == new.stride()
        and old.storage_offset() == new.storage_offset()
    )


def _version(value: object) -> int | None:
    """Version counter of a tensor; inference tensors have none."""
    if not isinstance(value, torch.Tensor) or value.is_inference():
        return None
    return value._version
