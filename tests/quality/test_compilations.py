"""The counter against code whose compilations are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dit_compile.quality.compilations import Compilations


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def double(x: Tensor) -> Tensor:
    return x * 2


def halting(x: Tensor) -> Tensor:
    x = x * 2
    torch._dynamo.graph_break()
    x = x + 1
    torch._dynamo.graph_break()
    return x * 3


def test_nothing() -> None:
    with Compilations() as counted:
        double(torch.ones(2))
    assert counted == Compilations(0, 0, 0)


def test_first_call_and_recompilation() -> None:
    fast = torch.compile(double, backend="eager", dynamic=False)
    numbers = []
    for size in (2, 2, 3):
        with Compilations() as counted:
            fast(torch.ones(size))
        numbers.append(counted.dynamo_graphs)
    assert numbers == [1, 0, 1]


def test_graph_breaks() -> None:
    with Compilations() as counted:
        torch.compile(halting, backend="eager")(torch.ones(2))
    assert counted == Compilations(graph_breaks=2, dynamo_graphs=3, inductor_calls=0)


def test_backends_other_than_inductor_do_not_count() -> None:
    with Compilations() as counted:
        torch.compile(double, backend="aot_eager")(torch.ones(2))
    assert (counted.dynamo_graphs, counted.inductor_calls) == (1, 0)


@pytest.mark.slow
def test_inductor_whether_it_compiles_or_loads() -> None:
    """Afresh, then from the cache that the first time has filled."""
    numbers = []
    for _ in range(2):
        torch._dynamo.reset()
        fast = torch.compile(double, dynamic=False)
        with Compilations() as counted:
            fast(torch.ones(2))
            fast(torch.ones(3))
        numbers.append(counted.inductor_calls)
    with Compilations() as counted:
        fast(torch.ones(2))
    assert [*numbers, counted.inductor_calls] == [2, 2, 0]


def test_nesting() -> None:
    with Compilations() as outer:
        torch.compile(double, backend="eager")(torch.ones(2))
        with Compilations() as inner:
            torch.compile(halting, backend="eager")(torch.ones(2))
    assert (inner.dynamo_graphs, outer.dynamo_graphs) == (3, 4)


def test_counts_up_to_an_exception() -> None:
    counted = Compilations()

    def failing() -> None:
        with counted:
            torch.compile(double, backend="eager")(torch.ones(2))
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert counted.dynamo_graphs == 1


def test_used_again_counts_anew() -> None:
    counted = Compilations()
    with counted:
        torch.compile(halting, backend="eager")(torch.ones(2))
    with counted:
        torch.compile(double, backend="eager")(torch.ones(2))
    assert counted == Compilations(0, 1, 0)
