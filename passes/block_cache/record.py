"""Keep everything and reuse nothing: what calibration runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dit_compile.calibration.measured import Measured
from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.policy import CachePolicy

if TYPE_CHECKING:
    from dit_compile.passes.block_cache.sites import Candidates, Site

#: The group of the residual of all blocks.
_BLOCKS = "blocks"


@dataclass(frozen=True, kw_only=True)
class Record(CachePolicy):
    """Return the values of all sites as state at every step, for calibration to look at.

    Attributes:
        scope: ``branch`` for every branch's output, in groups by type; ``span`` for the residual
            of all blocks; ``all`` for both; ``halves`` or ``calls`` for how far guidance's two
            predictions are apart, which are halves of the batch or two calls.
    """

    method: ClassVar[str] = "record"
    records: ClassVar[bool] = True
    scope: str = "branch"

    def __post_init__(self) -> None:
        self.one_of("scope", ("branch", "span", "all", "halves", "calls"))

    @property
    def half(self) -> str:
        """Either, as the sign does not matter."""
        return "first" if self.scope == "halves" else ""

    @property
    def second_call(self) -> bool:
        """Whether guidance is by two calls."""
        return self.scope == "calls"

    @property
    def directions(self) -> bool:
        """Of guidance, what is recorded."""
        return True

    def sites(self, found: Candidates) -> Sequence[Site]:
        """Every branch, all blocks as one span, or both."""
        branches = found.branches(lambda branch: branch.kind) if self.scope != "span" else []
        span = [found.span(0, len(found.blocks), _BLOCKS)] if self.scope != "branch" else []
        return [*branches, *span]

    def of(self, measured: Measured) -> Measured:
        """What is of this scope in the measurements of ``all``."""
        spans = self.scope == "span"
        return measured.only(lambda group: (group == _BLOCKS) == spans)

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Always."""
        return True

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Everything computed."""
        return [(1,) * len(groups)]
