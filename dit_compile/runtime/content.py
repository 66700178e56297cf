"""The content of an array, kept so that a later one can be compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Arrays up to this many bytes are kept whole; of larger ones a sample and a checksum.
WHOLE = 16 << 20
#: Numbers of a larger array that are kept.
_SAMPLE = 4096
#: Numbers that are summed before the place of their sum counts.
_CHUNK = 1024


@dataclass(frozen=True)
class Content:
    """What an array held, bit by bit: NaN equals itself, and 0.0 is not -0.0.

    Attributes:
        facts: its shape and type.
        bits: all of it as integers, or a sample and a checksum.
    """

    facts: tuple[object, ...]
    bits: tuple[Array, ...]

    @classmethod
    def of(cls, array: Array) -> Content:
        """Keep a copy, or what tells a large array from others."""
        flat = _integers(array)
        bits = (flat.copy(),) if array.nbytes <= WHOLE else _digest(flat)
        return cls((array.shape, array.dtype), bits)

    def same(self, array: Array) -> bool:
        """Whether ``array`` holds the same."""
        if self.facts != (array.shape, array.dtype):
            return False
        flat = _integers(array)
        found = (flat,) if array.nbytes <= WHOLE else _digest(flat)
        return all(map(np.array_equal, self.bits, found))


def _integers(array: Array) -> Array:
    """The bits of an array as a vector of integers, as wide as its bytes allow."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw.view(np.int64) if raw.size % 8 == 0 else raw


def _digest(flat: Array) -> tuple[Array, ...]:
    """A strided sample, and sums weighted by place: one changed number changes them."""
    whole = flat.size // _CHUNK * _CHUNK
    chunks, rest = flat[:whole].reshape(-1, _CHUNK), flat[whole:].astype(np.int64)
    sums = (chunks.sum(1, dtype=np.int64), chunks.sum(0, dtype=np.int64), rest)
    checksum = np.array([(each * _odd(each.size)).sum() for each in sums])
    return flat[:: max(1, flat.size // _SAMPLE)].copy(), checksum


def _odd(count: int) -> Array:
    """Odd multipliers, all different, so that an exchange of two numbers shows."""
    places = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (places | np.uint64(1)).view(np.int64)


def same_value(old: object, new: object) -> bool:
    """Whether two plain values are the same; 0.0 and -0.0 are not, NaN is the same as itself."""
    if type(old) is not type(new):
        return False
    return repr(old) == repr(new) if isinstance(old, float) else bool(old == new)
