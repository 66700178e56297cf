"""Weights that only hoisted work reads leave their device while steps run, and come back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile import torch_backend
from dit_compile.errors import DitcWarning
from dit_compile.runtime import compiled as compiled_module
from dit_compile.runtime import offload
from tests.runtime.loops import TIMES, Inputs, Loop, Toy, assert_same, closing_halves, prompt, run


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host memory stands for that of a device."""
    monkeypatch.setattr(offload, "has_own_memory", lambda device: True)
    monkeypatch.setattr(torch_backend, "has_own_memory", lambda device: True)


@pytest.fixture
def model(apart: None) -> Toy:
    torch._dynamo.reset()
    return Toy()


def compiled(model: nn.Module, **options: Any) -> Any:
    options = {"strict": True, "target": "eager", "offload_hoisted": True} | options
    return torch.compile(model, backend="ditc", fullgraph=True, options=options)


def away(model: Toy) -> set[str]:
    """The weights whose memory is free."""
    return {name for name, weight in model.named_parameters() if not _bytes(weight)}


def _bytes(weight: Tensor) -> int:
    return weight.untyped_storage().nbytes()


def hoisted(model: Toy) -> set[str]:
    """The weights of modulations, and those that are merged: of queries, keys and values."""
    makes = ("time.", "prompt.", "modulation.", "attn.q.", "attn.k.", "attn.v.")
    return {n for n, _ in model.named_parameters() if any(made in n for made in makes)}


@torch.no_grad()
def watch(fast: Any, model: Toy, calls: Loop) -> Iterator[tuple[Tensor, set[str]]]:
    """Each result, and which weights are away then."""
    for call in calls:
        yield fast(**call), away(model)


def test_weights_are_away_from_the_second_step_on_and_come_back(model: Toy) -> None:
    fast, loop = compiled(model), Loop(prompt(0))
    want, before = run(model, loop), {k: v.clone() for k, v in model.state_dict().items()}
    size = sum(model.get_parameter(name).nbytes for name in hoisted(model))
    with ditc.session(fast, timesteps=TIMES) as session:
        got, seen = zip(*watch(fast, model, loop), strict=True)
    assert_same(got, want)
    assert seen == (set(), *[hoisted(model)] * (len(TIMES) - 1))
    assert session.summary()["released"] == size > 0
    assert not away(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_prompt_in_the_same_session(model: Toy) -> None:
    fast, loops = compiled(model), [Loop(prompt(seed), seed) for seed in range(3)]
    wanted = [run(model, loop) for loop in loops]
    with ditc.session(fast, timesteps=TIMES):
        for loop, want in zip(loops, wanted, strict=True):
            got, seen = zip(*watch(fast, model, loop), strict=True)
            assert_same(got, want)
            assert seen[1] == seen[-1] == hoisted(model)
    assert not away(model)


def test_with_a_cache_and_two_lanes(model: Toy) -> None:
    def both(loops: list[Loop]) -> list[Inputs]:
        return [call for step in zip(*loops, strict=True) for call in step]

    text = "exact,insert-block-cache{method=interval,interval=2}"
    plain, fast = (compiled(model, passes=text, offload_hoisted=on) for on in (False, True))
    calls = both([Loop(prompt(0)), Loop(prompt(1))])
    with ditc.session(plain, timesteps=TIMES) as session:
        want = run(plain, calls)
    with ditc.session(fast, timesteps=TIMES) as again:
        assert_same(run(fast, calls), want)
        assert away(model) == hoisted(model)
    assert session.summary().items() < again.summary().items()
    assert not away(model)


def test_without_stated_timesteps_from_the_second_generation_on(model: Toy) -> None:
    fast, loop = compiled(model), Loop(prompt(0))
    with ditc.session(fast):
        run(fast, loop)
        assert not away(model)
        run(fast, Loop(prompt(0), seed=1))
        assert away(model) == hoisted(model)
    assert not away(model)


def test_without_a_session_nothing_leaves(model: Toy) -> None:
    fast, loop = compiled(model), Loop(prompt(0))
    for _ in range(2):
        assert all(not names for _, names in watch(fast, model, loop))


def test_an_error_brings_all_back(model: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, loop = compiled(model), list(Loop(prompt(0)))
    with ditc.session(fast, timesteps=TIMES):
        run(fast, loop[:3])
        assert away(model)
        monkeypatch.setattr(compiled_module, "announce", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(fast, loop[3:4])
        assert not away(model)
    monkeypatch.undo()
    assert_same(run(fast, loop), run(model, loop))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_weights_written_between_sessions_count(model: Toy) -> None:
    fast, loop = compiled(model), Loop(prompt(0))
    for _ in range(2):
        want = run(model, loop)
        with ditc.session(fast, timesteps=TIMES):
            assert_same(run(fast, loop), want)
        with torch.no_grad():
            model.time.weight.mul_(1.5)
            model.blocks[0].modulation.weight.data *= 0.5  # leaves no trace


def test_sessions_that_take_turns(model: Toy) -> None:
    fast, first, second = compiled(model), Loop(prompt(0)), Loop(prompt(1), seed=1)
    want = run(model, first), run(model, second)
    got: tuple[list[Tensor], list[Tensor]] = [], []
    one, two = (ditc.session(fast, timesteps=TIMES) for _ in range(2))
    with two:
        with one:
            for a, b in zip(first, list(second)[:4], strict=False):
                with one:
                    got[0].extend(run(fast, [a]))
                with two:
                    got[1].extend(run(fast, [b]))
            got[0].extend(run(fast, list(first)[4:]))
        assert not away(model)
        got[1].extend(run(fast, list(second)[4:]))
        assert away(model) == hoisted(model)
    for lane, expected in zip(got, want, strict=True):
        assert_same(lane, expected)
    assert not away(model)


def test_nothing_leaves_while_another_thread_works_ahead(model: Toy) -> None:
    fast, loop = compiled(model), Loop(prompt(0))
    want = run(model, loop)
    with ditc.session(fast, timesteps=TIMES):
        with offload.present([]):
            assert_same(run(fast, loop), want)
            assert not away(model)
        assert_same(run(fast, loop), want)
        assert away(model) == hoisted(model)


def test_another_program_of_the_model_finds_what_it_reads(model: Toy) -> None:
    fast, plain = compiled(model), compiled(model, passes="eliminate-dead")
    loop = Loop(prompt(0))
    want = run(model, loop)
    with ditc.session(fast, timesteps=TIMES):
        run(fast, loop)
        assert away(model)
        assert_same(run(plain, loop), want)
        assert_same(run(fast, loop), want)
    assert not away(model)


def test_storages_of_several_tensors_stay(model: Toy) -> None:
    shared = torch.randn(2, *model.time.weight.shape)
    model.time.weight = nn.Parameter(shared[0])  # a part of a storage
    model.blocks[0].modulation.bias = model.blocks[1].modulation.bias  # tied, and both hoisted
    model.head.bias = nn.Parameter(model.blocks[2].modulation.bias.detach()[:8])  # a step reads it
    fast, loop = compiled(model), Loop(prompt(0))
    want = run(model, loop)
    with ditc.session(fast, timesteps=TIMES):
        assert_same(run(fast, loop), want)
        assert away(model) == hoisted(model) - {"time.weight", "blocks.2.modulation.bias"}
    assert not away(model)


def test_nothing_hoisted_nothing_released(model: Toy) -> None:
    fast = compiled(model, passes="eliminate-dead")
    with ditc.session(fast, timesteps=TIMES) as session:
        assert_same(run(fast, closing_halves()), run(model, closing_halves()))
    assert "released" not in session.summary()


def test_host_memory_is_not_released() -> None:
    torch._dynamo.reset()
    model, loop = Toy(), Loop(prompt(0))
    fast = compiled(model)
    with (
        ditc.session(fast, timesteps=TIMES) as session,
        pytest.warns(DitcWarning, match="offload_hoisted releases nothing: weights on cpu"),
    ):
        assert all(not names for _, names in watch(fast, model, loop))
    assert "released" not in session.summary()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(compiled(Toy(), offload_hoisted=False), loop)
