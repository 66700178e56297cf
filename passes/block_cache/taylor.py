"""Compute every N-th step and forecast in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.forecasting import Forecasting

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Taylor(Forecasting):
    """Compute every ``interval``-th step, and forecast all sites between from the last ones.

    Source: TaylorSeer, "From Reusing to Forecasting: Accelerating Diffusion Models with
    TaylorSeers", Liu et al., 2025: the forecast is ``sum_i D_i / i! * d^i``, with ``d`` the
    distance to the last computed step, ``D_0`` its value and ``D_(i+1)`` the change of ``D_i``
    between the last two computed steps over their distance. With n computed steps the order is at
    most n - 1. As in the published code it rests on no step before the last but one of the warm-up,
    unless ``known_from`` is given.

    Attributes:
        interval: steps from one computed step to the next; 1 computes every step.
        order, basis, axis, known_from, ramp: as in :class:`Forecasting`.
        warmup_steps: first steps, all computed.
        compute_last: compute the last step, whatever its distance.
        scope: ``branch`` keeps every attention and MLP output, ``last`` only what the last block
            leaves: far less memory, and the modulations of a forecast step are not its own.
    """

    method: ClassVar[str] = "taylor"
    interval: int = 4
    order: int = 2
    warmup_steps: int = 3
    compute_last: bool = True
    scope: str = "branch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("interval", 1)
        self.at_least("warmup_steps", 1)
        self.one_of("scope", ("branch", "last"))

    @property
    def grounds_from(self) -> int:
        """``known_from``, or the last step but one of the warm-up."""
        return max(0, self.warmup_steps - 2) if self.known_from is None else self.known_from

    def ladder(self) -> Sequence[Self]:
        """Growing intervals."""
        return [replace(self, interval=each) for each in range(2, 9)]

    def sites(self, found: Candidates) -> Sequence[Site]:
        """Every branch, or what the last block leaves."""
        if self.scope == "branch":
            return found.branches(lambda branch: "blocks")
        return [found.span(0, len(found.blocks), "blocks", residual=False)]

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """The first steps, then every ``interval``-th, and the last one."""
        if step.last and self.compute_last:
            return True
        since, gap = step.index - self.warmup_steps + 1, 2 if self.ramp else self.interval
        while gap < self.interval and since >= gap:
            since, gap = since - gap, 2 * gap
        return since <= 0 or since % min(gap, self.interval) == 0

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Both rows, or only the computing one if the interval is 1."""
        return [(1,)] if self.interval == 1 else [(1,), (0,)]
