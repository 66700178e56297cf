"""What the tests of pages in a real browser share; each module has a ``page`` of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Browser


@pytest.fixture(scope="module")
def shared() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def opened(shared: Browser, page: Path) -> Iterator[float]:
    """Seconds until the page could be used; no error and no request may follow."""
    yield shared.open(page)
    assert shared.problems() == []
    assert shared.requests() == []


@pytest.fixture
def browser(shared: Browser, opened: float) -> Browser:
    """With the module's page open."""
    return shared
