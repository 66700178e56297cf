"""A compiled Program on a model whose weights and inputs are written to."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.backends.eager import Eager
from dit_compile.capture.export import capture_module
from dit_compile.errors import BackendError
from dit_compile.ir.program import WEIGHTS, Program
from dit_compile.runtime.compiled import CompiledProgram
from tests.runtime.loops import TIMES, Loop, Toy, assert_same, compiled, label, run

Change = Callable[[Toy], None]


@pytest.fixture
def model() -> Toy:
    return Toy(seed=3)


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that a weights graph runs."""
    ran: list[str] = []
    compile_graph = Eager.compile

    def counting(self: Eager, program: Program, graph: str) -> Callable[..., Sequence[Tensor]]:
        inner = compile_graph(self, program, graph)
        if graph != WEIGHTS:
            return inner
        return lambda *args: [ran.append(graph), inner(*args)][1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(Eager, "compile", counting)
    torch._dynamo.reset()
    return ran


def exact(model: nn.Module) -> Any:
    return compiled(model, passes="exact")


def in_place(model: Toy) -> None:
    with torch.no_grad():
        model.blocks[1].attn.k.weight.mul_(-1)


def loaded(model: Toy) -> None:
    model.load_state_dict(Toy(seed=4).state_dict())


def assigned(model: Toy) -> None:
    model.load_state_dict(Toy(seed=4).state_dict(), assign=True)


def replaced(model: Toy) -> None:
    model.blocks[1].attn.k.weight = nn.Parameter(-model.blocks[1].attn.k.weight.detach())


def moved(model: Toy) -> None:
    model.blocks[1].attn.k.weight.data = -model.blocks[1].attn.k.weight.detach()


def optimized(model: Toy) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()


def swapped(model: Toy) -> None:
    """As ``module.to()`` does for tensor subclasses; torch refuses if weak references exist."""
    weight = model.blocks[1].attn.k.weight
    torch.utils.swap_tensors(weight, nn.Parameter(-weight.detach()))


def behind_torchs_back(model: Toy) -> None:
    model.blocks[1].attn.k.weight.data.mul_(-1)


def moved_by(model: Toy, change: Change, call: dict[str, Any]) -> float:
    """How much a change of the weights changes the result, relative to it."""
    with torch.no_grad():
        before = model(**call)
        change(changed := copy.deepcopy(model))
        return float((changed(**call) - before).norm() / before.norm())


@pytest.mark.parametrize(
    "change", [in_place, loaded, assigned, replaced, moved, swapped, optimized]
)
def test_change_of_weights_counts_at_the_next_call(model: Toy, change: Change) -> None:
    fast, calls = exact(model), list(Loop(label(1), times=TIMES[:4]))
    assert moved_by(model, change, calls[2]) > 0.01
    assert_same(run(fast, calls[:2]), run(model, calls[:2]))
    change(model)
    assert_same(run(fast, calls[2:]), run(model, calls[2:]))


@pytest.mark.parametrize("times", [TIMES[:3], TIMES[:1]], ids=["three steps", "one step"])
def test_write_through_data_counts_from_the_next_generation(
    model: Toy, times: Sequence[float]
) -> None:
    fast, loop = exact(model), Loop(label(1), times=times)
    assert moved_by(model, behind_torchs_back, next(iter(loop))) > 0.01
    with ditc.session():
        run(fast, loop)
        behind_torchs_back(model)
        assert_same(run(fast, loop), run(model, loop))


def test_write_through_data_counts_at_once_after_reset(model: Toy) -> None:
    fast, calls = exact(model), list(Loop(label(1), times=TIMES[:4]))
    with ditc.session():
        run(fast, calls[:2])
        behind_torchs_back(model)
        ditc.reset(model)
        assert_same(run(fast, calls[2:]), run(model, calls[2:]))


def test_weights_are_derived_once(model: Toy, rebuilds: list[str]) -> None:
    fast = exact(model)
    with ditc.session():
        for seed in range(3):
            run(fast, Loop(label(1), seed))
        assert len(rebuilds) == 1
        in_place(model)
        run(fast, Loop(label(1)))
        assert len(rebuilds) == 2


def test_two_models_with_one_program(model: Toy, rebuilds: list[str]) -> None:
    other = Toy(seed=5)
    fast, faster, calls = exact(model), exact(other), list(Loop(label(1), times=TIMES[:3]))
    for call in calls:
        assert_same(run(fast, [call]), run(model, [call]))
        assert_same(run(faster, [call]), run(other, [call]))
    assert rebuilds  # there is a weights graph, shared or not


def test_call_in_flight_keeps_the_weights_it_started_with(
    model: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_graph, started, go_on = Eager.compile, threading.Event(), threading.Event()

    def pausing(self: Eager, program: Program, graph: str) -> Callable[..., Sequence[Tensor]]:
        inner = compile_graph(self, program, graph)

        def paused(*args: Any) -> Sequence[Tensor]:
            if graph != WEIGHTS and threading.current_thread() is not threading.main_thread():
                started.set()
                assert go_on.wait(30)
            return inner(*args)

        return paused

    monkeypatch.setattr(Eager, "compile", pausing)
    torch._dynamo.reset()
    fast, calls = exact(model), list(Loop(label(1), times=TIMES[:1]))
    old = run(model, calls)
    run(fast, calls)
    with ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(run, fast, calls)
        assert started.wait(30)
        assigned(model)
        assert_same(run(fast, calls), run(model, calls))
        go_on.set()
        assert_same(in_flight.result(), old)


def test_state_is_not_taken_from_older_weights(model: Toy) -> None:
    """A replaced Parameter is another model: its first step has nothing to reuse."""
    fast, calls = compiled(model), list(Loop(label(1)))
    with ditc.session():
        run(fast, calls[:3])
        replaced(model)
        assert_same(run(fast, calls[3:4]), run(model, calls[3:4]))


class Counter(nn.Module):
    """Writes to its input and to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.add_(self.calls)
        return self.linear(x)


def test_mutations_reach_the_caller() -> None:
    model = Counter().eval()
    expected = copy.deepcopy(model)
    fast = exact(model)
    for _ in range(3):
        a, b = torch.ones(2, 4), torch.ones(2, 4)
        assert_same(run(fast, [{"x": a}]), run(expected, [{"x": b}]))
        assert torch.equal(a, b)
    assert model.calls == expected.calls == 3


class Picky(Eager):
    name = "picky"

    def supports(self, program: Program) -> list[str]:
        return ["no sines", "no Tuesdays"]


def test_backend_that_cannot() -> None:
    with torch.no_grad():
        program = capture_module(nn.Linear(4, 4), (torch.ones(2, 4),))
    with pytest.raises(
        BackendError, match=r"^picky cannot run this program: no sines; no Tuesdays$"
    ):
        CompiledProgram(program, Picky())
