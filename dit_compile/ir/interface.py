"""What enters and leaves a Program's graphs, in words that need no torch."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Binding(enum.IntEnum):
    """When a value becomes known. A node takes the latest of its arguments' bindings."""

    WEIGHT = 0
    INVARIANT = 1
    TIMESTEP = 2
    LATENT = 3

    def __str__(self) -> str:
        return self.name.lower()


class InputKind(enum.Enum):
    """What a placeholder stands for."""

    WEIGHT = "weight"  # a parameter or buffer of the model
    USER = "user"  # a tensor or number the caller passes
    SIZE = "size"  # a symbolic size that Dynamo passes beside the tensors
    STATE = "state"  # carried from step to step by a Session
    COEFFICIENTS = "coefficients"  # of a forecast from several states; made by the schedule
    DERIVED = "derived"  # computed by an earlier graph of the Program
    ROWS = "rows"  # the timestep of several steps at once


@dataclass(frozen=True)
class Input:
    """One named input of a Program.

    Attributes:
        name: the placeholder's name, the same in every graph that reads it.
        kind: what it stands for.
        path: how the user knows it: a parameter's dotted path, an argument's name, a site's path.
        binding: when its value is known.
        settled: whether ``binding`` was shown or declared, and is not just the safe assumption.
        age: of a state, how many newer values of the same path are kept.
        peer: of a state: not this lane's own, but that of its peer, from this same step.
    """

    name: str
    kind: InputKind
    path: str
    binding: Binding
    settled: bool = False
    age: int = 0
    peer: bool = False


@dataclass(frozen=True)
class Compared:
    """What a Session compares from call to call, of what the caller passes.

    Work is done ahead of the steps only with what is compared, so that it is done again whenever
    that changes.

    Attributes:
        timesteps: the inputs that are the timestep, or may be: compared at each step.
        context: inputs that are fixed within a lane: compared by content.
        latents: inputs known to change at each step. Their sizes alone are compared, as are those
            of all others.
        clock: the inputs that are the timestep, ``None`` if which of several must be observed.
    """

    timesteps: tuple[str, ...]
    context: tuple[str, ...]
    latents: tuple[str, ...]
    clock: tuple[str, ...] | None

    @classmethod
    def of(cls, inputs: Iterable[Input]) -> Compared:
        """What is compared of these inputs."""
        given = [spec for spec in inputs if spec.kind in (InputKind.USER, InputKind.SIZE)]
        clocks = [spec for spec in given if spec.binding is Binding.TIMESTEP]
        settled = tuple(spec.name for spec in clocks if spec.settled)
        timesteps = settled or tuple(spec.name for spec in clocks)
        latents = [s.name for s in given if s.settled and s.binding is Binding.LATENT]
        context = [s.name for s in given if s.name not in {*timesteps, *latents}]
        clock = settled if settled or not timesteps else None
        return cls(timesteps, tuple(context), tuple(latents), clock)


class OutputKind(enum.Enum):
    """What one output of a graph is for."""

    USER = "user"  # returned to the caller
    MUTATION = "mutation"  # copied back into the input it is named after
    STATE = "state"  # kept by the Session under its name
    DERIVED = "derived"  # fed to later graphs under its name
    ROWS = "rows"  # the same for several steps, one behind the other
    MEASURE = "measure"  # a number that the schedule decides by


@dataclass(frozen=True)
class Output:
    """One output of a graph: what it is for, and the input, state or derived value it names."""

    kind: OutputKind
    name: str = ""


#: The graph that computes one full step.
MAIN = "full"
#: The graph that computes values which depend on weights alone.
WEIGHTS = "weights"
#: The graph that runs once a generation.
PROLOGUE = "prologue"
#: The graph whose values depend on the timestep: one row for each step, all computed together.
TABLE = "table"
#: The table for several steps at once; bundles alone have it.
ROWS = "table_rows"
#: The graphs that run ahead of the steps, in order, and when their values are known.
AHEAD = {WEIGHTS: Binding.WEIGHT, PROLOGUE: Binding.INVARIANT, TABLE: Binding.TIMESTEP}
