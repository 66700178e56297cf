"""What a command works on: a bundled model, or a function of the user's that makes one."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from dit_compile.cli.model_file import load_file, own_name
from dit_compile.demo.bundled import BundledModel
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import ModelFileError, suggest

#: Images of a generation of a bundled model: one of each digit.
_SAMPLED = 10


@dataclass(frozen=True)
class Target:
    """A model and the arguments of one call in its sampling loop."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


def load_target(text: str) -> Target:
    """Find the model that ``text`` names.

    Raises:
        ModelFileError: there is no such model, file or function, or it does not return
            ``(model, args, kwargs)``.
    """
    if text in BUNDLED:
        return _bundled(BUNDLED[text])
    return _checked(text, _named(text, "(model, args, kwargs)"))


def load_sampler(text: str) -> tuple[Callable[[int], torch.Tensor], nn.Module]:
    """Find the sampling loop that ``text`` names, and the model that it calls.

    Raises:
        ModelFileError: there is no such model, file or function, or it does not return
            ``(sample, model)``.
    """
    if text in BUNDLED:
        bundled = BUNDLED[text]
        model, labels = bundled.load(), torch.arange(_SAMPLED)
        return lambda seed: bundled.sample(model, labels, seed=seed), model
    made = _run(text, _named(text, "(sample, model)"))
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], nn.Module)):
        raise ModelFileError(
            f"{text} must return (sample, model), where sample(seed) calls model at each step, "
            f"not {type(made).__name__}"
        )
    return made


def _named(text: str, returns: str) -> Callable[[], Any]:
    place, colon, name = text.rpartition(":")
    if not colon:
        names = ", ".join(map(repr, BUNDLED))
        raise ModelFileError(
            f"unknown model {text!r}{suggest(text, BUNDLED)}; give {names}, 'file.py:function' or "
            f"'package.module:function', where the function returns {returns}"
        )
    return _function(place, name)


def _bundled(bundled: BundledModel) -> Target:
    call = bundled.example(torch.tensor([3]))
    return Target(bundled.load(), call.args, call.kwargs)


def _function(place: str, name: str) -> Callable[[], Any]:
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise ModelFileError(f"{place} has no function {name!r}{suggest(name, names)}")
    return found  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelFileError(f"model file {str(path)!r} does not exist")
    try:
        return load_file(path)
    except (Exception, SystemExit) as error:
        raise ModelFileError(
            f"model file {str(path)!r} cannot be loaded: {_described(error)}{_remedy(error)}"
        ) from error


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and name.startswith(f"{error.name}")
        remedy = "; give its file, 'file.py:function', or install it" if absent else _remedy(error)
        raise ModelFileError(
            f"module {name!r} cannot be imported: {_described(error)}{remedy}"
        ) from error


def _described(error: BaseException) -> str:
    """The error in one line, with the line of code that raised it."""
    reason = " ".join(own_name(str(error)).split())
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.filename.startswith("<frozen"):  # the import system's own
        return f"{type(error).__name__}: {reason}"
    place = f"{last.filename}:{last.lineno}"
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        place, reason = f"{error.filename}:{error.lineno}", error.msg
    return f"{type(error).__name__}: {reason} ({place})"


def _remedy(error: BaseException) -> str:
    """What to do about code that cannot be imported, where that is known."""
    if isinstance(error, SystemExit):
        return "; put what is to run as a script behind if __name__ == '__main__'"
    if isinstance(error, ModuleNotFoundError):
        return "; install that, or put it beside the file"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "; give each folder of the package an __init__.py"
    return ""


def _run(text: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:
        remedy = _remedy(error) if isinstance(error, ImportError) else ""
        raise ModelFileError(f"{text} failed: {_described(error)}{remedy}") from error


def _checked(text: str, function: Callable[[], Any]) -> Target:
    made = _run(text, function)
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module)):
        raise ModelFileError(f"{text} must return (model, args, kwargs), not {type(made).__name__}")
    model, args, kwargs = made
    if not isinstance(kwargs, Mapping) or not isinstance(args, (tuple, list)):
        raise ModelFileError(f"{text} must return (model, args tuple, kwargs dict)")
    return Target(model, tuple(args), dict(kwargs))
