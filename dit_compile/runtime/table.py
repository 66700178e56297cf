"""The rows of a table that is computed ahead: which are to come, and which to forget.

Tensors may be torch's, numpy's or ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dit_compile.runtime.generation import Times, Tracker
from dit_compile.runtime.steps import Values

#: The timestep that a row belongs to: the host values of each input that is the timestep.
Key = tuple[tuple[float, ...], ...]

#: Rows of a table that are kept for a lane at most, in bytes.
_MAX_TABLE_BYTES = 512 << 20


def key_of(times: Times, clock: Sequence[str]) -> Key:
    """The key of a call's row, ``clock`` being the inputs that the table reads."""
    return tuple(times[name] for name in clock)


def foreseen(
    tracker: Tracker, clock: Sequence[str], key: Key, rounded: Callable[[Sequence[float]], Any]
) -> list[Key]:
    """The rows to come: of the timesteps that were stated, else of those a generation before.

    Args:
        tracker: of the call.
        clock: the inputs that are the timestep.
        key: the call's own row.
        rounded: makes a vector of numbers in the type of the timestep.
    """
    stated = tracker.timesteps
    if stated is None:
        return [key_of(times, clock) for times in tracker.earlier_times]
    if len(clock) != 1 or len({*key[0]}) != 1:
        return []
    values = rounded(stated)
    scaled = values / _divisor(values.tolist(), tracker.index, key[0][0])
    return [((float(value),) * len(key[0]),) for value in scaled.tolist()]


def _divisor(stated: Sequence[float], index: int, own: float) -> int:
    """What the caller divides the stated timesteps by, as the one at ``index`` tells it.

    Flow-matching pipelines call the model with the scheduler's timesteps over 1000. Only whole
    divisors give the very values of the calls, so no other is looked for.
    """
    if own == 0.0 or index >= len(stated):
        return 1
    ratio = stated[index] / own
    return max(round(ratio), 1) if abs(ratio - round(ratio)) <= 1e-2 * ratio else 1


def that_fit(keys: list[Key], row: Values) -> list[Key]:
    """As many of ``keys`` as rows like this one are kept."""
    size = sum(map(_bytes, row.values()))
    return keys[: max(1, _MAX_TABLE_BYTES // max(size, 1))]


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
