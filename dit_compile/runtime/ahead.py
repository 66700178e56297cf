"""What a Program computes ahead of its steps: once, once a generation, or for all steps at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_compile.errors import DitcWarning
from dit_compile.ir.program import (
    PROLOGUE,
    TABLE,
    WEIGHTS,
    Binding,
    InputKind,
    Program,
    placeholders,
)
from dit_compile.pipeline.registry import find_backend
from dit_compile.runtime.generation import Call, Kept, Tracker
from dit_compile.runtime.memory import apart
from dit_compile.runtime.offload import present
from dit_compile.runtime.steps import Values
from dit_compile.runtime.table import Key, foreseen, forget, key_of, that_fit
from dit_compile.runtime.timetable import Times
from dit_compile.runtime.weights import DerivedWeights


@dataclass
class Prepared:
    """What is known of a lane's steps before they run.

    Attributes:
        weights: the derived weights that everything here was computed with.
        values: what the prologue returned, by name.
        rows: what the table returned, by name, for each timestep.
    """

    weights: Sequence[torch.Tensor]
    values: Values
    rows: dict[Key, Values] = field(default_factory=dict)


class Ahead:
    """Runs a Program's ahead graphs when, and only when, what they read has changed.

    Args:
        program: the Program.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._graphs = {name: _Graph.of(program, name) for name, _ in program.ahead_graphs()}
        constants = program.constants.keys()
        self._sources = list(
            dict.fromkeys(
                read
                for graph in self._graphs.values()
                for read in graph.reads
                if program.inputs[read].kind is InputKind.WEIGHT and read not in constants
            )
        )
        self.weights = DerivedWeights(self._derive)
        self._batched = True

    def __bool__(self) -> bool:
        """Whether there is anything to run ahead."""
        return bool(self._graphs)

    def fill(
        self, values: Values, call: Call, kept: Kept, tracker: Tracker, *, boundary: bool
    ) -> None:
        """Add to ``values`` all that the step graphs read and the caller does not pass.

        Args:
            values: the call's inputs by name.
            call: what the Session saw of them.
            kept: what is kept of the call's lane; what is computed is added.
            tracker: knows which timesteps to expect.
            boundary: a generation begins, so the weights' content is looked at too.
        """
        sources = [values[name] for name in self._sources]
        weights = self.weights.get(sources, check_content=boundary)
        if WEIGHTS in self._graphs:
            values.update(zip(self._graphs[WEIGHTS].returns, weights, strict=True))
        if PROLOGUE not in self._graphs and TABLE not in self._graphs:
            return
        if kept.prepared is None or kept.prepared.weights is not weights:
            kept.prepared = Prepared(weights, self._run(PROLOGUE, values))
        values.update(kept.prepared.values)
        if TABLE in self._graphs:
            values.update(self._row(kept.prepared, values, call, tracker))

    def complete(self, values: Values, call: Call, kept: Kept, tracker: Tracker) -> bool:
        """Whether all that the rest of the lane's generation needs has been computed."""
        if TABLE not in self._graphs:
            return True
        clock = self._clock(call)
        expected = {key_of(times, clock) for times in _foreseen(tracker, clock, values, call)}
        return bool(expected) and kept.prepared.rows.keys() >= expected

    def _derive(self, *sources: torch.Tensor) -> list[torch.Tensor]:
        values = {**self._program.constants, **dict(zip(self._sources, sources, strict=True))}
        return list(self._run(WEIGHTS, values).values())

    def _run(self, name: str, values: Mapping[str, Any]) -> Values:
        graph = self._graphs.get(name)
        return graph(values) if graph is not None else {}

    def _row(self, prepared: Prepared, values: Values, call: Call, tracker: Tracker) -> Values:
        """The table's values at the call's timestep, from all that are foreseen at once."""
        clock = self._clock(call)
        key = key_of(call.times, clock)
        if key not in prepared.rows:
            missing = {key: call.times}
            for times in _foreseen(tracker, clock, values, call):
                missing.setdefault(key_of(times, clock), times)
            missing = {k: times for k, times in missing.items() if k not in prepared.rows}
            prepared.rows.update(self._rows(clock, values, missing))
            forget(prepared.rows, key)
        return prepared.rows[key]

    def _clock(self, call: Call) -> list[str]:
        """The inputs that the table's rows depend on."""
        return [name for name in self._graphs[TABLE].clock if name in call.times]

    def _rows(
        self, clock: list[str], values: Values, missing: Mapping[Key, Times]
    ) -> dict[Key, Values]:
        """The table's values at several timesteps, of which the first is the call's own."""
        graph = self._graphs[TABLE]
        own = graph(values)
        first, *others = list(missing)[: that_fit(own)]
        if not others or not self._batched:
            return {first: own}
        try:
            rows = graph.batched(values, clock, [missing[key] for key in others], like=own)
        except RuntimeError as error:  # an operator that vmap does not know
            self._batched = False
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"ditc: the steps' timesteps are embedded one by one, since {reason}",
                DitcWarning,
                stacklevel=2,
            )
            return {first: own}
        return {first: own, **dict(zip(others, rows, strict=True))}


@dataclass(frozen=True)
class _Graph:
    """One ahead graph, ready to run.

    Attributes:
        reads, returns: names of its inputs and results.
        passed: those inputs that belong to the caller.
        clock: those inputs that are the timestep.
    """

    run: Callable[..., Sequence[torch.Tensor]]
    reads: list[str]
    passed: list[str]
    returns: list[str]
    clock: list[str]

    @classmethod
    def of(cls, program: Program, name: str) -> _Graph:
        reads = [str(node.target) for node in placeholders(program.graphs[name].graph)]
        given = (InputKind.USER, InputKind.SIZE)
        passed = [read for read in reads if program.inputs[read].kind in given]
        return cls(
            find_backend("eager").compile(program, name),
            reads,
            passed,
            [output.name for output in program.outputs[name]],
            [read for read in passed if program.inputs[read].binding is Binding.TIMESTEP],
        )

    def __call__(self, values: Mapping[str, Any]) -> Values:
        """The results for ``values``, by name."""
        given = [values[name] for name in self.reads]
        with torch.no_grad(), present(given):
            returned = apart(self.run(*given), [values[name] for name in self.passed])
        detached = (value.detach() for value in returned)
        return dict(zip(self.returns, detached, strict=True))

    def batched(
        self, values: Values, clock: list[str], several: list[Times], like: Values
    ) -> list[Values]:
        """The results for each of several timesteps in one go, with the strides of ``like``."""
        stacked = {name: _stack([times[name] for times in several], values[name]) for name in clock}
        dims = tuple(0 if name in stacked else None for name in self.reads)
        given = [stacked.get(name, values[name]) for name in self.reads]
        with torch.no_grad(), present(given):
            returned = torch.func.vmap(self.run, in_dims=dims)(*given)
        rows = zip(*(value.detach().unbind() for value in returned), strict=True)
        return [
            {name: _laid_out(v, like[name]) for name, v in zip(self.returns, row, strict=True)}
            for row in rows
        ]


def _foreseen(tracker: Tracker, clock: list[str], values: Values, call: Call) -> Sequence[Times]:
    """The timesteps to come, where they are tensors."""
    if not all(isinstance(values[name], torch.Tensor) for name in clock):
        return []

    def rounded(name: str, numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64).to(values[name].dtype)

    return foreseen(tracker, call.times, clock, rounded)


def _stack(rows: Sequence[tuple[float, ...]], like: torch.Tensor) -> torch.Tensor:
    """The values of one input at several timesteps, ``[T, *like.shape]``."""
    flat = torch.tensor(rows, dtype=torch.float64).to(like.device, like.dtype)
    return flat.reshape(len(rows), *like.shape)


def _laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``value`` with the strides of ``like``, which compiled code relies on."""
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(
        like.shape, like.stride(), dtype=like.dtype, device=like.device
    ).copy_(value)
