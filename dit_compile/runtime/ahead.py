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
from dit_compile.runtime.generation import Call, Lane, Tracker
from dit_compile.runtime.memory import apart
from dit_compile.runtime.offload import present
from dit_compile.runtime.steps import Values
from dit_compile.runtime.table import Key, foreseen, forget, key_of, that_fit
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
        self, values: Values, call: Call, lane: Lane, tracker: Tracker, *, boundary: bool
    ) -> None:
        """Add to ``values`` all that the step graphs read and the caller does not pass.

        Args:
            values: the call's inputs by name.
            call: what the Session saw of them.
            lane: the lane of the call; what is computed is kept there.
            tracker: knows which timesteps to expect.
            boundary: a generation begins, so the weights' content is looked at too.
        """
        sources = [values[name] for name in self._sources]
        weights = self.weights.get(sources, check_content=boundary)
        if WEIGHTS in self._graphs:
            values.update(zip(self._graphs[WEIGHTS].returns, weights, strict=True))
        if PROLOGUE not in self._graphs and TABLE not in self._graphs:
            return
        if lane.prepared is None or lane.prepared.weights is not weights:
            lane.prepared = Prepared(weights, self._run(PROLOGUE, values))
        values.update(lane.prepared.values)
        if TABLE in self._graphs:
            values.update(self._row(lane.prepared, values, call, tracker))

    def complete(self, values: Values, call: Call, lane: Lane, tracker: Tracker) -> bool:
        """Whether all that the rest of the lane's generation needs has been computed."""
        if TABLE not in self._graphs:
            return True
        clock, key = self._place(call)
        expected = _foreseen(tracker, clock, values, key)
        return bool(expected) and lane.prepared.rows.keys() >= set(expected)

    def _derive(self, *sources: torch.Tensor) -> list[torch.Tensor]:
        values = {**self._program.constants, **dict(zip(self._sources, sources, strict=True))}
        return list(self._run(WEIGHTS, values).values())

    def _run(self, name: str, values: Mapping[str, Any]) -> Values:
        graph = self._graphs.get(name)
        return graph(values) if graph is not None else {}

    def _row(self, prepared: Prepared, values: Values, call: Call, tracker: Tracker) -> Values:
        """The table's values at the call's timestep, from all that are foreseen at once."""
        graph = self._graphs[TABLE]
        clock, key = self._place(call)
        if key not in prepared.rows:
            wanted = [key, *_foreseen(tracker, clock, values, key)]
            missing = [k for k in dict.fromkeys(wanted) if k not in prepared.rows]
            prepared.rows.update(self._rows(graph, clock, values, missing))
            forget(prepared.rows, key)
        return prepared.rows[key]

    def _place(self, call: Call) -> tuple[list[str], Key]:
        """The inputs that the table's rows depend on, and the row of this call."""
        clock = [name for name in self._graphs[TABLE].clock if name in call.timesteps]
        return clock, key_of(call.timesteps, clock)

    def _rows(
        self, graph: _Graph, clock: list[str], values: Values, keys: list[Key]
    ) -> dict[Key, Values]:
        """The table's values for each of ``keys``; the first is the call's own."""
        own = graph(values)
        others = that_fit(keys, own)[1:]
        if not others or not self._batched:
            return {keys[0]: own}
        try:
            rows = graph.batched(values, clock, others, like=own)
        except RuntimeError as error:  # an operator that vmap does not know
            self._batched = False
            first = str(error).splitlines()[0]
            warnings.warn(
                f"ditc: the steps' timesteps are embedded one by one, since {first}",
                DitcWarning,
                stacklevel=2,
            )
            return {keys[0]: own}
        return {keys[0]: own, **dict(zip(others, rows, strict=True))}


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
        returns = [output.name for output in program.outputs[name]]
        return cls(
            find_backend("eager").compile(program, name),
            reads,
            [read for read in reads if program.inputs[read].kind is InputKind.USER],
            returns,
            [
                read
                for read in reads
                if program.inputs[read].kind is InputKind.USER
                and program.inputs[read].binding is Binding.TIMESTEP
            ],
        )

    def __call__(self, values: Mapping[str, Any]) -> Values:
        """The results for ``values``, by name."""
        given = [values[name] for name in self.reads]
        with torch.no_grad(), present(given):
            returned = apart(self.run(*given), [values[name] for name in self.passed])
        detached = (value.detach() for value in returned)
        return dict(zip(self.returns, detached, strict=True))

    def batched(
        self, values: Values, clock: list[str], keys: list[Key], like: Values
    ) -> list[Values]:
        """The results for each of several timesteps in one go, with the strides of ``like``."""
        stacked = {
            name: _stack([key[i] for key in keys], values[name]) for i, name in enumerate(clock)
        }
        dims = tuple(0 if name in stacked else None for name in self.reads)
        given = [stacked.get(name, values[name]) for name in self.reads]
        with torch.no_grad(), present(given):
            returned = torch.func.vmap(self.run, in_dims=dims)(*given)
        rows = zip(*(value.detach().unbind() for value in returned), strict=True)
        return [
            {name: _laid_out(v, like[name]) for name, v in zip(self.returns, row, strict=True)}
            for row in rows
        ]


def _foreseen(tracker: Tracker, clock: list[str], values: Values, key: Key) -> list[Key]:
    """The timesteps to come, where they are tensors."""
    like = [values[name] for name in clock]
    if not all(isinstance(value, torch.Tensor) for value in like):
        return []
    return foreseen(
        tracker,
        clock,
        key,
        lambda times: torch.tensor(times, dtype=torch.float64).to(like[0].dtype),
    )


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
