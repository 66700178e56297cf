"""Leave out the unconditional half of guidance once it says the same as the conditional one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.guidance import Guidance

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class SkipGuidance(Guidance):
    """Compute half the batch from the step on at which both halves' predictions are parallel.

    Source: "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
    Castillo et al., 2023: the cosine of the conditional and the unconditional prediction grows
    over a generation. After the first step at which it reaches ``gamma``, the conditional one alone
    is computed and stands for both, so that guidance leaves it as it is. Here every pair of samples
    of a batch must reach it.

    Attributes:
        conditional: as in :class:`Guidance`.
        gamma: cosine of the predictions from which on they are taken to be one; 1 computes every
            step in full.
    """

    method: ClassVar[str] = "skip-guidance"
    gamma: float = 0.991

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("gamma", -1, 1)

    @property
    def dynamic(self) -> bool:
        """The two predictions of each full step are compared."""
        return True

    def ladder(self) -> Sequence[Self]:
        """Falling cosines."""
        return [replace(self, gamma=each) for each in (0.999, 0.997, 0.991, 0.98, 0.95, 0.9)]

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Whether no step before this one has found the predictions parallel."""
        changes = (done.step.change for done in past)
        return not any(change is not None and change <= 1 - self.gamma for change in changes)

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Both rows, or only the computing one if nothing may be left out."""
        return [(1,), (0,)] if self.gamma < 1 else [(1,)]
