"""Derived weights: rebuilt when a source changed, and only then."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from dit_compile.runtime.weights import DerivedWeights


def double(weight: Tensor) -> list[Tensor]:
    return [weight * 2]


def sources(fill: float = 1.0) -> list[Tensor]:
    return [nn.Parameter(torch.full((8, 8), float(fill)))]


def test_no_rebuild_while_nothing_changes() -> None:
    derived, weights = DerivedWeights(double), sources()
    first = derived.get(weights, check_content=True)
    for check in (False, True):
        assert derived.get(weights, check_content=check) is first
    assert derived.rebuilds == 1
    assert not first[0].requires_grad


@pytest.mark.parametrize("check", [True, False])
def test_changes_that_leave_a_trace(check: bool) -> None:
    derived, weights = DerivedWeights(double), sources()
    derived.get(weights, check_content=True)
    with torch.no_grad():
        weights[0].fill_(3)
    assert derived.get(weights, check_content=check)[0][0, 0] == 6
    weights[0].data = torch.full((8, 8), 4.0)
    assert derived.get(weights, check_content=check)[0][0, 0] == 8
    weights = sources(5)
    assert derived.get(weights, check_content=check)[0][0, 0] == 10
    assert derived.rebuilds == 4


def test_in_place_under_inference_mode() -> None:
    derived, weights = DerivedWeights(double), sources()
    derived.get(weights, check_content=False)
    with torch.inference_mode():
        weights[0].fill_(3)
    assert derived.get(weights, check_content=False)[0][0, 0] == 6


def test_write_through_data_shows_in_the_sample() -> None:
    derived, weights = DerivedWeights(double), sources()
    derived.get(weights, check_content=False)
    weights[0].data.add_(0.5)
    assert derived.get(weights, check_content=True)[0][0, 0] == 3


def test_invalidate() -> None:
    derived, weights = DerivedWeights(double), sources()
    derived.get(weights, check_content=False)
    assert derived.reads_any({id(weights[0])})
    assert not derived.reads_any({id(sources()[0])})
    weights[0].data[1, 1] = 7
    derived.invalidate()
    assert derived.get(weights, check_content=False)[0][1, 1] == 14


def test_call_in_flight_keeps_what_it_got() -> None:
    derived, weights = DerivedWeights(double), sources()
    got = derived.get(weights, check_content=False)
    with torch.no_grad():
        weights[0].fill_(9)
    assert derived.get(weights, check_content=False)[0][0, 0] == 18
    assert got[0][0, 0] == 2


def test_change_during_a_rebuild_is_seen_by_the_next_call() -> None:
    weights = sources()

    def compute(weight: Tensor) -> list[Tensor]:
        made = double(weight)
        if weight[0, 0] == 1:
            weight.fill_(2)  # another thread's training step, say
        return made

    derived = DerivedWeights(compute)
    derived.get(weights, check_content=False)
    assert derived.get(weights, check_content=False)[0][0, 0] == 4


def test_failure_leaves_nothing_behind() -> None:
    weights, broken = sources(), [True]

    def compute(weight: Tensor) -> list[Tensor]:
        if broken.pop():
            raise MemoryError
        return double(weight)

    derived = DerivedWeights(compute)
    with pytest.raises(MemoryError):
        derived.get(weights, check_content=False)
    broken.append(False)
    assert derived.get(weights, check_content=False)[0][0, 0] == 2


def test_threads_build_once() -> None:
    calls, weights, start = [], sources(), threading.Barrier(8, timeout=30)

    def compute(weight: Tensor) -> list[Tensor]:
        calls.append(threading.get_ident())
        return double(weight)

    derived = DerivedWeights(compute)

    def get(_: int) -> Tensor:
        start.wait()
        return derived.get(weights, check_content=True)[0]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(get, range(8)))
    assert len(calls) == 1
    assert all(result is results[0] for result in results)


def test_threads_with_different_weights_never_swap() -> None:
    """Two models of a class share one compiled Program, hence one set of derived weights."""
    derived = DerivedWeights(double)

    def use(fill: float) -> bool:
        weights = sources(fill)
        return all(
            bool((derived.get(weights, check_content=False)[0] == 2 * fill).all())
            for _ in range(300)
        )

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(use, [1.0, 5.0]))


def test_sources_without_elements_or_of_several_dtypes() -> None:
    weights = [torch.zeros(0), torch.ones(3, dtype=torch.float16), torch.tensor([1, 2])]
    derived = DerivedWeights(lambda *given: [given[1] * 2])
    derived.get(weights, check_content=True)
    derived.get(weights, check_content=True)
    assert derived.rebuilds == 1


def test_sets_of_weights_that_take_turns_are_derived_once() -> None:
    derived, first, second = DerivedWeights(double), sources(1), sources(2)
    for _ in range(3):
        assert derived.get(first, check_content=True)[0][0, 0] == 2
        assert derived.get(second, check_content=True)[0][0, 0] == 4
    assert derived.rebuilds == 2


def test_what_is_derived_is_freed_with_its_weights() -> None:
    derived, weights = DerivedWeights(double), sources()
    made = weakref.ref(derived.get(weights, check_content=False)[0])
    del weights
    gc.collect()
    assert made() is None
