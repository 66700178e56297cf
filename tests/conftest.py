"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _no_repros_in_the_users_folder() -> Iterator[None]:
    """Passes that fail on purpose leave nothing behind."""
    os.environ["DITC_REPRO_DIR"] = ""
    yield
    del os.environ["DITC_REPRO_DIR"]


@pytest.fixture(scope="session", autouse=True)
def _workers_share_the_cores() -> None:
    """Two workers with as many threads as cores each would wait for each other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def _grad_mode_is_left_as_it_was() -> Iterator[None]:
    """A test that leaves autograd off fails itself, and not those that come after it."""
    yield
    left, _ = torch.is_grad_enabled(), torch.set_grad_enabled(True)
    assert left, "the test left autograd switched off"
