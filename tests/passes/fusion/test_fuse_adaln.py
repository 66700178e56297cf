"""fuse-adaln: a layer norm and its modulation become one operator where that is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.pipeline.pipeline import Pipeline
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import check, ops, randn, weights

D = 8


def three(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, scale and shift as a transformer has them."""
    return (
        randn(2, 4, D, dtype=dtype),
        randn(2, 1, D, dtype=dtype, seed=1),
        randn(2, 1, D, dtype=dtype, seed=2),
    )


def test_it_fires() -> None:
    # RUN: fuse-adaln
    # CHECK: %adaln_norm = ditc.adaln_norm(%x, %scale, %shift, 1e-06) : f32[2,4,8]
    # CHECK-SAME: # from layer_norm, add, mul, add_1
    # CHECK-NEXT: return %adaln_norm
    def forward(x, scale, shift):
        return F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift

    check(forward, *three())


def test_any_order_of_operands_and_the_default_eps() -> None:
    # RUN: fuse-adaln
    # CHECK: ditc.adaln_norm(%x, %scale, %shift, 1e-05)
    # CHECK-NOT: aten.layer_norm
    def forward(x, scale, shift):
        return shift + (scale + 1.0) * F.layer_norm(x, (D,))

    check(forward, *three())


def test_weights_as_modulation() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(2, D))

        # RUN: fuse-adaln
        # CHECK: ditc.adaln_norm(%x, %select, %select_1, 1e-05)
        # CHECK-NOT: aten.layer_norm
        def forward(self, x):
            return F.layer_norm(x, (D,)) * (1 + self.table[0]) + self.table[1]

    check(weights(Model()), three()[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    # RUN: fuse-adaln
    # CHECK: ditc.adaln_norm(%x, %scale, %shift, 1e-06)
    # CHECK-NOT: aten.layer_norm
    def forward(x, scale, shift):
        return F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift

    check(forward, *three(dtype))


def test_dynamic_sizes() -> None:
    # RUN: fuse-adaln
    # CHECK: ditc.adaln_norm(%x, %scale, %shift, 1e-05) : f32[s
    # CHECK-SAME: ,8]
    # CHECK-NOT: aten.layer_norm
    def forward(x, scale, shift):
        return F.layer_norm(x, (D,)) * (1 + scale) + shift

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    sizes = {"x": {0: batch, 1: tokens}, "scale": {0: batch}, "shift": {0: batch}}
    x, scale, shift = randn(3, 5, D), randn(3, 1, D, seed=1), randn(3, 1, D, seed=2)
    check(forward, x, scale, shift, dynamic_shapes=sizes)


def test_one_plus_scale_for_two_norms() -> None:
    # RUN: fuse-adaln,eliminate-dead
    # CHECK-COUNT-2: ditc.adaln_norm(
    # CHECK-NOT: aten.layer_norm
    # CHECK-NOT: aten.add(%scale, 1)
    # CHECK: return
    def forward(x, scale, shift):
        factor = 1 + scale
        return F.layer_norm(F.layer_norm(x, (D,)) * factor + shift, (D,)) * factor + shift

    check(forward, *three())


def test_one_plus_scale_that_others_read_stays() -> None:
    # RUN: fuse-adaln
    # CHECK: %add = aten.add(%scale, 1)
    # CHECK: ditc.adaln_norm(%x, %scale, %shift
    # CHECK: aten.sin(%add)
    def forward(x, scale, shift):
        factor = 1 + scale
        return F.layer_norm(x, (D,)) * factor + shift + factor.sin()

    check(forward, *three())


def test_a_norm_with_another_user() -> None:
    # RUN: fuse-adaln
    # CHECK: aten.layer_norm
    # MISS: the layer norm has another user
    def forward(x, scale, shift):
        normed = F.layer_norm(x, (D,))
        return normed * (1 + scale) + shift + normed.sin()

    done = check(forward, *three())
    assert [miss.culprit for miss in done.records[0].misses] == ["%sin"]


def test_a_norm_modulated_twice() -> None:
    # RUN: fuse-adaln
    # CHECK: aten.layer_norm
    # MISS: the layer norm has another user
    def forward(x, scale, shift):
        normed = F.layer_norm(x, (D,))
        return normed * (1 + scale) + shift, normed * (1 + shift) + scale

    check(forward, *three())


def test_a_scaled_value_with_another_user() -> None:
    # RUN: fuse-adaln
    # CHECK: aten.layer_norm
    # MISS: the scaled value has another user
    def forward(x, scale, shift):
        scaled = F.layer_norm(x, (D,)) * (1 + scale)
        return scaled + shift, scaled.sin()

    check(forward, *three())


@pytest.mark.parametrize("bias", [True, False])
def test_an_affine_weight(bias: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(D, bias=bias)

        # RUN: fuse-adaln
        # CHECK: aten.layer_norm
        # MISS: the layer norm has an affine weight
        def forward(self, x, scale, shift):
            return self.norm(x) * (1 + scale) + shift

    done = check(weights(Model()), *three())
    assert [miss.culprit for miss in done.records[0].misses] == ["@norm.weight"]


def test_a_norm_over_two_axes() -> None:
    # RUN: fuse-adaln
    # CHECK: aten.layer_norm
    # MISS: the layer norm is over more than the last axis
    def forward(x, scale, shift):
        return F.layer_norm(x, (4, D)) * (1 + scale) + shift

    check(forward, *three())


def test_a_modulation_that_widens() -> None:
    # RUN: fuse-adaln
    # CHECK: aten.layer_norm
    # MISS: the modulation changes the shape or dtype
    # MISS: the modulation changes the shape or dtype
    def forward(x, scale, shift):
        tall = F.layer_norm(x[0], (D,)) * (1 + scale) + shift
        return tall + F.layer_norm(x.half(), (D,)) * (1 + scale) + shift

    check(forward, *three())


def test_what_only_looks_alike() -> None:
    # RUN: fuse-adaln
    # CHECK-COUNT-6: aten.layer_norm
    # CHECK-NOT: ditc.adaln_norm
    def forward(x, scale, shift):
        def norm():
            return F.layer_norm(x, (D,))

        return (
            norm() * (2 + scale) + shift,
            norm() * (1 - scale) + shift,
            norm() * torch.add(scale, 1, alpha=2) + shift,
            torch.add(norm() * (1 + scale), shift, alpha=2),
            norm() * (1 + scale) - shift,
            norm() * (1 + scale) + 3,
        )

    check(forward, *three())


def test_a_norm_times_itself() -> None:
    # RUN: fuse-adaln
    # CHECK: aten.layer_norm
    # CHECK-NOT: ditc
    def forward(x, scale, shift):
        normed = F.layer_norm(x, (D,))
        return normed * normed + shift

    check(forward, *three())


def test_in_the_exact_preset_noops_do_not_hide_it() -> None:
    # RUN: exact
    # CHECK: @full
    # CHECK-NEXT: ditc.adaln_norm(%x, %scale, %shift, 1e-05)
    # CHECK-NEXT: return
    def forward(x, scale, shift):
        normed = F.dropout(F.layer_norm(x, (D,)), 0.1, training=False)
        return (normed * (1 + scale)).reshape(x.shape) / 1 + shift

    check(forward, *three())


def test_in_the_exact_preset_equal_norms_share_their_fusion() -> None:
    # RUN: exact
    # CHECK-COUNT-1: ditc.adaln_norm
    # CHECK-NOT: ditc.adaln_norm
    # CHECK: aten.mul(%adaln_norm, %adaln_norm)
    def forward(x, scale, shift):
        return (F.layer_norm(x, (D,)) * (1 + scale) + shift) * (
            F.layer_norm(x, (D,)) * (1 + scale) + shift
        )

    check(forward, *three())


def test_gradients_pass_through() -> None:
    def forward(x, scale, shift):
        return F.layer_norm(x, (D,)) * (1 + scale) + shift

    inputs = [value.requires_grad_() for value in three()]
    program, values = from_dynamo(forward, *inputs, grad=True)
    Pipeline.parse("fuse-adaln").run(program)
    assert ops(program) == {"ditc.adaln_norm": 1}
    made = torch.autograd.grad(run(program, values)[0].sin().sum(), list(values.values()))
    wanted = torch.autograd.grad(forward(*inputs).sin().sum(), inputs)
    for name, value, want in zip(values, made, wanted, strict=True):
        torch.testing.assert_close(value, want, msg=name)
