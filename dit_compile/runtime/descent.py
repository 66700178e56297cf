"""Whether a latent follows from those before it, seen on a few of its elements.

A sampler without noise makes the next latent of earlier ones and of what the model returned for
them, each times a number: guidance, rescaling and methods of several steps included. The latent of
another generation, or one with fresh noise in it, lies outside what they span.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
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
#: What is left of a vector that others span already, as a share of its length.
_DEPENDENT = 1e-6


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
        if moved.all():
            return _spans(self._vectors(), latent)
        if not moved.any():
            return True
        return _spans((vector[moved] for vector in self._vectors()), latent[moved])

    def _vectors(self) -> Iterator[Row]:
        for point in self.lineage():
            yield point.latent
            yield from point.results


def alike(latent: Row, other: Row) -> bool:
    """Whether one is the other at some scale, as samplers scale the noise that they begin with."""
    return latent.shape == other.shape and _spans((other,), latent, within=_SAME_NOISE)


def _spans(vectors: Iterable[Row], wanted: Row, *, within: float = _TOLERANCE) -> bool:
    """Whether the first of some vectors, as few as will do, have ``wanted`` in their span, nearly.

    Most samplers need two or three, so that more are hardly ever looked at.
    """
    rest, length = wanted, _length(wanted)
    if not 0 < length < math.inf:
        return False
    basis: list[Row] = []
    for vector in islice(vectors, wanted.size // _EACH):
        size = _length(vector)
        if not 0 < size < math.inf:
            continue
        for known in basis:
            vector = vector - (known @ vector) * known
        new = _length(vector)
        if new <= _DEPENDENT * size:
            continue
        basis.append(vector / new)
        rest = rest - (basis[-1] @ rest) * basis[-1]
        if _length(rest) <= within * length:
            return True
    return False


def _length(vector: Row) -> float:
    return math.sqrt(vector @ vector)
