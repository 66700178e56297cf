"""Compute the first blocks, and let their change decide about the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dit_compile.errors import PipelineError
from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.forecasting import Forecasting
from dit_compile.passes.block_cache.policy import reused_in_a_row

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.passes.block_cache.probe import Probe
    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class FirstBlock(Forecasting):
    """Reuse the residual of all blocks but the first and the last while the first change little.

    Sources: First Block Cache (ParaAttention, 2024): the mean absolute change of the first block's
    residual since the last *computed* step, relative to its mean absolute value, is compared with a
    threshold. DBCache (cache-dit, 2025): ``front`` blocks decide and ``back`` blocks are computed
    always. TeaCache, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", Liu
    et al., 2024 (``measure=embedding``): the change of the first block's modulated input since the
    *previous* step, through a fitted polynomial, is added up until it passes the threshold.

    Attributes:
        residual_diff_threshold: relative change from which on everything is computed; 0 computes
            every step.
        front: first blocks, computed at every step; they are what is measured.
        back: last blocks, computed at every step.
        max_warmup_steps: first steps, all computed.
        max_cached_steps: steps of a generation that may reuse; -1 for no limit.
        max_continuous_cached_steps: steps in a row that may reuse; -1 for no limit.
        measure: ``residual`` or ``embedding``.
        decide: by the ``mean`` change over the whole batch, as published, so that what becomes of a
            sample depends on its neighbours; or by the ``max`` of its samples' changes, each
            measured by itself, so that a step is reused only where every sample would reuse it.
        rescale: coefficients of TeaCache's polynomial, the highest power first.
        order, basis, axis, known_from, ramp: as in :class:`Forecasting`; the residual is forecast.
    """

    method: ClassVar[str] = "first-block"
    residual_diff_threshold: float = 0.08
    front: int = 1
    back: int = 0
    max_warmup_steps: int = 0
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    measure: str = "residual"
    rescale: tuple[float, ...] = (1.0, 0.0)
    decide: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("residual_diff_threshold", 0)
        self.at_least("front", 1)
        self.at_least("back", 0)
        self.one_of("measure", ("residual", "embedding"))
        self.one_of("decide", ("mean", "max"))

    @property
    def dynamic(self) -> bool:
        """The probe is compared at each step."""
        return True

    @property
    def _first(self) -> int:
        """The first block that may be reused."""
        return self.front if self.measure == "residual" else 0

    def ladder(self) -> Sequence[Self]:
        """Growing thresholds."""
        return [
            replace(self, residual_diff_threshold=each)
            for each in (0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4)
        ]

    def sites(self, found: Candidates) -> Sequence[Site]:
        """The blocks in between.

        Raises:
            PipelineError: there are none.
        """
        stop = len(found.blocks) - self.back
        if stop <= self._first:
            raise PipelineError(
                f"insert-block-cache: of {len(found.blocks)} blocks, front={self._first} and "
                f"back={self.back} leave none to reuse"
            )
        return [found.span(self._first, stop, "blocks")]

    def probe(self, found: Candidates) -> Probe:
        """The residual of the first blocks, or what the first block multiplies first."""
        from dit_compile.passes.block_cache.probe import Probe
        from dit_compile.passes.block_cache.sites import Kept

        apart = self.decide == "max"
        if self.measure == "embedding":
            measured, streams = Kept(found.first_product()), found.blocks[0].streams_in
            rescale = self.rescale if apart else (1.0, 0.0)
            return Probe(measured, streams, always=True, apart=apart, rescale=rescale)
        kept = found.span(0, self.front, "probe").kept
        return Probe(found.largest(kept), tuple(each.value for each in kept), apart=apart)

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Whether the change passes the threshold, or a limit is reached."""
        in_a_row = reused_in_a_row(group, past)
        reused = sum(group not in done.computed for done in past)
        if step.index < self.max_warmup_steps:
            return True
        if _reached(in_a_row, self.max_continuous_cached_steps):
            return True
        if _reached(reused, self.max_cached_steps):
            return True
        if self.ramp and in_a_row >= self._reach(group, past):
            return True
        changes = [step.change]
        if self.measure == "embedding":
            changes += [done.step.change for done in past[len(past) - in_a_row :]]
        total = sum(self._rescaled(change) for change in changes if change is not None)
        return not total < self.residual_diff_threshold  # also if it is no number

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Both rows, or only the computing one if the threshold is 0."""
        return [(1,), (0,)] if self.residual_diff_threshold > 0 else [(1,)]

    def _reach(self, group: str, past: Sequence[Done]) -> int:
        """Steps that may reuse before the distance between computed ones more than doubles."""
        computed = [done.step.index for done in past if group in done.computed][-2:]
        return 2 * (computed[-1] - computed[0]) - 1 if len(computed) == 2 else 0

    def _rescaled(self, change: float) -> float:
        if self.measure == "residual" or self.decide == "max":  # then each sample's was, before
            return change
        value = 0.0
        for factor in self.rescale:
            value = value * change + factor
        return abs(value)


def _reached(count: int, limit: int) -> bool:
    return 0 <= limit <= count
