"""What is kept: in so many bytes, in another dtype, and as a residual that is added once."""

from __future__ import annotations

import re

import pytest
import torch

from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.program import MAIN, InputKind, OutputKind, Program, placeholders
from dit_compile.quality.metrics import relative_l2
from dit_compile.runtime.reference import run_reference
from tests.capture.through_dynamo import run
from tests.passes.block_cache.test_insert_block_cache import C, Model, X
from tests.passes.irtest import Rewritten, capture, randn, rewrite, weights

STATE = 2 * 6 * 8 * 4  #: bytes of one value between blocks

BRANCHES = "method=interval,interval=2"
SPANS = {
    "taylor": "method=taylor,scope=last,order=1",
    "first-block": "method=first-block",
    "magnitude": "method=magnitude,ratios=[1,1,1,1]",
}


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(weights(Model()), X, C)


def cached(program: Program, options: str) -> Rewritten:
    return rewrite(f"insert-block-cache{{{options}}}", program, X, C)


def kept(done: Rewritten) -> list[str]:
    return [spec.path for spec in done.after.of_kind(InputKind.STATE)]


class TestBytes:
    def test_what_saves_the_least_for_its_bytes_goes_first(self, program: Program) -> None:
        done = cached(program, f"{BRANCHES},max-state-bytes={2 * STATE}")
        assert kept(done) == ["blocks.0.attn", "blocks.1.attn"], "a MLP has fewer operations"
        (record,) = done.records
        reason = f"{STATE} bytes exceed max-state-bytes={2 * STATE}"
        assert [miss.reason for miss in record.misses] == [reason, reason]
        assert record.notes[0] == "2 of 4 sites are left out, 0.0 MB kept"

    def test_just_enough_is_enough(self, program: Program) -> None:
        assert len(kept(cached(program, f"{BRANCHES},max-state-bytes={4 * STATE}"))) == 4
        assert len(kept(cached(program, f"{BRANCHES},max-state-bytes={4 * STATE - 1}"))) == 3

    def test_a_state_counts_in_the_dtype_that_it_has(self, program: Program) -> None:
        half = f"{BRANCHES},state-dtype=bfloat16"
        assert len(kept(cached(program, f"{half},max-state-bytes={2 * STATE}"))) == 4

    def test_a_probe_counts(self, program: Program) -> None:
        assert len(kept(cached(program, f"method=first-block,max-state-bytes={2 * STATE}"))) == 2
        assert not kept(cached(program, f"method=first-block,max-state-bytes={2 * STATE - 1}"))

    def test_earlier_values_count(self, program: Program) -> None:
        order = f"method=taylor,order=1,max-state-bytes={4 * STATE}"
        assert kept(cached(program, order)) == ["blocks.0.attn"] * 2 + ["blocks.1.attn"] * 2

    @pytest.mark.parametrize("method", [BRANCHES, *SPANS.values()])
    def test_room_for_nothing_leaves_the_model_as_it_is(
        self, program: Program, method: str
    ) -> None:
        done = cached(program, f"{method},max-state-bytes=9")
        assert fingerprint(done.after) == fingerprint(program)
        assert not done.after.schedule.stateful
        assert any("sites are left out, 0.0 MB kept" in note for note in done.records[0].notes)


@pytest.mark.parametrize(
    ("mask", "variants"),
    [
        ("attn:110010 mlp:110010", ["full", "reuse"]),
        ("attn:110010 mlp:101101", ["full", "reuse_1", "reuse_2"]),
        ("attn:110011 mlp:111101", ["full", "reuse_1", "reuse_2"]),
    ],
)
def test_steps_that_compute_the_same_share_a_graph(
    program: Program, mask: str, variants: list[str]
) -> None:
    after = cached(program, f'method=mask,mask="{mask}"').after
    assert list(dict.fromkeys(name for _, name in after.schedule.variants)) == variants
    assert list(after.graphs) == variants


@pytest.mark.parametrize("method", [BRANCHES, SPANS["taylor"], SPANS["magnitude"]])
def test_state_in_another_dtype(program: Program, method: str) -> None:
    after = cached(program, f"{method},state-dtype=bfloat16").after
    reuse = after.graphs["reuse"].graph
    states = [node for node in placeholders(reuse) if "state" in node.name]
    assert {node.meta["val"].dtype for node in states} == {torch.bfloat16}
    results = run_reference(after, {"x": X, "c": C})
    assert results["reuse"][0].dtype == results[MAIN][0].dtype == torch.float32
    assert 0 < relative_l2(results["reuse"][0], results[MAIN][0]) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("method", ["method=delta,span=1,boundary=0", SPANS["magnitude"]])
def test_a_residual_is_added_once_to_the_step_s_own_stream(program: Program, method: str) -> None:
    """At a later step, what the blocks added before is added to what enters them now."""
    model, after = weights(Model()), cached(program, method).after
    x, c = randn(2, 6, 4, seed=7), randn(2, 8, seed=8)
    before = run(after, {**after.constants, "x": X, "c": C})
    outputs = zip(after.outputs[MAIN], before, strict=True)
    state = {out.name: value for out, value in outputs if out.kind is OutputKind.STATE}
    (got,) = run(after, {**after.constants, **state, "x": x, "c": c}, "reuse")
    old, new = model.embed(X), model.embed(x)
    stream = old
    for block in model.blocks:
        stream = block(stream, C)
    torch.testing.assert_close(got, model.head(new + (stream - old)))
    assert relative_l2(got, model(x, c)) > 1e-2, "it is not what the step itself would give"


@pytest.mark.parametrize(
    "method",
    [
        "method=interval,interval=1",
        "method=delta,interval=1",
        "method=delta,span=0",
        "method=smooth,alpha=0,mask=1111",
        "method=taylor,interval=1",
        "method=pyramid,spatial=1,temporal=1,cross=1",
        "method=first-block,residual-diff-threshold=0",
        "method=magnitude,threshold=0,ratios=[1,1,1,1]",
        "method=skip-guidance,conditional=first,gamma=1",
        "method=linear-guidance,conditional=first,interval=1",
        "method=mask,mask=1111",
    ],
)
def test_a_cache_that_never_reuses_is_not_there(program: Program, method: str) -> None:
    done = cached(program, method)
    assert fingerprint(done.after) == fingerprint(program)
    (record,) = done.records
    assert not record.changed
    said = r"computes every step, so no cache is inserted|may reuse nothing here"
    assert [re.search(said, text) is not None for text in record.warnings] == [True]
