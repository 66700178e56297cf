"""The timesteps that a caller stated, and which of them a call is at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

#: Host values of the inputs that may be the timestep, by name.
Times = Mapping[str, tuple[float, ...]]

#: Makes a vector of numbers in the type that an input has, by its name.
Rounded = Callable[[str, Sequence[float]], Any]

#: What rounding a timestep may change on its way to the model: to bfloat16, or to an integer where
#: steps are numbered to a thousand.
_OF_VALUE, _OF_RANGE = 2.0**-8, 1e-3
#: What computing it in float32 changes.
_EXACT = 1e-5

#: How pipelines make what the model gets of the scheduler's timesteps, where those go up to 1, and
#: where they go further, to a thousand as a rule.
_OF_SHARES: tuple[Callable[[Any], Any], ...] = (
    lambda t: t,
    lambda t: 1 - t,
    lambda t: t * 1000,
    lambda t: (1 - t) * 1000,
)
_OF_TIMESTEPS: tuple[Callable[[Any], Any], ...] = (
    lambda t: t,
    lambda t: t / 1000,
    lambda t: 1 - t / 1000,
    lambda t: (1000 - t) / 1000,
    lambda t: 1000 - t,
)
#: How they make it of its noise levels.
_OF_SIGMAS: tuple[Callable[[Any], Any], ...] = (
    lambda s: s,
    lambda s: 1 - s,
    lambda s: s * 1000,
    lambda s: s / (1 + s),
    lambda s: np.log(np.maximum(s, 1e-30)) / 4,
    lambda s: np.arctan(s) * 2 / np.pi,
)


@dataclass(frozen=True, eq=False)
class _Reading:
    """One way to read the step of a call: an input, and how its values are made.

    Attributes:
        name: of the input.
        stated: what the caller stated of each step.
        way: makes what the model gets of it.
        exact: whether it does so by arithmetic that gives the very numbers of the calls.
    """

    name: str
    stated: tuple[float, ...]
    way: Callable[[Any], Any]
    exact: bool

    def steps(self, times: Times) -> tuple[bool, list[int]]:
        """The steps whose value a call has; several, if their values are the same.

        And whether its value was rounded.
        """
        found = times[self.name]
        time = found[0] if len({*found}) == 1 else max(found, default=np.nan)
        values = self.way(np.array(self.stated))
        away = np.abs(values - time)
        reach = float(np.abs(values).max())
        closest = float(away.min())
        if not closest <= max(_OF_VALUE * abs(time), _OF_RANGE * reach):
            return True, []
        rounded = closest > _EXACT * max(abs(time), float(np.abs(values[away == closest]).max()))
        return rounded, [int(i) for i in np.flatnonzero(away <= closest + 1e-9 * reach)]


@dataclass
class Timetable:
    """The steps of a stated loop. Evaluations that follow each other at one timestep are one step.

    Attributes:
        timesteps: of the steps, in order.
        evaluations: how many each has.
        sigmas: the noise level of each, if stated.
    """

    timesteps: tuple[float, ...]
    evaluations: tuple[int, ...]
    sigmas: tuple[float, ...] | None = None
    _readings: list[_Reading] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, timesteps: Sequence[float], sigmas: Sequence[float] | None = None) -> Timetable:
        """The steps of a loop that evaluates at ``timesteps``, one at least."""
        starts = [i for i, t in enumerate(timesteps) if i == 0 or t != timesteps[i - 1]]
        ends = [*starts[1:], len(timesteps)]
        return cls(
            tuple(timesteps[i] for i in starts),
            tuple(end - start for start, end in zip(starts, ends, strict=True)),
            tuple(sigmas[i] for i in starts) if sigmas is not None else None,
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    def fresh(self) -> Timetable:
        """The same steps for another model, whose inputs may be made in another way."""
        return replace(self, _readings=[])

    def step(self, times: Times, current: int) -> int | None:
        """The step that a call is at, ``None`` if its timestep is not among those stated.

        Where several inputs may be the timestep, or one in several ways, those remain that agree
        with the calls so far.

        Args:
            times: of the call.
            current: the step of the latest call, -1 before the first.
        """
        readings = self._readings or list(self._ways(times))
        found: dict[_Reading, tuple[bool, int]] = {}
        for reading in readings:
            rounded, steps = reading.steps(times) if reading.name in times else (True, [])
            if steps:
                found[reading] = rounded, min(steps, key=lambda step: _order(step, current))
        if not found:
            return None
        _, best = min(found.values(), key=lambda known: (known[0], _order(known[1], current)))
        self._readings = [reading for reading, (_, step) in found.items() if step == best]
        return best

    def foreseen(self, times: Times, clock: Sequence[str] | None, rounded: Rounded) -> list[Times]:
        """What a call such as this one gets at each step; nothing where that is not known.

        Args:
            times: of a call whose step was found.
            clock: the inputs that change with the timestep, ``None`` if that is not known yet.
            rounded: makes a vector in the type of an input, by its name.
        """
        readings = {each.name: each for each in self._readings if each.exact}
        if clock is None:
            clock = tuple(readings)
        if any(name not in readings or len({*times[name]}) != 1 for name in clock):
            return []
        values = {
            name: readings[name].way(rounded(name, readings[name].stated)).tolist()
            for name in clock
        }
        return [
            {n: (values[n][i],) * len(own) if n in values else own for n, own in times.items()}
            for i in range(len(self))
        ]

    def _ways(self, names: Iterable[str]) -> Iterator[_Reading]:
        first = self.timesteps[0]
        shares = max(map(abs, self.timesteps)) <= 1
        ways = _OF_SHARES if shares else (*_OF_TIMESTEPS, lambda t: t / first if first else t)
        for name in names:
            yield from (_Reading(name, self.timesteps, way, True) for way in ways)
            yield from (_Reading(name, self.sigmas or (), way, False) for way in self._of_sigmas())

    def _of_sigmas(self) -> Sequence[Callable[[Any], Any]]:
        return _OF_SIGMAS if self.sigmas else ()


def _order(step: int, current: int) -> tuple[int, int]:
    """The current step and the next come first, then later ones, then a new beginning."""
    if current <= step <= current + 1:
        return 0, step
    return (1, step) if step > current else (2, step)
