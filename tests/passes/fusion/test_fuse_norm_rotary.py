"""fuse-norm-rotary: the norm of queries and keys with their rotary embedding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dit_compile.pipeline.pipeline import Pipeline
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.fusion.families import on_family
from tests.passes.irtest import check, ops, randn

B, N, H, D = 2, 5, 3, 8


def inputs(
    width: int = D, dtype: torch.dtype = torch.float32, heads: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, the norm's weight, and cosine and sine of ``width`` angles."""
    angles = randn(1, N, 1, width, seed=2)
    return (
        randn(B, N, H, D, dtype=dtype),
        randn(heads * D, dtype=dtype, seed=1),
        angles.cos(),
        angles.sin(),
    )


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-b, a], -1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def halves_by_view(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
    return sin * torch.cat([-b, a], -1) + cos * x


def slices(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([a * cos - b * sin, b * cos + sin * a], -1).flatten(-2).to(x.dtype)


def written_into(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    made = torch.empty_like(x)
    made[..., 0::2] = a * cos - b * sin
    made[..., 1::2] = a * sin + b * cos
    return made.type_as(x)


def halves_apart(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def complex_numbers(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)


FORMS: list[tuple[Callable[..., Tensor], int, bool]] = [
    (neighbours, D, True),
    (halves, D, False),
    (halves_by_view, D, False),
    (slices, D // 2, True),
    (written_into, D // 2, True),
    (halves_apart, D // 2, False),
    (complex_numbers, D // 2, True),
]


@pytest.mark.parametrize(("rotate", "width", "interleaved"), FORMS)
def test_every_form(rotate: Callable[..., Tensor], width: int, interleaved: bool) -> None:
    # RUN: remove-noops,eliminate-dead,fuse-norm-rotary
    # CHECK: ditc.norm_rotary(%x, %w, None,
    # CHECK: return %norm_rotary
    def forward(x, w, cos, sin):
        return rotate(F.rms_norm(x, (D,), w, 1e-6), cos, sin)

    done = check(forward, *inputs(width))
    (fused,) = [node for node in done.after.main.nodes if "norm_rotary" in str(node.target)]
    assert fused.args[5:] == (1e-6, False, False, interleaved)
    assert not {"aten.mul", "aten.add", "aten.rms_norm"} & set(ops(done.after))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rotate", [neighbours, halves, slices, written_into, complex_numbers])
def test_half_precision(rotate: Callable[..., Tensor], dtype: torch.dtype) -> None:
    # RUN: remove-noops,eliminate-dead,fuse-norm-rotary
    # CHECK: ditc.norm_rotary(%x, %w, None,
    # CHECK: return %norm_rotary
    def forward(x, w, cos, sin):
        return rotate(F.rms_norm(x, (D,), w, 1e-6), cos, sin)

    check(forward, *inputs({form[0]: form[1] for form in FORMS}[rotate], dtype))


def test_layer_norm_with_a_bias() -> None:
    # RUN: fuse-norm-rotary
    # CHECK: ditc.norm_rotary(%x, %w, %b, %cos, %sin, 1e-05, True, False, True)
    # CHECK-NOT: aten
    def forward(x, w, b, cos, sin):
        return neighbours(F.layer_norm(x, (D,), w, b), cos, sin)

    x, w, *angles = inputs()
    check(forward, x, w, randn(D, seed=5), *angles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_rms_norm_written_out(dtype: torch.dtype) -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: ditc.norm_rotary(%x, %w, None, %cos, %sin, 1e-06, False, False, True)
    # CHECK-NOT: aten
    def forward(x, w, cos, sin):
        factor = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return neighbours((x * factor).to(w.dtype) * w, cos, sin)

    check(forward, *inputs(dtype=dtype))


def test_a_norm_without_a_weight() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: ditc.norm_rotary(%x, None, None, %cos, %sin, 1e-05, False, False, True)
    def forward(x, cos, sin):
        return neighbours(x * torch.rsqrt((x * x).mean(-1, True) + 1e-5), cos, sin)

    x, _, *angles = inputs()
    check(forward, x, *angles)


def test_a_norm_across_heads() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: aten.view(%x, [2, 5, 3, 8])
    # CHECK: %w, None, %cos, %sin, 1e-06, False, True, True)
    # CHECK-NOT: aten.rms_norm
    def forward(x, w, cos, sin):
        return neighbours(F.rms_norm(x, (H * D,), w, 1e-6).view(B, N, H, D), cos, sin)

    x, *rest = inputs(heads=H)
    check(forward, x.flatten(-2), *rest)


def test_heads_moved_behind_the_norm() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: aten.transpose(%x, 1, 2)
    # CHECK: ditc.norm_rotary(%transpose_1, %w, None, %cos, %sin
    # CHECK-NOT: aten.rms_norm
    def forward(x, w, cos, sin):
        return neighbours(F.rms_norm(x, (D,), w, 1e-6).transpose(1, 2), cos, sin)

    x, w, cos, sin = inputs()
    check(forward, x, w, cos[:, :, 0], sin[:, :, 0])


def test_tokens_of_two_norms_side_by_side() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: aten.slice(%cos, -3, 0, 2)
    # CHECK: ditc.norm_rotary(%text, %v
    # CHECK: aten.slice(%cos, -3, 2, 7)
    # CHECK: ditc.norm_rotary(%x, %w
    # CHECK: aten.cat([%norm_rotary, %norm_rotary_1], -3)
    # CHECK-NOT: aten.rms_norm
    def forward(x, w, text, v, cos, sin):
        normed = [F.rms_norm(text, (D,), v, 1e-6), F.rms_norm(x, (D,), w, 1e-6)]
        return neighbours(torch.cat(normed, 1), cos, sin)

    x, w, *_ = inputs()
    angles = randn(1, N + 2, 1, D, seed=2)
    check(forward, x, w, randn(B, 2, H, D, seed=3), randn(D, seed=4), angles.cos(), angles.sin())


def test_dynamic_sizes() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: ditc.norm_rotary(%x, %w, None, %cos, %sin, 1e-06, False, False, True)
    # CHECK-NOT: aten.rms_norm
    def forward(x, w, cos, sin):
        return neighbours(F.rms_norm(x, (D,), w, 1e-6), cos, sin)

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    angle = {1: tokens}
    sizes = {"x": {0: batch, 1: tokens}, "w": {}, "cos": angle, "sin": angle}
    check(forward, *inputs(), dynamic_shapes=sizes)


def test_what_is_normed_has_another_user() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK: aten.rms_norm
    # CHECK-NOT: ditc.norm_rotary
    # MISS: what lies between norm and rotation has another user
    def forward(x, w, cos, sin):
        normed = F.rms_norm(x, (D,), w, 1e-6)
        return neighbours(normed, cos, sin), normed.sin()

    done = check(forward, *inputs())
    assert [miss.culprit for miss in done.records[1].misses] == ["%sin_1"]


def test_no_norm() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK-NOT: ditc.norm_rotary
    # MISS: no norm comes before the rotation
    def forward(x, cos, sin):
        return neighbours(x, cos, sin)

    x, _, *angles = inputs()
    check(forward, x, *angles)


def test_only_some_tokens_are_turned() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK-NOT: ditc.norm_rotary
    # MISS: no norm comes before the rotation
    def forward(x, w, cos, sin):
        return neighbours(F.rms_norm(x, (D,), w, 1e-6)[:, 1:], cos[:, 1:], sin[:, 1:])

    check(forward, *inputs())


def test_heads_are_cut_anew_behind_the_norm() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK-NOT: ditc.norm_rotary
    # MISS: channels are moved between norm and rotation
    def forward(x, w, cos, sin):
        normed = F.rms_norm(x, (D,), w, 1e-6).view(B, N, 2 * H, D // 2)
        return neighbours(normed, cos, sin)

    check(forward, *inputs(D // 2))


def test_a_result_that_widens() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK-NOT: ditc.norm_rotary
    # MISS: the result has another dtype than what is normed
    def forward(x, w, cos, sin):
        return halves_by_view(F.rms_norm(x, (D,), w, 1e-6), cos, sin)

    check(forward, *inputs(dtype=torch.bfloat16))


def test_what_only_looks_alike() -> None:
    # RUN: remove-noops,fuse-norm-rotary
    # CHECK-NOT: ditc.norm_rotary
    def forward(x, w, cos, sin):
        x = F.rms_norm(x, (D,), w, 1e-6)
        a, b = x.chunk(2, -1)
        c, d = x[..., 0::2], x[..., 1::2]
        half_cos, half_sin = cos[..., ::2], sin[..., ::2]
        return (
            x * cos + torch.cat([-a, b], -1) * sin,
            x * cos + torch.cat([b, a], -1) * sin,
            x * cos + torch.cat([a, -b], -1) * sin,
            x * cos + torch.cat([-d, c], -1) * sin,
            torch.stack([c * half_cos - d * half_sin, c * half_cos + d * half_sin], -1).flatten(-2),
            torch.stack([c * half_cos + d * half_sin, c * half_sin - d * half_cos], -1).flatten(-2),
        )

    check(forward, *inputs())


#: Rotations fused, and operators before and after.
FAMILIES = {
    "flux": (14, 348, 284),
    "wan": (6, 279, 207),
    "hunyuan_dit": (18, 497, 353),
    "mochi": (6, 520, 430),
    "qwen_image": (12, 353, 227),
    "lumina_next": (9, 373, 322),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    done = on_family(name, "fuse-gated-residual,fuse-norm-rotary")
    record = done.records[-1]
    found = ops(done.after)["ditc.norm_rotary"]
    assert (found, record.nodes_before, record.nodes_after) == FAMILIES[name]


@pytest.mark.slow
def test_near_misses_of_stable_audio() -> None:
    """Queries and keys without a norm."""
    done = on_family("stable_audio", "fuse-norm-rotary")
    assert {miss.reason for miss in done.records[-1].misses} == {
        "no norm comes before the rotation"
    }


def test_gradients_pass_through() -> None:
    def forward(x, w, cos, sin):
        return neighbours(F.rms_norm(x, (D,), w, 1e-6), cos, sin)

    given = [value.requires_grad_() for value in inputs()]
    program, values = from_dynamo(forward, *given, grad=True)
    Pipeline.parse("remove-noops,fuse-norm-rotary").run(program)
    assert ops(program)["ditc.norm_rotary"] == 1
    made = torch.autograd.grad(run(program, values)[0].sin().sum(), list(values.values()))
    wanted = torch.autograd.grad(forward(*given).sin().sum(), given)
    for value, want in zip(made, wanted, strict=True):
        torch.testing.assert_close(value, want)
