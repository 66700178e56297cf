"""Names for lanes, from the caller or from a diffusers pipeline.

What the model is told usually tells lanes apart. Where two evaluations of a step have the same
conditions, as with guidance that skips layers or perturbs attention, a name does.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_name: ContextVar[str] = ContextVar("ditc_lane", default="")


@contextmanager
def lane(name: str) -> Iterator[None]:
    """Name the lane of the calls inside: ``with ditc.lane("uncond"): fast(x, t, empty)``."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def current_lane() -> str:
    """The name of the lane that is being evaluated, empty if nobody gave one."""
    return _name.get()


def follow_cache_context() -> None:
    """Let ``cache_context(name)``, by which diffusers' pipelines name their calls, name lanes too.

    Does nothing while diffusers is not loaded, and nothing the second time.
    """
    mixin = getattr(sys.modules.get("diffusers.models.cache_utils"), "CacheMixin", None)
    original = getattr(mixin, "cache_context", None)
    if mixin is None or original is None or hasattr(original, "names_lanes"):
        return

    @functools.wraps(original)
    @contextmanager
    def cache_context(self: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with original(self, name, *args, **kwargs), lane(name):
            yield

    vars(cache_context)["names_lanes"] = True
    mixin.cache_context = cache_context
