"""A few elements of a call's latents and results, taken at the same places of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit_compile.runtime.descent import Row

#: Elements that are read of a latent at most, and samples of its batch.
_ELEMENTS, _SAMPLES = 2048, 8
#: Below so many elements of a sample, all samples are read as one.
_FEW = 16

#: Reads elements of a tensor by their places in it, flat: ``[rows, n]`` in float64.
Take = Callable[[Any, Any], Row]

#: Sizes, those that may vary as names or expressions.
Shape = Sequence[object]
#: For each dimension, the size that is common to a latent and a result, ``None`` if all of it is.
Region = tuple[int | None, ...]


@dataclass(frozen=True)
class Denoised:
    """An input that a sampler makes of earlier ones and of what the model returned for them.

    Attributes:
        result: position of what the model returns for it; ``None`` if nothing fits.
        region: what both have in common: a model may return more channels than it gets, or fewer.
    """

    result: int | None
    region: Region


def match(latents: Mapping[str, Shape], results: Sequence[Shape]) -> dict[str, Denoised]:
    """The inputs that are denoised, of those that change at each step.

    They are those that a result fits, which differs in the size of one dimension at most; all of
    them if there is none.
    """
    free = list(range(len(results)))
    found: dict[str, Denoised] = {}
    for name, shape in latents.items():
        ways = {i: _differ(shape, results[i]) for i in free}
        best = min(ways, key=lambda i: ways[i], default=None)
        if best is not None and ways[best] <= 1:
            free.remove(best)
            common = map(_common, shape, results[best])
            found[name] = Denoised(best, tuple(common))
    return found or {name: Denoised(None, (None,) * len(s)) for name, s in latents.items()}


class Elements:
    """Reads latents and the results that are made of them.

    Args:
        take: reads elements of tensors of a kind.
        denoised: the latents to read, by name.
        places: makes places of a kind that ``take`` reads fastest.
    """

    def __init__(
        self,
        take: Take,
        denoised: Mapping[str, Denoised],
        places: Callable[[Row], Any] = lambda flat: flat,
    ) -> None:
        self._take = take
        self._denoised = denoised
        self._places_of = places
        self._known: dict[tuple[Any, ...], Any] = {}

    def __bool__(self) -> bool:
        return bool(self._denoised)

    def latents(self, values: Mapping[str, Any]) -> list[Row]:
        """One row for each sample of each latent that is read."""
        rows: list[Row] = []
        for name, denoised in self._denoised.items():
            shape = tuple(values[name].shape)
            rows.extend(self._take(values[name], self._places(shape, _region(denoised, shape))))
        return rows

    def results(self, values: Mapping[str, Any], results: Sequence[Any]) -> list[Row | None]:
        """For each row of the latents, the same elements of its result, if there is one."""
        rows: list[Row | None] = []
        for name, denoised in self._denoised.items():
            shape = tuple(values[name].shape)
            region = _region(denoised, shape)
            result = results[denoised.result] if denoised.result is not None else None
            if result is None or not _holds(tuple(result.shape), region):
                rows.extend([None] * len(self._places(shape, region)))
                continue
            rows.extend(self._take(result, self._places(tuple(result.shape), region)))
        return rows

    def _places(self, shape: tuple[int, ...], region: tuple[int, ...]) -> Any:
        key = (shape, region)
        if key not in self._known:
            self._known[key] = self._places_of(_places(shape, region))
        return self._known[key]


def _differ(one: Shape, other: Shape) -> int:
    """In how many dimensions two shapes differ; the first one must be the same."""
    if len(one) != len(other) or one[:1] != other[:1]:
        return 2
    return sum(a != b for a, b in zip(one, other, strict=True))


def _common(size: object, other: object) -> int | None:
    if isinstance(size, int) and isinstance(other, int) and size != other:
        return min(size, other)
    return None


def _region(denoised: Denoised, shape: tuple[int, ...]) -> tuple[int, ...]:
    common = denoised.region
    return tuple(
        size if most is None else min(size, most) for size, most in zip(shape, common, strict=True)
    )


def _holds(shape: tuple[int, ...], region: tuple[int, ...]) -> bool:
    return len(shape) == len(region) and all(a >= b for a, b in zip(shape, region, strict=True))


def _places(shape: tuple[int, ...], region: tuple[int, ...]) -> Row:
    """Places spread at random over a region of a tensor, the same at each call: ``[rows, n]``."""
    if not region or 0 in region:
        return np.zeros((0, 0), np.int64)
    if np.prod(region[1:]) < _FEW:
        return np.ravel_multi_index(_some(region, _ELEMENTS), shape)[None]
    rows = _rows(region[0])
    inner = _some(region[1:], _ELEMENTS // len(rows))
    return np.stack(
        [np.ravel_multi_index((np.full_like(inner[0], row), *inner), shape) for row in rows]
    )


def _some(region: tuple[int, ...], most: int) -> tuple[Row, ...]:
    """Up to ``most`` places in a region at random, an array for each dimension."""
    size = int(np.prod(region))
    if size <= most:
        return np.unravel_index(np.arange(size), region)
    chosen = np.unique(np.random.default_rng(0).integers(size, size=most))
    return np.unravel_index(chosen, region)


def _rows(batch: int) -> Row:
    """Samples of a batch, so that halves and thirds of it are read at the same places."""
    if batch <= _SAMPLES:
        return np.arange(batch)
    count = 6 if batch % 3 == 0 and batch % 2 == 0 else 8 if batch % 2 == 0 else 3
    return np.arange(count) * batch // count
