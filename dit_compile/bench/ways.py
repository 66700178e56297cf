"""The ways to run a model that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit_compile.errors import find_named


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: what the command line and the table call it.
        compile: makes the callable.
    """

    name: str
    compile: Callable[[nn.Module], Callable[..., Any]]


def _stock(**options: Any) -> Callable[[nn.Module], Callable[..., Any]]:
    return lambda model: torch.compile(model, fullgraph=True, dynamic=False, options=options)


def with_ditc(model: nn.Module, **options: Any) -> Callable[..., Any]:
    """The model compiled by ditc, for fixed sizes and without any fallback."""
    compiled: Callable[..., Any] = torch.compile(
        model, backend="ditc", fullgraph=True, dynamic=False, options={"strict": True, **options}
    )
    return compiled


_BEST = {"freezing": True, "cpp.enable_concat_linear": True}

WAYS = (
    Way("eager", lambda model: model),
    Way("default", _stock()),
    Way("best", _stock(**_BEST)),
    Way("autotuned", _stock(**_BEST, max_autotune=True)),  # takes minutes to compile
    Way("ditc", with_ditc),
)

#: Those of torch.compile's own.
STOCK = ("default", "best", "autotuned")


def find_way(name: str) -> Way:
    """The way called ``name``.

    Raises:
        OptionError: there is none.
    """
    return find_named("way", name, {way.name: way for way in WAYS})
