"""widen-products: half-precision products go by way of float32 where that was measured to pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dit_compile.analysis.binding import settle
from dit_compile.capture.export import capture_module
from dit_compile.passes.lower import widen_products
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.passes.irtest import check, ops, randn

pytestmark = pytest.mark.processor

aten = torch.ops.aten


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what is measured."""

    def set_gain(gain: float) -> None:
        monkeypatch.setattr(widen_products, "speedup", lambda *_: gain)

    return set_gain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_around_each_product(pays: Callable[[float], None], dtype: torch.dtype) -> None:
    pays(4.0)

    # RUN: widen-products
    # CHECK: %to = aten.to(%x, f32)
    # CHECK: %to_1 = aten.to(%w, f32)
    # CHECK: aten.linear(%to, %to_1
    # CHECK: aten.to(%linear_1
    # CHECK: aten.gelu
    # CHECK: aten.matmul(%to_3, %to_4) : f32
    def forward(x, w):
        return F.gelu(F.linear(x, w)) @ w

    done = check(forward, randn(6, 8, dtype=dtype), randn(8, 8, dtype=dtype))
    assert ops(done.after)["aten.to"] == 6


def test_what_does_not_pay_is_a_near_miss(pays: Callable[[float], None]) -> None:
    pays(1.25)

    # RUN: widen-products
    # CHECK-NOT: aten.to
    # MISS: by way of float32 it is 1.2x as fast
    def forward(x, w):
        return F.linear(x, w)

    half = randn(4, 4, dtype=torch.bfloat16)
    assert not check(forward, half, half).records[0].changed

    # RUN: widen-products{min-speedup=1.2}
    # CHECK: aten.to
    def again(x, w):
        return F.linear(x, w)

    assert check(again, half, half).records[0].changed


def test_float32_and_float64_are_left_alone(pays: Callable[[float], None]) -> None:
    pays(4.0)

    # RUN: widen-products
    # CHECK-NOT: aten.to
    def forward(x, y):
        return F.linear(x, x), F.linear(y, y)

    check(forward, randn(4, 4), randn(4, 4, dtype=torch.float64))


def test_graphs_ahead_and_cached_variants_too(pays: Callable[[float], None]) -> None:
    case = zoo.case("dit")
    model = zoo.build(case, dtype=torch.bfloat16)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
    with torch.no_grad():
        program = capture_module(model, (), inputs)
    settle(program, {})
    wide, plain = program.copy(), program
    pays(4.0)
    Pipeline.parse("balanced").run(wide, instruments=[StructuralCheck()])
    pays(1.0)
    Pipeline.parse("balanced").run(plain)
    assert {name: wide.outputs[name] for name in wide.graphs} == plain.outputs
    for name, module in wide.graphs.items():
        linears = module.graph.find_nodes(op="call_function", target=aten.linear.default)
        assert len(linears) == ops(plain, name)["aten.linear"]
        assert {node.meta["val"].dtype for node in linears} <= {torch.float32}
    assert ops(wide, "table")["aten.to"]


@pytest.mark.parametrize("target", widen_products._PROBES)
def test_every_probe_runs(target: Any) -> None:
    assert 0 < widen_products.speedup(target, torch.bfloat16) < 1e4
