"""Which operators become kernels, and what AOTAutograd makes of them. No GPU is needed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from torch import fx
from torch._functorch.aot_autograd import aot_module_simplified
from torch._guards import TracingContext, tracing
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget

from dit_compile import ops
from dit_compile.backends.eager import Eager
from dit_compile.backends.inductor import Inductor
from dit_compile.backends.inductor.backend import _HEAVY
from dit_compile.backends.inductor.outline import outline
from dit_compile.backends.onnxruntime import OnnxRuntime
from dit_compile.backends.triton import Triton, select
from dit_compile.ir.printer import target_name
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Pipeline
from tests.passes.irtest import capture, randn

aten = torch.ops.aten
bf16 = torch.bfloat16


class Drawn:
    """A graph drawn by hand, on any device."""

    def __init__(self, device: str = "cuda", dtype: torch.dtype = bf16) -> None:
        self.graph, self.device, self.dtype = fx.Graph(), device, dtype
        self.mode = FakeTensorMode(shape_env=ShapeEnv())

    def given(self, *shape: int) -> fx.Node:
        node = self.graph.placeholder(f"x{len(self.graph.nodes)}")
        with self.mode:
            node.meta["val"] = torch.empty(shape, device=self.device, dtype=self.dtype)
        return node

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        with self.mode:
            node.meta["val"] = target(*fx.map_arg(args, lambda arg: arg.meta["val"]))
        return node

    def done(self, *results: fx.Node) -> fx.GraphModule:
        self.graph.output(results)
        return fx.GraphModule({}, self.graph)


def called(module: fx.GraphModule) -> Counter[str]:
    nodes = [node for part in module.modules() for node in part.graph.nodes]
    return Counter(target_name(node.target) for node in nodes if node.op == "call_function")


def layers(drawn: Drawn, count: int) -> fx.GraphModule:
    """Layers with all three operators."""
    x, vector, angles = drawn.given(2, 16, 64), drawn.given(2, 1, 64), drawn.given(1, 16, 1, 8)
    for weight in [drawn.given(64, 64) for _ in range(count)]:
        y = drawn.call(ops.adaln_norm, x, vector, vector, 1e-6)
        y = drawn.call(aten.linear.default, y, weight)
        y = drawn.call(aten.view.default, y, [2, 16, 4, 16])
        flags = 1e-6, False, False, True
        y = drawn.call(ops.norm_rotary, y, None, None, angles, angles, *flags)
        y = drawn.call(aten.view.default, y, [2, 16, 64])
        both = drawn.call(ops.gated_residual_norm, x, y, vector, vector, vector, 1e-6)
        parts = [drawn.call(operator.getitem, both, at) for at in (0, 1)]
        x = drawn.call(aten.linear.default, drawn.call(aten.add.Tensor, *parts), weight)
    return drawn.done(x)


def test_all_three_become_kernels() -> None:
    module = layers(Drawn(), 1)
    assert select.use_kernels(module.graph) == 3
    module.graph.lint()
    names = called(module)
    assert not any(name.startswith("ditc.") for name in names)
    assert {name for name in names if name.startswith("ditc_triton.")} == {
        "ditc_triton.adaln_norm",
        "ditc_triton.norm_rotary",
        "ditc_triton.gated_residual_norm",
    }


@pytest.mark.parametrize(
    ("device", "dtype", "width"),
    [("cpu", bf16, 8), ("cuda", torch.float64, 8), ("cuda", bf16, 32768)],
)
def test_others_stay(device: str, dtype: torch.dtype, width: int) -> None:
    drawn = Drawn(device, dtype)
    x, vector = drawn.given(2, 3, width), drawn.given(2, 1, width)
    module = drawn.done(drawn.call(ops.adaln_norm, x, vector, vector))
    assert select.use_kernels(module.graph) == 0


def test_results_that_are_laid_out_otherwise_stay() -> None:
    drawn = Drawn()
    x, vector = drawn.given(2, 8, 3), drawn.given(2, 1, 8)
    x = drawn.call(aten.transpose.int, x, 1, 2)
    both = drawn.call(ops.gated_residual_norm, x, x, vector, vector, vector)
    module = drawn.done(drawn.call(operator.getitem, both, 0))
    assert select.use_kernels(module.graph) == 0


def test_rotated_heads_keep_their_layout() -> None:
    drawn = Drawn()
    x, angles = drawn.given(2, 5, 3, 16), drawn.given(5, 16)
    x = drawn.call(aten.transpose.int, x, 1, 2)
    flags = 1e-6, False, False, True
    node = drawn.call(ops.norm_rotary, x, None, None, angles, angles, *flags)
    wanted = node.meta["val"].stride()
    module = drawn.done(node)
    assert select.use_kernels(module.graph) == 1
    (kernel,) = [node for node in module.graph.nodes if "ditc_triton" in str(node.target)]
    with drawn.mode:
        again = kernel.target(*fx.map_arg(kernel.args, lambda arg: arg.meta["val"]))
    assert again.stride() == wanted == (240, 16, 48, 1)


class Driver:
    """What Triton asks of a driver to find out which arguments a kernel writes to."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


@pytest.mark.parametrize("repeated", [False, True])
def test_traced_they_write_to_fresh_memory_alone(
    repeated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is copied, and no result is made from memory that nobody wrote."""
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    drawn = Drawn()
    module = layers(drawn, 3)
    assert select.use_kernels(module.graph) == 9
    if repeated:
        assert outline(module, _HEAVY, "region") > 0
    module.recompile()
    found: list[Counter[str]] = []

    def inner(traced: fx.GraphModule, _: Any) -> fx.GraphModule:
        found.append(called(traced))
        return traced

    fakes = [node.meta["val"] for node in drawn.graph.find_nodes(op="placeholder")]
    with tracing(TracingContext(drawn.mode)), torch.no_grad():
        aot_module_simplified(
            module, fakes, inner, inference_compiler=inner, decompositions=select_decomp_table()
        )
    (names,) = found
    assert names["triton_kernel_wrapper_functional"] >= (3 if repeated else 9)
    views = {"aten.expand", "aten.view", "aten.permute", "aten.t", "getitem", "aten.slice"}
    work = {"triton_kernel_wrapper_functional", "aten.empty", "aten.mm", "aten.add"}
    assert set(names) <= views | work | {"invoke_subgraph"}
    assert names["aten.add"] <= 3


def program(device: str) -> Program:
    """A Program whose values are said to be on a device."""

    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return torch.nn.functional.layer_norm(x, (8,)) * (1 + scale) + shift

    vectors = [randn(2, 1, 8, seed=seed) for seed in (2, 3, 4)]
    made = capture(forward, randn(2, 4, 8), randn(2, 4, 8, seed=1), *vectors)
    for node in made.main.nodes if device == "cuda" else ():
        if isinstance(value := node.meta.get("val"), torch.Tensor):
            with made.fake_mode:
                node.meta["val"] = torch.empty(value.shape, device=device)
    return made


def test_fusions_into_kernels_are_for_gpus_and_inference_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu = program("cuda")
    on_cpu = program("cpu")
    assert (
        Triton().lowerings(on_cpu)
        == Inductor().lowerings(on_cpu)
        == "pack-weights,select-attention,pack-keys,eliminate-dead"
    )
    passes = Triton().lowerings(on_gpu)
    assert [item.name for item in Pipeline.parse(passes)] == passes.split(",")
    assert "fuse-gated-residual" in passes
    for other in (Inductor(), Eager(), OnnxRuntime()):
        assert other.lowerings(on_gpu) == ""
    monkeypatch.setattr(select, "has_triton_package", lambda: False)
    assert Triton().lowerings(on_gpu) == ""
    monkeypatch.undo()
    for training in (on_gpu, on_cpu):
        training.training = True
        assert Triton().lowerings(training) == ""
