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


def strict_by_default() -> bool:
    """Whether failures raise under torch.compile (``DITC_STRICT=1``, option ``strict``)."""
    return os.environ.get("DITC_STRICT", "0") not in ("", "0", "false")


def environment_with_inductor_cache(folder: str) -> dict[str, str]:
    """The environment for a child process in which Inductor keeps its cache in ``folder``."""
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
