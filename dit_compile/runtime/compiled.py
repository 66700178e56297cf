"""A compiled Program: one callable for each graph, driven by the Session of each call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from dit_compile.backends.base import Backend
from dit_compile.errors import BackendError
from dit_compile.ir.fake import device_types, tensor_of, value_of
from dit_compile.ir.interface import Compared
from dit_compile.ir.program import (
    MAIN,
    InputKind,
    OutputKind,
    Program,
    output_args,
    placeholders,
)
from dit_compile.runtime.ahead import Ahead
from dit_compile.runtime.elements import Denoised, match
from dit_compile.runtime.generation import Call, Form, Hold, Kept, Tracker
from dit_compile.runtime.held import Held
from dit_compile.runtime.memory import Results
from dit_compile.runtime.offload import Offload, has_own_memory, recall
from dit_compile.runtime.samples import torch_elements
from dit_compile.runtime.session import Session, current
from dit_compile.runtime.sight import Sight
from dit_compile.runtime.states import Vector
from dit_compile.runtime.steps import Returned, Served, Steps, Values
from dit_compile.runtime.watch import announce, watched

#: Makes a compiled Program again with some inputs bound as latents; ``None`` if that failed.
Rebind = Callable[[Collection[str]], "CompiledProgram | None"]


class CompiledProgram:
    """Calls a Program's graphs with flat inputs, keeping state in the current Session.

    Args:
        program: the Program; it must not be rewritten afterwards.
        backend: compiles its graphs, all of them now, so that nothing compiles while sampling.
        rebind: makes this again with the inputs of these names bound as latents; called once calls
            show that they change within a generation.
        offload: while a Session is open, keep weights that its steps do not read in host memory.
        origin: what all compiled forms of one model share, and nothing else does; this one alone
            by default.
        counts: count steps though nothing is reused, since other forms of the model reuse.

    Raises:
        BackendError: the backend does not support the Program.
    """

    def __init__(
        self,
        program: Program,
        backend: Backend,
        rebind: Rebind | None = None,
        *,
        offload: bool = False,
        origin: object = None,
        counts: bool = False,
    ) -> None:
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
        self._results = {name: Results(program, name, reads) for name, reads in self._reads.items()}
        self._ahead = Ahead(program)
        self._offload = Offload(program) if offload else None
        self._steps = Steps(
            program.schedule, program.inputs.values(), self._call, _vectors(program)
        )
        self._weights = [
            spec.name
            for spec in program.of_kind(InputKind.WEIGHT)
            if spec.name not in program.constants
        ]
        self._sight = Sight(program.inputs.values(), torch_elements(_denoised(program)))
        self._on_device = any(map(has_own_memory, device_types(program.main.nodes)))
        self._counts = counts or program.schedule.stateful
        self.clock = self._sight.clock
        self.hold: Hold = Held.of
        self.origin = origin if origin is not None else self

    @property
    def stateful(self) -> bool:
        """Whether steps depend on earlier ones, of this form of the model or of another."""
        return self._counts

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
        if not (self._ahead or self._counts or watched()):
            return self._call(MAIN, values).results
        weights = [values[name] for name in self._weights]
        session = current(weights)
        tracker, form = session.follow(self, weights)
        with tracker.lock:
            try:
                served = self._serve(values, session, tracker, form)
            except BaseException:
                tracker.end()
                raise
        return self(*args) if served is None else served.returned.results

    def _serve(
        self, values: Values, session: Session, tracker: Tracker, form: Form
    ) -> Served | None:
        """Run one step in its place; ``None`` if a successor must."""
        stalls = self._on_device and tracker.timetable is not None
        latents = (self._counts or tracker.clock is None) and not stalls
        call = self._sight.look(values, latents=latents)
        place = tracker.place(call, form)
        if tracker.moving and self._succeeded(tracker.moving):
            tracker.end()
            return None
        self.clock = self.clock or tracker.clock
        self._ahead.fill(values, call, place.kept, tracker, boundary=place.boundary)
        served = self._steps.serve(values, place)
        if latents:
            self._sight.record(tracker, place, values, served.returned.results)
        announce(self.program, served)
        if self._offload is not None and session.is_open and place.step.index > 0:
            self._release(self._offload, values, call, place.kept, tracker)
        return served

    def interrupt(self, *args: Any) -> None:
        """End the running generation, since something else serves the call with these arguments.

        Weights that were moved away are back afterwards.
        """
        if self._successor is not None:
            self._successor.interrupt(*args)
            return
        values: Values = dict(zip(self.arguments, args, strict=True)) | self.program.constants
        weights = [values[name] for name in self._weights]
        tracker, _ = current(weights).follow(self, weights)
        with tracker.lock:
            tracker.end()

    def _release(
        self, offload: Offload, values: Values, call: Call, kept: Kept, tracker: Tracker
    ) -> None:
        """Move weights away that the rest of the generation does not need."""
        if not offload.done and self._ahead.complete(values, call, kept, tracker):
            tracker.released = offload.release(values)
            tracker.at_end.add(offload.bring_back)

    def _succeeded(self, moving: Collection[str]) -> bool:
        """Make a successor for which these inputs are latents, once; whether there is one."""
        with self._lock:
            if self._rebind is not None:
                rebind, self._rebind = self._rebind, None
                self._successor = rebind(moving)
        return self._successor is not None

    def _call(self, name: str, values: Values) -> Returned:
        """Run graph ``name`` and hand each output to where it belongs."""
        given = [values[read] for read in self._reads[name]]
        recall(given)
        returned = self._results[name].separate(given, self._run[name](*given))
        results: list[Any] = []
        done = Returned()
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


def _denoised(program: Program) -> dict[str, Denoised]:
    """The latents among the inputs, and what is returned for each."""
    known = Compared.of(program.inputs.values()).latents
    latents = {
        str(node.target): _sizes(node)
        for node in placeholders(program.main)
        if node.target in known and program.kind_of(node) is InputKind.USER
    }
    returned = zip(program.outputs[MAIN], output_args(program.main), strict=True)
    results = [_sizes(value) for output, value in returned if output.kind is OutputKind.USER]
    return match(latents, results)


def _sizes(value: object) -> tuple[object, ...]:
    """The sizes of a node's value; those that may vary as text."""
    found = value_of(value) if isinstance(value, fx.Node) else None
    shape = found.shape if isinstance(found, torch.Tensor) else ()
    return tuple(size if isinstance(size, int) else str(size) for size in shape)


def _vectors(program: Program) -> Vector:
    """Makes coefficients where the graphs that read them run."""
    devices = {
        str(node.target): tensor_of(node).device
        for _, module in program.step_graphs()
        for node in placeholders(module.graph)
        if program.kind_of(node) is InputKind.COEFFICIENTS
    }
    return lambda name, row: torch.tensor(row, dtype=torch.float32, device=devices[name])
