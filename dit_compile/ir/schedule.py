"""Which graph of a Program runs at which step of the sampling loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """What is known about the current step when a graph must be chosen.

    Attributes:
        index: the number of steps done before this one in the generation.
        total: the number of steps of the generation, ``None`` if nobody said.
        last: whether this is, or by extrapolation seems to be, the last step.
    """

    index: int
    total: int | None
    last: bool


class Policy(Protocol):
    """Says which sites are computed at a step. Policies are pure: state lives in the Session."""

    def row(self, step: Step) -> tuple[int, ...]:
        """The mask row of ``step``: for each group of sites, 1 = compute, 0 = reuse."""
        ...

    def rows(self) -> Sequence[tuple[int, ...]]:
        """All rows that :meth:`row` can return, so that each variant is compiled ahead."""
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
        variants: graph name for each mask row.
    """

    full: str
    policy: Policy | None = None
    variants: tuple[tuple[tuple[int, ...], str], ...] = ()

    @property
    def stateful(self) -> bool:
        """Whether steps depend on earlier ones."""
        return self.policy is not None

    def choose(self, step: Step) -> str:
        """The graph to run at ``step``, provided that the state it needs is there."""
        if self.policy is None:
            return self.full
        return dict(self.variants)[self.policy.row(step)]

    def mask(self, total: int) -> list[tuple[int, ...]]:
        """The rows of a whole generation of ``total`` steps."""
        if self.policy is None:
            return [(1,)] * total
        return [self.policy.row(Step(i, total, i == total - 1)) for i in range(total)]
