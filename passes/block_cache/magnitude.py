"""Reuse the blocks' residual while calibrated magnitudes say that little is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.calibrated import position
from dit_compile.passes.block_cache.policy import CachePolicy, last_computed, progress

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.calibration.measured import Measured
    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Magnitude(CachePolicy):
    """Add the residual of all blocks from the last computed step while its magnitude holds.

    Source: "MagCache: Fast Video Generation with Magnitude-Aware Cache", Ma et al., 2025: the ratio
    of the residual's magnitude to the previous step's is nearly the same for all prompts. The
    product of ratios since the last computed step tells how far the kept residual is off; its
    distances from 1 are added up, and the next step is computed before the sum passes
    ``threshold``. The residual is added once, for all blocks together. The last step is computed.

    Attributes:
        threshold: the sum of errors that a run of reused steps may reach.
        max_continuous_cached_steps: steps in a row that may reuse.
        retention: the part of the steps, from the first, that is computed.
        ratios: the calibrated ratio of each step, that of the first being 1.
        times: the timesteps of the calibrated steps.
    """

    method: ClassVar[str] = "magnitude"
    threshold: float = 0.06
    max_continuous_cached_steps: int = 3
    retention: float = 0.2
    ratios: tuple[float, ...] = ()
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.at_least("threshold", 0)
        self.at_least("max_continuous_cached_steps", 0)
        self.between("retention", 0, 1)

    @property
    def uncalibrated(self) -> str:
        """The residual of all blocks, where no ratios are given."""
        return "" if self.ratios else "span"

    def fitted(self, measured: Measured) -> Self:
        """This policy with the ratios that calibration gives."""
        (ratios,) = measured.ratios.values()
        return replace(self, ratios=tuple(ratios), times=tuple(measured.times))

    @property
    def steps(self) -> int:
        """The number of calibrated ratios."""
        return len(self.ratios)

    def ladder(self) -> Sequence[Self]:
        """Growing thresholds."""
        return [replace(self, threshold=each) for each in (0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3)]

    def sites(self, found: Candidates) -> Sequence[Site]:
        """All blocks as one span."""
        return [found.span(0, len(found.blocks), "blocks")]

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Whether the errors of the steps since the last computed one add up to too much."""
        if progress(step, past) < self.retention or step.last:
            return True
        since = last_computed(group, past).index
        run = [done.step for done in past if done.step.index > since] + [step]
        if len(run) > self.max_continuous_cached_steps:
            return True
        ratio, error = 1.0, 0.0
        for each in run:
            ratio *= self._ratio(each)
            error += abs(1 - ratio)
        return not error <= self.threshold

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Both rows, or only the computing one if nothing may be reused."""
        never = not self.threshold or not self.max_continuous_cached_steps or self.retention == 1
        return [(1,)] if never else [(1,), (0,)]

    def _ratio(self, step: Step) -> float:
        """The ratio at the nearest calibrated step."""
        return self.ratios[round(position(step, len(self.ratios), self.times))]
