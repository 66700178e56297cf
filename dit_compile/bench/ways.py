"""The ways to run a model that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit_compile.errors import OptionError, suggest


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: what the command line and the table call it.
        compile: makes the callable.
        what: for the table's legend.
    """

    name: str
    compile: Callable[[nn.Module], Callable[..., Any]]
    what: str


def _stock(**options: Any) -> Callable[[nn.Module], Callable[..., Any]]:
    return lambda model: torch.compile(model, fullgraph=True, dynamic=False, options=options)


def _ditc(model: nn.Module) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(
        model, backend="ditc", fullgraph=True, dynamic=False, options={"strict": True}
    )
    return compiled


_BEST = {"freezing": True, "cpp.enable_concat_linear": True}

WAYS = (
    Way("eager", lambda model: model, "no compilation"),
    Way("default", _stock(), "torch.compile"),
    Way("best", _stock(**_BEST), "torch.compile with freezing and concat-linear"),
    Way(
        "autotuned",
        _stock(**_BEST, max_autotune=True),
        "the same with max-autotune, which takes minutes to compile",
    ),
    Way("ditc", _ditc, 'torch.compile(backend="ditc"), preset exact'),
)


def find_way(name: str) -> Way:
    """The way called ``name``.

    Raises:
        OptionError: there is none.
    """
    known = {way.name: way for way in WAYS}
    if name not in known:
        raise OptionError(
            f"unknown way {name!r}{suggest(name, known)}; ways are {', '.join(known)}"
        )
    return known[name]
