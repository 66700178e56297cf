"""What policies have in common that leave out one of guidance's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_compile.passes.block_cache.policy import CachePolicy

if TYPE_CHECKING:
    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class Guidance(CachePolicy):
    """A policy that leaves out the unconditional prediction at some steps.

    Pipelines differ in which prediction is which, so that is said and not guessed. Of guidance by a
    doubled batch, half the batch is left out; of guidance by two calls, the second one, which must
    be the unconditional one.

    Attributes:
        conditional: which prediction is conditional: the ``first`` or the ``second`` half of the
            batch, or that of the ``first-call`` of each step.
    """

    conditional: str = ""

    def __post_init__(self) -> None:
        self.one_of("conditional", ("first", "second", "first-call"))

    @property
    def half(self) -> str:
        """The conditional one."""
        return "" if self.second_call else self.conditional

    @property
    def second_call(self) -> bool:
        """Whether guidance is by two calls."""
        return self.conditional == "first-call"

    def sites(self, found: Candidates) -> Sequence[Site]:
        """None: no value of a block is kept."""
        return []
