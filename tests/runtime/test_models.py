"""What is known of a model's calls outside any ``with``, and forgetting it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile.errors import SessionError
from tests.runtime.loops import (
    TIMES,
    Loop,
    Toy,
    alone,
    assert_same,
    compiled,
    every,
    label,
    run,
)

STEPS = len(TIMES)
NOTHING = {"generations": 0, "lanes": 0, "computed": 0, "reused": 0, "forecast": 0, "why": {}}


@pytest.fixture
def model() -> Iterator[Toy]:
    """A model that nobody has called."""
    torch._dynamo.reset()
    yield Toy()
    gc.collect()


def kept() -> int:
    gc.collect()
    return sum(type(item) is Tensor and item.shape == (3, 6, 16) for item in gc.get_objects())


class TestSummary:
    def test_plain_calls(self, model: Toy) -> None:
        fast = compiled(model)
        assert ditc.summary(fast) == ditc.summary(model) == NOTHING
        run(fast, Loop(label(1)))
        assert ditc.summary(fast) == NOTHING | {
            "generations": 1,
            "lanes": 1,
            "computed": 5,
            "reused": 3,
            "why": {"nothing was computed before": 1},
        }
        assert ditc.summary(model) == ditc.summary(fast), "compiled or not"

    def test_other_models_are_not_counted(self, model: Toy) -> None:
        other = compiled(Toy(seed=1))
        run(compiled(model), Loop(label(1)))
        run(other, list(Loop(label(1)))[:2])
        assert ditc.summary(model)["computed"] == 5
        assert ditc.summary(other)["computed"] == 1

    def test_the_latest_session_counts(self, model: Toy) -> None:
        fast = compiled(model)
        run(fast, Loop(label(1)))
        with ditc.session(fast, timesteps=TIMES) as session:
            assert ditc.summary(fast)["computed"] == 5
            run(fast, list(Loop(label(1)))[:3])
            assert ditc.summary(fast) == session.summary()
        assert ditc.summary(fast)["computed"] == 2

    def test_of_another_thread(self, model: Toy) -> None:
        """A server runs the pipeline in a worker, and asks from outside."""
        fast = compiled(model)
        ran, asked = threading.Event(), threading.Event()

        def work() -> None:
            run(fast, Loop(label(1)))
            ran.set()
            asked.wait(60)

        thread = threading.Thread(target=work)
        thread.start()
        assert ran.wait(60)
        assert ditc.summary(fast)["computed"] == 5
        asked.set()
        thread.join()

    @pytest.mark.parametrize("what", [ditc.summary, ditc.reset, ditc.session])
    def test_what_is_no_model(self, what: Any) -> None:
        with pytest.raises(SessionError, match=r"^str is no model; pass the module"):
            what("transformer")


class TestReset:
    def test_the_next_call_begins_a_generation(self, model: Toy) -> None:
        fast, calls = compiled(model), list(Loop(label(1)))
        run(fast, calls[:3])
        ditc.reset(model)
        rest = calls[3:]
        assert_same(run(fast, rest), alone(model, rest, "crcrc"))
        assert ditc.summary(model)["generations"] == 2

    def test_memory_comes_back(self, model: Toy) -> None:
        fast = compiled(model)
        run(fast, list(Loop(label(1, batch=3)))[:3])
        assert kept() == 6, "two branches in each of three blocks"
        ditc.reset(Toy())
        assert kept() == 6
        ditc.reset(fast)
        assert kept() == 0

    def test_before_any_call(self, model: Toy) -> None:
        ditc.reset(model)
        loop = Loop(label(1))
        assert_same(run(compiled(model), loop), alone(model, loop, every(2, STEPS)))


def test_of_a_bundle(model: Toy, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    loop = list(Loop(label(1)))
    passes = "exact,insert-block-cache{method=interval,interval=2}"
    ditc.export(model, (), loop[0], tmp_path / "bundle", passes=passes)
    loaded = ditc.load(tmp_path / "bundle")
    calls = [{name: np.asarray(value) for name, value in call.items()} for call in loop]
    for call in calls[:3]:
        loaded(**call)
    assert (ditc.summary(loaded)["computed"], ditc.summary(loaded)["reused"]) == (2, 1)
    ditc.reset(loaded)
    for call in calls[3:5]:
        loaded(**call)
    assert (ditc.summary(loaded)["computed"], ditc.summary(loaded)["reused"]) == (1, 1)
