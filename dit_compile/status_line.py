"""One line below the cursor of a terminal, which leaves alone all else that is written there."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

#: Go to the line below in the same column, remember the place; return to it, go up again. A line
#: feed in place of the first would lose the column.
_DOWN, _UP = "\x1bD\x1b7", "\x1b8\x1b[A"
_CLEAR = "\r\x1b[2K"


class StatusLine:
    """A line of text on standard error that can be redrawn and taken back.

    What others write while it is there (warnings, logs, output of the model) takes it back first,
    so that the two never mix. Bars of tqdm keep their places: it then is one more of them.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._shown: _BelowCursor | _AmongBars | None = None
        os.register_at_fork(after_in_child=self._forget)

    def draw(self, text: str) -> None:
        """Show ``text`` in place of what was shown, or nothing where there is no terminal now."""
        stream = terminal()
        if stream is None:
            self.erase()
            return
        with self._lock:
            bars = _tqdm_with_bars()
            if bars is None and not isinstance(self._shown, _BelowCursor):
                self.erase()
                self._shown = _BelowCursor(stream, self._before_others)
            elif bars is not None and not isinstance(self._shown, _AmongBars):
                self.erase()
                self._shown = _AmongBars(stream, bars)
            if self._shown is not None:
                self._shown.draw(_fitted(text, stream))

    def erase(self) -> None:
        """Take the line back if it is there."""
        with self._lock:
            shown, self._shown = self._shown, None
            if shown is not None:
                shown.erase()

    @contextlib.contextmanager
    def _before_others(self) -> Iterator[None]:
        """Take the line back; none is drawn until what follows is written."""
        with self._lock:
            self.erase()
            yield

    def _forget(self) -> None:
        """A forked process has no part in the line, and its lock may be held by nobody."""
        self._lock = threading.RLock()
        shown, self._shown = self._shown, None
        if isinstance(shown, _BelowCursor):
            shown.release()


def terminal() -> TextIO | None:
    """Standard error, if it is a terminal."""
    stream = sys.stderr
    with contextlib.suppress(ValueError, AttributeError):  # it is closed, or no stream
        if stream.isatty():
            return stream
    return None


class _BelowCursor:
    """The line on a terminal without bars.

    Args:
        stream: the terminal.
        before_others: entered while another writes to it.
    """

    def __init__(
        self, stream: TextIO, before_others: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._stream = stream
        self._write = stream.write
        self._before_others = before_others
        self._watched: list[TextIO] = []
        for each in {id(s): s for s in (stream, sys.stdout) if s is not None}.values():
            self._watch(each)

    def draw(self, text: str) -> None:
        self._send(f"{_DOWN}{_CLEAR}{text}{_UP}")

    def erase(self) -> None:
        self.release()
        self._send(f"{_DOWN}{_CLEAR}{_UP}")

    def release(self) -> None:
        """Leave the streams as they were."""
        for stream in self._watched:
            with contextlib.suppress(AttributeError):
                del stream.write
        self._watched.clear()

    def _watch(self, stream: TextIO) -> None:
        if "write" in getattr(stream, "__dict__", {"write": None}):
            return  # it cannot be watched, or something else watches it
        write = stream.write

        def after_the_line(text: str) -> int:
            with self._before_others():
                return write(text)

        stream.write = after_the_line  # type: ignore[method-assign]
        self._watched.append(stream)

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal went away
            self._write(text)
            self._stream.flush()


class _AmongBars:
    """The line as a bar of tqdm, which knows where the others are."""

    FORMAT = "{desc}"

    def __init__(self, stream: TextIO, tqdm: Any) -> None:
        self._bar = tqdm(bar_format=self.FORMAT, leave=False, file=stream)

    def draw(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._bar.set_description_str(text)

    def erase(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._bar.close()


def _tqdm_with_bars() -> Any:
    """The class of tqdm's bars if others of them than ours are on the terminal."""
    module = sys.modules.get("tqdm.std")
    if module is None:
        return None
    with module.tqdm.get_lock():
        bars = list(getattr(module.tqdm, "_instances", ()))
    return module.tqdm if any(map(_is_drawn, bars)) else None


def _is_drawn(bar: Any) -> bool:
    """Whether a bar is another's and on the terminal. It may be half made, by another thread."""
    ours = getattr(bar, "bar_format", None) == _AmongBars.FORMAT
    return not (ours or getattr(bar, "disable", True) or getattr(bar, "gui", True))


def _fitted(text: str, stream: TextIO) -> str:
    """``text`` on one line of the terminal: a second one could not be taken back."""
    from rich.cells import cell_len, set_cell_size

    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    width = max(1, (columns or shutil.get_terminal_size().columns) - 1)
    return text if cell_len(text) <= width else set_cell_size(text, width)
