"""Which versions of torch ditc works with."""

from __future__ import annotations

import torch

from dit_compile.errors import UnsupportedTorchError

OLDEST = (2, 11)
NEWEST = (2, 13)


def check_torch(version: str | None = None) -> None:
    """Make sure that torch is in the tested range.

    Raises:
        UnsupportedTorchError: it is not.
    """
    found = version or torch.__version__
    major, minor = (int(part) for part in found.split("+")[0].split(".")[:2])
    if not OLDEST <= (major, minor) <= NEWEST:
        raise UnsupportedTorchError(
            f"ditc works with torch {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, not "
            f"{found}; install 'torch>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}'"
        )
