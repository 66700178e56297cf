"""Where a call stands in the sampling loop: its generation, step and lane.

The rule is: reuse only what is certain. Where a call cannot be placed, it is computed in full.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dit_compile.errors import DitcWarning
from dit_compile.ir.schedule import Done, Step

#: More lanes than any guidance scheme has: the conditions are not what tells lanes apart.
_MAX_LANES = 8

#: How a call can be served: everything is computed, or something is reused or forecast.
MODES = ("computed", "reused", "forecast")

#: Host values of the inputs that may be the timestep, by name.
Times = Mapping[str, tuple[float, ...]]


class Held(Protocol):
    """An input as it was at an earlier call."""

    def same(self, value: object) -> bool:
        """Whether ``value`` is certainly what was held."""
        ...


#: Holds an input as it is now; tensors of each kind are held and compared in their own way.
Hold = Callable[[object], Held]


@dataclass(frozen=True)
class Call:
    """What a Session sees of one call.

    Attributes:
        timesteps: the inputs that are the timestep, or may be.
        shapes: sizes of all inputs; a change starts a new generation.
        context: the inputs that tell lanes apart (neither timestep nor latent), by name.
        lane: the name that the caller gave the lane, empty if none.
    """

    timesteps: Times
    shapes: tuple[object, ...]
    context: Mapping[str, object]
    lane: str = ""


@dataclass(eq=False)
class Lane:
    """One stream of evaluations within a generation, such as the unconditional half of guidance.

    Attributes:
        context: the inputs that identify it.
        name: what the caller calls it, empty if nothing.
        state: state tensors by name, each from the last step that computed it.
        past: the steps that it has done.
        served: calls so far, by mode.
        why: how often each reason led to computing in full what might have been reused.
        prepared: what was computed ahead for it.
        last_step: index of the step of its latest call.
    """

    context: Mapping[str, Held]
    name: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    past: list[Done] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    prepared: Any = None
    last_step: int = -1

    def serves(self, name: str, context: Mapping[str, object]) -> bool:
        """Whether a call with this context is certainly one of this lane."""
        return (
            self.name == name
            and self.context.keys() == context.keys()
            and all(held.same(context[key]) for key, held in self.context.items())
        )


@dataclass
class Generation:
    """One run of the sampling loop, as far as it has been seen.

    Attributes:
        shapes: sizes of all inputs.
        turn: the way time went to get here from a generation of one step, if it was unexpected.
        seen: the timesteps of its steps so far.
        lanes: its streams of evaluations.
        moved: for an input that was new to every lane after the first step, at which steps.
        ambiguous: why its calls cannot be placed, empty if they can.
        over: whether it was ended from outside.
    """

    shapes: tuple[object, ...]
    turn: int = 0
    seen: list[Times] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    moved: dict[str, set[int]] = field(default_factory=dict)
    ambiguous: str = ""
    over: bool = False


@dataclass(frozen=True)
class Place:
    """Where a call stands.

    Attributes:
        step: the step within the generation.
        lane: the lane within the generation.
        doubt: why state of the lane's last step must not be reused, empty if it may.
        boundary: whether a generation begins here, or may: anything but a lane's next step.
        peer: the generation's first lane, for the second one, if it has run at this step already.
    """

    step: Step
    lane: Lane
    doubt: str
    boundary: bool
    peer: Lane | None = None

    @property
    def certain(self) -> bool:
        """Whether state of the lane's last step may be reused."""
        return not self.doubt


class Tracker:
    """Places each call of one compiled Program in its generation.

    Args:
        timesteps: the timesteps of the generation, if the caller has stated them.
        sigmas: the noise level of each, if the caller has stated them too.
        clock: which of a call's timesteps is the timestep; ``None`` if that must be observed.
        loud: warn when a call cannot be placed; off for Programs that never reuse anything.
        hold: how the inputs that tell lanes apart are kept and compared.
    """

    def __init__(
        self,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        *,
        clock: Sequence[str] | None = None,
        loud: bool = True,
        hold: Hold,
    ) -> None:
        self.timesteps = list(timesteps) if timesteps is not None else None
        self._sigmas = sigmas
        self.clock = tuple(clock) if clock is not None else None
        self.loud = loud
        self._hold = hold
        self.generation: Generation | None = None
        self.generations = 0
        #: What else is to be done when the generation ends.
        self.at_end: set[Callable[[], None]] = set()
        #: Bytes of a device that hoisted weights have left to others.
        self.released = 0
        #: The timesteps of the last generation, and its lanes if its sizes were the same.
        self.earlier_times: Sequence[Times] = ()
        self._earlier_lanes: Sequence[Lane] = ()
        self._travel = -1
        self._warned: set[str] = set()

    def place(self, call: Call) -> Place:
        """Find the step and lane of ``call``; starts a new generation where one begins."""
        generation = self._generation(call)
        step = self._step(generation)
        lane = self._lane(generation, call)
        follows = lane.last_step == step.index - 1
        if not call.timesteps:
            self._doubt(generation, "no input is known to be the timestep")
        elif lane.last_step == step.index:
            self._doubt(generation, "one step was evaluated twice with the same conditions")
        elif len(generation.lanes) > _MAX_LANES:
            self._doubt(generation, "the conditions change at every call")
        doubt = generation.ambiguous or ("" if self.clock is not None else "no timestep known yet")
        if not follows:
            doubt = doubt or "a step was left out"
        lane.last_step = step.index
        boundary = step.index == 0 or not follows
        return Place(step, lane, doubt, boundary, _peer(generation, lane, step.index))

    @property
    def index(self) -> int:
        """The index of the current step in its generation."""
        return len(self.generation.seen) - 1 if self.generation is not None else 0

    @property
    def moving(self) -> set[str]:
        """Inputs that were taken to be fixed for a generation and are not.

        Lanes may begin late, as guidance does in some schemes, and a prompt may be written to: that
        is a change at one step.
        """
        moved = self.generation.moved if self.generation is not None else {}
        return {name for name, steps in moved.items() if len(steps) > 1}

    def end(self) -> None:
        """End the generation and free its state, for example after an exception.

        Its counters stay.
        """
        if self.generation is not None:
            self.generation.over = True
            for lane in self.generation.lanes:
                lane.state, lane.context, lane.prepared = {}, {}, None
        while self.at_end:
            self.at_end.pop()()

    def _generation(self, call: Call) -> Generation:
        """The generation that ``call`` belongs to, moved on to its step."""
        found = self.generation
        if found is None or found.over or found.shapes != call.shapes or self._complete(found):
            return self._begin(call)
        way = self._way(found.seen[-1], call.timesteps)
        if way == 0:
            if self._repeats(found):
                found.seen.append(call.timesteps)
            return found
        if way is None or not self._goes_on(found, way):
            turned = way if way is not None and len(found.seen) == 1 else 0
            return self._begin(call, turned)
        found.seen.append(call.timesteps)
        self._observe(found.seen)
        return found

    def _begin(self, call: Call, turn: int = 0) -> Generation:
        last = self.generation
        if last is not None:
            self.earlier_times = last.seen
            same = last.shapes == call.shapes and not last.over
            self._earlier_lanes = last.lanes if same else ()
        self.generation = Generation(call.shapes, turn, [call.timesteps])
        self.generations += 1
        return self.generation

    def _way(self, before: Times, after: Times) -> int | None:
        """1 if time went up, -1 down, 0 if it stood still, ``None`` if it went both ways."""
        ways = {
            (new > old) - (new < old)
            for name in (after if self.clock is None else self.clock)
            for old, new in zip(before[name], after[name], strict=True)
        } - {0}
        return None if len(ways) > 1 else next(iter(ways), 0)

    def _goes_on(self, generation: Generation, way: int) -> bool:
        """Whether time going this way continues the generation, and does not begin another.

        After one step alone, a move against the usual direction may be an inversion, or a single
        call of the model followed by a generation: only the next move tells.
        """
        seen = generation.seen
        if len(seen) > 1:
            ways = (self._way(a, b) for a, b in zip(seen[-2::-1], seen[:0:-1], strict=True))
            return way == next(filter(None, ways), way)
        if self.timesteps is None and way not in (self._travel, generation.turn):
            return False
        self._travel = way
        return True

    def _observe(self, seen: Sequence[Times]) -> None:
        """Among several candidates, those that moved alike twice in a row are the timestep."""
        if self.clock is not None or len(seen) < 3:
            return
        first, second = (
            [name for name in before if before[name] != after[name]]
            for before, after in zip(seen[-3:-1], seen[-2:], strict=True)
        )
        if first == second:
            self.clock = tuple(second)

    def _repeats(self, generation: Generation) -> bool:
        """Whether the loop was stated to stay at this timestep, and all lanes have been here."""
        done, stated = len(generation.seen), self.timesteps or []
        repeated = done < len(stated) and stated[done] == stated[done - 1]
        return repeated and self._all_ran(generation)

    def _complete(self, generation: Generation) -> bool:
        """Whether all stated steps are done, by all lanes."""
        stated = self.timesteps is not None and len(generation.seen) >= len(self.timesteps)
        return stated and self._all_ran(generation)

    @staticmethod
    def _all_ran(generation: Generation) -> bool:
        """Whether every lane has already run at the current step."""
        index = len(generation.seen) - 1
        return all(lane.last_step == index for lane in generation.lanes)

    def _step(self, generation: Generation) -> Step:
        index = len(generation.seen) - 1
        seen = [self._latest(times) for times in generation.seen[-2:]]
        time = seen[-1] if self.clock else None
        if self.timesteps is not None:
            last = index == len(self.timesteps) - 1
            sigma = self._sigmas[index] if self._sigmas and index < len(self._sigmas) else None
            return Step(index, len(self.timesteps), last, time, sigma=sigma)
        return Step(index, None, _seems_last(seen), time)

    def _latest(self, times: Times) -> float:
        return max((value for name in self.clock or () for value in times[name]), default=0.0)

    def _lane(self, generation: Generation, call: Call) -> Lane:
        context = dict(call.context)
        if self.clock is not None:
            context |= {n: v for n, v in call.timesteps.items() if n not in self.clock}
        for lane in generation.lanes:
            if lane.serves(call.lane, context):
                return lane
        if len(generation.seen) > 1:
            for name, value in context.items():
                if _is_new(generation, name, value):
                    generation.moved.setdefault(name, set()).add(len(generation.seen))
        lane = Lane({name: self._hold(value) for name, value in context.items()}, call.lane)
        known = (earlier for earlier in self._earlier_lanes if earlier.serves(call.lane, context))
        lane.prepared = next((earlier.prepared for earlier in known), None)
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


def _peer(generation: Generation, lane: Lane, index: int) -> Lane | None:
    """The lane that was evaluated before ``lane`` at this step, where there are two of them."""
    first, second = (*generation.lanes, None, None)[:2]
    is_second = lane is second and first is not None and first.last_step == index
    return first if is_second else None


def _is_new(generation: Generation, name: str, value: object) -> bool:
    """Whether no lane has had this value of an input."""
    held = (lane.context[name] for lane in generation.lanes if name in lane.context)
    return not any(each.same(value) for each in held)


def _seems_last(seen: Sequence[float]) -> bool:
    """Whether the next timestep, at the last spacing, would leave the range.

    Samplers end near zero and inversions end near the top, whose value is not known here; only the
    former is recognised. A stated loop needs no guess.
    """
    if len(seen) < 2:
        return False
    spacing = seen[-1] - seen[-2]
    return spacing < 0 and seen[-1] + spacing < 0
