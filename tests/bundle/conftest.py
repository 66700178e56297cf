"""The toy model as bundles, exported once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from tests.runtime.loops import Toy, label

PASSES = "exact,insert-block-cache{method=interval,interval=2}"


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


def exported(toy: Toy, folder: Path, **options: Any) -> Path:
    args = (torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))
    ditc.export(toy, args, {"skip": ()}, folder, passes=PASSES, **options)
    return folder


@pytest.fixture(scope="session")
def merged(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all graphs of a step. Not to be written to."""
    return exported(toy, tmp_path_factory.mktemp("merged") / "toy", split=False)


@pytest.fixture(scope="session")
def split(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file a graph. Not to be written to."""
    return exported(toy, tmp_path_factory.mktemp("split") / "toy", split=True)


@pytest.fixture(scope="session")
def pt2(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported programs. Not to be written to."""
    return exported(toy, tmp_path_factory.mktemp("pt2") / "toy", format="pt2")


@pytest.fixture
def bundle(split: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(split, tmp_path / "toy"))
