"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_repros_in_the_users_folder() -> Iterator[None]:
    """Passes that fail on purpose leave nothing behind."""
    os.environ["DITC_REPRO_DIR"] = ""
    yield
    del os.environ["DITC_REPRO_DIR"]
