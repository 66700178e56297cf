"""Tracing each distinct call once must give what tracing the whole graph gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dit_compile.capture import expand as module_under_test
from dit_compile.capture import functional
from dit_compile.capture.dynamo import capture_dynamo
from dit_compile.capture.expand import NotLocalError
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo


class Both:
    """A Dynamo backend that captures each graph in both ways."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.expanded: list[Program] = []
        self.whole: list[Program] = []
        self.refused: list[str] = []

    def __call__(self, module: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        def note(*args: Any) -> fx.GraphModule:
            try:
                return module_under_test.expand(*args)
            except NotLocalError as error:
                self.refused.append(str(error))
                raise

        def refuse(*_: Any) -> fx.GraphModule:
            raise NotLocalError("switched off by the test")

        self.patch.setattr(functional, "expand", note)
        self.expanded.append(capture_dynamo(module))
        self.patch.setattr(functional, "expand", refuse)
        self.whole.append(capture_dynamo(module))
        return module.forward


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    torch._dynamo.reset()
    return Both(monkeypatch)


def run(model: Any, both: Both, *args: Any, dynamic: bool = False, **kwargs: Any) -> None:
    with torch.no_grad():
        torch.compile(model, backend=both, fullgraph=True, dynamic=dynamic)(*args, **kwargs)


def operators(program: Program) -> Counter[str]:
    Pipeline.parse("remove-noops,eliminate-common,eliminate-dead").run(program)
    return Counter(str(n.target) for n in program.main.nodes if n.op == "call_function")


@pytest.mark.parametrize("name", ["dit", "pixart", "sd3", "flux", "hunyuan_dit", "latte"])
def test_same_graph_as_the_whole_trace(name: str, both: Both) -> None:
    case = zoo.case(name)
    run(zoo.build(case), both, **case.inputs(0, torch.Generator().manual_seed(0)))
    (expanded,), (whole,) = both.expanded, both.whole
    assert not both.refused
    assert operators(expanded) == operators(whole)
    assert fingerprint(expanded) == fingerprint(whole)


def test_symbolic_sizes_are_read_once(both: Both) -> None:
    def model(x: Tensor) -> Tensor:
        return F.silu(x.flatten(0, 1)).view(x.shape[0], x.shape[1], -1) * x.shape[1]

    run(model, both, torch.randn(3, 5, 8), dynamic=True)
    (expanded,), (whole,) = both.expanded, both.whole
    assert not both.refused
    tensors = [op for op in operators(whole) if op.startswith("aten") and "sym_size" not in op]
    assert all(operators(expanded)[op] == operators(whole)[op] for op in tensors)
    assert operators(expanded)["aten.sym_size.int"] <= operators(whole)["aten.sym_size.int"]


class Alike(nn.Module):
    """Three projections whose calls differ only in which weights they read."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


def test_arguments_with_equal_values_stay_apart(both: Both) -> None:
    """Calls share fake values, which a trace must not take for one argument given thrice."""
    run(Alike(), both, torch.randn(2, 3, 8))
    attention = next(n for n in both.expanded[0].main.nodes if "scaled_dot" in str(n.target))
    assert len(set(attention.args[:3])) == 3


def test_one_argument_given_twice_is_told_from_two(both: Both) -> None:
    run(lambda x, y: (x @ y) + (x @ x), both, torch.randn(4, 4), torch.randn(4, 4))
    products = [n for n in both.expanded[0].main.nodes if "matmul" in str(n.target)]
    assert sorted(len(set(n.args)) for n in products) == [1, 2]


def test_constants_of_unlike_types_stay_apart(both: Both) -> None:
    """``x ** 2`` and ``x ** 2.0`` on integers differ in dtype."""
    run(lambda x: (x**2, x**2.0), both, torch.arange(4))
    dtypes = [n.meta["val"].dtype for n in both.expanded[0].main.nodes if "pow" in str(n.target)]
    assert dtypes == [torch.int64, torch.float32]


def test_a_wider_stride_is_another_call(both: Both) -> None:
    """``reshape`` is a view of a packed value and a copy of a transposed one."""
    run(lambda x: (x.reshape(-1), x.t().reshape(-1)), both, torch.randn(4, 4))
    (expanded,), (whole,) = both.expanded, both.whole
    assert operators(expanded) == operators(whole)


class Stack(nn.Module):
    """A chain of equal layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.SiLU()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("depth", [2, 9])
def test_depth_costs_no_tracing(depth: int, both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def count(*args: Any, **kwargs: Any) -> Any:
        traced.append(1)
        return make_fx(*args, **kwargs)

    make_fx = module_under_test.make_fx
    monkeypatch.setattr(module_under_test, "make_fx", count)
    run(Stack(depth), both, torch.randn(2, 8))
    assert len(traced) == 3  # linear, silu, add
    assert operators(both.expanded[0])["aten.linear.default"] == depth


def written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 1.0
    return y


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return y + x


def under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x


def told_by_data(x: Tensor) -> Tensor:
    return x[torch.nonzero(x[:, 0] > 0).squeeze(-1)].sum()


@pytest.mark.parametrize("model", [written, without_grad, under_autocast, told_by_data])
def test_what_is_not_local_is_traced_whole(model: Callable[..., Any], both: Both) -> None:
    x = torch.randn(4, 4, requires_grad=True)
    torch.compile(model, backend=both, fullgraph=True)(x)
    assert len(both.refused) == 1
    assert fingerprint(both.expanded[0]) == fingerprint(both.whole[0])


def test_random_calls_stay_apart(both: Both) -> None:
    run(lambda x: torch.rand_like(x) + torch.rand_like(x), both, torch.randn(4))
    assert operators(both.expanded[0])["aten.rand_like.default"] == 2


def test_a_tensor_made_from_numbers_becomes_a_constant(both: Both) -> None:
    run(lambda x: x * torch.tensor([1.0, 2.0]), both, torch.randn(2))
    (expanded,) = both.expanded
    assert [value.tolist() for value in expanded.constants.values()] == [[1.0, 2.0]]
