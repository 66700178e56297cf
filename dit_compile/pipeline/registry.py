"""The one place where the compiler learns which passes and backends exist."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from dit_compile.errors import MissingDependencyError, PipelineError, find_named, suggest
from dit_compile.pipeline.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dit_compile.backends.base import Backend
    from dit_compile.backends.written import Writer
    from dit_compile.bundle.manifest import Manifest
    from dit_compile.bundle.runner import Runner
    from dit_compile.bundle.sessions import RuntimeOptions
    from dit_compile.pipeline.base import Pass


@cache
def passes() -> dict[str, type[Pass]]:
    """All passes by name."""
    listed = importlib.import_module("dit_compile.passes.catalog").ALL
    return {item.name: item for item in listed}


@cache
def policies() -> dict[str, type[Any]]:
    """The caching policies by the name of their method; finding them needs no torch."""
    found: dict[str, type[Any]] = importlib.import_module(
        "dit_compile.passes.block_cache.policies"
    ).POLICIES
    return found


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


#: Where each format of a bundle is written, and what it needs; imported when it is asked for.
_FORMATS = {
    "onnx": ("dit_compile.backends.onnxruntime.writer", "OnnxWriter", "onnx"),
    "pt2": ("dit_compile.backends.pt2.writer", "Pt2Writer", ""),
    "aoti": ("dit_compile.backends.pt2.aoti", "AotiWriter", ""),
}
#: Where each is run.
_RUNNERS = {
    "onnx": ("dit_compile.bundle.sessions", "Graphs"),
    "pt2": ("dit_compile.backends.pt2.runner", "Pt2Graphs"),
    "aoti": ("dit_compile.backends.pt2.runner", "AotiGraphs"),
}


def formats() -> list[str]:
    """The formats that a bundle can have."""
    return list(_FORMATS)


def find_format(name: str) -> Writer:
    """The writer of a format.

    Raises:
        OptionError: there is no such format.
        MissingDependencyError: it needs packages that are not installed.
    """
    module, writer, extra = find_named("format", name, _FORMATS)
    try:
        found: Writer = getattr(importlib.import_module(module), writer)()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the format {name!r} needs {error.name}; install it with: "
            f"pip install 'dit-compile[{extra}]'"
        ) from error
    return found


def find_runner(name: str) -> Callable[[Path, Manifest, RuntimeOptions], Runner]:
    """What runs bundles of a format, made from the folder, the manifest and how to run it.

    Raises:
        OptionError: there is no such format.
        MissingDependencyError: it needs packages that are not installed.
    """
    module, runner = find_named("format", name, _RUNNERS)
    try:
        found: Callable[[Path, Manifest, RuntimeOptions], Runner] = getattr(
            importlib.import_module(module), runner
        )
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"a bundle of the format {name!r} runs in {error.name}; install it with: "
            f"pip install {error.name}"
        ) from error
    return found
