"""How far a compilation is, on the terminal, once it takes long.

Compiling a large model takes minutes, in which nothing else is seen. Logs, notebooks and pipes get
nothing: the line is for a terminal, which can take it back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from dit_compile import config
from dit_compile.shown import shown as printable
from dit_compile.status_line import StatusLine, terminal

log = logging.getLogger("dit_compile.progress")

#: Seconds before the line is shown, between two looks at the clock, and to wait for its end.
_AFTER, _EVERY, _PATIENCE = 5.0, 0.5, 1.0


@dataclass(eq=False)
class _Compilation:
    """What one thread compiles.

    Attributes:
        subject: which graph, ``""`` if that is not known yet.
        phase: what it is at.
        wanted: whether to show anything of it.
        started: when it began, in seconds of the monotonic clock.
        done: set when it ends.
    """

    subject: str = ""
    phase: str = ""
    wanted: bool = True
    started: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)

    def show(self) -> None:
        """Redraw the line until the compilation ends, then take it back. Runs in a thread."""
        pause, drawn = _AFTER, False
        try:
            while not self.done.wait(pause):
                pause = _EVERY
                with _lock:
                    if _first() is self and self.phase and not _covers:
                        _line.draw(self.text())
                        drawn = True
                    elif drawn:
                        _line.erase()
                        drawn = False
        except Exception:  # no reason to disturb who compiles
            log.debug("the line of progress cannot be drawn", exc_info=True)
        finally:
            with _lock:
                if drawn:
                    _line.erase()
                _running.remove(self)

    def text(self) -> str:
        """``ditc 1:05  DiT [0/0]: pass 3 of 12, fuse-qkv``."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        what = ": ".join(filter(None, (self.subject, self.phase)))
        return printable(f"ditc {minutes}:{seconds:02}  {what}")


_lock = threading.Lock()
_line = StatusLine()
#: What is compiled now, by all threads. The line is of the first.
_running: list[_Compilation] = []
#: What covers the line: one entry for each bar of our own.
_covers: list[object] = []
_current: ContextVar[_Compilation | None] = ContextVar("ditc_compilation", default=None)


def _first() -> _Compilation | None:
    return next((each for each in _running if each.wanted), None)


@contextlib.contextmanager
def shown(*, wanted: bool = True) -> Iterator[None]:
    """Show how far the compilation inside is, once it has taken five seconds.

    Only where standard error is a terminal. Within another one it belongs to that one.

    Args:
        wanted: whether the user has not asked for silence.
    """
    if _current.get() is not None or not (config.progress_by_default() and terminal()):
        yield
        return
    compilation = _Compilation(wanted=wanted)
    _running.append(compilation)
    thread = threading.Thread(target=compilation.show, name="ditc-progress", daemon=True)
    thread.start()
    token = _current.set(compilation)
    try:
        yield
    finally:
        _current.reset(token)
        compilation.done.set()
        thread.join(_PATIENCE)  # no longer, should the terminal not take what is written


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show nothing of any compilation, since the terminal shows something else."""
    cover = object()
    _covers.append(cover)
    if _lock.acquire(timeout=_PATIENCE):
        _line.erase()
        _lock.release()
    try:
        yield
    finally:
        _covers.remove(cover)


def hide() -> None:
    """Show nothing more of the compilation that runs in this thread or task."""
    if (compilation := _current.get()) is not None:
        compilation.wanted = False


def report(phase: str, *, subject: str = "") -> None:
    """Name what the compilation in this thread or task is at: ``report("capture")``.

    Args:
        phase: what it is at.
        subject: which graph is compiled, once that is known.
    """
    if (compilation := _current.get()) is not None:
        compilation.phase = phase
        compilation.subject = subject or compilation.subject


def each(what: str, names: Collection[str]) -> Iterator[str]:
    """Iterate over ``names`` and report which of how many is worked on."""
    for number, name in enumerate(names, start=1):
        report(f"{what} {name}, {number} of {len(names)}")
        yield name
