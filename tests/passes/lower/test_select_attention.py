"""select-attention: ditc's kernel takes attention's place where it was measured to be faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from dit_compile.analysis.binding import settle
from dit_compile.analysis.cost import graph_cost
from dit_compile.capture.export import capture_module
from dit_compile.explanation import example_inputs
from dit_compile.kernels.attention import flash_attention
from dit_compile.passes.lower import select_attention
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.passes.irtest import capture, check, ops, randn, rewrite_on

pytestmark = pytest.mark.processor

SDPA = torch.ops.aten.scaled_dot_product_attention.default


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what is measured, on a processor that can do it."""
    monkeypatch.setattr(select_attention, "has_avx512_bf16", lambda: True)

    def set_gain(gain: float) -> None:
        monkeypatch.setattr(select_attention, "measured_speedup", lambda *_: gain)

    set_gain(2.5)
    return set_gain


def half(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed, dtype=torch.bfloat16)


def heads(x: Tensor) -> Tensor:
    """Two heads, side by side in each token."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def test_mask_and_scale_are_kept() -> None:
    # RUN: select-attention
    # CHECK: ditc.flash_attention(%transpose, %transpose_1, %transpose_2, %mask, 0.5)
    # CHECK: ditc.flash_attention(%transpose, %transpose_1, %transpose_2, None, None)
    # CHECK: aten.view
    def forward(q, k, v, mask):
        q, k, v = heads(q), heads(k), heads(v)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=0.5)
        mixed = mixed + F.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).flatten(2)

    done = check(
        forward, half(2, 6, 8), half(2, 9, 8, seed=1), half(2, 9, 8, seed=2), half(2, 1, 6, 9)
    )
    assert "aten.scaled_dot_product_attention" not in ops(done.after)
    before, after = (graph_cost(p.main, []).total.flops for p in (done.before, done.after))
    assert before == after


def test_grouped_heads_and_open_sizes() -> None:
    # RUN: select-attention
    # CHECK: ditc.flash_attention(
    def forward(q, k):
        k = k.unflatten(-1, (2, -1)).transpose(1, 2)
        q = q.unflatten(-1, (4, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    tokens = {1: Dim("queries", min=2)}, {1: Dim("keys", min=2)}
    check(forward, half(2, 6, 16), half(2, 7, 8, seed=1), dynamic_shapes=tokens)


def test_what_does_not_pay_is_a_near_miss(pays: Callable[[float], None]) -> None:
    pays(1.05)

    # RUN: select-attention
    # CHECK-NOT: ditc.flash_attention
    # MISS: ditc's kernel is 1.05x as fast
    def forward(x):
        return F.scaled_dot_product_attention(x, x, x)

    check(forward, half(2, 2, 6, 8))

    # RUN: select-attention{min-speedup=1.0}
    # CHECK: ditc.flash_attention
    def again(x):
        return F.scaled_dot_product_attention(x, x, x)

    check(again, half(2, 2, 6, 8))


def test_what_the_kernel_cannot_do() -> None:
    # RUN: select-attention
    # CHECK-NOT: ditc.flash_attention
    # MISS: ditc's kernel is neither causal nor has dropout
    # MISS: ditc's kernel takes keys and values of one even width
    # MISS: ditc's kernel takes keys and values of one even width
    # MISS: channels lie apart, and then torch is more precise
    # MISS: ditc's kernel takes keys and values for each sample and head
    def forward(x):
        causal = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        odd = x[..., :7]
        odd = F.scaled_dot_product_attention(odd, odd, odd)
        wide = F.scaled_dot_product_attention(x[..., :4], x[..., :4], x)
        across = x[..., :6].transpose(2, 3)
        across = F.scaled_dot_product_attention(across, across, across)
        shared = F.scaled_dot_product_attention(x, x[:1], x[:1])
        return causal, odd, wide, across, shared

    check(forward, half(2, 2, 6, 8))


@pytest.mark.parametrize(
    "x",
    [
        randn(2, 2, 6, 8),
        half(2, 6, 8),
        torch.empty(2, 2, 6, 8, device="meta", dtype=torch.bfloat16),
    ],
    ids=["float32", "three axes", "device"],
)
def test_other_attention_is_left_alone(x: Tensor) -> None:
    program = capture(lambda x: F.scaled_dot_product_attention(x, x, x), x)
    (record,) = Pipeline.parse("select-attention").run(program).records
    assert not record.changed
    assert not record.misses


def test_processors_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select_attention, "has_avx512_bf16", lambda: False)
    program = capture(lambda x: F.scaled_dot_product_attention(x, x, x), half(2, 2, 6, 8))
    (record,) = Pipeline.parse("select-attention").run(program).records
    assert not record.changed


@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "flux", "wan", "latte"])
def test_every_attention_of_a_model(family: str) -> None:
    case = zoo.case(family)
    model = zoo.build(case).to(torch.bfloat16)
    inputs = {
        name: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in case.inputs(0, torch.Generator().manual_seed(0)).items()
    }
    with torch.no_grad():
        program = capture_module(model, (), inputs)
    settle(program, {})
    Pipeline.parse("exact").run(program)
    found = len(program.main.find_nodes(op="call_function", target=SDPA))
    done = rewrite_on("select-attention", program, example_inputs(program, (), inputs))
    assert len(done.records[0].rewrites) == found > 0
    assert not done.misses
    left = done.after.main.find_nodes(op="call_function", target=flash_attention)
    assert len(left) == found
