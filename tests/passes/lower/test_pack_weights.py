"""pack-weights: linears read weights laid out once, where that was measured to pay."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dit_compile.analysis import machine
from dit_compile.analysis.binding import settle
from dit_compile.analysis.cost import graph_cost
from dit_compile.analysis.machine import onednn_multiplies
from dit_compile.capture.export import capture_module
from dit_compile.errors import PipelineError
from dit_compile.explanation import example_inputs
from dit_compile.ir.program import Program
from dit_compile.kernels.packed import pack_weight, packed_linear, speedup
from dit_compile.passes.lower import pack_weights, widen_products
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.passes.irtest import capture, check, ops, randn, rewrite, rewrite_on

pytestmark = pytest.mark.processor

aten = torch.ops.aten


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what is measured."""

    def set_gain(gain: float) -> None:
        monkeypatch.setattr(pack_weights, "speedup", lambda *_: gain)

    set_gain(1.5)
    return set_gain


class Linears(torch.nn.Module):
    """Two weights, each used twice; one linear multiplies by what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(16, 32)
        self.down = torch.nn.Linear(32, 16, bias=False)

    # RUN: pack-weights
    # CHECK: ditc.packed_linear(%x, @up.weight.packed, @up.bias)
    # CHECK: ditc.packed_linear(%packed_linear, @down.weight.packed)
    # CHECK: aten.linear
    # MISS: the weight is computed, not a parameter
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.up(x)) + x
        return F.linear(self.down(self.up(x)), x[0] @ x[0].T)


def test_each_weight_is_packed_once(pays: Callable[[float], None]) -> None:
    done = check(Linears(), randn(2, 16, 16))
    assert ops(done.after)["ditc.packed_linear"] == 4
    assert ops(done.after, "weights") == {"ditc.pack_weight": 2}
    assert done.records[0].notes == ["2 weights packed, 0.0 MB"]
    costs = [
        graph_cost(program.main, set(program.weight_nodes(program.main))).total
        for program in (done.before, done.after)
    ]
    assert costs[0].flops == costs[1].flops


def test_what_does_not_pay_is_a_near_miss(pays: Callable[[float], None]) -> None:
    pays(1.01)
    x = randn(2, 8)
    done = rewrite("pack-weights", capture(torch.nn.Linear(8, 4), x), x)
    assert not done.records[0].changed
    assert done.misses == ["packed it is 1.01x as fast"]


def test_what_cannot_be_packed_is_left_alone(pays: Callable[[float], None]) -> None:
    for model in (torch.nn.Linear(8, 4).double(), torch.nn.Linear(8, 4, device="meta")):
        x = torch.empty(2, 8, dtype=model.weight.dtype, device=model.weight.device)
        program = capture(model, x)
        (record,) = Pipeline.parse("pack-weights").run(program).records
        assert not record.changed
        assert not record.misses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_that_onednn_does_not_multiply_here_are_near_misses(
    pays: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(machine, "_mkldnn_says", lambda _: False)
    x = randn(2, 8, dtype=dtype)
    done = rewrite("pack-weights", capture(torch.nn.Linear(8, 4, dtype=dtype), x), x)
    assert not done.records[0].changed
    (miss,) = done.misses
    assert re.fullmatch(r"oneDNN does not multiply (bf16|f16) on this processor", miss)
    assert not pack_weight(randn(4, 8, dtype=dtype)).is_mkldnn
    assert speedup(2, 8, 4, dtype) == 0.0


def test_memory_is_bounded_for_all_weights_together(pays: Callable[[float], None]) -> None:
    x = randn(2, 16, 16)
    program = capture(Linears(), x)
    size = 2 * 16 * 32 * 4
    (record,) = rewrite(f"pack-weights{{max-bytes={size}}}", program, x).records
    assert len(record.rewrites) == 4
    (record,) = rewrite(f"pack-weights{{max-bytes={size - 1}}}", program, x).records
    assert not record.changed
    assert record.notes == ["packed weights would take 4,096 bytes, and may take 4,095"]
    with pytest.raises(PipelineError, match="max-bytes must not be negative, as -1 is"):
        Pipeline.parse("pack-weights{max-bytes=-1}")


def test_a_weight_that_is_multiplied_in_float32_is_packed_so(
    pays: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widen_products, "speedup", lambda *_: 4.0)
    x = randn(2, 8, dtype=torch.bfloat16)
    program = capture(torch.nn.Linear(8, 4).bfloat16(), x)
    done = rewrite("widen-products,pack-weights,eliminate-dead", program, x).after
    assert ops(done, "weights") == {"aten.to": 1, "ditc.pack_weight": 1}
    assert ops(done) == {"aten.to": 3, "ditc.packed_linear": 1}  # x, the bias, and back
    paths = [done.inputs[output.name].path for output in done.outputs["weights"]]
    assert paths == ["weight.float32.packed"]


@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "flux"])
def test_cached_variants_share_what_is_packed(pays: Callable[[float], None], family: str) -> None:
    case = zoo.case(family)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = capture_module(zoo.build(case), (), inputs)
    settle(program, {})
    Pipeline.parse("balanced").run(program)
    before = {name: ops(program, name)["aten.linear"] for name, _ in program.step_graphs()}
    done = rewrite_on("pack-weights,eliminate-dead", program, example_inputs(program, (), inputs))
    packed = {
        name: module.graph.find_nodes(op="call_function", target=packed_linear)
        for name, module in done.after.step_graphs()
    }
    assert {name: len(nodes) for name, nodes in packed.items()} == before
    assert len(packed) == 2
    read = {node.args[1].target for nodes in packed.values() for node in nodes}
    assert ops(done.after, "weights")["ditc.pack_weight"] == len(read)
    kept = {output.name for output in done.after.outputs["weights"]}
    assert read <= kept
    assert kept.isdisjoint(_matrices(done.before))  # merged ones are but on the way to packed ones


def _matrices(program: Program) -> set[str]:
    """The weights that linears of the main graph read and that an earlier graph made."""
    nodes = program.main.find_nodes(op="call_function", target=aten.linear.default)
    made = {str(node.args[1].target) for node in nodes} & {
        o.name for o in program.outputs["weights"]
    }
    assert made
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 700)])
@pytest.mark.parametrize("biased", [True, False])
def test_the_operator_is_linear(dtype: torch.dtype, rows: tuple[int, ...], biased: bool) -> None:
    weight = randn(24, 40, dtype=dtype)
    x, bias = randn(*rows, 40, dtype=dtype), randn(24, dtype=dtype) if biased else None
    packed = pack_weight(weight)
    assert packed.is_mkldnn == onednn_multiplies(dtype)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    old, new = F.linear(x, weight, bias), packed_linear(x, packed, bias)
    assert new.shape == exact.shape
    assert new.dtype == dtype
    rounding = torch.finfo(dtype).eps
    assert (new - exact).norm() <= 2 * (old - exact).norm() + rounding * exact.norm()


def test_a_packed_weight_is_no_view() -> None:
    weight = randn(8, 8, dtype=torch.float64)
    assert pack_weight(weight).data_ptr() != weight.data_ptr()


def test_gains_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
    gain = speedup(100, 64, 64, torch.float32)
    assert 0 < gain < 100
    assert speedup(120, 64, 64, torch.float32) == gain  # 128 rows, both
    assert len(list(tmp_path.rglob("*.json"))) == 1
