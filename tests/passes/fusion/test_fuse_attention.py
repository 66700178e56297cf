"""fuse-attention: attention written by hand becomes one operator, where it is attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.irtest import capture, check, ops, randn, rewrite, weights

B, H, N, M, D = 2, 3, 6, 5, 8


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        randn(B, H, N, D, dtype=dtype),
        randn(B, H, M, D, dtype=dtype, seed=1),
        randn(B, H, M, D, dtype=dtype, seed=2),
    )


def test_it_fires_with_scale_and_mask() -> None:
    # RUN: fuse-attention
    # CHECK-NOT: aten.softmax
    # CHECK: aten.scaled_dot_product_attention(%q, %k, %v, %mask, 0.0, False, scale=0.25)
    # CHECK-NOT: aten.matmul
    def forward(q, k, v, mask):
        return ((q @ k.transpose(-2, -1)) * 0.25 + mask).softmax(-1) @ v

    check(forward, *qkv(), randn(B, 1, N, M, seed=3))


def test_division_and_several_scales() -> None:
    # RUN: fuse-attention
    # CHECK: scale=0.125)
    # CHECK-NOT: aten.softmax
    def forward(q, k, v):
        scores = torch.matmul(q, k.mT) / 4
        return torch.softmax(scores * 0.5, dim=3) @ v

    check(forward, *qkv())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_softmax_in_float32(dtype: torch.dtype) -> None:
    # RUN: fuse-attention
    # CHECK: aten.scaled_dot_product_attention(%q
    # CHECK-NOT: aten.softmax
    def forward(q, k, v):
        scores = (q @ k.transpose(2, 3)).float() * 0.3
        return scores.softmax(-1).to(q.dtype) @ v

    check(forward, *qkv(dtype))


def test_heads_folded_into_the_batch() -> None:
    # RUN: fuse-attention
    # CHECK: aten.unsqueeze(%q, 1)
    # CHECK: aten.scaled_dot_product_attention
    # CHECK: aten.squeeze
    # CHECK-NOT: aten.bmm
    def forward(q, k, v, mask):
        return torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) * D**-0.5 + mask, dim=-1), v)

    inputs = [value.flatten(0, 1) for value in qkv()]
    check(forward, *inputs, randn(B * H, N, M, seed=3))


@pytest.mark.parametrize("masked", [False, True])
def test_scale_and_mask_inside_the_product(masked: bool) -> None:
    # RUN: fuse-attention
    # CHECK: aten.scaled_dot_product_attention
    # CHECK-SAME: scale=0.3
    # CHECK-NOT: aten.bmm
    def forward(q, k, v, mask):
        scores = torch.baddbmm(mask, q, k.transpose(-1, -2), beta=int(masked), alpha=0.3)
        return torch.bmm(scores.softmax(-1), v)

    inputs = [value.flatten(0, 1) for value in qkv()]
    check(forward, *inputs, randn(B * H, N, M, seed=3))


def test_a_scaled_mask_inside_the_product() -> None:
    # RUN: fuse-attention
    # CHECK: aten.softmax
    # MISS: the mask is scaled, or there are two
    def forward(q, k, v, mask):
        scores = torch.baddbmm(mask, q, k.transpose(-1, -2), beta=0.5)
        return torch.bmm(scores.softmax(-1), v)

    inputs = [value.flatten(0, 1) for value in qkv()]
    check(forward, *inputs, randn(B * H, N, M, seed=3))


def test_a_dynamic_number_of_tokens() -> None:
    # RUN: fuse-attention
    # CHECK: aten.scaled_dot_product_attention
    # CHECK-NOT: aten.softmax
    def forward(q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    tokens = torch.export.Dim("tokens")
    shapes: Any = {"args": ({2: tokens}, None, None)}
    check(forward, *qkv(), dynamic_shapes=shapes["args"])


def test_the_weights_of_attention_are_wanted_too() -> None:
    # RUN: fuse-attention
    # CHECK: aten.softmax
    # MISS: what lies between the products has another user
    def forward(q, k, v):
        probabilities = (q @ k.transpose(-2, -1)).softmax(-1)
        return probabilities @ v, probabilities

    check(forward, *qkv())


def test_a_softmax_over_queries() -> None:
    # RUN: fuse-attention
    # CHECK: aten.softmax
    # MISS: the softmax is not over the last axis
    def forward(q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-2) @ v

    check(forward, *qkv())


def test_keys_shared_by_all_heads() -> None:
    # RUN: fuse-attention
    # CHECK: aten.softmax
    # MISS: the leading axes of query, key and value differ
    def forward(q, k, v):
        return (q @ k[:, :1].transpose(-2, -1)).softmax(-1) @ v

    check(forward, *qkv())


def test_a_mask_of_another_dtype() -> None:
    # RUN: fuse-attention
    # CHECK: aten.softmax
    # MISS: the mask has another dtype than the query
    def forward(q, k, v, mask):
        return ((q @ k.transpose(-2, -1)).float() + mask).softmax(-1).to(q.dtype) @ v

    check(forward, *qkv(torch.bfloat16), randn(N, M, seed=3))


def test_what_is_no_attention_is_left_alone() -> None:
    # RUN: fuse-attention
    # CHECK-NOT: scaled_dot_product
    def forward(q, k, v, mask):
        capped = torch.tanh(q @ k.transpose(-2, -1)).softmax(-1) @ v
        scaled_mask = ((q @ k.transpose(-2, -1) + mask) * 0.5).softmax(-1) @ v
        classes = torch.softmax(q, dim=-1)
        return capped, scaled_mask, classes

    check(forward, *qkv(), randn(N, M, seed=3))


class ByHand(nn.Module):
    """Self attention as DiT's own repository writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(H * D, 3 * H * D), nn.Linear(H * D, H * D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * D**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.out((attention @ v).transpose(1, 2).reshape(b, n, H * D))


def test_a_module_that_scales_the_query() -> None:
    program = capture(weights(ByHand()), randn(B, N, H * D))
    done = rewrite("fuse-attention", program, randn(B, N, H * D))
    found = ops(done.after)
    assert found["aten.scaled_dot_product_attention"] == 1
    assert found["aten.matmul"] == found["aten.softmax"] == 0
