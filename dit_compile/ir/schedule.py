"""Which graph of a Program runs at which step of the sampling loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

#: For each group of sites, 1 = compute, 0 = reuse.
Row = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What is known about the current step when a graph must be chosen.

    Attributes:
        index: the number of steps done before this one in the generation.
        total: the number of steps of the generation, ``None`` if nobody said.
        last: whether this is, or by extrapolation seems to be, the last step.
        time: the timestep as the model gets it, ``None`` if it is not known.
        change: what was measured for a dynamic policy, ``None`` where nothing was: by its probe
            before the decision, or by the step itself for the steps after it.
        sigma: the noise level, ``None`` if nobody said.
    """

    index: int
    total: int | None
    last: bool
    time: float | None = None
    change: float | None = None
    sigma: float | None = None


@dataclass(frozen=True)
class Done:
    """A step that a lane has done.

    Attributes:
        step: the step, with what was measured at it.
        computed: the groups that it computed.
    """

    step: Step
    computed: frozenset[str]


class Policy(Protocol):
    """Says which groups of sites are computed at a step. Pure: what happened is given to it."""

    @property
    def depth(self) -> int:
        """Computed values of a site that are kept: 1 to reuse the last, more to forecast."""
        ...

    @property
    def dynamic(self) -> bool:
        """Whether what is measured while sampling decides."""
        ...

    @property
    def steps(self) -> int | None:
        """The number of steps that it was calibrated for, ``None`` if it was not."""
        ...

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Whether ``group`` is computed at ``step`` and not reused; ``past`` is the lane's."""
        ...

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """All rows that can be asked for, so that each variant is compiled ahead."""
        ...

    def coefficients(self, step: Step, computed: Sequence[Step]) -> Sequence[float]:
        """The forecast at ``step`` as a combination of kept values.

        Args:
            step: the step to forecast.
            computed: the steps of the kept values, the latest first; 1 to ``depth`` of them.

        Returns:
            A coefficient for each of ``computed``.
        """
        ...

    def describe(self) -> str:
        """The policy and its options in one line."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The choice of a graph for each step.

    Attributes:
        full: the graph that computes everything; also used whenever reuse is not certain.
        policy: the caching policy, ``None`` if every step is computed in full.
        groups: what the entries of a row stand for.
        states: the name of each state and the group that it belongs to.
        variants: a row and the name of the graph that computes just that; the full one is first.
        probe: the graph that runs before the others at every step of a dynamic policy, else "".
        judge: the graph that compares what the probe found with state, else "".
        critic: the graph that compares, after a full step, what a lane and its peer returned, else
            "". Only a lane that has a peer then reuses anything.
    """

    full: str
    policy: Policy | None = None
    groups: tuple[str, ...] = ()
    states: tuple[tuple[str, str], ...] = ()
    variants: tuple[tuple[Row, str], ...] = ()
    probe: str = ""
    judge: str = ""
    critic: str = ""

    @property
    def stateful(self) -> bool:
        """Whether steps depend on earlier ones."""
        return self.policy is not None

    def graphs(self) -> Iterator[str]:
        """Names of all graphs that may run at a step."""
        served = (self.full, *(name for _, name in self.variants))
        return iter(dict.fromkeys(filter(None, (*served, *self.helpers))))

    @property
    def helpers(self) -> tuple[str, ...]:
        """Names of graphs that run beside one that serves a step, and return nothing to callers."""
        return tuple(filter(None, (self.probe, self.judge, self.critic)))

    def row(self, step: Step, past: Sequence[Done]) -> Row:
        """What the policy asks for at ``step`` of a lane with this past."""
        if self.policy is None:
            return ()
        return tuple(int(self.policy.computes(group, step, past)) for group in self.groups)

    def choose(self, row: Row) -> tuple[Row, str]:
        """The graph that computes the least among those that compute all that ``row`` asks for.

        Returns:
            What the graph computes, and its name.
        """
        able = [
            (variant, name)
            for variant, name in self.variants
            if all(has >= asked for has, asked in zip(variant, row, strict=True))
        ]
        return min(able, key=lambda pair: sum(pair[0]), default=(row, self.full))

    def mask(self, total: int, times: Sequence[float] | None = None) -> list[Row] | None:
        """What is computed at each step of a generation, ``None`` if only running it tells.

        Args:
            total: the number of steps.
            times: their timesteps; evenly spaced from 1000 down by default.
        """
        if times is None:
            times = [1000 * (1 - i / total) for i in range(total)]
        if self.policy is not None and self.policy.dynamic:
            return None
        rows: list[Row] = []
        past: list[Done] = []
        for index, time in enumerate(times):
            step = Step(index, total, index == total - 1, time)
            asked = self.row(step, past) if past else (1,) * len(self.groups)
            rows.append(self.choose(asked)[0])
            past.append(Done(step, self.computed(rows[-1])))
        return rows

    def computed(self, row: Row) -> frozenset[str]:
        """The groups that ``row`` computes."""
        return frozenset(itertools.compress(self.groups, row))
