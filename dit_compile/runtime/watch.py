"""Watching the steps of compiled Programs, without changing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dit_compile.ir.program import Program
    from dit_compile.ir.schedule import Step
    from dit_compile.runtime.generation import Lane


@dataclass(frozen=True)
class Watched:
    """One step of one lane, just done.

    Attributes:
        program: the Program that ran.
        graph: the graph that served the step.
        lane: the lane.
        step: the step.
        returned: the state that the graph returned, by name.
    """

    program: Program
    graph: str
    lane: Lane
    step: Step
    returned: Mapping[str, torch.Tensor]


Watcher = Callable[[Watched], None]

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


def announce(watched: Watched) -> None:
    """Tell all watchers of a step."""
    for watcher in _watchers.get():
        watcher(watched)
