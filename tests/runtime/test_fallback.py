"""A compiled graph that fails while it runs: one warning, and plain torch from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TensorifyScalarRestartAnalysis

import dit_compile as ditc
from dit_compile.backends.eager import Eager
from dit_compile.errors import BackendError, DitcWarning, SessionError
from dit_compile.ir.program import Program
from dit_compile.pipeline import registry
from dit_compile.quality.compilations import Compilations
from dit_compile.runtime.fallback import Fallback
from tests.runtime.loops import Loop, Toy, alone, assert_same, compiled, every, label, run


class Fragile(Eager):
    """Compiles everything; its graphs raise while ``failure`` is set, after ``first`` ran."""

    name = "fragile"

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.first: Callable[..., Any] = lambda *_: None
        self.calls = 0

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[Tensor]]:
        run = super().compile(program, graph)

        def fragile(*args: Any) -> Sequence[Tensor]:
            self.calls += 1
            if self.failure is not None:
                self.first(*args)
                raise self.failure
            return run(*args)

        return fragile


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fragile]:
    """The backend behind ``target="fragile"``; what is left to torch.compile runs as it is."""
    backend = Fragile()
    torch._dynamo.reset()
    monkeypatch.setitem(registry.backends(), "fragile", backend)
    monkeypatch.setattr("dit_compile.torch_backend.compile_plainly", lambda plain: plain)
    yield backend
    torch._dynamo.reset()


def lenient(model: nn.Module, **options: Any) -> Any:
    return compiled(model, **({"strict": False, "target": "fragile"} | options))


def messages(caught: pytest.WarningsRecorder) -> list[str]:
    return [str(item.message) for item in caught if item.category is DitcWarning]


def test_this_call_and_later_ones_are_served(fragile: Fragile) -> None:
    model = Toy(seed=3)
    fast, loop = lenient(model), list(Loop(label(1)))
    with ditc.session():
        before = run(fast, loop[:3])
        fragile.failure = RuntimeError("no such kernel\nand a trace")
        with pytest.warns(DitcWarning) as caught:
            after = run(fast, loop[3:])
    assert_same(before, alone(model, loop[:3], "crc"))
    assert_same(after, run(model, loop[3:]))
    assert messages(caught) == [
        "ditc: a compiled graph failed, so this call and later ones are left to plain torch: "
        "RuntimeError: no such kernel"
    ]
    calls = fragile.calls
    assert_same(run(fast, loop), run(model, loop))
    assert fragile.calls == calls


def test_errors_of_ditc_fall_back_too(fragile: Fragile) -> None:
    model, loop = Toy(seed=3), Loop(label(1), times=(500.0,))
    fragile.failure = BackendError("there is no compiler")
    with pytest.warns(DitcWarning, match="BackendError: there is no compiler"):
        assert_same(run(lenient(model), loop), run(model, loop))


def test_strict_raises(fragile: Fragile) -> None:
    fragile.failure = RuntimeError("no such kernel")
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(lenient(Toy(), strict=True), Loop(label(1)))


def test_the_callers_own_errors_are_eagers(recwarn: pytest.WarningsRecorder) -> None:
    """An index out of range is raised, and the next call is a compiled one again."""
    torch._dynamo.reset()
    model = Toy(seed=3)
    fast = lenient(model, target="eager")
    bad, good = Loop(label(7), times=(500.0,)), Loop(label(1))
    with pytest.raises(IndexError) as eager:
        run(model, bad)
    with pytest.raises(IndexError) as ours:
        run(fast, bad)
    assert str(ours.value) == str(eager.value)
    with ditc.session() as session:
        assert_same(run(fast, good), alone(model, good, every(2, 8)))
        assert session.summary()["reused"] > 0
    assert not [item for item in recwarn if item.category is DitcWarning]


@pytest.mark.parametrize(
    "failure",
    [
        KeyboardInterrupt(),
        torch.OutOfMemoryError("none left"),
        TensorifyScalarRestartAnalysis("again"),
        SessionError("wrong"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_what_passes(
    fragile: Fragile, failure: BaseException, recwarn: pytest.WarningsRecorder
) -> None:
    model, loop = Toy(seed=3), Loop(label(1))
    fast = lenient(model)
    run(fast, loop)
    fragile.failure = failure
    with pytest.raises(type(failure)), Compilations() as counted:
        run(fast, loop)
    fragile.failure = None
    calls = fragile.calls
    assert_same(run(fast, loop), alone(model, loop, every(2, 8)))
    assert fragile.calls > calls
    assert counted.dynamo_graphs == 0
    assert not [item for item in recwarn if item.category is DitcWarning]


class Counting(nn.Module):
    """Writes to a buffer and to an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor, log: Tensor) -> Tensor:
        self.count.add_(1)
        log.mul_(2)
        return x * self.count


@pytest.mark.parametrize("written", ["count", "log", "x", "nothing"])
def test_a_call_that_wrote_something_raises(fragile: Fragile, written: str) -> None:
    model = Counting()
    fast = lenient(model, passes="exact")
    x, log = torch.ones(2), torch.ones(2)
    with torch.no_grad():
        fast(x, log)
    place = {"count": model.count, "log": log, "x": torch.ones(2), "nothing": torch.ones(0)}
    fragile.failure, fragile.first = RuntimeError("half way"), lambda *_: place[written].add_(1)
    if written in ("count", "log"):  # made twice, the call would write twice
        with torch.no_grad(), pytest.raises(RuntimeError, match="half way"):
            fast(x, log)
        return
    with torch.no_grad(), pytest.warns(DitcWarning, match="half way"):
        assert torch.equal(fast(x, log), 2 * x)
    assert torch.equal(log, torch.full((2,), 4.0))


def test_what_was_written_must_be_known(fragile: Fragile) -> None:
    """Inference tensors do not count writes."""
    fast = lenient(Counting(), passes="exact")
    with torch.inference_mode():
        x, log = torch.ones(2), torch.ones(2)
        fast(x, log)
        fragile.failure = RuntimeError("half way")
        with pytest.raises(RuntimeError, match="half way"):
            fast(x, log)
    plain = Fallback(fast, fast, lambda _: _, (), print)
    assert plain._versions((x, log)) == []


def test_gradients_after_a_failure(fragile: Fragile) -> None:
    model = Toy(seed=3).train()
    call = next(iter(Loop(label(1))))
    model(**call).square().sum().backward()
    want = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    fragile.failure = RuntimeError("no such kernel")
    fast = lenient(model)
    with pytest.warns(DitcWarning):
        fast(**call).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name])


@pytest.mark.slow
def test_inductor_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Fragile()
    torch._dynamo.reset()
    monkeypatch.setitem(registry.backends(), "fragile", backend)
    model, loop = Toy(seed=3), Loop(label(1))
    backend.failure = RuntimeError("no such kernel")
    with pytest.warns(DitcWarning), Compilations() as counted:
        assert_same(run(lenient(model), loop), run(model, loop))
    assert counted.inductor_calls == 1
