"""An input that was taken to be fixed for a generation, and changes at each step."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile import torch_backend
from dit_compile.errors import DitcWarning
from tests.runtime.loops import TIMES, Inputs, Loop, Toy, alone, assert_same, compiled, prompt, run


@pytest.fixture
def model() -> Toy:
    torch._dynamo.reset()
    return Toy()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every Program that is compiled."""
    made: list[Any] = []
    assemble = torch_backend._assemble

    def watch(*args: Any) -> Any:
        made.append(assemble(*args))
        return made[-1]

    monkeypatch.setattr(torch_backend, "_assemble", watch)
    return made


def exact(model: Toy, target: str = "eager", **options: Any) -> Any:
    options = {"strict": True, "target": target} | options
    return torch.compile(model, backend="ditc", fullgraph=True, options=options)


def moving(seed: int = 0) -> list[Inputs]:
    """A loop whose prompt is another one at each step, as a control signal is."""
    return [call | {"y": prompt(100 + i)} for i, call in enumerate(Loop(prompt(0), seed=seed))]


@pytest.mark.parametrize("target", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_is_compiled_once_more_and_then_no_longer_compared(
    model: Toy, built: list[Any], target: str
) -> None:
    fast, calls = exact(model, target), moving()
    with pytest.warns(DitcWarning, match="y changes from step to step") as said:
        assert_same(run(fast, calls), run(model, calls))
    assert len(said) == 1
    assert len(built) == 2
    assert "prologue" in built[0].program.graphs
    assert "prologue" not in built[1].program.graphs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = moving(seed=1)
        with ditc.session(fast, timesteps=TIMES):
            assert_same(run(fast, again), run(model, again))
    assert len(built) == 2


def test_declared_it_is_compiled_once(model: Toy, built: list[Any]) -> None:
    calls = moving()
    assert_same(run(exact(model, bindings={"y": "latent"}), calls), run(model, calls))
    assert len(built) == 1


def test_two_prompts_in_turn_are_two_lanes(model: Toy, built: list[Any]) -> None:
    both = prompt(0), prompt(1)
    calls = [call | {"y": both[i % 2]} for i, call in enumerate(Loop(both[0]))]
    assert_same(run(exact(model), calls), run(model, calls))
    assert len(built) == 1


def test_a_lane_that_begins_late(model: Toy, built: list[Any]) -> None:
    pairs = zip(Loop(prompt(0)), Loop(prompt(1)), strict=True)
    calls = [call for i, pair in enumerate(pairs) for call in (pair if i > 2 else pair[:1])]
    fast = exact(model)
    for _ in range(3):
        assert_same(run(fast, calls), run(model, calls))
    assert len(built) == 1


def test_a_cache_drops_its_state(model: Toy, built: list[Any]) -> None:
    """The step that shows it is computed in full, and those that follow reuse again."""
    calls = moving()
    fast = compiled(model, interval=2)
    with ditc.session(timesteps=TIMES), pytest.warns(DitcWarning, match="y changes") as said:
        assert_same(run(fast, calls), alone(model, calls, "cccccrcc"))
    assert len(said) == 1
    with ditc.session(timesteps=TIMES) as session:  # what was seen stays known
        assert_same(run(fast, calls), alone(model, calls, "crcrcrcc"))
    assert (session.summary()["lanes"], session.summary()["reused"]) == (1, 3)
    assert len(built) == 2


def test_if_that_fails_it_stays_as_it_was(model: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, calls = exact(model, strict=False), moving()
    results: list[Tensor] = run(fast, calls[:2])

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch_backend, "_assemble", refuse)
    with pytest.warns(DitcWarning, match="it stays as it was: RuntimeError: no memory") as said:
        results += run(fast, calls[2:])
    assert len(said) == 2, "asked for once"
    assert_same(results, run(model, calls))
