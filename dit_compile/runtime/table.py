"""The rows of a table that is computed ahead: which are to come, and which to forget.

Tensors may be torch's, numpy's or ONNX Runtime's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from dit_compile.runtime.generation import Tracker
from dit_compile.runtime.steps import Values
from dit_compile.runtime.timetable import Rounded, Times

#: The timestep that a row belongs to: the bits of each input that is the timestep.
Key = tuple[bytes, ...]

#: Rows of a table that are kept for a lane at most, in bytes.
_MAX_TABLE_BYTES = 512 << 20


def key_of(times: Times, clock: Sequence[str]) -> Key:
    """The key of a call's row, ``clock`` being the inputs that the table reads."""
    return tuple(struct.pack(f"{len(times[name])}d", *times[name]) for name in clock)


def foreseen(tracker: Tracker, times: Times, clock: Sequence[str], rounded: Rounded) -> list[Times]:
    """The rows to come: of the timesteps that were stated, else of those a generation before.

    Args:
        tracker: of the call.
        times: of the call.
        clock: the inputs that the table reads.
        rounded: makes a vector of numbers in the type of the timestep.
    """
    if tracker.timetable is not None:
        return tracker.timetable.foreseen(times, tracker.clock, rounded)
    wanted = {name: len(times[name]) for name in clock}
    return [
        each
        for each in tracker.earlier_times
        if all(len(each.get(name, ())) == size for name, size in wanted.items())
    ]


def that_fit(row: Values) -> int:
    """How many rows like this one are kept."""
    size = sum(map(_bytes, row.values()))
    return max(1, _MAX_TABLE_BYTES // max(size, 1))


def forget(rows: dict[Key, Values], keep: Key) -> None:
    """Forget the oldest rows of a table that has grown too large."""
    size = sum(map(_bytes, rows[keep].values()))
    for key in list(rows):
        if len(rows) * size <= _MAX_TABLE_BYTES:
            break
        if key != keep:
            del rows[key]


def _bytes(value: Any) -> int:
    """The bytes of a tensor."""
    return int(value.nbytes if hasattr(value, "nbytes") else value.tensor_size_in_bytes())
