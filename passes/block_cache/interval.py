"""Compute every N-th step and reuse in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.policy import CachePolicy

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Interval(CachePolicy):
    """Compute every ``interval``-th step, the first and the last always; reuse all sites between.

    Source: FORA, "Fast-Forward Caching in Diffusion Transformer Acceleration", Selvaraju et al.,
    2024. What is kept is every attention and MLP branch's output *before* its gate, so that the
    gate of the current step applies to the reused value.

    Attributes:
        interval: steps from one computed step to the next; 1 computes every step.
    """

    method: ClassVar[str] = "interval"
    interval: int = 3

    def __post_init__(self) -> None:
        self.at_least("interval", 1)

    def ladder(self) -> Sequence[Self]:
        """Growing intervals."""
        return [replace(self, interval=each) for each in range(2, 9)]

    def sites(self, found: Candidates) -> Sequence[Site]:
        """Every branch, all in one group."""
        return found.branches(lambda branch: "blocks")

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """At multiples of the interval, and at the last step."""
        return step.index % self.interval == 0 or step.last

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Both rows, or only the computing one if the interval is 1."""
        return [(1,)] if self.interval == 1 else [(1,), (0,)]
