"""What runs ahead of the steps runs when it must, and not more often."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile.errors import DitcWarning
from dit_compile.runtime import ahead, table
from tests.runtime.loops import TIMES, Inputs, Loop, Toy, assert_same, label, prompt, run


@pytest.fixture
def model() -> Toy:
    torch._dynamo.reset()
    return Toy()


@pytest.fixture
def fast(model: Toy) -> Any:
    options = {"strict": True, "target": "eager"}
    return torch.compile(model, backend="ditc", fullgraph=True, options=options)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each ahead graph ran: by its first result's name, and ``rows`` computed at once."""
    counted: Counter[str] = Counter()
    once, batched = ahead._Graph.__call__, ahead._Graph.batched

    def count(graph: Any, values: Any) -> Any:
        counted[graph.returns[0].partition("_")[0]] += 1
        return once(graph, values)

    def count_rows(graph: Any, values: Any, clock: Any, keys: Any, like: Any) -> Any:
        counted["batches"] += 1
        counted["rows"] += len(keys)
        return batched(graph, values, clock, keys, like)

    monkeypatch.setattr(ahead._Graph, "__call__", count)
    monkeypatch.setattr(ahead._Graph, "batched", count_rows)
    return counted


def test_stated_timesteps_are_embedded_at_once(model: Toy, fast: Any, runs: Counter[str]) -> None:
    loop = Loop(prompt(0))
    with ditc.session(fast, timesteps=TIMES):
        got = run(fast, loop)
    assert_same(got, run(model, loop))
    assert (runs["prologue"], runs["table"], runs["batches"]) == (1, 1, 1)
    assert runs["rows"] == len(TIMES) - 1


def test_beside_a_scalar_that_may_be_the_timestep(
    model: Toy, fast: Any, runs: Counter[str]
) -> None:
    """FLUX.1-dev's guidance: stated timesteps say which of the two moves, from the first on."""
    calls = [call | {"g": torch.full((1,), 3500.0)} for call in Loop(label(1))]
    for generation in (1, 2):
        with ditc.session(fast, timesteps=TIMES):
            assert_same(run(fast, calls), run(model, calls))
        assert runs["rows"] == generation * (len(TIMES) - 1)


def test_zero_has_two_rows(model: Toy, fast: Any, runs: Counter[str]) -> None:
    """Operators tell -0.0 from 0.0, as 1 / t does."""
    calls = list(Loop(label(1), times=(1.0, 0.0)))
    run(fast, calls)
    before = runs["table"]
    run(fast, [calls[1] | {"t": torch.full((1,), -0.0)}])
    assert runs["table"] == before + 1


@pytest.mark.parametrize(("divisor", "computed_alone"), [(1000, 1), (3.7, len(TIMES))])
def test_stated_timesteps_may_be_on_another_scale(
    model: Toy, fast: Any, runs: Counter[str], divisor: float, computed_alone: int
) -> None:
    """FLUX's pipeline states 1000 to 0 and calls the model with 1 to 0."""
    loop = Loop(prompt(0), times=(torch.tensor(TIMES) / divisor).tolist())
    with ditc.session(fast, timesteps=TIMES):
        got = run(fast, loop)
    assert_same(got, run(model, loop))
    assert runs["table"] == computed_alone


def test_a_second_generation_learns_from_the_first(
    model: Toy, fast: Any, runs: Counter[str]
) -> None:
    run(fast, Loop(prompt(0)))
    assert (runs["table"], runs["rows"]) == (len(TIMES), 0)
    run(fast, Loop(prompt(0), seed=1))  # the same prompt: all is known
    assert (runs["prologue"], runs["table"], runs["rows"]) == (1, len(TIMES), 0)
    loop = Loop(prompt(1), seed=2)
    assert_same(run(fast, loop), run(model, loop))
    assert (runs["prologue"], runs["table"]) == (2, len(TIMES) + 1)
    assert runs["rows"] == len(TIMES) - 1


def test_a_wrong_guess_is_only_slower(model: Toy, fast: Any, runs: Counter[str]) -> None:
    loop = Loop(prompt(0))
    with ditc.session(fast, timesteps=[t + 0.5 for t in TIMES]):
        got = run(fast, loop)
    assert_same(got, run(model, loop))
    assert runs["table"] == len(TIMES)


def test_a_weight_written_in_the_middle(model: Toy, fast: Any, runs: Counter[str]) -> None:
    calls = list(Loop(prompt(0)))
    with ditc.session(fast, timesteps=TIMES):
        run(fast, calls[:3])
        with torch.no_grad():
            model.blocks[0].modulation.weight.mul_(2)
            model.prompt.bias.add_(1)
        got = run(fast, calls[3:])
    assert_same(got, run(model, calls[3:]))
    assert runs["prologue"] == 2


def test_labels_rebuilt_at_each_step_are_one_prompt(
    model: Toy, fast: Any, runs: Counter[str]
) -> None:
    calls = [call | {"y": label(3)} for call in Loop(label(3))]
    assert_same(run(fast, calls), run(model, calls))
    assert runs["prologue"] == 1


def test_a_prompt_changed_in_place(model: Toy, fast: Any) -> None:
    calls = list(Loop(prompt(0)))
    run(fast, calls[:4])
    calls[0]["y"].mul_(-1)
    assert_same(run(fast, calls[4:]), run(model, calls[4:]))


def test_a_prompt_freed_between_steps(model: Toy, fast: Any) -> None:
    """Each call's prompt is gone before the next one is made, which may get its address."""

    def calls() -> Iterator[Inputs]:
        for step, call in enumerate(Loop(label(0))):
            yield call | {"y": prompt(step // 4)}

    assert_same(run(fast, calls()), run(model, calls()))


def test_views_of_one_tensor(model: Toy, fast: Any) -> None:
    """Neighbouring rows share storage and version, but not their place in it."""

    def calls() -> Iterator[Inputs]:
        both = prompt(0, batch=2)
        for step, call in enumerate(Loop(label(0))):
            if step == 5:
                both[1].mul_(-1)  # written through a view
            yield from (call | {"y": both[row : row + 1]} for row in (0, 1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # two lanes that change at one step are not a moving input
        assert_same(run(fast, calls()), run(model, calls()))


def test_two_threads_share_no_prompt(model: Toy, fast: Any) -> None:
    loops = [Loop(prompt(seed), seed=seed) for seed in range(4)]
    run(fast, loops[0])  # compiled before the race
    with ThreadPoolExecutor(len(loops)) as pool:
        for got, loop in zip(pool.map(partial(run, fast), loops), loops, strict=True):
            assert_same(got, run(model, loop))


def test_each_sample_has_its_own_time(model: Toy, fast: Any) -> None:
    calls = list(Loop(prompt(0, batch=2)))
    for call in calls:
        call["t"] = call["t"] - torch.tensor([0.0, 0.25])
    assert_same(run(fast, calls), run(model, calls))


def test_an_operator_that_cannot_be_batched(
    model: Toy, fast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Batching rule not implemented for aten::odd")

    monkeypatch.setattr(torch.func, "vmap", refuse)
    loop = Loop(prompt(0))
    with ditc.session(fast, timesteps=TIMES), pytest.warns(DitcWarning, match="aten::odd") as got:
        results = run(fast, loop)
    assert len(got) == 1
    assert_same(results, run(model, loop))


def test_a_table_is_bounded(
    model: Toy, fast: Any, runs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_MAX_TABLE_BYTES", 4 * 1200)  # three rows of 3 * 6 * 16 numbers
    loop = Loop(prompt(0))
    with ditc.session(fast, timesteps=TIMES):
        assert_same(run(fast, loop), run(model, loop))
    assert runs["rows"] < len(TIMES) - 1
    assert runs["table"] > 1


def test_inference_mode(model: Toy, fast: Any, runs: Counter[str]) -> None:
    with torch.inference_mode(), ditc.session(fast, timesteps=TIMES):
        loop = list(Loop(prompt(0)))
        got: list[Tensor] = [fast(**call) for call in loop]
    assert_same(got, run(model, loop))
    assert runs["prologue"] == 1
