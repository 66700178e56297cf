"""The toy model as a bundle of exported programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundle.conftest import exported
from tests.runtime.loops import Toy


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def pt2(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return exported(toy, tmp_path_factory.mktemp("pt2") / "toy", format="pt2")
