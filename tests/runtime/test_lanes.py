"""Lanes by name, and every caching method among lanes and generations."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

import dit_compile as ditc
from dit_compile.errors import DitcWarning
from dit_compile.runtime.lanes import current_lane, follow_cache_context
from tests.runtime.loops import TIMES, Loop, Toy, alone, assert_same, compiled, every, label, run

ALTERNATE = every(2, len(TIMES))
METHODS = (
    "method=interval,interval=2",
    "method=delta",
    "method=taylor,interval=3,order=1,warmup-steps=2",
    "method=pyramid,mlp=2,window-start=900",
    "method=first-block,residual-diff-threshold=3.0,max-continuous-cached-steps=2",
    "method=first-block,measure=embedding,residual-diff-threshold=4.0,order=1",
    "method=magnitude,retention=0,ratios=[1,0.99,0.99,0.99,0.98,0.98,0.98,0.97]",
    'method=mask,mask="attn:10110101 mlp:11010101"',
)


@pytest.fixture(scope="module")
def toy() -> Toy:
    torch._dynamo.reset()
    return Toy()


@pytest.fixture(scope="module")
def fast(toy: Toy) -> Any:
    return compiled(toy)


class TestNames:
    def test_two_lanes_with_the_same_conditions(self, toy: Toy, fast: Any) -> None:
        lanes = {"plain": list(Loop(label(1), seed=1)), "perturbed": list(Loop(label(1), seed=2))}
        got: dict[str, list[Tensor]] = {name: [] for name in lanes}
        with ditc.session(fast, timesteps=TIMES) as session, torch.no_grad():
            for step in range(len(TIMES)):
                for name, calls in lanes.items():
                    with ditc.lane(name):
                        got[name].append(fast(**calls[step]))
        for name, calls in lanes.items():
            assert_same(got[name], alone(toy, calls, ALTERNATE))
        assert session.summary()["lanes"] == 2
        assert session.summary()["reused"] == 2 * ALTERNATE.count("r")

    def test_without_names_they_are_computed(self, toy: Toy, fast: Any) -> None:
        calls = list(Loop(label(1)))
        with (
            ditc.session(fast, timesteps=TIMES) as session,
            torch.no_grad(),
            pytest.warns(DitcWarning, match="evaluated twice with the same conditions"),
        ):
            got = [fast(**call) for call in calls for _ in range(2)]
        assert session.summary()["reused"] == 0
        assert_same(got[::2], alone(toy, calls, "c" * len(TIMES)))

    def test_names_end_with_their_block(self) -> None:
        assert current_lane() == ""
        with ditc.lane("a"):
            with pytest.raises(ZeroDivisionError), ditc.lane("b"):
                raise ZeroDivisionError
            assert current_lane() == "a"
        assert current_lane() == ""

    def test_diffusers_names_its_calls(self) -> None:
        follow_cache_context()
        follow_cache_context()

        class Model(torch.nn.Module, CacheMixin):  # type: ignore[misc]
            pass

        with Model().cache_context("uncond"):
            assert current_lane() == "uncond"
        assert current_lane() == ""

    def test_diffusers_may_be_loaded_after_ditc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class CacheMixin:
            @contextmanager
            def cache_context(self, name: str) -> Iterator[None]:
                yield

        loaded = SimpleNamespace(CacheMixin=CacheMixin)
        monkeypatch.setitem(sys.modules, "diffusers.models.cache_utils", loaded)
        with CacheMixin().cache_context("cond"):
            assert current_lane() == ""
        with ditc.session(), CacheMixin().cache_context("cond"):
            assert current_lane() == "cond"


def cached(method: str) -> Any:
    torch._dynamo.reset()
    return compiled(Toy(), passes=f"exact,insert-block-cache{{{method}}}")


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_generations_that_take_turns_are_bit_identical_to_the_same_alone(
        self, method: str
    ) -> None:
        fast = cached(method)
        loops = [Loop(label(1), seed=1), Loop(label(2), seed=2)]
        want = []
        for loop in loops:
            with ditc.session(fast, timesteps=TIMES) as session:
                want.append(run(fast, loop))
            assert session.summary()["computed"] < len(TIMES), "something is reused"
        with (
            ditc.session(fast, timesteps=TIMES) as a,
            ditc.session(fast, timesteps=TIMES) as b,
            torch.no_grad(),
        ):
            got: tuple[list[Tensor], list[Tensor]] = ([], [])
            for calls in zip(*loops, strict=True):
                for session, call, outputs in zip((a, b), calls, got, strict=True):
                    with session:
                        outputs.append(fast(**call))
        for mine, alone_ in zip(got, want, strict=True):
            assert all(map(torch.equal, mine, alone_))

    def test_guidance_by_two_calls_is_two_generations(self, method: str) -> None:
        fast = cached(method)
        loops = [Loop(label(1), seed=1), Loop(label(2), seed=1)]
        want = []
        for loop in loops:
            with ditc.session(fast, timesteps=TIMES):
                want.append(run(fast, loop))
        with ditc.session(fast, timesteps=TIMES) as session, torch.no_grad():
            got = [[fast(**call) for call in calls] for calls in zip(*loops, strict=True)]
        for number in range(2):
            assert all(map(torch.equal, [pair[number] for pair in got], want[number]))
        assert session.summary()["lanes"] == 2

    def test_after_an_exception_nothing_is_left(self, method: str) -> None:
        fast, loop = cached(method), Loop(label(1), seed=3)
        with ditc.session(fast, timesteps=TIMES):
            want = run(fast, loop)
        with pytest.raises(KeyboardInterrupt), ditc.session(fast, timesteps=TIMES):
            run(fast, interrupted(Loop(label(1), seed=4), after=3))
        with ditc.session(fast, timesteps=TIMES):
            assert all(map(torch.equal, run(fast, loop), want))


def interrupted(loop: Loop, after: int) -> Iterator[dict[str, Any]]:
    for step, call in enumerate(loop):
        if step == after:
            raise KeyboardInterrupt
        yield call


@pytest.mark.parametrize("method", METHODS[4:5])
def test_threads_and_tasks_share_nothing(method: str) -> None:
    fast = cached(method)
    loops = [Loop(label(i % 3), seed=i) for i in range(3)]
    want = []
    for loop in loops:
        with ditc.session(fast, timesteps=TIMES):
            want.append(run(fast, loop))
    got: list[Sequence[Tensor]] = [[] for _ in loops]

    def work(number: int) -> None:
        with ditc.session(fast, timesteps=TIMES):
            got[number] = run(fast, loops[number])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(loops))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, alone_ in zip(got, want, strict=True):
        assert all(map(torch.equal, mine, alone_))

    async def sample(number: int) -> list[Tensor]:
        outputs = []
        with ditc.session(fast, timesteps=TIMES):
            for call in loops[number]:
                outputs.append(fast(**call))
                await asyncio.sleep(0)
        return outputs

    async def together() -> list[list[Tensor]]:
        return await asyncio.gather(*(sample(i) for i in range(len(loops))))

    with torch.no_grad():  # tasks share the thread's grad mode
        concurrent = asyncio.run(together())
    for mine, alone_ in zip(concurrent, want, strict=True):
        assert all(map(torch.equal, mine, alone_))


RATIOS = f"ratios=[{','.join(['0.99'] * 20)}]"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("first-block,residual-diff-threshold=1e-6", "reused nothing .* allow more change"),
        ("first-block,residual-diff-threshold=1e6", "in question .* allow less change"),
        (
            "first-block,residual-diff-threshold=1e6,max-warmup-steps=3,"
            "max-continuous-cached-steps=2",
            "in 20 steps the cache reused every step that was in question",
        ),
        (f"magnitude,retention=0,threshold=1e-9,{RATIOS}", "reused nothing; allow more change"),
    ],
)
def test_a_policy_that_decides_nothing_says_so(method: str, message: str) -> None:
    fast = cached(f"method={method}")
    times = [float(t) for t in range(100, 0, -5)]
    with ditc.session(fast, timesteps=times), pytest.warns(DitcWarning, match=message) as said:
        run(fast, Loop(label(1), times=times))
    assert len(said) == 1
    with warnings.catch_warnings(), ditc.session(fast, timesteps=times):
        warnings.simplefilter("error", DitcWarning)  # once is enough
        run(fast, Loop(label(1), times=times))


def test_a_policy_that_decides_something_says_nothing() -> None:
    fast = cached("method=first-block,residual-diff-threshold=0.5,max-continuous-cached-steps=2")
    times = [float(t) for t in range(100, 0, -5)]
    with warnings.catch_warnings(), ditc.session(fast, timesteps=times) as session:
        warnings.simplefilter("error", DitcWarning)
        run(fast, Loop(label(1), times=times))
    assert 1 < session.summary()["computed"] < 20


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("interval,interval=1", "computes every step, so no cache is inserted"),
        ("first-block,residual-diff-threshold=0", "computes every step, so no cache is inserted"),
        ("delta,span=0", "may reuse nothing here, so nothing is cached"),
    ],
)
def test_a_cache_that_was_asked_for_and_not_inserted_is_said(method: str, message: str) -> None:
    with pytest.warns(DitcWarning, match=f"pass insert-block-cache: .* {message}"):
        run(cached(f"method={method}"), list(Loop(label(1)))[:1])


def test_a_step_reads_one_number_beside_its_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read waits for a GPU. The first step has nothing to compare with."""
    fast = cached("method=first-block,residual-diff-threshold=3.0")
    loop = list(Loop(label(1)))
    with ditc.session(fast, timesteps=TIMES):
        run(fast, loop)  # compiles
    read = Counter[str]()

    def counting(name: str) -> Any:
        plain = getattr(torch.Tensor, name)

        def counted(self: Tensor) -> Any:
            read[name] += 1
            return plain(self)

        return counted

    with monkeypatch.context() as patched:
        for name in ("__float__", "__int__", "__bool__", "item", "tolist"):
            patched.setattr(torch.Tensor, name, counting(name))
        with ditc.session(fast, timesteps=TIMES):
            run(fast, loop)
    ahead = 1  # once in a generation, for the rows of all steps
    assert read == {"tolist": len(TIMES) + ahead, "__float__": len(TIMES) - 1}


def test_what_was_forecast_is_counted() -> None:
    fast = cached(METHODS[2])
    with ditc.session(fast, timesteps=TIMES) as session:
        run(fast, Loop(label(1)))
    summary = session.summary()
    assert (summary["computed"], summary["reused"], summary["forecast"]) == (4, 0, 4)
    assert summary["why"] == {"nothing was computed before": 1}
