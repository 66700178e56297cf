"""fuse-gated-residual: gated additions, with the adaptive norms that read them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dit_compile.analysis.cost import graph_cost
from dit_compile.analysis.size_rules import Inference
from dit_compile.errors import PipelineError
from dit_compile.pipeline.pipeline import Pipeline
from tests.analysis.structures import captured
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.fusion.families import on_family
from tests.passes.irtest import check, ops, randn

D = 8


def five(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Stream, branch, gate, scale and shift as a transformer has them."""
    stream, branch = (randn(2, 4, D, dtype=dtype, seed=seed) for seed in (0, 1))
    return stream, branch, *(randn(2, 1, D, dtype=dtype, seed=seed) for seed in (2, 3, 4))


def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift


def test_with_the_norm_that_follows() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual_norm(%x, %y, %gate, %scale, %shift, 1e-06)
    # CHECK-NOT: ditc.adaln_norm
    # CHECK-NOT: aten.mul
    # CHECK: aten.add(%getitem, %getitem_1)
    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return x + norm(x, scale, shift)

    check(forward, *five())


def test_alone_in_any_order_of_operands() -> None:
    # RUN: fuse-gated-residual
    # CHECK: ditc.gated_residual(%x, %y, %gate)
    # CHECK: ditc.gated_residual(%gated_residual, %y, %gate)
    # CHECK-NOT: aten.add
    def forward(x, y, gate):
        return y * gate + (x + gate * y)

    check(forward, *five()[:3])


def test_a_vector_and_no_batch() -> None:
    # RUN: fuse-gated-residual
    # CHECK: ditc.gated_residual(%x, %y, %gate)
    def forward(x, y, gate):
        return x + gate * y

    check(forward, randn(4, D), randn(4, D, seed=1), randn(D, seed=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual_norm(%x, %y, %gate, %scale, %shift, 1e-06)
    # CHECK-NOT: aten
    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return x, norm(x, scale, shift)

    check(forward, *five(dtype))


def test_computed_in_float32_and_kept_in_half() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual_norm(%x, %y, %gate, %scale, %shift, 1e-06)
    # CHECK-NOT: aten
    # CHECK: return %getitem, %getitem_1
    def forward(x, y, gate, scale, shift):
        x = (x.float() + y * gate).type_as(x)
        return x, norm(x.float(), scale, shift).type_as(x)

    half = five(torch.bfloat16)
    check(forward, *half[:2], *five()[2:])


def test_dynamic_sizes() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual_norm(%x, %y, %gate, %scale, %shift, 1e-06)
    # CHECK-NOT: aten
    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return x, norm(x, scale, shift)

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    stream, vector = {0: batch, 1: tokens}, {0: batch}
    values = [randn(3, 5, D), randn(3, 5, D, seed=1)]
    values += [randn(3, 1, D, seed=seed) for seed in (2, 3, 4)]
    sizes = dict(
        zip(("x", "y", "gate", "scale", "shift"), [stream] * 2 + [vector] * 3, strict=True)
    )
    check(forward, *values, dynamic_shapes=sizes)


def test_a_gate_for_each_token_goes_with_a_norm_only() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual_norm(%x, %y, %x
    # CHECK: aten.mul
    # CHECK: aten.add
    def forward(x, y, scale, shift):
        return norm(x + y * x, scale, shift), x + y * y.sin()

    x, y, _, scale, shift = five()
    check(forward, x, y, scale, shift)


def test_a_norm_whose_modulation_comes_too_late() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual(%x, %y, %gate)
    # CHECK: ditc.adaln_norm(%gated_residual, %sin, %shift
    # MISS: the sum is read before the norm's modulation is known
    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return norm(x, x.mean(1, True).sin(), shift)

    done = check(forward, *five())
    assert [miss.culprit for miss in done.records[1].misses] == ["%sin"]


def test_a_product_with_another_user() -> None:
    # RUN: fuse-gated-residual
    # CHECK-NOT: ditc.gated
    # MISS: the gated value has another user
    def forward(x, y, gate):
        gated = gate * y
        return x + gated, gated.sin()

    done = check(forward, *five()[:3])
    assert [miss.culprit for miss in done.records[0].misses] == ["%sin"]


def test_a_sum_in_another_dtype() -> None:
    # RUN: fuse-gated-residual
    # CHECK-NOT: ditc.gated
    # MISS: the sum has another dtype than the stream
    def forward(x, y, gate):
        return x + gate * y

    x, y, gate = five()[:3]
    check(forward, x.bfloat16(), y, gate)


def test_what_only_looks_alike() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK-NOT: ditc.gated
    def forward(x, y, gate):
        return (
            x + y * 2,
            x - gate * y,
            torch.add(x, gate * y, alpha=2),
            x[:, :1] + gate * y,
            x + gate * gate,
            x + y * x,
        )

    check(forward, *five()[:3])


def test_two_norms_of_one_sum() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK-COUNT-1: ditc.gated_residual_norm
    # CHECK-COUNT-1: ditc.adaln_norm(%getitem,
    # CHECK-NOT: ditc
    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return norm(x, scale, shift) * norm(x, shift, scale)

    check(forward, *five())


def test_caching_must_come_first() -> None:
    with pytest.raises(PipelineError, match="fuse-gated-residual must come after insert-block"):
        Pipeline.parse("fuse-gated-residual,insert-block-cache")


@pytest.mark.slow
def test_cached_variants_fuse_too() -> None:
    program = captured("dit")[0].copy()
    Pipeline.parse("balanced,fuse-gated-residual").run(program)
    assert ops(program, "full")["ditc.gated_residual_norm"] == 6
    assert ops(program, "reuse")["ditc.gated_residual_norm"] > 0


#: Gated additions alone and with a norm, and operators before and after.
FAMILIES = {
    "dit": (0, 6, 133, 121),
    "flux": (5, 6, 365, 348),
    "pixart": (4, 4, 196, 184),
    "sd3": (5, 11, 444, 417),
    "wan": (6, 0, 285, 279),
    "latte": (9, 3, 251, 236),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    done = on_family(name, "fuse-gated-residual")
    found = ops(done.after)
    alone, paired, *counts = FAMILIES[name]
    assert (found["ditc.gated_residual"], found["ditc.gated_residual_norm"]) == (alone, paired)
    record = done.records[-1]
    assert [record.nodes_before, record.nodes_after] == counts


def test_gradients_pass_through() -> None:
    def forward(x, gate, y, scale, shift):
        x = x + gate * y
        return x.cos() * norm(x, scale, shift)

    x, y, *vectors = (value.requires_grad_() for value in five())
    inputs = dict(
        zip(("x", "gate", "y", "scale", "shift"), (x, vectors[0], y, *vectors[1:]), strict=True)
    )
    program, values = from_dynamo(forward, *inputs.values(), grad=True)
    Pipeline.parse("fuse-adaln,fuse-gated-residual").run(program)
    assert ops(program)["ditc.gated_residual_norm"] == 1
    made = torch.autograd.grad(run(program, values)[0].sin().sum(), list(values.values()))
    wanted = torch.autograd.grad(forward(**inputs).sin().sum(), list(inputs.values()))
    wanted = dict(zip(inputs, wanted, strict=True))
    for name, value in zip(values, made, strict=True):
        torch.testing.assert_close(value, wanted[name], msg=name)


def test_the_analyses_know_the_operators() -> None:
    # RUN: fuse-adaln,fuse-gated-residual
    # CHECK: ditc.gated_residual_norm
    # CHECK: ditc.gated_residual(
    def forward(x, y, gate, scale, shift):
        x = x + gate * y
        return norm(x, scale, shift) + gate * x

    done = check(forward, *five())
    costs = graph_cost(done.after.main, ())
    assert not costs.unknown
    size = 2 * 4 * D
    assert costs.total.evaluate().flops == 10 * size + 2 * size
    assert not Inference(done.after, done.after.main).misses
