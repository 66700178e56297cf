"""Broadcast attention to later steps, by how fast each type of it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Step
from dit_compile.passes.block_cache.policy import CachePolicy, last_computed

if TYPE_CHECKING:
    from dit_compile.analysis.branches import Branch
    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Pyramid(CachePolicy):
    """Reuse attention inside a window of timesteps: spatial for few steps, cross for many.

    Source: PAB, "Real-Time Video Generation with Pyramid Attention Broadcast", Zhao et al., 2024:
    attention differs little between steps in the middle of sampling; spatial attention changes
    most, then temporal, then cross attention. Self attention over all tokens at once counts as
    spatial. The last step is computed.

    Attributes:
        spatial, temporal, cross, mlp: steps from one computed step of these branches to the next; 1
            computes every step.
        window_start, window_end: the timesteps, of 1000, between which anything is reused.
    """

    method: ClassVar[str] = "pyramid"
    spatial: int = 2
    temporal: int = 4
    cross: int = 6
    mlp: int = 1
    window_start: float = 800.0
    window_end: float = 100.0

    def __post_init__(self) -> None:
        for option in ("spatial", "temporal", "cross", "mlp"):
            self.at_least(option, 1)

    def sites(self, found: Candidates) -> Sequence[Site]:
        """Branches of the types that are reused at all."""
        temporal = found.temporal

        def group(branch: Branch) -> str:
            kind = {"attn": "spatial", "cross": "cross", "mlp": "mlp"}.get(branch.kind, "")
            kind = "temporal" if kind == "spatial" and branch.path in temporal else kind
            return kind if kind and getattr(self, kind) > 1 else ""

        return found.branches(group)

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Outside the window, and when the group's last value is too old."""
        if step.time is None or step.last:
            return True
        first = past[0].step.time
        # Flow-matching models get times from 1 down.
        time = step.time * 1000 if first is not None and first <= 1 else step.time
        if not self.window_end < time < self.window_start:
            return True
        interval: int = getattr(self, group)
        return step.index - last_computed(group, past).index >= interval
