"""What calibration measures of a cache's sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: The group of what guidance adds to a prediction.
GUIDANCE = "guidance"


@dataclass(frozen=True)
class Measured:
    """How the values of each group of sites change over a generation, averaged over samples.

    Attributes:
        times: the timestep of each step; empty if they are not known.
        changes: for a group, a step t and a distance k from 1 on, at place k - 1: the relative L1
            change ``sum |y_(t+k) - y_t| / sum |y_t|`` from t to t + k, averaged over the sites.
        ratios: for a group and a step, the norm of each token over its norm at the step before,
            averaged over tokens and sites as MagCache does; 1 at the first step.
        products: for :data:`GUIDANCE` and two steps, the sum of the products of the values of all
            samples.
    """

    times: Sequence[float]
    changes: Mapping[str, Sequence[Sequence[float]]]
    ratios: Mapping[str, Sequence[float]]
    products: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of the generation."""
        return max((len(rows) for rows in self.ratios.values()), default=0)

    def only(self, keep: Callable[[str], bool]) -> Measured:
        """What was measured of some of the groups."""
        return Measured(
            self.times,
            {group: rows for group, rows in self.changes.items() if keep(group)},
            {group: rows for group, rows in self.ratios.items() if keep(group)},
            {group: rows for group, rows in self.products.items() if keep(group)},
        )
