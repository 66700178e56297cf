"""What policies that forecast have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_compile.ir.schedule import Step
from dit_compile.passes.block_cache.forecast import BASES
from dit_compile.passes.block_cache.policy import CachePolicy


@dataclass(frozen=True, kw_only=True)
class Forecasting(CachePolicy):
    """A policy that forecasts what it does not compute.

    Attributes:
        order: highest order of the forecast; 0 reuses the last value.
        basis: ``taylor`` as published, or ``newton``: divided differences on the true spacing,
            exact on polynomials of degree ``order``.
        axis: what distances are measured on: ``step``, ``timestep`` as the model gets it, or
            ``sigma``, the noise level that the session states; steps where that is not known.
        known_from: first step whose value a forecast may rest on: how the first steps change says
            little of later ones. In cache-dit's code it is step 2; ``None`` for the method's own.
        ramp: let the distance between computed steps at most double from one to the next: what
            neighbouring steps tell does not reach far. The published methods do without.
    """

    order: int = 0
    basis: str = "taylor"
    axis: str = "step"
    known_from: int | None = None
    ramp: bool = False

    def __post_init__(self) -> None:
        self.at_least("order", 0)
        if self.known_from is not None:
            self.at_least("known_from", 0)
        self.one_of("basis", BASES)
        self.one_of("axis", ("step", "timestep", "sigma"))

    @property
    def depth(self) -> int:
        """One value for each order, and the last."""
        return self.order + 1

    @property
    def grounds_from(self) -> int:
        """``known_from``, or where it is not given any step."""
        return self.known_from or 0

    def coefficients(self, step: Step, computed: Sequence[Step]) -> Sequence[float]:
        """The forecast's, on the chosen axis, or on that of steps where it is not known."""
        known = [each for each in computed if each.index >= self.grounds_from] or computed[:1]
        places = [self._place(each) for each in (step, *known)]
        if None in places or len(set(places)) < len(places):
            places = [float(each.index) for each in (step, *known)]
        at, *grounds = (place for place in places if place is not None)
        return [*BASES[self.basis](at, grounds), *[0.0] * (len(computed) - len(known))]

    def _place(self, step: Step) -> float | None:
        return {"step": float(step.index), "timestep": step.time, "sigma": step.sigma}[self.axis]
