"""Keep everything and reuse nothing: what calibration runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.policy import CachePolicy

if TYPE_CHECKING:
    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Record(CachePolicy):
    """Return the values of all sites as state at every step, for calibration to look at.

    Attributes:
        scope: ``branch`` for every branch's output, in groups by type, or ``span`` for the residual
            of all blocks.
    """

    method: ClassVar[str] = "record"
    records: ClassVar[bool] = True
    scope: str = "branch"

    def __post_init__(self) -> None:
        self.one_of("scope", ("branch", "span"))

    def sites(self, found: Candidates) -> Sequence[Site]:
        """Every branch, or all blocks as one span."""
        if self.scope == "branch":
            return found.branches(lambda branch: branch.kind)
        return [found.span(0, len(found.blocks), "blocks")]

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Always."""
        return True

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Everything computed."""
        return [(1,) * len(groups)]
