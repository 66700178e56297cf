"""Running models as though ditc was not there, for a while or for a whole process."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from dit_compile import config
from dit_compile.errors import DitcWarning, OptionError

log = logging.getLogger("dit_compile.disabling")

_disabled: ContextVar[bool] = ContextVar("ditc_disabled", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Run models without ditc inside: ``with ditc.disabled(): reference = pipe(...)``.

    What ditc compiled before runs as the graph that was captured: uncached, uncompiled, and
    without compiling anything. What is compiled first inside is Inductor's; ditc compiles it at
    its first call outside. A generation that was running ends at such a call, since its state has
    missed a step. Holds for this thread or async task. ``DITC_DISABLE=1`` does it for a process.
    """
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def is_disabled() -> bool:
    """Whether this thread or task is inside :func:`disabled`."""
    return _disabled.get()


def for_the_process() -> bool:
    """Whether ``DITC_DISABLE`` leaves all graphs to Inductor; logs that once."""
    if config.disabled():
        _log_environment()
    return config.disabled()


def require_enabled(what: str) -> None:
    """Refuse ``what`` where compiled models would not run.

    Raises:
        OptionError: ditc is disabled here.
    """
    if is_disabled():
        raise OptionError(f"{what} runs compiled models; call it outside ditc.disabled()")
    if config.disabled():
        raise OptionError(f"{what} runs compiled models; unset DITC_DISABLE")


class Step(Protocol):
    """A compiled graph that may keep state between its calls."""

    def __call__(self, *args: Any) -> Any:
        """Serve one call."""
        ...

    def interrupt(self, *args: Any) -> None:
        """Note that something else serves the call with these arguments."""
        ...


class Switch:
    """A compiled graph, or what serves its calls inside :func:`disabled`.

    Args:
        plain: takes the same arguments, keeps no state.
        step: the compiled graph.
        notice: runs before each call that ``plain`` serves.
    """

    def __init__(
        self,
        plain: Callable[..., Any],
        step: Step,
        notice: Callable[[], None] = lambda: None,
    ) -> None:
        self._plain = plain
        self._step = step
        self._notice = notice

    def __call__(self, *args: Any) -> Any:
        """Serve one call."""
        if not _disabled.get():
            return self._step(*args)
        self._notice()
        self._step.interrupt(*args)
        return self._plain(*args)


class Late:
    """A compiled graph that is made at its first call.

    Args:
        assemble: makes it.
        plain: serves calls where that fails, unless ``strict`` lets the error through.
        strict: raise what ``assemble`` raises.
    """

    def __init__(
        self, assemble: Callable[[], Step], plain: Callable[..., Any], *, strict: bool
    ) -> None:
        self._assemble = assemble
        self._plain = plain
        self._strict = strict
        self._lock = threading.Lock()
        self._made: Step | None = None
        self._failed = False

    def __call__(self, *args: Any) -> Any:
        """Serve one call; the first one makes the graph."""
        with self._lock:
            if self._made is None and not self._failed:
                self._make()
        return (self._plain if self._made is None else self._made)(*args)

    def interrupt(self, *args: Any) -> None:
        """Note that something else serves the call; what was not made has no state."""
        if self._made is not None:
            self._made.interrupt(*args)

    def _make(self) -> None:
        try:
            self._made = self._assemble()
        except Exception as error:
            if self._strict:
                raise
            self._failed = True
            first = (str(error).splitlines() or [repr(error)])[0]
            warnings.warn(
                f"ditc: the graph stays Inductor's: {type(error).__name__}: {first}",
                DitcWarning,
                stacklevel=3,
            )


def switchable(
    graph: Callable[..., Any],
    example_inputs: Sequence[Any],
    assemble: Callable[[], Step],
    *,
    strict: bool,
) -> Switch:
    """What ``assemble`` makes, now or at the first call outside :func:`disabled`.

    Args:
        graph: the graph from Dynamo. It holds no weights, those are among its arguments.
        example_inputs: the graph's real or fake inputs.
        assemble: compiles what was captured of it.
        strict: raise what ``assemble`` raises.
    """
    if not _disabled.get():
        return Switch(graph, assemble(), notice=_warn_of_eager)
    from torch._inductor.compile_fx import compile_fx

    log.info("compiled inside ditc.disabled(): Inductor's, until a call outside")
    inductors: Any = compile_fx(graph, list(example_inputs))  # type: ignore[arg-type]
    return Switch(inductors, Late(assemble, inductors, strict=strict))


@functools.cache
def _warn_of_eager() -> None:
    warnings.warn(
        "ditc: inside ditc.disabled() models that ditc compiled run uncompiled; set DITC_DISABLE=1 "
        "to time Inductor alone",
        DitcWarning,
        stacklevel=3,
    )


@functools.cache
def _log_environment() -> None:
    log.info("DITC_DISABLE is set: every graph is left to Inductor")
