"""A mask for each type of branch, from the errors that calibration saw."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.passes.block_cache.mask import Mask, print_mask

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.calibration.measured import Measured


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
        super().__post_init__()

    @property
    def uncalibrated(self) -> str:
        """The branches, where no mask is given."""
        return "" if self.mask else "branch"

    def ladder(self) -> Sequence[Self]:
        """Growing errors that are let pass; each needs a mask of its own."""
        alphas = (0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4)
        return [replace(self, alpha=alpha, mask="", times=()) for alpha in alphas]

    def fitted(self, measured: Measured) -> Self:
        """This policy with the mask that calibration gives."""
        masks = {group: self._decide(changes) for group, changes in measured.changes.items()}
        return replace(self, mask=print_mask(masks), times=tuple(measured.times))

    def _decide(self, changes: Sequence[Sequence[float]]) -> list[int]:
        """1 or 0 for each step: from each computed one as far as the change allows."""
        mask: list[int] = []
        for step, distances in enumerate(changes):
            if step < len(mask):
                continue  # reused
            near = distances[: self.max_continuous_cached_steps]
            reach = list(itertools.takewhile(lambda change: change < self.alpha, near))
            mask += [1] + [0] * len(reach)
        return mask
