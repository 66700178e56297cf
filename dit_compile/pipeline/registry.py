"""The one place where the compiler learns which passes and backends exist."""

from __future__ import annotations

import importlib
from functools import cache

from dit_compile.backends.base import Backend
from dit_compile.errors import PipelineError, find_named, suggest
from dit_compile.pipeline.base import Pass
from dit_compile.pipeline.presets import PRESETS


@cache
def passes() -> dict[str, type[Pass]]:
    """All passes by name."""
    listed = importlib.import_module("dit_compile.passes").ALL
    return {item.name: item for item in listed}


@cache
def backends() -> dict[str, Backend]:
    """All backends by name."""
    listed = importlib.import_module("dit_compile.backends").ALL
    return {item.name: item for item in listed}


def find_pass(name: str) -> type[Pass]:
    """The pass called ``name``.

    Raises:
        PipelineError: there is none; the nearest name is suggested.
    """
    known = passes()
    if name not in known:
        raise PipelineError(
            f"unknown pass {name!r}{suggest(name, (*known, *PRESETS))}; `ditc passes` lists what "
            "there is"
        )
    return known[name]


def find_backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        OptionError: there is none.
    """
    return find_named("target", name, backends())
