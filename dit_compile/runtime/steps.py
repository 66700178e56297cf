"""The graphs that serve one step, in order. Tensors may be torch's or ONNX Runtime's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from dit_compile.ir.interface import Input
from dit_compile.ir.schedule import Done, Schedule, Step
from dit_compile.runtime.generation import Lane, Place
from dit_compile.runtime.states import States, Vector

Values = dict[str, Any]


@dataclass
class Returned:
    """What a graph returned: to the caller, under names, and for the schedule to decide by."""

    results: tuple[Any, ...] = ()
    named: Values = field(default_factory=dict)
    measure: float = math.nan


@dataclass(frozen=True)
class Served:
    """One step of one lane, done.

    Attributes:
        lane: the lane.
        step: the step, with what was measured at it.
        graph: the graph that served it.
        returned: what that graph returned.
    """

    lane: Lane
    step: Step
    graph: str
    returned: Returned


#: Runs a graph by name on values by name.
Run = Callable[[str, Values], Returned]


class Steps:
    """Chooses and runs the graphs of a step, and keeps the state that they return.

    Args:
        schedule: of the Program.
        inputs: all inputs of the Program.
        run: runs one of its graphs.
        vector: makes the value of an input of coefficients.
    """

    def __init__(
        self, schedule: Schedule, inputs: Iterable[Input], run: Run, vector: Vector
    ) -> None:
        self._schedule = schedule
        self._states = States(schedule, inputs, vector)
        self._run = run

    def serve(self, values: Values, place: Place) -> Served:
        """Run one step of the lane at ``place``."""
        schedule, lane, kept, step = self._schedule, place.lane, place.kept, place.step
        shared = self._states.of_peer(place.peer)
        values.update(kept.state)
        values.update(shared)
        if schedule.probe:
            values.update(self._run(schedule.probe, values).named)
        name, computed = schedule.full, frozenset(schedule.groups)
        asked = bool(shared) or not schedule.critic
        doubt = place.doubt or (self._states.missing(kept) if asked else "")
        self._states.note_length(step)
        if schedule.stateful and asked and not doubt:
            if schedule.judge:
                step = replace(step, change=self._run(schedule.judge, values).measure)
            row, name = schedule.choose(schedule.row(step, kept.past))
            computed = schedule.computed(row)
            values.update(self._states.coefficients(step, kept, computed))
        elif doubt:
            lane.why[doubt] += 1
        done = self._run(name, values)
        if shared and schedule.critic and name == schedule.full:
            apart = self._run(schedule.critic, {**values, **done.named})
            done = replace(done, named=done.named | apart.named, measure=apart.measure)
        if not math.isnan(done.measure):
            step = replace(step, change=done.measure)
        self._states.keep(kept, done.named)
        self._states.record(place, Done(step, computed))
        return Served(lane, step, name, done)
