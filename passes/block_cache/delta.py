"""Skip a span of blocks and keep what it added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.policy import CachePolicy, progress

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Delta(CachePolicy):
    """Add the residual of a span of blocks from the last computed step: rear first, then front.

    Source: "Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers",
    Chen et al., 2024: the front blocks shape outlines and the rear ones details, and sampling makes
    outlines first. So the rear span is reused up to ``boundary``, and the front span after it. What
    is kept is the span's output minus its input, added to the current input. The last step is
    computed.

    Attributes:
        interval: steps from one computed step to the next; 1 computes every step.
        boundary: the part of the steps after which the front span takes the rear one's place.
        span: the part of the blocks that a span has.
    """

    method: ClassVar[str] = "delta"
    interval: int = 2
    boundary: float = 0.5
    span: float = 0.5

    def __post_init__(self) -> None:
        self.at_least("interval", 1)
        self.between("boundary", 0, 1)
        self.between("span", 0, 1)

    def ladder(self) -> Sequence[Self]:
        """Growing intervals."""
        return [replace(self, interval=each) for each in range(2, 9)]

    def sites(self, found: Candidates) -> Sequence[Site]:
        """The front span and the rear span, those that are ever reused."""
        count, blocks = round(self.span * len(found.blocks)), len(found.blocks)
        if not count:
            return []
        rear = [found.span(blocks - count, blocks, "rear")] if self.boundary > 0 else []
        front = [found.span(0, count, "front")] if self.boundary < 1 else []
        return rear + front

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """At multiples of the interval, at the last step, and where the other span is reused."""
        if step.index % self.interval == 0 or step.last:
            return True
        return group != ("rear" if progress(step, past) < self.boundary else "front")

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Everything, and all but one span."""
        ones = (1,) * len(groups)
        if self.interval == 1:
            return [ones]
        return [ones, *(tuple(int(g != own) for g in groups) for own in groups)]
