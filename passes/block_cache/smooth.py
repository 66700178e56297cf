"""A mask for each type of branch, from the errors that calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.errors import PipelineError
from dit_compile.passes.block_cache.mask import Mask, print_mask

if TYPE_CHECKING:
    from typing_extensions import Self

#: For each type of branch: at step t and distance k >= 1, the mean relative L1 change to t + k.
Changes = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Smooth(Mask):
    """Reuse a type of branch for as long as calibration saw it change by less than ``alpha``.

    Source: "SmoothCache: A Universal Inference Acceleration Technique for Diffusion Transformers",
    Liu et al., 2024: ``sum |y_t - y_(t+k)| / sum |y_t|`` averaged over the layers of a type and
    over calibration samples; one decision for each type and step.

    Attributes:
        alpha: the relative change up to which a value is reused.
        max_continuous_cached_steps: steps in a row that may reuse.
    """

    method: ClassVar[str] = "smooth"
    alpha: float = 0.18
    max_continuous_cached_steps: int = 3

    def __post_init__(self) -> None:
        self.at_least("alpha", 0)
        self.at_least("max_continuous_cached_steps", 1)
        if not self.mask:
            raise PipelineError(
                "insert-block-cache: smooth needs a mask; let ditc.calibrate find it, or give one "
                "with mask=schedule.json"
            )
        super().__post_init__()

    def fitted(self, changes: Changes, times: Sequence[float]) -> Self:
        """This policy with the mask that calibration gives.

        Args:
            changes: what was measured, for distances up to ``max_continuous_cached_steps``.
            times: the timesteps of the calibrated steps.
        """
        masks = {group: self._decide(rows, len(times)) for group, rows in changes.items()}
        return replace(self, mask=print_mask(masks), times=tuple(times))

    def _decide(self, changes: Sequence[Sequence[float]], steps: int) -> list[int]:
        """1 or 0 for each step: from each computed one as far as the change allows."""
        mask = [1] * steps
        step = 0
        while step < steps:
            reach = 0
            for change in changes[step][: self.max_continuous_cached_steps]:
                if not change < self.alpha:
                    break
                reach += 1
            mask[step + 1 : step + 1 + reach] = [0] * len(mask[step + 1 : step + 1 + reach])
            step += 1 + reach
        return mask
