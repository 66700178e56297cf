"""The only place that reads environment variables. Each has an option that does the same."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where measurements are kept: ``DITC_CACHE_DIR``, else the user's cache folder."""
    explicit = os.environ.get("DITC_CACHE_DIR")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ditc"


def cpu_asked() -> str | None:
    """The class of processors for which to take this one (``DITC_CPU``), none if it is not set.

    :func:`dit_compile.analysis.machine.cpu_class` knows the classes.
    """
    return os.environ.get("DITC_CPU") or None


def onednn_limit() -> str:
    """The instructions beyond which oneDNN does not go, in capitals, empty if it may use all.

    oneDNN reads ``ONEDNN_MAX_CPU_ISA`` itself, once, when torch is loaded.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return limit.upper()


def strict_by_default() -> bool:
    """Whether failures raise under torch.compile (``DITC_STRICT=1``, option ``strict``)."""
    return os.environ.get("DITC_STRICT", "0") not in ("", "0", "false")


def disabled() -> bool:
    """Whether graphs are left to Inductor (``DITC_DISABLE=1``; for a while ``ditc.disabled``)."""
    return os.environ.get("DITC_DISABLE", "0") not in ("", "0", "false")


def progress_by_default() -> bool:
    """Whether long compilations show how far they are (``DITC_PROGRESS=0``, option ``progress``).

    Not on a terminal that cannot take back what it shows, not in continuous integration, whose
    terminals are logs, and of several processes on one machine in the first alone.
    """
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        return False
    asked = os.environ.get("DITC_PROGRESS", "")
    if asked:
        return asked not in ("0", "false")
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return not in_ci and os.environ.get("LOCAL_RANK", "0") in ("", "0")


def bisection() -> tuple[tuple[int, int] | None, str | None]:
    """What ``ditc bisect -- command`` asks of this process, in variables that it sets.

    Returns:
        Where to end each pipeline (``DITC_BISECT_LIMIT=i:n``), and the file in which to tell what
        each did (``DITC_BISECT_LOG``).
    """
    limit = os.environ.get("DITC_BISECT_LIMIT")
    position, _, rewrites = (limit or "").partition(":")
    return (
        (int(position), int(rewrites)) if limit else None,
        os.environ.get("DITC_BISECT_LOG") or None,
    )


def environment_for_bisection(limit: tuple[int, int] | None, log: str) -> dict[str, str]:
    """The environment of a command under bisection, in which failures raise."""
    asked = {} if limit is None else {"DITC_BISECT_LIMIT": f"{limit[0]}:{limit[1]}"}
    rest = {key: value for key, value in os.environ.items() if key != "DITC_BISECT_LIMIT"}
    return {**rest, **asked, "DITC_BISECT_LOG": log, "DITC_STRICT": "1"}


def repro_dir() -> Path | None:
    """Where a crash of a pass leaves what reproduces it: ``DITC_REPRO_DIR``, none if it is empty.

    By default a folder beside the measurements.
    """
    explicit = os.environ.get("DITC_REPRO_DIR")
    if explicit is not None:
        return Path(explicit) if explicit else None
    return cache_dir() / "repro"


def environment_with(**variables: str) -> dict[str, str]:
    """The environment for a child process, with these variables set."""
    return {**os.environ, **variables}
