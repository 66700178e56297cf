"""A compiled Program: one callable for each graph, driven by the Session of each call."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dit_compile.backends.base import Backend
from dit_compile.errors import BackendError
from dit_compile.ir.program import (
    MAIN,
    Binding,
    InputKind,
    OutputKind,
    Program,
    placeholders,
)
from dit_compile.ir.schedule import Done
from dit_compile.runtime.ahead import Ahead, Values
from dit_compile.runtime.generation import Call, Place
from dit_compile.runtime.session import current
from dit_compile.runtime.states import States
from dit_compile.runtime.watch import Watched, announce, watched
from dit_compile.runtime.weights import DerivedWeights

#: Makes a compiled Program again with some inputs bound as latents; ``None`` if that failed.
Rebind = Callable[[Collection[str]], "CompiledProgram | None"]

#: All live sets of derived weights, for :func:`invalidate`.
_deriving: weakref.WeakSet[DerivedWeights] = weakref.WeakSet()


class CompiledProgram:
    """Calls a Program's graphs with flat inputs, keeping state in the current Session.

    Args:
        program: the Program; it must not be rewritten afterwards.
        backend: compiles its graphs, all of them now, so that nothing compiles while sampling.
        rebind: makes this again with the inputs of these names bound as latents; called once calls
            show that they change within a generation.

    Raises:
        BackendError: the backend does not support the Program.
    """

    def __init__(self, program: Program, backend: Backend, rebind: Rebind | None = None) -> None:
        reasons = backend.supports(program)
        if reasons:
            raise BackendError(f"{backend.name} cannot run this program: {'; '.join(reasons)}")
        self.program = program
        self._rebind = rebind
        self._successor: CompiledProgram | None = None
        self._lock = threading.Lock()
        self.arguments = [
            spec.name
            for spec in program.inputs.values()
            if spec.kind in (InputKind.WEIGHT, InputKind.USER, InputKind.SIZE)
            and spec.name not in program.constants
        ]
        self._reads = {
            name: [str(node.target) for node in placeholders(module.graph)]
            for name, module in program.graphs.items()
        }
        self._run: dict[str, Callable[..., Sequence[Any]]] = {
            name: backend.compile(program, name) for name in program.schedule.graphs()
        }
        self._ahead = Ahead(program)
        self._states = States(program)
        self._weights = [
            spec.name
            for spec in program.of_kind(InputKind.WEIGHT)
            if spec.name not in program.constants
        ]
        self._sight = _Sight(program)
        #: The inputs that are the timestep, once known.
        self.clock = self._sight.clock
        _deriving.add(self._ahead.weights)

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        """Run one step.

        Args:
            args: values of ``arguments``, in order.

        Returns:
            The results for the caller, flat.
        """
        if self._successor is not None:
            return self._successor(*args)
        values: Values = dict(zip(self.arguments, args, strict=True))
        values.update(self.program.constants)
        if not (self._ahead or self.program.schedule.stateful or watched()):
            return self._call(MAIN, values).results
        weights = [values[name] for name in self._weights]
        tracker = current(weights).tracker(self, weights)
        try:
            call = self._sight.look(values)
            place = tracker.place(call)
            if tracker.moving and self._succeeded(tracker.moving):
                tracker.end()
                return self(*args)
            self.clock = self.clock or tracker.clock
            self._ahead.fill(values, call, place.lane, tracker, boundary=place.boundary)
            return self._serve(values, place)
        except BaseException:
            tracker.end()
            raise

    def _succeeded(self, moving: Collection[str]) -> bool:
        """Make a successor for which these inputs are latents, once; whether there is one."""
        if self.program.schedule.stateful:
            return False  # other conditions may be another generation, whose state is not ours
        with self._lock:
            if self._rebind is not None:
                rebind, self._rebind = self._rebind, None
                self._successor = rebind(moving)
        return self._successor is not None

    def _serve(self, values: Values, place: Place) -> tuple[Any, ...]:
        """Run the graphs of one step, and keep the state that they return."""
        schedule, lane, step = self.program.schedule, place.lane, place.step
        values.update(lane.state)
        if schedule.probe:
            values.update(self._call(schedule.probe, values).named)
        name, computed = schedule.full, frozenset(schedule.groups)
        doubt = place.doubt or self._states.missing(lane)
        self._states.note_length(step)
        if schedule.stateful and not doubt:
            if schedule.judge:
                step = replace(step, change=self._call(schedule.judge, values).measure)
            row, name = schedule.choose(schedule.row(step, lane.past))
            computed = schedule.computed(row)
            values.update(self._states.coefficients(step, lane, computed))
        elif doubt:
            lane.why[doubt] += 1
        done = self._call(name, values)
        self._states.keep(lane, done.named)
        self._states.record(lane, Done(step, computed))
        announce(Watched(self.program, name, lane, step, done.named))
        return done.results

    def _call(self, name: str, values: Values) -> _Returned:
        """Run graph ``name`` and hand each output to where it belongs."""
        returned = self._run[name](*[values[read] for read in self._reads[name]])
        results: list[Any] = []
        done = _Returned()
        for output, value in zip(self.program.outputs[name], returned, strict=True):
            if output.kind is OutputKind.USER:
                results.append(value)
            elif output.kind is OutputKind.MUTATION:
                values[output.name].copy_(value)
            elif output.kind is OutputKind.MEASURE:
                done.measure = float(value)
            else:
                done.named[output.name] = value
        done.results = tuple(results)
        return done


@dataclass
class _Returned:
    """What a graph returned: to the caller, under names, and for the schedule to decide by."""

    results: tuple[Any, ...] = ()
    named: Values = field(default_factory=dict)
    measure: float = math.nan


def invalidate(model: torch.nn.Module) -> int:
    """Tell every compiled Program of ``model`` that its weights were written to.

    Needed only after writes that leave no trace, such as through ``.data``, and only if they must
    count before the next generation begins.

    Returns:
        How many sets of derived weights were dropped.
    """
    tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found = [derived for derived in list(_deriving) if derived.reads_any(tensors)]
    for derived in found:
        derived.invalidate()
    return len(found)


class _Sight:
    """Reads from a call's inputs what a Tracker needs to place it."""

    def __init__(self, program: Program) -> None:
        users = program.of_kind(InputKind.USER)
        self._users = [spec.name for spec in users]
        clocks = [spec for spec in users if spec.binding is Binding.TIMESTEP]
        settled = [spec.name for spec in clocks if spec.settled]
        self._timesteps = settled or [spec.name for spec in clocks]
        #: ``None`` if which of several candidates is the timestep must be observed.
        self.clock = tuple(settled) if settled or not self._timesteps else None
        latents = {spec.name for spec in users if spec.settled and spec.binding is Binding.LATENT}
        self._context = [n for n in self._users if n not in latents and n not in self._timesteps]

    def look(self, values: Values) -> Call:
        """The facts of one call."""
        return Call(
            timesteps={name: _host_values(values[name]) for name in self._timesteps},
            shapes=tuple(
                tuple(value.shape) if isinstance(value, torch.Tensor) else value
                for value in (values[name] for name in self._users)
            ),
            context={name: values[name] for name in self._context},
        )


def _host_values(value: Any) -> tuple[float, ...]:
    """A timestep on the host: one number, or one for each sample or token."""
    if isinstance(value, torch.Tensor):
        return tuple(value.reshape(-1).tolist())
    return (float(value),)
