"""torch.compile with ONNX Runtime as the target."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import dit_compile as ditc
from tests.runtime.loops import TIMES, Loop, Toy, alone, assert_same, compiled, every, label, run


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_cached_loop_and_weights_that_change() -> None:
    toy = Toy()
    fast = compiled(toy, target="onnxruntime")
    loop = Loop(label(2))
    with ditc.session(fast, timesteps=TIMES) as session:
        assert_same(run(fast, loop), alone(toy, loop, every(2, 8)))
        assert session.summary()["reused"] == 3
    with torch.no_grad():
        toy.blocks[1].attn.o.weight.mul_(2)
    assert_same(run(fast, loop), alone(toy, loop, every(2, 8)))
    toy.blocks[0].mlp[0].weight.data.mul_(2)  # leaves no trace but in the content
    assert_same(run(fast, loop), alone(toy, loop, every(2, 8)))


def test_sizes_that_vary() -> None:
    toy = Toy()
    fast = torch.compile(
        toy, backend="ditc", dynamic=True, options={"target": "onnxruntime", "strict": True}
    )
    for tokens in (6, 9, 11):
        (call,) = [*Loop(label(2), tokens=tokens, times=(500.0,))]
        with torch.no_grad():
            torch.testing.assert_close(fast(**call), toy(**call), rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_its_type() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).bfloat16()
    fast = torch.compile(model, backend="ditc", options={"target": "onnxruntime", "strict": True})
    x = torch.ones(2, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)


def test_training_is_refused_or_left_to_inductor() -> None:
    model, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    strict = {"target": "onnxruntime", "strict": True}
    with pytest.raises(
        BackendCompilerFailed, match=r"autograd records; call .* torch\.no_grad\(\)"
    ):
        torch.compile(model, backend="ditc", options=strict)(x)
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = torch.compile(model, backend="ditc", options={"target": "onnxruntime"})
        torch.testing.assert_close(fast(x), model(x))
    assert any("autograd records" in str(item.message) for item in caught)
