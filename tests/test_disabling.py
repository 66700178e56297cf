"""Models run without ditc inside ``ditc.disabled()``, and in a process with ``DITC_DISABLE``."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile import disabling
from dit_compile.cli import main
from dit_compile.errors import BackendError, DitcWarning, OptionError
from dit_compile.quality.compilations import Compilations
from dit_compile.torch_backend import CompiledProgram
from tests.runtime.loops import (
    TIMES,
    Loop,
    Toy,
    alone,
    assert_same,
    compiled,
    counters,
    every,
    label,
    prompt,
    run,
)

STEPS = len(TIMES)
LOOP = Loop(label(1))


@pytest.fixture(autouse=True)
def _setting() -> Iterator[None]:
    torch._dynamo.reset()
    disabling._warn_of_eager.cache_clear()
    disabling._log_environment.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ditc: inside ditc.disabled")
        yield


@pytest.fixture
def model() -> Toy:
    return Toy(seed=3)


class TestWhatWasCompiledBefore:
    def test_runs_as_captured(self, model: Toy) -> None:
        fast = compiled(model)
        cached = run(fast, LOOP)
        with ditc.disabled(), Compilations() as inside:
            plain = run(fast, LOOP)
        assert_same(plain, alone(model, LOOP, "c" * STEPS))
        assert (inside.dynamo_graphs, inside.inductor_calls) == (0, 0)
        assert_same(run(fast, LOOP), cached)

    @pytest.mark.parametrize("stated", [TIMES, None])
    def test_a_step_that_ran_disabled_leaves_no_stale_state(
        self, model: Toy, stated: tuple[float, ...] | None
    ) -> None:
        """Step 4 ran disabled, so step 5, which would reuse what step 4 computed, is computed."""
        fast, calls = compiled(model), list(LOOP)
        with ditc.session(fast, timesteps=stated):
            before = run(fast, calls[:4])
            with ditc.disabled():
                between = run(fast, calls[4:5])
            after = run(fast, calls[5:6])
        assert_same(before, alone(model, calls[:4], "crcr"))
        assert_same(between + after, alone(model, calls[4:6], "cc"))

    def test_sizes_that_vary(self, model: Toy) -> None:
        fast = torch.compile(
            model, backend="ditc", dynamic=True, options={"strict": True, "target": "eager"}
        )
        run(fast, LOOP)
        other = Loop(label(1), tokens=9)
        with ditc.disabled(), Compilations() as inside:
            assert_same(run(fast, other), alone(model, other, "c" * STEPS))
        assert inside.inductor_calls == 0

    def test_what_follows_from_a_rebound_input(self, model: Toy) -> None:
        """The program that took over for one whose binding was wrong is interrupted too."""
        fast = compiled(model, passes="exact")
        calls = [call | {"y": prompt(100 + i)} for i, call in enumerate(LOOP)]
        with pytest.warns(DitcWarning, match="y changes from step to step"):
            run(fast, calls)
        with ditc.disabled():
            assert_same(run(fast, calls), alone(model, calls, "c" * STEPS))

    def test_gradients(self, model: Toy) -> None:
        fast = torch.compile(model, backend="ditc", options={"strict": True, "target": "eager"})
        call = next(iter(LOOP))
        fast(**call)
        with ditc.disabled():
            fast(**call).sum().backward()
        got = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        model(**call).sum().backward()
        want = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert_same(got, want)

    def test_says_once_that_it_is_not_compiled(self, model: Toy) -> None:
        fast = compiled(model)
        run(fast, LOOP)
        with ditc.disabled(), pytest.warns(DitcWarning, match="run uncompiled") as caught:
            run(fast, [*LOOP, *LOOP])
        assert len(caught) == 1

    def test_the_outside_is_left_as_it_was_after_an_error(self, model: Toy) -> None:
        with pytest.raises(ValueError, match="mine"), ditc.disabled():
            raise ValueError("mine")
        assert not disabling.is_disabled()


class TestWhatIsCompiledInside:
    def test_is_inductors_inside_and_ditcs_outside(
        self, model: Toy, caplog: pytest.LogCaptureFixture
    ) -> None:
        fast = compiled(model)
        caplog.set_level(logging.INFO, logger="dit_compile")
        with Compilations() as inside, ditc.disabled():
            assert_same(run(fast, LOOP), alone(model, LOOP, "c" * STEPS))
        with Compilations() as outside, ditc.session(fast) as session:
            assert_same(run(fast, LOOP), alone(model, LOOP, every(2, STEPS)))
        assert counters(session) == {"generations": 1, "lanes": 1, "computed": 5, "reused": 3}
        assert (inside.dynamo_graphs, inside.inductor_calls) == (1, 1)
        assert (outside.dynamo_graphs, outside.inductor_calls) == (0, 0)
        assert "compiled inside ditc.disabled()" in caplog.text

    def test_sizes_that_vary(self, model: Toy) -> None:
        fast = torch.compile(model, backend="ditc", dynamic=True, options={"strict": True})
        with ditc.disabled():
            run(fast, LOOP)
        for tokens in (6, 9, 4):
            loop = Loop(label(1), tokens=tokens)
            assert_same(run(fast, loop), alone(model, loop, "c" * STEPS))

    def test_gradients(self, model: Toy) -> None:
        fast = torch.compile(model, backend="ditc", options={"strict": True})
        call = next(iter(LOOP))
        with ditc.disabled():
            fast(**call).sum().backward()
        want = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        fast(**call).sum().backward()
        got = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert_same(got, want)

    def test_stays_inductors_where_ditc_fails(
        self, model: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **options: Any) -> None:
            raise BackendError("no such machine\nand more of it")

        monkeypatch.setattr(CompiledProgram, "__init__", fail)
        fast = compiled(model, strict=False)
        with ditc.disabled():
            want = run(fast, LOOP)
        with pytest.warns(DitcWarning, match="stays Inductor's: BackendError: no such machine$"):
            first = run(fast, LOOP)
        assert_same(first, want)
        with warnings.catch_warnings(action="error"):
            assert_same(run(fast, LOOP), want)

    def test_strict_lets_the_error_through(
        self, model: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **options: Any) -> None:
            raise BackendError("no such machine")

        monkeypatch.setattr(CompiledProgram, "__init__", fail)
        fast = compiled(model)
        with ditc.disabled():
            run(fast, LOOP)
        with pytest.raises(BackendError, match="no such machine"):
            run(fast, LOOP)


class TestWhoIsInside:
    def test_not_another_thread(self, model: Toy) -> None:
        fast, results = compiled(model), list[Tensor]()
        cached = run(fast, LOOP)
        with ditc.disabled():
            other = threading.Thread(target=lambda: results.extend(run(fast, LOOP)))
            other.start()
            other.join()
        assert_same(results, cached)

    def test_not_another_task(self) -> None:
        async def inside(entered: asyncio.Event, leave: asyncio.Event) -> None:
            with ditc.disabled():
                entered.set()
                await leave.wait()

        async def both() -> bool:
            entered, leave = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(inside(entered, leave))
            await entered.wait()
            found = disabling.is_disabled()
            leave.set()
            await task
            return found

        assert asyncio.run(both()) is False


class TestEnvironment:
    @pytest.mark.parametrize("options", [None, {"pases": "exact"}])
    def test_leaves_graphs_to_inductor(
        self,
        model: Toy,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        options: dict[str, str] | None,
    ) -> None:
        monkeypatch.setenv("DITC_DISABLE", "1")
        monkeypatch.setattr(torch, "__version__", "9.0.0")  # a reason to disable ditc
        caplog.set_level(logging.INFO, logger="dit_compile")
        fast = torch.compile(model, backend="ditc", options=options)
        with Compilations() as all_told:
            assert_same(run(fast, LOOP), alone(model, LOOP, "c" * STEPS))
            assert_same(run(fast, Loop(label(1), tokens=7)), run(model, Loop(label(1), tokens=7)))
        assert all_told.inductor_calls == 2
        assert [record.getMessage() for record in caplog.records] == [
            "DITC_DISABLE is set: every graph is left to Inductor"
        ]

    @pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("true", True)])
    def test_values(self, monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
        monkeypatch.setenv("DITC_DISABLE", value)
        assert disabling.for_the_process() is expected

    @pytest.mark.parametrize(
        "command", [["demo"], ["bench", "cache"], ["bench", "exact"], ["bench", "loop"]]
    )
    def test_nothing_is_measured_under_a_wrong_name(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
    ) -> None:
        monkeypatch.setenv("DITC_DISABLE", "1")
        assert main(command) == 1
        name = " ".join(["ditc", *command])
        assert f"error: {name} runs compiled models; unset DITC_DISABLE" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["calibrate", "attribute"])
def test_nothing_is_calibrated_inside(model: Toy, what: str) -> None:
    with pytest.raises(OptionError, match=r"call it outside ditc\.disabled\(\)"), ditc.disabled():
        getattr(ditc, what)(lambda seed: torch.zeros(1), model, passes="exact")
