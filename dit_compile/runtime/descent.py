"""Whether a latent follows from those before it, seen on a few of its elements.

A sampler without noise makes the next latent of earlier ones and of what the model returned for
them, each times a number: guidance, rescaling and methods of several steps included. The latent of
another generation, or one with fresh noise in it, lies outside what they span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: The same few elements of a latent, or of what the model returned for it, in float64.
Row = np.ndarray[Any, Any]

#: How far off the span a latent may lie, as a share of its length: rounding to bfloat16, guidance
#: that is normalised token by token and latents with clamped parts stay below it, the noise of
#: another seed does not.
_TOLERANCE = 0.02
#: How far off another's direction one of the same noise may be, by rounding to float32.
_SAME_NOISE = 1e-4
#: Latents that the next one may be made of; methods of three steps with a corrector need four.
_DEPTH = 4
#: Elements for each vector of a span: with fewer, any latent would seem to lie in it.
_EACH = 4


@dataclass(eq=False)
class Point:
    """A latent that was evaluated.

    Attributes:
        latent: its elements.
        results: what the model returned for it, one for each evaluation.
        parent: the latent that it follows from, if any.
    """

    latent: Row
    results: list[Row] = field(default_factory=list)
    parent: Point | None = None

    def lineage(self) -> Iterator[Point]:
        """The latent and those that it follows from, as far as they are kept."""
        point: Point | None = self
        for _ in range(_DEPTH):
            if point is None:
                return
            yield point
            point = point.parent

    def child(self, latent: Row) -> Point:
        """The next latent; what came long before this one is forgotten."""
        made = Point(latent, parent=self)
        *_, oldest = made.lineage()
        oldest.parent = None
        return made

    def leads_to(self, latent: Row) -> bool:
        """Whether ``latent`` is this one, or can be made of it and its lineage."""
        if latent.shape != self.latent.shape:
            return False
        moved = latent != self.latent  # what is clamped follows by itself
        if not moved.any():
            return True
        wanted = latent[moved]
        allowed = _TOLERANCE * _length(wanted)
        if _length(wanted - self.latent[moved]) <= allowed:
            return True
        vectors = [
            vector[moved] for point in self.lineage() for vector in (point.latent, *point.results)
        ][: wanted.size // _EACH]
        near = len(self.results) + 1  # most samplers need no more
        return allowed > 0 and any(
            _off(wanted, span) <= allowed for span in (vectors[:near], vectors)
        )


def alike(latent: Row, other: Row) -> bool:
    """Whether one is the other at some scale, as samplers scale the noise that they begin with."""
    if latent.shape != other.shape:
        return False
    size = _length(other)
    return size > 0 and _off(latent, (other,)) <= _SAME_NOISE * _length(latent)


def _off(wanted: Row, vectors: Sequence[Row]) -> float:
    """The distance of a vector from the span of others."""
    if not vectors:
        return float("inf")
    span = np.stack(vectors)
    span = span / np.maximum(np.linalg.norm(span, axis=1, keepdims=True), 1e-30)
    if not np.isfinite(span).all():
        return float("inf")
    numbers, *_ = np.linalg.lstsq(span @ span.T, span @ wanted, rcond=1e-12)
    return _length(wanted - numbers @ span)


def _length(vector: Row) -> float:
    return float(np.linalg.norm(vector))
