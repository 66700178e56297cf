"""fuse-qkv: sibling linears become one product, and only siblings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dit_compile.errors import PipelineError
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import WEIGHTS, InputKind, output_args
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import capture, check, ops, randn, rewrite, weights


def test_weights_that_do_not_fit_are_not_merged() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = (nn.Linear(8, 8, bias=False) for _ in range(2))

        # RUN: fuse-qkv{max-bytes=511}
        # CHECK-NOT: aten.split_with_sizes
        # MISS: merged weights would take 0.0 MB
        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x)

    check(weights(Two()), randn(2, 8))
    program = capture(weights(Two()), randn(2, 8))
    merged = rewrite("fuse-qkv{max-bytes=512}", program, randn(2, 8)).after
    assert ops(merged)["aten.linear"] == 1


class Attention(nn.Module):
    """Self attention with separate projections of different widths."""

    def __init__(self, bias: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 8, bias=bias, dtype=dtype)
        self.to_k = nn.Linear(8, 8, bias=bias, dtype=dtype)
        self.to_v = nn.Linear(8, 12, bias=bias, dtype=dtype)

    # RUN: fuse-qkv
    # CHECK: aten.linear(%x, @to_q.weight|to_k.weight|to_v.weight
    # CHECK-SAME: 2,4,28]
    # CHECK-SAME: # from linear, linear_1, linear_2
    # CHECK-NEXT: aten.split_with_sizes(%linear_3, [8, 8, 12], -1)
    # CHECK-NEXT: aten.scaled_dot_product_attention(%getitem, %getitem_1, %getitem_2)
    # CHECK-NOT: aten.linear
    # CHECK: ditc.graph @weights
    # CHECK: aten.cat([@to_q.weight, @to_k.weight, @to_v.weight])
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("bias", [True, False])
def test_siblings_merge(bias: bool) -> None:
    done = check(weights(Attention(bias)), randn(2, 4, 8))
    assert len(done.after.of_kind(InputKind.DERIVED)) == 1 + bias


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    check(weights(Attention(dtype=dtype)), randn(2, 4, 8, dtype=dtype))


def test_the_merged_weight_holds_the_rows_in_order() -> None:
    model, x = weights(Attention()), randn(2, 4, 8)
    after = rewrite("fuse-qkv", capture(model, x), x).after
    made = run(after, after.constants, WEIGHTS)
    paths = [after.inputs[output.name].path for output in after.outputs[WEIGHTS]]
    merged = dict(zip(paths, made, strict=True))
    linears = (model.to_q, model.to_k, model.to_v)
    for kind in ("weight", "bias"):
        path = "|".join(f"{name}.{kind}" for name in ("to_q", "to_k", "to_v"))
        assert torch.equal(merged[path], torch.cat([getattr(one, kind) for one in linears]))


def test_dynamic_sizes() -> None:
    class Model(Attention):
        # RUN: fuse-qkv
        # CHECK: aten.linear(%x, @to_q.weight|to_k.weight|to_v.weight
        # CHECK-SAME: : f32[s
        # CHECK-SAME: ,28]
        # CHECK-NOT: aten.linear
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    check(weights(Model()), randn(3, 5, 8), dynamic_shapes={"x": {0: batch, 1: tokens}})


class Linears(nn.Module):
    """A base of near misses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.c, self.d = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)


def test_with_and_without_bias_are_merged_apart() -> None:
    class Model(Linears):
        # RUN: fuse-qkv
        # CHECK-DAG: aten.linear(%x, @a.weight|b.weight, @a.bias|b.bias)
        # CHECK-DAG: aten.linear(%x, @c.weight|d.weight)
        # CHECK: return
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sin() * self.c(x) + self.b(x) * self.d(x).cos()

    assert ops(check(weights(Model()), randn(2, 4)).after)["aten.linear"] == 2


def test_one_without_bias_is_left_and_says_why() -> None:
    class Model(Linears):
        # RUN: fuse-qkv
        # CHECK: aten.linear(%x, @a.weight|b.weight
        # CHECK: aten.linear(%x, @c.weight)
        # MISS: some of the linears have a bias and some have none
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(x) * self.c(x)

    check(weights(Model()), randn(2, 4))


def test_one_of_each_kind_stays() -> None:
    class Model(Linears):
        # RUN: fuse-qkv
        # CHECK: aten.linear(%x, @a.weight, @a.bias)
        # CHECK: aten.linear(%x, @c.weight)
        # MISS: some of the linears have a bias and some have none
        # MISS: some of the linears have a bias and some have none
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.c(x)

    check(weights(Model()), randn(2, 4))


def test_a_computed_weight_is_a_near_miss() -> None:
    class Model(Linears):
        # RUN: fuse-qkv
        # CHECK: aten.linear(%x, %mul)
        # CHECK: aten.linear(%x, @a.weight|b.weight
        # CHECK: aten.linear(%x, %w)
        # MISS: the weight is computed, not a parameter
        # MISS: the weight is computed, not a parameter
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            computed = nn.functional.linear(x, self.c.weight * 2)
            return self.a(x) * self.b(x) * computed * nn.functional.linear(x, w)

    done = check(weights(Model()), randn(2, 4), randn(4, 4))
    assert [miss.culprit for miss in done.records[0].misses] == ["%mul", "%w"]


def test_a_returned_linear_is_a_near_miss() -> None:
    """A slice of the merged product has other strides than what the caller expects."""

    class Model(Linears):
        # RUN: fuse-qkv
        # CHECK: aten.linear(%x, @a.weight, @a.bias)
        # CHECK: aten.linear(%x, @b.weight, @b.bias)
        # MISS: the caller would get a slice of the merged result
        # MISS: the caller would get a slice of the merged result
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x).t()

    check(weights(Model()), randn(2, 4))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.a(x).sin() + self.b(x.sin()),
        lambda self, x: self.a(x).sin(),
        lambda self, x: self.a(x).sin() + nn.functional.linear(x, self.b.weight[0])[:, None],
    ],
    ids=["other inputs", "one alone", "a vector for a weight"],
)
def test_no_siblings(forward: Callable[..., Tensor]) -> None:
    model = weights(Linears())
    model.forward = forward.__get__(model)
    done = rewrite("fuse-qkv", capture(model, randn(2, 4)), randn(2, 4))
    assert not done.records[0].changed
    assert not done.misses


def test_other_users_of_the_input_keep_it() -> None:
    class Model(Linears):
        # RUN: fuse-qkv
        # CHECK: %relu = aten.relu(%x)
        # CHECK: aten.linear(%relu, @a.weight|b.weight
        # CHECK: aten.sin(%relu)
        # CHECK: aten.cos(%getitem)
        # CHECK: aten.sin(%getitem)
        def forward(self, x: Tensor) -> Tensor:
            x = x.relu()
            first, second = self.a(x), self.b(x)
            return first * second + x.sin() + first.cos() - first.sin()

    check(weights(Model()), randn(2, 4))


class Three(Linears):
    # RUN: fuse-qkv{min-siblings=3}
    # CHECK: aten.linear(%x, @a.weight|b.weight|a.weight
    # CHECK-NOT: aten.linear(
    # CHECK: @weights
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x) + self.a(x).sin()


class Two(Linears):
    # RUN: fuse-qkv{min-siblings=3}
    # CHECK: aten.linear(%x, @a.weight, @a.bias)
    # CHECK: aten.linear(%x, @b.weight, @b.bias)
    # CHECK-NOT: @weights
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


@pytest.mark.parametrize("model", [Two, Three])
def test_min_siblings(model: type[nn.Module]) -> None:
    check(weights(model()), randn(2, 4))


def test_one_is_no_siblings() -> None:
    with pytest.raises(PipelineError, match="min-siblings must be at least 2, not 1"):
        Pipeline.parse("fuse-qkv{min-siblings=1}")


def test_blocks_stay_apart() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Two() for _ in range(2))

        # RUN: fuse-qkv
        # CHECK-DAG: aten.linear(%x, @blocks.0.a.weight|b.weight
        # CHECK-DAG: aten.linear(%x, @blocks.1.a.weight|b.weight
        # CHECK: return
        def forward(self, x: Tensor) -> Tensor:
            return sum(block(x) for block in self.blocks)

    done = check(weights(Model()), randn(2, 4))
    fused = done.after.main.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert {origin_of(node).path for node in fused} == {"blocks.0", "blocks.1"}


def test_weights_are_not_baked_while_autograd_records() -> None:
    program, _ = from_dynamo(weights(Attention()), randn(2, 4, 8), grad=True)
    (record,) = Pipeline.parse("fuse-qkv").run(program).records
    assert record.skipped == "autograd records"
    assert ops(program)["aten.linear"] == 3


def test_results_follow_the_weights() -> None:
    model, x = weights(Attention()), randn(2, 4, 8)
    program, values = from_dynamo(model, x)
    Pipeline.parse("exact").run(program)
    assert ops(program)["aten.linear"] == 1
    for _ in range(2):
        (result,) = run_reference(program, values)["full"]
        torch.testing.assert_close(result, model(x))
        with torch.no_grad():
            model.to_k.weight.mul_(-2)


def test_in_the_exact_preset_modulation_is_one_product() -> None:
    class Model(Linears):
        # RUN: exact
        # CHECK: aten.linear(%silu, @a.weight|b.weight, @a.bias|b.bias)
        # CHECK-NEXT: aten.split_with_sizes
        # CHECK-NEXT: ditc.adaln_norm(%x, %getitem, %getitem_1, 1e-05)
        # CHECK-NEXT: return
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            c = nn.functional.silu(c)
            return nn.functional.layer_norm(x, (4,)) * (1 + self.a(c)) + self.b(c)

    done = check(weights(Model()), randn(2, 4), randn(2, 4, seed=1))
    assert all(arg.op != "placeholder" for arg in output_args(done.after.main))
