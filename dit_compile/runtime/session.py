"""Sessions: one generation at run time, stated outright or recognised from the calls."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dit_compile.errors import SessionError
from dit_compile.runtime.generation import MODES, Hold, Tracker
from dit_compile.runtime.lanes import follow_cache_context

if TYPE_CHECKING:
    import torch

    from dit_compile.runtime.identity import Identity

_active: ContextVar[tuple[Session, ...]] = ContextVar("ditc_sessions", default=())
#: The Session of calls outside any ``with``, and the thread or task that it belongs to.
_default: ContextVar[tuple[weakref.ref[Any], Session] | None] = ContextVar(
    "ditc_default", default=None
)


class Tracked(Protocol):
    """A program whose calls a Session follows: compiled, or loaded from a bundle."""

    #: The inputs that are the timestep, once known.
    clock: tuple[str, ...] | None
    #: How it keeps and compares inputs.
    hold: Hold

    @property
    def stateful(self) -> bool:
        """Whether its steps depend on earlier ones."""
        ...


@dataclass(frozen=True)
class _Followed:
    """The calls of one Program on one set of weights: models of a class may share a Program.

    All weights are compared by object, and a few by memory too, which costs more: a whole model
    may be freed and another get its place, a single weight is replaced while the old one lives.
    """

    objects: tuple[int, ...]
    weights: tuple[Identity, ...]
    tracker: Tracker

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], tracker: Tracker) -> _Followed:
        if not weights:
            return cls((), (), tracker)
        from dit_compile.runtime.identity import Identity  # here, since bundles run without torch

        return cls(tuple(map(id, weights)), tuple(map(Identity.of, _a_few(weights))), tracker)

    def serves(self, weights: Sequence[torch.Tensor]) -> bool:
        return self.objects == tuple(map(id, weights)) and all(
            seen.is_of(weight) for seen, weight in zip(self.weights, _a_few(weights), strict=True)
        )

    def alive(self) -> bool:
        return not any(seen.gone for seen in self.weights)


def _a_few(weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Up to eight of ``weights``, spread over them."""
    return weights[:: max(1, len(weights) // 7)]


class Session:
    """One generation, or several one after the other, of one model.

    Use as a context manager around the sampling loop. State lives here, never on the module; it is
    freed when the Session ends. Two generations at once in one thread take turns by entering their
    Sessions, already open, again::

        with ditc.session(fast) as a, ditc.session(fast) as b:
            for t in timesteps:
                with a: x = step(x, t)
                with b: y = step(y, t)

    Args:
        model: the module, compiled or not, or the loaded bundle whose calls belong to this Session;
            ``None`` for all.
        timesteps: the timesteps of the loop in order, such as ``scheduler.timesteps``.
        sigmas: the noise level of each of them, such as ``scheduler.sigmas``, whose last one, where
            the loop ends, may be there too. For methods that forecast along them.

    Raises:
        SessionError: ``timesteps`` is empty, or ``sigmas`` are not as many.
    """

    def __init__(
        self,
        model: torch.nn.Module | Tracked | None = None,
        *,
        timesteps: Iterable[float] | None = None,
        sigmas: Iterable[float] | None = None,
    ) -> None:
        self.timesteps = [float(t) for t in timesteps] if timesteps is not None else None
        self.sigmas = [float(s) for s in sigmas] if sigmas is not None else None
        if self.timesteps == []:
            raise SessionError("timesteps is empty; pass scheduler.timesteps after set_timesteps()")
        steps = len(self.timesteps or ())
        if self.sigmas is not None and len(self.sigmas) not in (steps, steps + 1):
            raise SessionError(
                f"{len(self.sigmas)} sigmas do not go with {steps} timesteps; pass "
                "scheduler.timesteps and scheduler.sigmas after set_timesteps()"
            )
        # the tensors are held, so that no other can take their place in memory
        self._weights = {id(t): t for t in _tensors(model)} if model is not None else None
        self._followed: weakref.WeakKeyDictionary[Tracked, list[_Followed]] = (
            weakref.WeakKeyDictionary()
        )
        self._depth = 0
        follow_cache_context()  # diffusers may have been loaded after ditc

    @property
    def is_open(self) -> bool:
        """Whether the caller has entered it, and so will say when it ends."""
        return self._depth > 0

    def owns(self, weights: Sequence[object]) -> bool:
        """Whether a program with these weights belongs to this Session's model."""
        if self._weights is None or not weights:
            return self._weights is None
        return any(id(weight) in self._weights for weight in weights)

    def tracker(self, program: Tracked, weights: Sequence[torch.Tensor]) -> Tracker:
        """The tracker of ``program``'s calls on ``weights`` within this Session."""
        followed = self._followed.setdefault(program, [])
        for item in followed:
            if item.serves(weights):
                return item.tracker
        tracker = Tracker(
            self.timesteps,
            self.sigmas,
            clock=program.clock,
            loud=program.stateful,
            hold=program.hold,
        )
        kept = [item for item in followed if item.alive()]
        followed[:] = [*kept, _Followed.of(weights, tracker)]
        return tracker

    def summary(self) -> dict[str, Any]:
        """Counters over all programs and lanes of the current generations.

        Returns:
            ``generations``, ``lanes``; calls that were ``computed`` in full, that ``reused``
            something and that ``forecast`` something; and ``why``: how often each reason led to
            computing in full what a policy may have reused. ``released``, if weights were: the
            bytes of a device that were free while steps ran.
        """
        trackers = self._trackers()
        lanes = [lane for t in trackers if t.generation is not None for lane in t.generation.lanes]
        served = sum((lane.served for lane in lanes), Counter[str]())
        released = sum(tracker.released for tracker in trackers)
        return {
            "generations": max((t.generations for t in trackers), default=0),
            "lanes": len(lanes),
            **{mode: served[mode] for mode in MODES},
            "why": dict(sum((lane.why for lane in lanes), Counter[str]())),
            **({"released": released} if released else {}),
        }

    def _trackers(self) -> list[Tracker]:
        return [item.tracker for followed in self._followed.values() for item in followed]

    def __enter__(self) -> Session:
        self._depth += 1
        _active.set((*_active.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Sessions that generators or tasks hold open may end in any order.
        active = _active.get()
        if self in active:
            last = len(active) - 1 - active[::-1].index(self)
            _active.set((*active[:last], *active[last + 1 :]))
        self._depth -= 1
        if self._depth == 0:
            for tracker in self._trackers():
                tracker.end()


def session(
    model: torch.nn.Module | Tracked | None = None,
    *,
    timesteps: Iterable[float] | None = None,
    sigmas: Iterable[float] | None = None,
) -> Session:
    """State a sampling loop: ``with ditc.session(fast, timesteps=scheduler.timesteps): ...``.

    Args:
        model: the module, compiled or not, or a loaded bundle; ``None`` for all called inside.
        timesteps: the loop's timesteps in order; without them steps are counted as they come, and
            the last one is guessed.
        sigmas: the noise level of each timestep, such as ``scheduler.sigmas``.

    Raises:
        SessionError: ``timesteps`` is empty, or ``sigmas`` are not as many.
    """
    return Session(model, timesteps=timesteps, sigmas=sigmas)


def _tensors(model: torch.nn.Module | Tracked) -> list[object]:
    """What a model is known by: its weights, or itself if they are not torch's."""
    found: Any = (getattr(model, what, tuple)() for what in ("parameters", "buffers"))
    return [tensor for tensors in found for tensor in tensors] or [model]


def current(weights: Sequence[object]) -> Session:
    """The Session that a call with these weights belongs to.

    The innermost active one of its model, else the default one of this thread or async task.
    """
    for session in reversed(_active.get()):
        if session.owns(weights):
            return session
    holder: Any = threading.current_thread()
    if asyncio._get_running_loop() is not None:
        holder = asyncio.current_task() or holder
    found = _default.get()
    if found is None or found[0]() is not holder:  # a copied context brings its parent's along
        found = (weakref.ref(holder), Session())
        _default.set(found)
    return found[1]
