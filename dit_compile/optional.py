"""Packages that are needed by some features only."""

from __future__ import annotations

import importlib
from typing import Any

from dit_compile.errors import MissingDependencyError

#: What a package is installed by, where that is not the name of its module.
_PACKAGES = {
    "PIL": "pillow",
    "cache_dit": "cache-dit",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def require(module: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: its full name.
        extra: the extra of ditc that installs it.

    Raises:
        MissingDependencyError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        raise MissingDependencyError(
            f"this needs {_PACKAGES.get(root, root)}; "
            f"install it with: pip install 'dit-compile[{extra}]'"
        ) from error
