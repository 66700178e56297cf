"""Sessions: one generation at run time, stated outright or recognised from the calls."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dit_compile.errors import SessionError
from dit_compile.runtime.generation import MODES, Form, Hold, Tracker
from dit_compile.runtime.lanes import follow_cache_context
from dit_compile.runtime.owners import Owners, enclosing_generator
from dit_compile.runtime.timetable import Timetable

if TYPE_CHECKING:
    import torch

    from dit_compile.runtime.identity import Seen


@dataclass(eq=False)
class _Entry:
    """A Session that was entered, and the generator that did so, if one did.

    Attributes:
        used: whether that generator has called a model itself.
    """

    session: Session
    generator: FrameType | None
    used: bool = False


_active: ContextVar[tuple[_Entry, ...]] = ContextVar("ditc_sessions", default=())
_owners = Owners[_Entry]()
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
    #: What all compiled forms of a model have in common, and nothing else has.
    origin: object

    @property
    def stateful(self) -> bool:
        """Whether its steps depend on earlier ones."""
        ...


@dataclass(eq=False)
class _Model:
    """The calls of one model: of all forms of it that were compiled.

    Forms come from one place in the user's code and share weights; a model of the same class does
    not share them.

    Attributes:
        origin: where the forms come from.
        tracker: places their calls.
        forms: each Program, on each set of weights that it was called with.
        objects: the weights of all forms, by ``id``.
    """

    origin: object
    tracker: Tracker
    forms: list[_OnWeights]
    objects: set[int]

    def includes(self, program: Tracked, objects: Collection[int]) -> bool:
        """Whether a program with these weights is a form of this model."""
        if self.origin != program.origin:
            return False
        return not objects if not self.objects else not self.objects.isdisjoint(objects)

    def alive(self) -> bool:
        return any(form.alive() for form in self.forms)


class _OnWeights(Form):
    """A Program on one set of weights, as they are now."""

    def __init__(self, program: Tracked, tracker: Tracker) -> None:
        super().__init__()
        self.program = weakref.ref(program)
        self.tracker = tracker
        self.objects: tuple[int, ...] = ()
        self._seen: Seen | None = None

    def serves(self, program: Tracked, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these are its weights; takes a new stamp where one was written to."""
        if self.program() is not program or len(self.objects) != len(weights):
            return False
        if self._seen is None:
            return True
        if self.objects[0] != id(weights[0]):  # the same Program on other weights, as a rule
            return False
        if not self._seen.still(weights):
            if not self._seen.same_memory(weights):
                return False
            self.take(weights)
        return True

    def take(self, weights: Sequence[torch.Tensor]) -> None:
        """Remember the weights as they are."""
        self.stamp = object()
        self.objects = tuple(map(id, weights))
        if weights:
            from dit_compile.runtime.identity import Seen  # here: bundles run without torch
            from dit_compile.runtime.weights import depends

            self._seen = Seen.of(weights)
            depends(self)

    def reads_any(self, identities: Collection[int]) -> bool:
        """Whether one of its weights is one of the tensors with these ``id``s."""
        return self._seen is not None and self._seen.holds_any(identities)

    def invalidate(self) -> None:
        """Take the weights for written to."""
        self.stamp = object()

    def alive(self) -> bool:
        program_lives = self.program() is not None
        return program_lives and (self._seen is None or not self._seen.gone)


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
        self._timetable = Timetable.of(self.timesteps, self.sigmas) if self.timesteps else None
        self._models: list[_Model] = []
        self._lock = threading.Lock()
        self._depth = 0
        self._entries: list[_Entry] = []
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

    def follow(self, program: Tracked, weights: Sequence[torch.Tensor]) -> tuple[Tracker, Form]:
        """What follows ``program``'s calls on ``weights`` within this Session."""
        with self._lock:
            for model in self._models:
                for form in model.forms:
                    if form.serves(program, weights):
                        return model.tracker, form
            return self._add(program, weights)

    def _add(self, program: Tracked, weights: Sequence[torch.Tensor]) -> tuple[Tracker, Form]:
        """Follow a form that was not called before; forms whose weights are gone are forgotten."""
        self._models = [model for model in self._models if model.alive()]
        objects = set(map(id, weights))
        model = next((each for each in self._models if each.includes(program, objects)), None)
        if model is None:
            timetable = self._timetable.fresh() if self._timetable is not None else None
            tracker = Tracker(timetable, clock=program.clock, loud=False, hold=program.hold)
            model = _Model(program.origin, tracker, [], set())
            self._models.append(model)
        form = _OnWeights(program, model.tracker)
        form.take(weights)
        model.tracker.loud |= program.stateful
        model.forms = [each for each in model.forms if each.alive()] + [form]
        model.objects |= objects
        return model.tracker, form

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
        return [model.tracker for model in self._models if model.alive()]

    def __enter__(self) -> Session:
        self._depth += 1
        entry = _Entry(self, enclosing_generator())
        _active.set((*_active.get(), entry))
        if entry.generator is not None:
            _owners.add(entry.generator, entry)
        self._entries.append(entry)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Sessions that generators or tasks hold open may end in any order, and in other contexts.
        entry = self._leaving()
        _active.set(tuple(each for each in _active.get() if each is not entry))
        if entry.generator is not None:
            _owners.remove(entry.generator, entry)
        self._depth -= 1
        if self._depth == 0:
            self.end()

    def _leaving(self) -> _Entry:
        """The entry that ends: the last one of this generator, else of this context."""
        generator = enclosing_generator()
        active = _active.get()
        entries = [each for each in self._entries if each.generator is generator] or self._entries
        mine = [each for each in entries if each in active] or entries
        self._entries.remove(mine[-1])
        return mine[-1]

    def end(self) -> None:
        """End the generations that run in it, and free their state."""
        for tracker in self._trackers():
            with tracker.lock:
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

    The innermost one of its model that a generator which is running entered, or that is active in
    this context, else the default one of this thread or async task. A Session that a generator
    entered serves calls from outside as well, as those of fixtures do, until the generator itself
    calls the model.
    """
    for entry in _owners.running():
        if entry.session.owns(weights):
            entry.used = True
            return entry.session
    for entry in reversed(_active.get()):
        if not entry.used and entry.session.owns(weights):
            return entry.session
    holder: Any = threading.current_thread()
    if asyncio._get_running_loop() is not None:
        holder = asyncio.current_task() or holder
    found = _default.get()
    if found is None or found[0]() is not holder:  # a copied context brings its parent's along
        found = (weakref.ref(holder), Session())
        _default.set(found)
    return found[1]
