"""Every exception and warning that ditc raises, in one place.

All exceptions derive from :class:`DitcError`. A message is one line that says what is wrong and
what to do about it; longer context (lines of IR, the pipeline so far) follows below that line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dit_compile.shown import shown

T = TypeVar("T")


class DitcError(Exception):
    """Base of all errors raised by ditc; what they quote from files commands no terminal."""

    def __str__(self) -> str:
        return shown(super().__str__(), lines=True)


class UnsupportedTorchError(DitcError):
    """The installed torch is outside the range that ditc is tested with."""


class MissingDependencyError(DitcError):
    """An optional package is needed for what was asked."""


class OptionError(DitcError):
    """An option, preset or argument is unknown or has a value that it cannot have."""


class PipelineError(DitcError):
    """A pipeline text does not parse, names an unknown pass, or breaks a pass's constraints."""


class BindingError(DitcError):
    """A declared binding names no input, or contradicts what the graph shows."""


class CaptureError(DitcError):
    """A model could not be turned into a Program."""


class AnalysisError(DitcError):
    """An analysis was asked something that the graph cannot answer."""


class VerificationError(DitcError):
    """A graph breaks an invariant of the IR."""


class NumericError(VerificationError):
    """A pass that claims to be exact moved the numbers beyond rounding."""


class PassError(DitcError):
    """A pass raised, or broke the rules of its kind."""


class BackendError(DitcError):
    """A backend cannot compile or run a graph."""


class CacheError(DitcError):
    """ditc's cache folder cannot be written to, or others could have put files there."""


class SessionError(DitcError):
    """A Session was used in a way that it cannot serve."""


class PlanError(DitcError):
    """A Plan cannot be read, or was made for another model."""


class ModelFileError(DitcError):
    """A model file or model reference cannot be read."""


class BundleError(DitcError):
    """A bundle cannot be written, or cannot be trusted to be what was exported."""


class UntrustedBundleError(BundleError):
    """A bundle can run code of its own, and nobody said that its maker is trusted."""


class ReportError(DitcError):
    """A report cannot be read or written."""


class DitcWarning(UserWarning):
    """Something was left out or done the slow way; the result is still right."""

    def __str__(self) -> str:
        return shown(super().__str__(), lines=True)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def find_named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """What ``known`` has under ``name``.

    Args:
        kind: what these things are called, in the singular.
        name: what was asked for.
        known: what there is, by name.

    Raises:
        OptionError: there is nothing of that name; the nearest one is suggested.
    """
    if name not in known:
        raise OptionError(
            f"unknown {kind} {name!r}{suggest(name, known)}; {kind}s are {', '.join(known)}"
        )
    return known[name]
