"""One compiled toy for all tests that do not write to its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.runtime.loops import Toy, compiled


@pytest.fixture(autouse=True, scope="module")
def _setting() -> Iterator[None]:
    """Many kinds of calls share one code object; none may fall back to plain eager."""
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny; threads would only wait for each other
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def fast(toy: Toy) -> Any:
    return compiled(toy)
