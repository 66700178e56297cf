"""Which generator a Session was entered in.

Generators share the context of whoever advances them, and a server may advance one in another
thread or context at each step. So a Session that a generator entered is found by its frame.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Owners(Generic[T]):
    """What generators hold open, by their frames. Frames are held only as long as that."""

    def __init__(self) -> None:
        self._held: dict[FrameType, list[T]] = {}

    def add(self, frame: FrameType, held: T) -> None:
        """Enter what the generator with this frame holds."""
        self._held.setdefault(frame, []).append(held)

    def remove(self, frame: FrameType, held: T) -> None:
        """Take it out again."""
        kept = self._held.get(frame, [])
        if held in kept:
            kept.remove(held)
        if not kept:
            self._held.pop(frame, None)

    def running(self) -> Iterator[T]:
        """What the generators that are running now hold, the innermost first."""
        if not self._held:
            return
        for frame in _stack():
            yield from reversed(self._held.get(frame, ()))


def enclosing_generator() -> FrameType | None:
    """The frame of the innermost generator that is running.

    The generator of a context manager is left out: what it enters is for the body of its ``with``.
    """
    for frame in _stack():
        if frame.f_code.co_flags & _GENERATORS and not _serves_a_with(frame):
            return frame
    return None


def _serves_a_with(frame: FrameType) -> bool:
    caller = frame.f_back
    return caller is not None and caller.f_code.co_filename == contextlib.__file__


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
