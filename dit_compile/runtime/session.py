"""Sessions: one generation at run time, stated outright or recognised from the calls."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from dit_compile.errors import SessionError
from dit_compile.runtime.generation import Tracker

if TYPE_CHECKING:
    from dit_compile.runtime.compiled import CompiledProgram

_active: ContextVar[tuple[Session, ...]] = ContextVar("ditc_sessions", default=())
_defaults: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()
_defaults_lock = threading.Lock()


class Session:
    """One generation, or several one after the other, of one model.

    Use as a context manager around the sampling loop. State lives here, never on the module; it is
    freed when the Session ends.

    Args:
        model: the module, compiled or not, whose calls belong to this Session; ``None`` for all.
        timesteps: the timesteps of the loop in order, such as ``scheduler.timesteps``.

    Raises:
        SessionError: ``timesteps`` is empty.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        timesteps: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        if isinstance(timesteps, torch.Tensor):
            timesteps = timesteps.tolist()
        if timesteps is not None and len(timesteps) == 0:
            raise SessionError("timesteps is empty; pass scheduler.timesteps after set_timesteps()")
        self.timesteps = [float(t) for t in timesteps] if timesteps is not None else None
        self._weights = {id(p) for p in _tensors(model)} if model is not None else None
        self._model = model
        self._trackers: weakref.WeakKeyDictionary[CompiledProgram, Tracker] = (
            weakref.WeakKeyDictionary()
        )
        self._tokens: list[Any] = []

    def owns(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether a program with these weights belongs to this Session's model."""
        if self._weights is None or not weights:
            return self._weights is None
        return any(id(weight) in self._weights for weight in weights)

    def tracker(self, program: CompiledProgram) -> Tracker:
        """The tracker of ``program``'s calls within this Session."""
        found = self._trackers.get(program)
        if found is None:
            found = self._trackers[program] = Tracker(
                self.timesteps, loud=program.program.schedule.stateful
            )
        return found

    def summary(self) -> dict[str, int]:
        """Counters over all programs and lanes of the current generations.

        Returns:
            ``generations``, ``lanes``, ``computed`` and ``reused``.
        """
        lanes = [
            lane
            for tracker in self._trackers.values()
            if tracker.generation is not None
            for lane in tracker.generation.lanes
        ]
        return {
            "generations": max((t.generations for t in self._trackers.values()), default=0),
            "lanes": len(lanes),
            "computed": sum(lane.computed for lane in lanes),
            "reused": sum(lane.reused for lane in lanes),
        }

    def __enter__(self) -> Session:
        self._tokens.append(_active.set((*_active.get(), self)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _active.reset(self._tokens.pop())
        for tracker in self._trackers.values():
            _free(tracker)


def session(
    model: torch.nn.Module | None = None,
    *,
    timesteps: Sequence[float] | torch.Tensor | None = None,
) -> Session:
    """State a sampling loop: ``with ditc.session(fast, timesteps=scheduler.timesteps): ...``.

    Args:
        model: the module, compiled or not; ``None`` for every model called inside.
        timesteps: the loop's timesteps in order; without them steps are counted as they come, and
            the last one is guessed.

    Raises:
        SessionError: ``timesteps`` is empty.
    """
    return Session(model, timesteps=timesteps)


def _free(tracker: Tracker) -> None:
    """Let go of state tensors and conditions; the counters stay for :meth:`Session.summary`."""
    if tracker.generation is not None:
        for lane in tracker.generation.lanes:
            lane.state = {}
            lane.context = {}


def _tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def current(weights: Sequence[torch.Tensor]) -> Session:
    """The Session that a call with these weights belongs to.

    The innermost active one of its model, else the default one of this thread or async task.
    """
    for session in reversed(_active.get()):
        if session.owns(weights):
            return session
    holder: Any = threading.current_thread()
    if asyncio._get_running_loop() is not None:
        holder = asyncio.current_task() or holder
    with _defaults_lock:
        found = _defaults.get(holder)
        if found is None:
            found = _defaults[holder] = Session()
    return found
