"""What all caching policies have in common."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dit_compile.errors import PipelineError, suggest
from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.pipeline.text import print_item

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.calibration.measured import Measured
    from dit_compile.passes.block_cache.probe import Probe
    from dit_compile.passes.block_cache.sites import Candidates, Site


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """Which values are kept, and at which steps they are reused. Its fields are its options.

    A policy needs :meth:`sites` and :meth:`computes`; the rest has defaults that reuse the last
    computed value as it is.

    Class attributes:
        method: the name it is asked for by.
        records: all sites are returned as state though none is reused.
    """

    method: ClassVar[str]
    records: ClassVar[bool] = False

    @property
    def depth(self) -> int:
        """Computed values of a site that are kept."""
        return 1

    @property
    def dynamic(self) -> bool:
        """Whether what is measured while sampling decides."""
        return False

    @property
    def half(self) -> str:
        """The half of the batch that a variant computes alone, ``first`` or ``second``, if any."""
        return ""

    @property
    def second_call(self) -> bool:
        """Whether a variant stands for the second of a step's two calls, by the first's results."""
        return False

    @property
    def directions(self) -> bool:
        """Whether what guidance adds is kept, ``depth`` times, rather than compared."""
        return False

    @property
    def steps(self) -> int | None:
        """The number of steps that it was calibrated for, ``None`` if it was not."""
        return None

    @property
    def uncalibrated(self) -> str:
        """What calibration must record for it, a scope of ``record``; empty if nothing."""
        return ""

    def fitted(self, measured: Measured) -> Self:
        """This policy with what calibration measured of the sites that it asked for."""
        return self

    def ladder(self) -> Sequence[Self]:
        """This policy from gentle to strong, with what was calibrated kept."""
        return [self]

    def sites(self, found: Candidates) -> Sequence[Site]:
        """What may be reused, in groups."""
        raise NotImplementedError  # pragma: no cover - every policy overrides it

    def probe(self, found: Candidates) -> Probe | None:
        """What is measured at a step before deciding, ``None`` if nothing need be."""
        return None

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Whether ``group`` is computed at ``step``.

        Args:
            group: one of the groups of :meth:`sites`.
            step: the current step.
            past: the lane's earlier steps; each group was computed at one of them at least.
        """
        raise NotImplementedError  # pragma: no cover - every policy overrides it

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """All combinations of computed and reused groups."""
        return list(itertools.product((1, 0), repeat=len(groups)))

    def coefficients(self, step: Step, computed: Sequence[Step]) -> Sequence[float]:
        """The last computed value, as it is."""
        return [1.0] + [0.0] * (len(computed) - 1)

    def describe(self) -> str:
        """The method with its options, as a pipeline's text has them; long lists are left out."""
        options = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        short = {
            name.replace("_", "-"): value
            for name, value in options.items()
            if value is not None and not isinstance(value, tuple)
        }
        return print_item(self.method, short)

    def at_least(self, option: str, least: float) -> None:
        """Check the value of an option.

        Raises:
            PipelineError: it is less than ``least``.
        """
        if getattr(self, option) < least:
            raise self._wrong(option, f"must be at least {least}")

    def between(self, option: str, least: float, most: float) -> None:
        """Check the value of an option.

        Raises:
            PipelineError: it is less than ``least`` or more than ``most``.
        """
        if not least <= getattr(self, option) <= most:
            raise self._wrong(option, f"must be between {least} and {most}")

    def one_of(self, option: str, known: Iterable[str]) -> None:
        """Check the value of an option.

        Raises:
            PipelineError: it is none of ``known``.
        """
        known = list(known)
        value = getattr(self, option)
        if value not in known:
            raise self._wrong(option, f"is one of {', '.join(known)}", suggest(value, known))

    def _wrong(self, option: str, rule: str, hint: str = "") -> PipelineError:
        name = option.replace("_", "-")
        return PipelineError(
            f"insert-block-cache: {name} {rule}, not {getattr(self, option)}{hint}"
        )


def last_computed(group: str, past: Sequence[Done]) -> Step:
    """The latest step at which ``group`` was computed."""
    return next(done.step for done in reversed(past) if group in done.computed)


def reused_in_a_row(group: str, past: Sequence[Done]) -> int:
    """Steps since ``group`` was computed, at which it was reused."""
    count = itertools.takewhile(lambda done: group not in done.computed, reversed(past))
    return sum(1 for _ in count)


def progress(step: Step, past: Sequence[Done]) -> float:
    """The part of the generation that is done, from 0 to 1.

    Where nobody said how many steps there are, it is told by the timestep, which is taken to go
    from where it started to 0; where that is not known either, nothing is done.
    """
    if step.total is not None:
        return step.index / step.total
    first = past[0].step.time if past else step.time
    if first is None or step.time is None or not 0 <= step.time <= first:
        return 0.0
    return 1 - step.time / first if first else 0.0
