"""Forecast the unconditional prediction of guidance at every other step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dit_compile.calibration.measured import GUIDANCE
from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.passes.block_cache.calibrated import position
from dit_compile.passes.block_cache.guidance import Guidance

if TYPE_CHECKING:
    from typing_extensions import Self

    from dit_compile.calibration.measured import Measured


@dataclass(frozen=True, kw_only=True)
class LinearGuidance(Guidance):
    """Compute both predictions every ``interval``-th step, and forecast one in between.

    Source: LinearAG in "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion
    Models", Castillo et al., 2023: the unconditional prediction of a step is an affine combination
    of the conditional one and of earlier predictions, whose coefficients are fitted for each step
    by least squares. Here it is ``u_t = c_t - sum_i w_ti (c_i - u_i)`` over the last computed steps
    i, so that one direction a step is kept and not two predictions, which costs up to 1 dB on the
    bundled models. The paper leaves out every unconditional prediction of the second half, where
    theirs change most (22 and 27 dB; for even steps, at the same work, 30 and 36), so every
    ``interval``-th step is full throughout here.

    Attributes:
        conditional: as in :class:`Guidance`.
        interval: steps from one that computes both to the next; 1 computes every step.
        terms: directions that are kept and combined.
        weights: the calibrated ``w_ti``, ``terms`` for each step, 0 where it computes both.
        times: the timesteps of the calibrated steps.
    """

    method: ClassVar[str] = "linear-guidance"
    interval: int = 2
    terms: int = 2
    weights: tuple[float, ...] = ()
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("interval", 1)
        self.at_least("terms", 2)
        if len(self.weights) % self.terms:
            raise self._wrong("weights", f"must be {self.terms} for each step")

    @property
    def depth(self) -> int:
        """As many directions as are combined."""
        return self.terms

    @property
    def directions(self) -> bool:
        """They are what is forecast."""
        return True

    @property
    def steps(self) -> int | None:
        """The number of calibrated steps."""
        return len(self.weights) // self.terms or None

    @property
    def uncalibrated(self) -> str:
        """The directions, where no weights are given and any are needed."""
        if self.weights or self.interval == 1:
            return ""
        return "calls" if self.second_call else "halves"

    def fitted(self, measured: Measured) -> Self:
        """This policy with the weights that forecast the calibrated directions best."""
        products, count = np.array(measured.products[GUIDANCE]), measured.steps
        computed: list[int] = []
        weights = np.zeros((count, self.terms))
        for index in range(count):
            if self.computes(GUIDANCE, Step(index, count, last=index == count - 1), ()):
                computed.insert(0, index)
                continue
            known = computed[: self.terms]
            among, with_it = products[np.ix_(known, known)], products[known, index]
            weights[index, : len(known)] = np.linalg.lstsq(among, with_it, rcond=None)[0]
        return replace(self, weights=tuple(weights.ravel().tolist()), times=tuple(measured.times))

    def ladder(self) -> Sequence[Self]:
        """Growing intervals."""
        return [replace(self, interval=each, weights=(), times=()) for each in (2, 3, 4, 6)]

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Every ``interval``-th step and the last."""
        return step.index % self.interval == 0 or step.last

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """Both rows, or only the computing one if the interval is 1."""
        return [(1,)] if self.interval == 1 else [(1,), (0,)]

    def coefficients(self, step: Step, computed: Sequence[Step]) -> Sequence[float]:
        """Those of the nearest calibrated step that rests on as many; else the last direction."""
        assert self.steps is not None
        rows = np.reshape(self.weights, (self.steps, self.terms))
        place = position(step, self.steps, self.times)
        alike = [i for i, row in enumerate(rows) if np.count_nonzero(row) == len(computed)]
        if not alike:
            return super().coefficients(step, computed)
        nearest = min(alike, key=lambda i: abs(i - place))
        return [float(weight) for weight in rows[nearest, : len(computed)]]
