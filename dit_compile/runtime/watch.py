"""Watching the steps of compiled Programs, without changing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dit_compile.ir.program import Program
from dit_compile.runtime.steps import Served

Watcher = Callable[[Program, Served], None]

_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("ditc_watchers", default=())


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` after each step in this thread or async task."""
    before = _watchers.get()
    _watchers.set((*before, watcher))
    try:
        yield
    finally:
        _watchers.set(before)


def watched() -> bool:
    """Whether anyone watches."""
    return bool(_watchers.get())


def announce(program: Program, served: Served) -> None:
    """Tell all watchers of a step."""
    for watcher in _watchers.get():
        watcher(program, served)
