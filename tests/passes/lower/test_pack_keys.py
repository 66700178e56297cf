"""pack-keys: attention reads keys and values head by head, where that was measured to pay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

from dit_compile.analysis import measured
from dit_compile.analysis.binding import settle
from dit_compile.capture.export import capture_module
from dit_compile.explanation import example_inputs
from dit_compile.passes.lower import attention, pack_keys
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.passes.irtest import capture, check, ops, randn, rewrite, rewrite_on

pytestmark = pytest.mark.processor


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what is measured."""

    def set_gain(gain: float) -> None:
        monkeypatch.setattr(pack_keys, "measured_speedup", lambda *_: gain)

    set_gain(1.5)
    return set_gain


def heads(x: torch.Tensor) -> torch.Tensor:
    """Two heads, side by side in each token."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def test_keys_and_values_are_copied_and_queries_are_not(pays: Callable[[float], None]) -> None:
    # RUN: pack-keys
    # CHECK: %clone = aten.clone(%transpose_1, memory_format=
    # CHECK: %clone_1 = aten.clone(%transpose_2, memory_format=
    # CHECK: aten.scaled_dot_product_attention(%transpose, %clone, %clone_1, None, 0.0, True)
    # CHECK: aten.view
    def forward(q, k, v):
        mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    done = check(forward, *(randn(2, 6, 8, seed=seed) for seed in range(3)))
    assert len(done.records[0].rewrites) == 1


def test_only_what_is_scattered_is_copied(pays: Callable[[float], None]) -> None:
    # RUN: pack-keys
    # CHECK: %clone = aten.clone(%transpose
    # CHECK: aten.scaled_dot_product_attention(%q, %clone, %v)
    # CHECK: aten.scaled_dot_product_attention(%q, %q, %v)
    def forward(q, k, v):
        mixed = F.scaled_dot_product_attention(q, heads(k), v)
        return mixed, F.scaled_dot_product_attention(q, q, v)

    done = check(forward, randn(2, 2, 6, 4), randn(2, 6, 8), randn(2, 2, 6, 4))
    assert ops(done.after)["aten.clone"] == 1


def test_keys_that_are_values_too_are_copied_once(pays: Callable[[float], None]) -> None:
    # RUN: pack-keys
    # CHECK: aten.scaled_dot_product_attention(%transpose_1, %clone, %clone)
    def forward(q, k):
        k = heads(k)
        return F.scaled_dot_product_attention(heads(q), k, k)

    check(forward, randn(2, 6, 8), randn(2, 6, 8))


def test_what_does_not_pay_is_a_near_miss(pays: Callable[[float], None]) -> None:
    pays(1.01)

    # RUN: pack-keys
    # CHECK-NOT: aten.clone
    # MISS: with packed keys it is 1.01x as fast
    def forward(x):
        x = heads(x)
        return F.scaled_dot_product_attention(x, x, x)

    check(forward, randn(2, 6, 8))

    # RUN: pack-keys{min-speedup=1.0}
    # CHECK: aten.clone
    def again(x):
        x = heads(x)
        return F.scaled_dot_product_attention(x, x, x)

    check(again, randn(2, 6, 8))


def test_other_devices_and_three_axes_are_left_alone(pays: Callable[[float], None]) -> None:
    def forward(x):
        x = heads(x)
        return F.scaled_dot_product_attention(x, x, x)

    def flat(x):
        x = x.transpose(0, 1)
        return F.scaled_dot_product_attention(x, x, x)

    for model, x in ((forward, torch.empty(2, 6, 8, device="meta")), (flat, randn(6, 2, 8))):
        (record,) = Pipeline.parse("pack-keys").run(capture(model, x)).records
        assert not record.changed
        assert not record.misses


def test_large_attention_is_measured_by_a_part_of_its_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, measured.Ways] = {}

    def speedup_of(name: str, ways: Callable[[], measured.Ways]) -> float:
        seen[name] = ways()
        return 1.5

    monkeypatch.setattr(attention, "speedup_of", speedup_of)

    def forward(q, k):
        q, k = (x.unflatten(-1, (12, 4)).transpose(1, 2) for x in (q, k))
        return F.scaled_dot_product_attention(q, k, k)

    tokens = {1: Dim("queries", min=2)}, {1: Dim("keys", min=2)}
    program = capture(forward, randn(3, 2000, 48), randn(3, 5000, 48), dynamic_shapes=tokens)
    (record,) = Pipeline.parse("pack-keys").run(program).records
    assert record.changed
    keys = "1x8x2048x4x0x4x48x1"
    assert list(seen) == [f"packed keys 1x8x1024x4x0x4x48x1 {keys} {keys} f32"]
    before, after = (way() for way in seen.popitem()[1])
    assert before.shape == (1, 8, 1024, 4)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("family", ["dit", "pixart", "flux", "wan", "latte"])
def test_every_scattered_attention_of_a_model(pays: Callable[[float], None], family: str) -> None:
    case = zoo.case(family)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = capture_module(zoo.build(case), (), inputs)
    settle(program, {})
    Pipeline.parse("exact").run(program)
    done = rewrite_on("pack-keys", program, example_inputs(program, (), inputs))
    scattered = sum(
        any(not x.meta["val"].is_contiguous() for x in node.args[1:3])
        for node in program.main.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    )
    assert len(done.records[0].rewrites) == scattered > 0


def test_nothing_fires_that_this_machine_does_not_gain_from() -> None:
    x = randn(2, 6, 8)
    program = capture(lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x)), x)
    (record,) = rewrite("pack-keys{min-speedup=1e9}", program, x).records
    assert not record.changed
    assert len(record.misses) == 1
