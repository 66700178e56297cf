"""Compute every N-th step and reuse in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_compile.errors import PipelineError
from dit_compile.ir.schedule import Step


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Compute every ``interval``-th step, the first and the last always; reuse all sites between.

    Source: FORA, "Fast-Forward Caching in Diffusion Transformer Acceleration", Selvaraju et al.,
    2024. What is kept is every attention and MLP branch's output *before* its gate, so that the
    gate of the current step applies to the reused value.

    Attributes:
        interval: steps from one computed step to the next; 1 computes every step.
    """

    interval: int = 3

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise PipelineError(
                f"insert-block-cache: interval must be at least 1, not {self.interval}"
            )

    def row(self, step: Step) -> tuple[int, ...]:
        """``(1,)`` for a computed step, ``(0,)`` for a reused one."""
        return (int(step.index % self.interval == 0 or step.last),)

    def rows(self) -> Sequence[tuple[int, ...]]:
        """Both rows, or only the computing one if the interval is 1."""
        return [(1,)] if self.interval == 1 else [(1,), (0,)]

    def describe(self) -> str:
        """The policy in one line."""
        return f"interval={self.interval}"
