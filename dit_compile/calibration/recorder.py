"""Measures the values that a recording Program returns at each step."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch

from dit_compile.calibration.measured import GUIDANCE, Measured
from dit_compile.ir.program import Program
from dit_compile.runtime.generation import Kept
from dit_compile.runtime.steps import Served

Values = Mapping[str, torch.Tensor]


class Recorder:
    """A watcher that measures how kept values change from step to step.

    Args:
        distances: the largest distance between two steps that are compared.
    """

    def __init__(self, distances: int) -> None:
        self._distances = distances
        self._recent: WeakKeyDictionary[Kept, deque[Values]] = WeakKeyDictionary()
        self._changes: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        self._ratios: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._products: dict[tuple[int, int], float] = defaultdict(float)
        self._directions: WeakKeyDictionary[Kept, dict[int, Values]] = WeakKeyDictionary()
        self._times: dict[int, float] = {}
        self.steps = 0

    def __call__(self, program: Program, served: Served) -> None:
        """Measure one step of one lane."""
        groups = dict(program.schedule.states)
        returned = {name: v for name, v in served.returned.named.items() if name in groups}
        if not returned:  # nothing is kept, or this is the first of guidance's calls
            return
        index = served.step.index
        recent = self._recent.setdefault(served.kept, deque(maxlen=self._distances))
        self.steps = max(self.steps, index + 1)
        if served.step.time is not None:
            self._times[index] = served.step.time
        for distance, before in enumerate(reversed(recent), start=1):
            for name, value in returned.items():
                change = _relative_change(value, before[name])
                self._changes[groups[name], index - distance, distance].append(change)
        for name, value in returned.items():
            ratio = _ratio(value, recent[-1][name]) if recent else 1.0
            self._ratios[groups[name], index].append(ratio)
        recent.append(returned)
        if GUIDANCE in groups.values():
            self._multiply(self._directions.setdefault(served.kept, {}), index, returned)

    def measured(self) -> Measured:
        """The averages over sites, lanes and generations."""
        groups = sorted({group for group, _ in self._ratios})
        known = len(self._times) == self.steps
        return Measured(
            times=[self._times[i] for i in range(self.steps)] if known else [],
            changes={group: self._rows(group) for group in groups},
            ratios={g: [_mean(self._ratios[g, i]) for i in range(self.steps)] for g in groups},
            products={GUIDANCE: self._table()} if self._products else {},
        )

    def _multiply(self, known: dict[int, Values], index: int, new: Values) -> None:
        """Add the products of a lane's directions at step ``index`` with all known ones."""
        known[index] = {name: value.float() for name, value in new.items()}
        for other, values in known.items():
            dots = (float((value * known[index][name]).sum()) for name, value in values.items())
            self._products[other, index] += sum(dots)

    def _table(self) -> list[list[float]]:
        steps = range(self.steps)
        return [[self._products[min(i, j), max(i, j)] for j in steps] for i in steps]

    def _rows(self, group: str) -> list[list[float]]:
        return [
            [
                _mean(self._changes[group, step, distance])
                for distance in range(1, min(self._distances, self.steps - 1 - step) + 1)
            ]
            for step in range(self.steps)
        ]


def _relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    new, old = new.float(), old.float()
    return float((new - old).abs().sum() / old.abs().sum())


def _ratio(new: torch.Tensor, old: torch.Tensor) -> float:
    new, old = (value.float().norm(dim=-1) for value in (new, old))
    return float((new / old.clamp_min(1e-8)).mean())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
