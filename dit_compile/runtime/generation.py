"""Where a call stands in the sampling loop: its generation, step and lane.

The rule is: reuse only what is certain. Where a call cannot be placed, it is computed in full.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from dit_compile.errors import DitcWarning
from dit_compile.ir.schedule import Done, Step
from dit_compile.runtime.descent import Point, Row, alike
from dit_compile.runtime.timetable import Times, Timetable

#: More lanes than any guidance scheme has: the conditions are not what separates lanes.
_MAX_LANES = 8
#: Evaluations whose latents are remembered: those of one step, and of a step before.
_TRAIL = 2 * _MAX_LANES
#: Steps after which a cache that reused nothing is worth a warning.
_ENOUGH_STEPS = 4
#: Steps in a row at which an input was new that make it one that changes at every step.
_ENOUGH_MOVES = 3
#: Generations in a row that broke off where time went on as in one.
_ENOUGH_BREAKS = 3

#: How a call can be served: everything is computed, or something is reused or forecast.
MODES = ("computed", "reused", "forecast")

#: Why the first step of a lane reuses nothing.
FIRST = "nothing was computed before"

_STATE_IT = "state the loop with ditc.session(model, timesteps=...) to cache it"
_TWICE = "one step was evaluated twice with the same conditions"
_MANY = "the conditions change at every call"
_TIMELESS = "no input is known to be the timestep"
_NOISE = "the latent does not follow from what the model returned before"
#: What helps where nothing is reused for a reason.
_REMEDIES = {
    _TWICE: "name the evaluations with ditc.lane(...), or " + _STATE_IT,
    _MANY: 'bind what changes: options={"bindings": {"<input>": "latent"}}',
    _TIMELESS: "state the loop with ditc.session(model, timesteps=...) and name its lanes with "
    "ditc.lane(...)",
}


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
        times: the inputs that are the timestep, or may be.
        sizes: shapes of all inputs, and all numbers among them that are no tensors.
        context: the inputs that separate lanes (neither timestep nor latent), by name.
        lane: the name that the caller gave the lane, empty if none.
        rows: elements of the latents; ``None`` where they are not looked at.
        caller: the thread and task of the call.
    """

    times: Times
    sizes: tuple[object, ...]
    context: Mapping[str, object]
    lane: str = ""
    rows: Sequence[Row] | None = None
    caller: object = None


class Form:
    """One compiled form of a model: a Program, on one set of weights.

    Attributes:
        stamp: what the weights are now; another object once one of them was written to.
    """

    def __init__(self) -> None:
        self.stamp: object = None


@dataclass(eq=False)
class Kept:
    """What one form of the model keeps of a lane.

    Attributes:
        state: state tensors by name, each from the last step that computed it.
        past: the steps that it has done.
        prepared: what was computed ahead.
        last_step: index of the latest step that it served.
        stamp: of the weights that made the state.
    """

    state: dict[str, Any] = field(default_factory=dict)
    past: list[Done] = field(default_factory=list)
    prepared: Any = None
    last_step: int = -1
    stamp: object = None


@dataclass(eq=False)
class Lane:
    """One stream of evaluations within a generation, such as the unconditional half of guidance.

    Attributes:
        sizes: of its calls.
        context: the inputs that identify it.
        name: what the caller calls it, empty if nothing.
        order: how many evaluations at the same timestep come before, as solvers make them.
        times: of its latest call.
        points: the latents of its latest call.
        kept: what each form of the model keeps.
        served: calls so far, by mode.
        why: how often each reason led to computing in full what might have been reused.
        last_step: index of the step of its latest call.
    """

    sizes: tuple[object, ...]
    context: Mapping[str, Held]
    name: str = ""
    order: int = 0
    times: Times = field(default_factory=dict)
    points: Sequence[Point] | None = None
    kept: dict[Form, Kept] = field(default_factory=dict)
    served: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    last_step: int = -1

    def serves(self, call: Call, clock: Sequence[str] | None) -> bool:
        """Whether a call like this is certainly one of this lane, at whatever timestep."""
        return (
            self.name == call.lane
            and self.sizes == call.sizes
            and all(
                times == self.times.get(name, times)
                for name, times in call.times.items()
                if clock is not None and name not in clock
            )
            and self.context.keys() == call.context.keys()
            and all(held.same(call.context[key]) for key, held in self.context.items())
        )

    def of(self, form: Form) -> Kept:
        """What ``form`` keeps of it."""
        return self.kept.setdefault(form, Kept())


@dataclass(eq=False)
class Generation:
    """One run of the sampling loop, as far as it has been seen.

    Attributes:
        index: of its current step.
        turn: the way time went to get here from a generation of one step, if it was unexpected.
        seen: the timesteps of its steps so far.
        lanes: its streams of evaluations.
        points: the latents of the current step, by content.
        starts: the latents of its first step.
        trail: the latents of its latest evaluations, the newest first.
        moved: for an input that was new to every lane after the first step, at which steps.
        stayed: inputs that had a value at two steps.
        ambiguous: why its calls cannot be placed, empty if they can.
        caller: of its latest call.
        over: whether it was ended from outside.
    """

    index: int = 0
    turn: int = 0
    seen: list[Times] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    points: dict[bytes, Point] = field(default_factory=dict)
    starts: list[Row] = field(default_factory=list)
    trail: list[Sequence[Point]] = field(default_factory=list)
    moved: dict[str, set[int]] = field(default_factory=dict)
    stayed: set[str] = field(default_factory=set)
    ambiguous: str = ""
    caller: object = None
    over: bool = False

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether all of these latents were evaluated at the current step."""
        return all(row.tobytes() in self.points for row in rows)

    def parents(self, rows: Sequence[Row], *, next_step: bool = False) -> Sequence[Point] | None:
        """The latents that these ones follow from, ``None`` if there are none.

        Args:
            rows: elements of the latents.
            next_step: they are those of a later step, so none of them is what the generation
                began with: that is the same noise, drawn again.
        """
        if next_step and any(map(self._begins_again, rows)):
            return None
        for points in self.trail:
            if _lead(points, rows):
                return points
        anywhere = {id(point): point for points in self.trail for point in points}.values()
        found = [next((p for p in anywhere if p.leads_to(row)), None) for row in rows]
        return None if None in found else [point for point in found if point is not None]

    def latest(self, rows: Sequence[Row]) -> Sequence[Point] | None:
        """The latents of the latest evaluation, if they are as many."""
        points = self.trail[0] if self.trail else ()
        return points if len(points) == len(rows) else None

    def _begins_again(self, row: Row) -> bool:
        return row.tobytes() not in self.points and any(alike(row, start) for start in self.starts)

    def move_on(self, index: int, times: Times) -> None:
        """Go on to a later step."""
        if not self.starts:
            self.starts = [point.latent for point in self.points.values()]
        self.index = index
        self.seen.append(times)
        self.points = {}

    def enter(self, rows: Sequence[Row], parents: Sequence[Point] | None) -> Sequence[Point]:
        """Remember latents that are evaluated at the current step."""
        points = []
        for i, row in enumerate(rows):
            key = row.tobytes()
            if key not in self.points:
                self.points[key] = parents[i].child(row) if parents else Point(row)
            points.append(self.points[key])
        self.trail = [points, *self.trail[: _TRAIL - 1]]
        return points


@dataclass(frozen=True)
class Place:
    """Where a call stands.

    Attributes:
        step: the step within the generation.
        lane: the lane within the generation.
        kept: what the form that is called keeps of the lane.
        doubt: why state of the lane's last step must not be reused, empty if it may.
        boundary: whether a generation begins here, or may: anything but a lane's next step.
        peer: what the form keeps of the generation's first lane, for the second one, if that has
            run at this step already.
    """

    step: Step
    lane: Lane
    kept: Kept
    doubt: str
    boundary: bool
    peer: Kept | None = None

    @property
    def certain(self) -> bool:
        """Whether state of the lane's last step may be reused."""
        return not self.doubt


class Tracker:
    """Places each call of one model, whatever form of it is called, in its generation.

    Args:
        timetable: the steps of the generation, if the caller has stated them.
        clock: which of a call's timesteps is the timestep; ``None`` if that must be observed.
        loud: warn when a call cannot be placed; off for models that never reuse anything.
        hold: how the inputs that separate lanes are kept and compared.
        beside: the step that other parts of the model are at, for parts that see no timestep.
        warned: what has been said already, also of other models that are compiled alike.
    """

    def __init__(
        self,
        timetable: Timetable | None = None,
        *,
        clock: Sequence[str] | None = None,
        loud: bool = True,
        hold: Hold,
        beside: Callable[[], int | None] = lambda: None,
        warned: set[str] | None = None,
    ) -> None:
        self.timetable = timetable
        self.clock = tuple(clock) if clock is not None else None
        self.loud = loud
        self._hold = hold
        self._beside = beside
        #: Held while a call is placed and served: a Session may be used from several threads.
        self.lock = threading.RLock()
        self.generation: Generation | None = None
        self.generations = 0
        #: What else is to be done when the generation ends.
        self.at_end: set[Callable[[], None]] = set()
        #: Bytes of a device that hoisted weights have left to others.
        self.released = 0
        #: The timesteps of the last generation, and its lanes.
        self.earlier_times: Sequence[Times] = ()
        self._earlier_lanes: Sequence[Lane] = ()
        self._travel = -1
        self._breaks = 0
        self._warned = warned if warned is not None else set()

    # -- placing ---------------------------------------------------------------------------------

    def place(self, call: Call, form: Form) -> Place:
        """Find the step and lane of ``call``; starts a new generation where one begins."""
        if self.timetable is not None and not call.times:  # what moves in it is no latent
            call = replace(call, rows=None)
        stated = self._stated_step(call)
        if stated is None and self.timetable is not None and call.times:
            return self._aside(call, form)
        found = self.generation
        if found is None or found.over:
            return self._first(call, form, stated)
        way = self._way(found, call, stated)
        lanes = [lane for lane in found.lanes if lane.serves(call, self.clock)]
        lanes.sort(key=lambda lane: (_far(lane, call), lane.order))
        if way == 0:
            return self._stay(found, lanes, call, form)
        if stated is not None:
            begins = way != 1
        elif call.rows is not None and found.holds(call.rows):  # the latent did not move
            if way is None or self.clock is None:
                lanes = [lane for lane in lanes if not _far(lane, call)]
                return self._stay(found, lanes, call, form)
            begins = True
        else:
            begins = way is not None and not self._goes_on(found, call, way)
        if begins:
            turn = way or 0 if stated is None and found.index == 0 else 0
            return self._first(call, form, stated, turn)
        return self._move_on(found, lanes, call, form, stated)

    def observe(self, place: Place, results: Sequence[Row | None] | None) -> None:
        """Remember what the model returned for the latents of a call."""
        for point, row in zip(place.lane.points or (), results or (), strict=False):
            if row is not None and len(point.results) < _MAX_LANES:
                point.results.append(row)

    def review(self) -> None:
        """Say once why nothing was reused, where a whole generation went by like that."""
        if self.generation is not None and not self.generation.over:
            self._review(self.generation)

    @property
    def index(self) -> int:
        """The index of the current step in its generation."""
        return self.generation.index if self.generation is not None else 0

    @property
    def timed(self) -> bool:
        """Whether a generation runs whose calls have timesteps."""
        found = self.generation
        return found is not None and not found.over and bool(found.seen[-1])

    @property
    def moving(self) -> set[str]:
        """Inputs that were taken to be fixed for a generation and are not.

        They are new at every step. Lanes may begin late, as guidance does in some schemes, and a
        prompt may be written to: but those have values that stay for a step at least.
        """
        found = self.generation
        if found is None:
            return set()
        enough = {name for name, steps in found.moved.items() if len(steps) >= _ENOUGH_MOVES}
        return enough - found.stayed

    def end(self) -> None:
        """End the generation and free its state, for example after an exception.

        Its counters stay.
        """
        if self.generation is not None and not self.generation.over:
            self._review(self.generation)
            self.generation.over = True
            self.generation.points, self.generation.trail = {}, []
            self.generation.starts = []
            for lane in self.generation.lanes:
                lane.kept, lane.context, lane.points = {}, {}, None
        while self.at_end:
            self.at_end.pop()()

    def reset(self) -> None:
        """End the generation, and forget what earlier ones computed ahead."""
        self.end()
        self.earlier_times, self._earlier_lanes = (), ()

    # -- where a call goes -----------------------------------------------------------------------

    def _first(self, call: Call, form: Form, stated: int | None, turn: int = 0) -> Place:
        """Begin a generation with ``call``."""
        return self._settle(self._begin(call, stated or 0, turn), None, call, form, None)

    def _begin(self, call: Call, index: int, turn: int = 0) -> Generation:
        last = self.generation
        if last is not None:
            if not last.over:
                self._review(last)
            self.earlier_times = last.seen
            self._earlier_lanes = last.lanes if not last.over else ()
        self.generation = Generation(index, turn, [call.times])
        self.generations += 1
        return self.generation

    def _stay(self, found: Generation, lanes: list[Lane], call: Call, form: Form) -> Place:
        """Place a call at the current step."""
        for lane in lanes:
            if _ran_in_another_form(lane, form, found.index) and self._same(lane, call):
                return self._settle(found, lane, call, form, None)
        waiting = [lane for lane in lanes if lane.last_step < found.index]
        if waiting:
            lane = waiting[0]
            before = next((each for each in lanes if each.order == lane.order - 1), None)
            if before is not None and self._leads(before, call) and _descend(before, lane):
                return self._settle(found, lane, call, form, before.points)
            if self._descends(found, lane, call):
                return self._settle(found, lane, call, form, lane.points)
            if found.holds(call.rows or ()):
                lane.points = None
                return self._settle(found, lane, call, form, None)
            return self._first(call, form, self._stated_step(call))
        if not lanes:
            parents = None if call.rows is None else found.parents(call.rows)
            return self._settle(found, None, call, form, parents)
        return self._again(found, lanes, call, form)

    def _again(self, found: Generation, lanes: list[Lane], call: Call, form: Form) -> Place:
        """Place one more evaluation of a step under the same conditions."""
        latest = lanes[-1]
        stated = self._stated_step(call)
        if stated is not None and self.timetable is not None:
            if len(lanes) < self.timetable.evaluations[stated]:
                return self._settle(found, None, call, form, latest.points, order=len(lanes))
            if stated == len(self.timetable) - 1 and _all_ran(found):
                return self._first(call, form, stated)
        if call.rows is None or self._same(latest, call):
            self._doubt(found, _TWICE)
            return self._settle(found, lanes[0], call, form, None)
        if self._leads(latest, call):
            return self._settle(found, None, call, form, latest.points, order=len(lanes))
        return self._first(call, form, stated)

    def _move_on(
        self,
        found: Generation,
        lanes: list[Lane],
        call: Call,
        form: Form,
        stated: int | None,
    ) -> Place:
        """Place a call at a later step, if its latent follows from those before."""
        trusted = stated is not None and call.caller == found.caller
        parents = None
        if call.rows is not None:
            latest = found.latest(call.rows) if trusted else None
            parents = latest or found.parents(call.rows, next_step=True)
        if parents is None and call.rows is not None and not trusted:
            self._note_break(found)
            return self._first(call, form, stated)
        self._breaks = 0
        lane = next((lane for lane in lanes if not lane.order), None)
        self._observe_clock(lane.times if lane is not None else found.seen[-1], call.times)
        found.move_on(stated if stated is not None else found.index + 1, call.times)
        if lane is None:
            self._note_moved(found, call)
        elif parents and not trusted and not _lead_back(parents, lane.points or ()):
            lane.points = None
        return self._settle(found, lane, call, form, parents)

    def _settle(
        self,
        found: Generation,
        lane: Lane | None,
        call: Call,
        form: Form,
        parents: Sequence[Point] | None,
        *,
        order: int = 0,
    ) -> Place:
        """The place of a call in a lane, which is made if there is none, at the current step."""
        found.caller = call.caller
        strange = lane is not None and lane.points is None and call.rows is not None
        if lane is not None and lane.last_step < found.index:
            found.stayed.update(lane.context)
        lane = lane or self._open(found, call, order)
        kept = lane.of(form)
        rewritten = _renew(kept, form)
        if call.rows is not None:
            lane.points = found.enter(call.rows, parents)
        lane.times = call.times
        if not call.times and call.rows is None and self._stated_step(call) is None:
            self._doubt(found, _TIMELESS)
        if sum(not each.order for each in found.lanes) > _MAX_LANES:
            self._doubt(found, _MANY)
        follows = kept.last_step == found.index - 1 and not strange
        doubt = found.ambiguous or rewritten or _why_not(lane, kept, found.index, strange=strange)
        lane.last_step = kept.last_step = found.index
        boundary = found.index == 0 or not follows or bool(found.ambiguous)
        peer = _peer(found, lane, form)
        return Place(self._step(found), lane, kept, doubt, boundary, peer)

    def _aside(self, call: Call, form: Form) -> Place:
        """Place a call whose timestep is none of those stated: computed in full, in no order."""
        found = self.generation
        if found is None or found.over:
            found = self._begin(call, -1)
        shown = ", ".join(f"{name}={times[0]:g}" for name, times in call.times.items() if times)
        reason = "the timestep of a call is none of those stated"
        self._warn(
            f"{reason} ({shown}), so that step is computed in full; state the timesteps that the "
            "loop runs, or those that the model is called with",
            reason,
        )
        lanes = [lane for lane in found.lanes if lane.serves(call, self.clock)]
        lane = lanes[0] if lanes else self._open(found, call, 0)
        kept = lane.of(form)
        _renew(kept, form)
        lane.last_step = kept.last_step = -2
        lane.points = None
        return Place(self._step(found), lane, kept, reason, boundary=True)

    # -- parts -----------------------------------------------------------------------------------

    def _stated_step(self, call: Call) -> int | None:
        if self.timetable is None:
            return None
        found = self.generation
        if not call.times:
            beside = self._beside()
            return self._next_of(call.lane) if beside is None else beside
        current = found.index if found is not None and not found.over else -1
        known = {n: v for n, v in call.times.items() if self.clock is None or n in self.clock}
        return self.timetable.step(known or call.times, current)

    def _next_of(self, name: str) -> int | None:
        """The step after the last one of a named lane, ``None`` if it has no name."""
        if not name or self.timetable is None:
            return None
        known = self.generation
        lanes = known.lanes if known is not None and not known.over else ()
        last = max((lane.last_step for lane in lanes if lane.name == name), default=-1)
        return last + 1 if last + 1 < len(self.timetable) else 0

    def _way(self, found: Generation, call: Call, stated: int | None) -> int | None:
        """1 if time went up, -1 down, 0 if it stood still, ``None`` if that cannot be seen.

        Of a stated loop 1 is a later step and -1 an earlier one.
        """
        if stated is not None:
            return (stated > found.index) - (stated < found.index)
        return self._direction(found.seen[-1], call.times)

    def _direction(self, before: Times, after: Times) -> int | None:
        names = [name for name in after if name in before]
        if self.clock is not None:
            names = [name for name in names if name in self.clock]
        if not names:
            return None
        if any(len(before[name]) != len(after[name]) for name in names):
            before, after = ({n: (max(t[n], default=0.0),) for n in names} for t in (before, after))
        ways = {
            (new > old) - (new < old)
            for name in names
            for old, new in zip(before[name], after[name], strict=True)
        } - {0}
        return 2 if len(ways) > 1 else next(iter(ways), 0)

    def _goes_on(self, found: Generation, call: Call, way: int) -> bool:
        """Whether time going this way continues the generation, and does not begin another.

        After one step alone, a move against the usual direction may be an inversion, or a single
        call of the model followed by a generation: where the latent cannot be seen, only the next
        move settles it.
        """
        if way == 2:  # samples that go both ways
            return False
        seen = found.seen
        if len(seen) > 1:
            ways = (self._direction(a, b) for a, b in zip(seen[-2::-1], seen[:0:-1], strict=True))
            return way == next(filter(None, ways), way)
        usual = way in (self._travel, found.turn)
        if not usual and (call.rows is None or found.parents(call.rows, next_step=True) is None):
            return False
        self._travel = way
        return True

    def _observe_clock(self, before: Times, after: Times) -> None:
        """Among several candidates, those that move when the latent does are the timestep."""
        if self.clock is None:
            moved = tuple(name for name in after if before.get(name) != after[name])
            self.clock = moved or None

    def _same(self, lane: Lane, call: Call) -> bool:
        """Whether a call is about the very latent that the lane had."""
        if call.rows is None or lane.points is None or len(lane.points) != len(call.rows):
            return call.rows is None
        keys = (point.latent.tobytes() for point in lane.points)
        return all(key == row.tobytes() for key, row in zip(keys, call.rows, strict=True))

    def _leads(self, lane: Lane, call: Call) -> bool:
        return call.rows is None or (lane.points is not None and _lead(lane.points, call.rows))

    def _descends(self, found: Generation, lane: Lane, call: Call) -> bool:
        """Whether the latent of a call follows from the lane's last one."""
        if call.rows is None or (self.timetable is not None and call.caller == found.caller):
            return True
        if lane.points is None:
            return False
        if len(lane.points) == len(call.rows) and found.holds(call.rows):
            here = [found.points[row.tobytes()] for row in call.rows]
            if _lead_back(here, lane.points):
                return True
        return _lead(lane.points, call.rows)

    def _open(self, found: Generation, call: Call, order: int) -> Lane:
        """Open a lane; what an earlier generation computed ahead under its conditions is kept."""
        context = {name: self._hold(value) for name, value in call.context.items()}
        lane = Lane(call.sizes, context, call.lane, order, call.times)
        for earlier in self._earlier_lanes:
            if earlier.serves(call, self.clock):
                lane.kept = {f: Kept(prepared=kept.prepared) for f, kept in earlier.kept.items()}
                break
        found.lanes.append(lane)
        return lane

    def _step(self, found: Generation) -> Step:
        index = max(found.index, 0)
        seen = [self._latest(times) for times in found.seen[-2:]]
        time = seen[-1] if self.clock else None
        if self.timetable is None:
            return Step(index, None, _seems_last(seen), time)
        total = len(self.timetable)
        if time is None and index < total:
            time = self.timetable.timesteps[index]
        sigmas = self.timetable.sigmas
        sigma = sigmas[index] if sigmas is not None and index < total else None
        return Step(index, total, index == total - 1, time, sigma=sigma)

    def _latest(self, times: Times) -> float:
        names = [name for name in self.clock or () if name in times]
        return max((value for name in names for value in times[name]), default=0.0)

    # -- what users see --------------------------------------------------------------------------

    def _note_moved(self, found: Generation, call: Call) -> None:
        """Record which inputs have a value that no lane has had, and which have one that was."""
        for name, value in call.context.items():
            held = [lane.context[name] for lane in found.lanes if name in lane.context]
            if any(each.same(value) for each in held):
                found.stayed.add(name)
            elif held:
                found.moved.setdefault(name, set()).add(found.index)

    def _note_break(self, found: Generation) -> None:
        """Say so where one step after the other begins a generation, though time goes on."""
        self._breaks = self._breaks + 1 if found.index == 0 else 1
        if self._breaks < _ENOUGH_BREAKS:
            return
        if not found.seen[-1]:
            self._warn(f"{_TIMELESS}, so nothing is reused; {_REMEDIES[_TIMELESS]}", _TIMELESS)
        else:
            self._warn(
                f"{_NOISE} (samplers that add noise do that), so it may be another generation's, "
                f"and nothing is reused; {_STATE_IT}",
                _NOISE,
            )

    def _doubt(self, found: Generation, reason: str) -> None:
        """Compute the rest of this generation in full, and say so once."""
        found.ambiguous = reason
        for lane in found.lanes:
            for kept in lane.kept.values():
                kept.state.clear()
        del found.lanes[_MAX_LANES:]
        remedy = _REMEDIES.get(reason, _STATE_IT)
        self._warn(f"{reason}, so nothing is reused in this generation; {remedy}", reason)

    def _review(self, found: Generation) -> None:
        """Say once why a whole generation went by in which nothing was reused."""
        lanes = [lane for lane in found.lanes if lane.served]
        reused = sum(lane.served["reused"] + lane.served["forecast"] for lane in lanes)
        why = sum((lane.why for lane in lanes), Counter[str]())
        del why[FIRST]
        if reused or found.index < _ENOUGH_STEPS - 1 or not why:
            return
        (reason, times), *_ = why.most_common(1)
        self._warn(
            f"in {found.index + 1} steps nothing was reused ({times} times since {reason}); "
            f"{_REMEDIES.get(reason, _STATE_IT)}",
            reason,
        )

    def _warn(self, text: str, once: str) -> None:
        if not self.loud or once in self._warned:
            return
        self._warned.add(once)
        warnings.warn(f"ditc: {text}", DitcWarning, stacklevel=2)


def _renew(kept: Kept, form: Form) -> str:
    """Drop state that other weights made, and return why, if there is any."""
    made = kept.stamp
    if made is form.stamp:
        return ""
    kept.stamp = form.stamp
    if not kept.past:
        return ""
    kept.state.clear()
    kept.past.clear()
    return "a weight was written to"


def _why_not(lane: Lane, kept: Kept, index: int, *, strange: bool) -> str:
    """Why what a form keeps of a lane must not be reused at a step, empty if it may."""
    if not kept.past:
        return ""
    if strange:
        return "its latent does not follow from the lane's last one"
    if kept.last_step != index - 1:
        known = lane.last_step == index - 1
        return "another form of the model did the last step" if known else "a step was left out"
    return ""


def _far(lane: Lane, call: Call) -> int:
    """How many of the inputs that may be the timestep differ from a lane's latest call."""
    return sum(lane.times.get(name, times) != times for name, times in call.times.items())


def _lead(points: Sequence[Point], rows: Sequence[Row]) -> bool:
    """Whether each of ``rows`` can be made of the point in its place."""
    return len(points) == len(rows) and all(
        point.leads_to(row) for point, row in zip(points, rows, strict=True)
    )


def _lead_back(points: Sequence[Point], earlier: Sequence[Point]) -> bool:
    """Whether each of ``points`` is, or follows from, the earlier one in its place."""
    return len(points) == len(earlier) and all(
        any(each is old for each in point.lineage())
        for point, old in zip(points, earlier, strict=True)
    )


def _descend(lane: Lane, earlier: Lane) -> bool:
    """Whether the latents of one lane follow from those of another, where they are seen."""
    if lane.points is None or earlier.points is None:
        return lane.points is None
    return _lead_back(lane.points, earlier.points)


def _ran_in_another_form(lane: Lane, form: Form, index: int) -> bool:
    """Whether a lane has run at a step, and not this form of it."""
    return lane.last_step == index and lane.of(form).last_step < index


def _all_ran(found: Generation) -> bool:
    """Whether every lane has already run at the current step."""
    return all(lane.last_step == found.index for lane in found.lanes)


def _peer(found: Generation, lane: Lane, form: Form) -> Kept | None:
    """What is kept of the lane that was evaluated before at this step, where there are two."""
    alike: Iterable[Lane] = (each for each in found.lanes if each.order == lane.order)
    first, second = (*alike, None, None)[:2]
    is_second = lane is second and first is not None and first.last_step == found.index
    return first.of(form) if is_second and first is not None else None


def _seems_last(seen: Sequence[float]) -> bool:
    """Whether the next timestep, at the last spacing, would leave the range.

    Samplers end near zero and inversions end near the top, whose value is not known here; only the
    former is recognised. A stated loop needs no guess.
    """
    if len(seen) < 2:
        return False
    spacing = seen[-1] - seen[-2]
    return spacing < 0 and seen[-1] + spacing < 0
