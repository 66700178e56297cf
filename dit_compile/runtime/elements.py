"""A few elements of a call's latents and results, taken at the same places of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dit_compile.runtime.descent import Row

#: Elements that are read of a latent at most, and samples of its batch.
_ELEMENTS, _SAMPLES = 2048, 8
#: Below so many elements of a sample, all samples are read as one.
_FEW = 16

#: Reads elements of a tensor by their places in it, flat: ``[rows, n]`` in float64.
Take = Callable[[Any, Any], Row]

#: For each dimension, the size that is common to a latent and a result, ``None`` if all of it is.
_Region = tuple[int | None, ...]


class Elements:
    """Reads latents and the results that are made of them.

    A model may return more channels than it gets, or fewer. What is common is learned from the
    first results; before that, latents are read whole.

    Args:
        take: reads elements of tensors of a kind.
        places: makes places of a kind that ``take`` reads fastest.
    """

    def __init__(self, take: Take, places: Callable[[Row], Any] = lambda flat: flat) -> None:
        self._take = take
        self._places_of = places
        self._known: dict[tuple[Any, ...], Any] = {}
        #: For each latent the position of its result, and what is common to both.
        self._matched: list[tuple[int, _Region] | None] | None = None

    def latents(self, values: Sequence[Any]) -> list[Row]:
        """One row for each sample of each latent that is read."""
        rows: list[Row] = []
        for i, value in enumerate(values):
            shape = tuple(value.shape)
            region = self._region(i, shape)
            rows.extend(self._take(value, self._places(shape, region)))
        return rows

    def results(self, values: Sequence[Any], results: Sequence[Any]) -> list[Row | None]:
        """For each row of the latents, the same elements of its result, if there is one."""
        if self._matched is None:
            self._matched = _match(values, results)
        rows: list[Row | None] = []
        for i, value in enumerate(values):
            shape = tuple(value.shape)
            region = self._region(i, shape)
            matched = self._matched[i]
            places = self._places(shape, region)
            result = results[matched[0]] if matched is not None else None
            if result is None or not _holds(tuple(result.shape), region):
                rows.extend([None] * len(places))
                continue
            rows.extend(self._take(result, self._places(tuple(result.shape), region)))
        return rows

    @property
    def settled(self) -> bool:
        """Whether it is known what latents and results have in common."""
        return self._matched is not None

    def _region(self, latent: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        matched = self._matched[latent] if self._matched else None
        common = matched[1] if matched is not None else (None,) * len(shape)
        return tuple(
            size if most is None else min(size, most)
            for size, most in zip(shape, common, strict=True)
        )

    def _places(self, shape: tuple[int, ...], region: tuple[int, ...]) -> Any:
        key = (shape, region)
        if key not in self._known:
            self._known[key] = self._places_of(_places(shape, region))
        return self._known[key]


def _match(values: Sequence[Any], results: Sequence[Any]) -> list[tuple[int, _Region] | None]:
    """The result of each latent: a free one whose sizes differ in one dimension at most."""
    free = [i for i, result in enumerate(results) if hasattr(result, "shape")]
    matched: list[tuple[int, _Region] | None] = []
    for value in values:
        shape = tuple(value.shape)
        fits = [i for i in free if _differ(shape, tuple(results[i].shape)) <= 1]
        best = min(fits, key=lambda i: _differ(shape, tuple(results[i].shape)), default=None)
        if best is None:
            matched.append(None)
            continue
        free.remove(best)
        other = tuple(results[best].shape)
        common = (None if a == b else min(a, b) for a, b in zip(shape, other, strict=True))
        matched.append((best, tuple(common)))
    return matched


def _differ(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """In how many dimensions two shapes differ; the first one must be the same."""
    if len(one) != len(other) or one[:1] != other[:1]:
        return 2
    return sum(a != b for a, b in zip(one, other, strict=True))


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
