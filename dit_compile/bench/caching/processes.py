"""Processes of a bench: they end with it, and what went wrong in them can be told."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def spawn(
    workers: int, start: Callable[..., object] | None = None, *told: Any
) -> ProcessPoolExecutor:
    """Fresh processes, each of which first calls ``start`` with what it is ``told``.

    They end if this process does, however that comes: they would go on otherwise, and disturb what
    is measured next.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin, (start, told))


def told_plainly(run: Callable[_P, _T]) -> Callable[_P, _T]:
    """``run``, with errors that another process can read: torch's own may hold on to frames."""

    @functools.wraps(run)
    def plainly(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return run(*args, **kwargs)
        except Exception as error:
            try:
                pickle.dumps(copy.copy(error))  # which makes it anew from its arguments, as pickle
            except Exception:
                raise RuntimeError(f"{type(error).__name__}: {error}") from None
            raise

    return plainly


def _begin(start: Callable[..., object] | None, told: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*told)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
