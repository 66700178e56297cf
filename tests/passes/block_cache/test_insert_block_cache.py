"""insert-block-cache: branch outputs leave as state, and come back in place of the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import FileCheck

from dit_compile.errors import PipelineError
from dit_compile.ir.fingerprint import fingerprint, graph_fingerprint
from dit_compile.ir.printer import print_graph
from dit_compile.ir.program import MAIN, Binding, InputKind, OutputKind, Program, placeholders
from dit_compile.ir.schedule import Row
from dit_compile.passes.block_cache.insert_block_cache import InsertBlockCache
from dit_compile.passes.block_cache.interval import Interval
from dit_compile.passes.block_cache.sites import Candidates, Site
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests.analysis.structures import captured
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import Rewritten, capture, ops, randn, rewrite, weights

D = 8
CACHED = "insert-block-cache{interval=2}"


class Block(nn.Module):
    """Attention and an MLP, each with a gate from the condition."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.mod = nn.Linear(D, 2 * D, dtype=dtype)
        self.qkv, self.out = nn.Linear(D, 3 * D, dtype=dtype), nn.Linear(D, D, dtype=dtype)
        self.up, self.down = nn.Linear(D, 2 * D, dtype=dtype), nn.Linear(2 * D, D, dtype=dtype)

    def attn(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(F.layer_norm(x, (D,))).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(F.layer_norm(x, (D,)))))

    def gates(self, c: Tensor) -> Sequence[Tensor]:
        return self.mod(c)[:, None].chunk(2, dim=-1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        first, second = self.gates(c)
        x = x + first * self.attn(x)
        return x + second * self.mlp(x)


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, D, dtype=dtype), nn.Linear(D, 4, dtype=dtype)
        self.blocks = nn.ModuleList(Block(dtype) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, c)
        return self.head(x)


PATHS = ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
X, C = randn(2, 6, 4), randn(2, D, seed=1)


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(weights(Model()), X, C)


@pytest.fixture(scope="module")
def cached(program: Program) -> Rewritten:
    return rewrite(CACHED, program, X, C)


def test_the_reuse_graph_has_gates_and_streams_alone(cached: Rewritten) -> None:
    FileCheck().run(
        """
        # CHECK: @reuse
        # CHECK-SAME: %state_blocks_0_attn: f32[2,6,8] state
        # CHECK: aten.linear(%x, @embed.weight, @embed.bias)
        # CHECK: aten.linear(%c, @blocks.0.mod.weight, @blocks.0.mod.bias)
        # CHECK: aten.mul(%getitem, %state_blocks_0_attn)
        # CHECK: aten.mul(%getitem_1, %state_blocks_0_mlp)
        # CHECK-NOT: qkv
        # CHECK-NOT: up.weight
        # CHECK: @head.weight, @head.bias)
        # CHECK-NEXT: return %linear
        """,
        print_graph(cached.after, "reuse"),
    )
    reuse = ops(cached.after, "reuse")
    assert not {"aten.scaled_dot_product_attention", "aten.layer_norm", "aten.gelu"} & set(reuse)
    assert reuse["aten.linear"] == 4, "embedding, two modulations, head"
    assert ops(cached.after)["aten.linear"] == ops(cached.before)["aten.linear"] == 12


def test_the_reuse_graph_reads_no_weight_of_a_branch(cached: Rewritten) -> None:
    reads = {str(node.target) for node in placeholders(cached.after.graphs["reuse"].graph)}
    own = {name for name in reads if name.startswith("blocks_")}
    assert own == {f"blocks_{i}_mod_{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert {"x", "c"} <= reads


def test_state_is_declared(cached: Rewritten) -> None:
    states = cached.after.of_kind(InputKind.STATE)
    assert [spec.path for spec in states] == PATHS
    assert all(spec.binding is Binding.LATENT and spec.settled for spec in states)
    kinds = [(out.kind, out.name) for out in cached.after.outputs[MAIN]]
    assert kinds == [(OutputKind.USER, ""), *((OutputKind.STATE, spec.name) for spec in states)]
    assert [out.kind for out in cached.after.outputs["reuse"]] == [OutputKind.USER]
    assert not any(spec.kind is InputKind.STATE for spec in cached.before.inputs.values())


def test_full_with_state_gives_the_uncached_results(cached: Rewritten) -> None:
    before = run_reference(cached.before, {"x": X, "c": C})
    after = run_reference(cached.after, {"x": X, "c": C})
    assert torch.equal(before[MAIN][0], after[MAIN][0])
    assert torch.equal(before[MAIN][0], after["reuse"][0]), "with the state of the same step"


def test_the_gate_of_the_current_step_applies_to_the_reused_value(cached: Rewritten) -> None:
    model = weights(Model())
    values = {**cached.after.constants, "x": X, "c": C}
    outputs = run(cached.after, values)
    for output, value in zip(cached.after.outputs[MAIN], outputs, strict=True):
        values[output.name] = value
    later_x, later_c = randn(2, 6, 4, seed=2), randn(2, D, seed=3)
    values |= {"x": later_x, "c": later_c}
    stream, kept = model.embed(later_x), iter(outputs[1:])
    for block in model.blocks:
        for gate in block.gates(later_c):
            stream = stream + gate * next(kept)
    (result,) = run(cached.after, values, "reuse")
    torch.testing.assert_close(result, model.head(stream))
    assert not torch.allclose(result, model(later_x, later_c))


def test_an_interval_of_one_inserts_nothing(program: Program) -> None:
    done = rewrite("insert-block-cache{interval=1}", program, X, C)
    assert fingerprint(done.after) == fingerprint(program)
    assert not done.after.schedule.stateful
    assert done.records[0].notes == [
        "interval{interval=1} computes every step, so no cache is inserted"
    ]


@dataclass(frozen=True, kw_only=True)
class Ones(Interval):
    """A policy that never reuses, though it counts several groups of sites."""

    def sites(self, found: Candidates) -> Sequence[Site]:
        return found.branches(lambda branch: branch.kind)

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        assert list(groups) == ["attn", "mlp"]
        return [(1, 1)]


def test_a_mask_of_ones_is_the_uncached_program(program: Program) -> None:
    after = program.copy()
    Pipeline((InsertBlockCache(policy=Ones()),)).run(after)
    assert fingerprint(after) == fingerprint(program)
    assert after.inputs == program.inputs
    assert after.outputs == program.outputs


def test_the_schedule_names_both_variants(cached: Rewritten) -> None:
    schedule = cached.after.schedule
    assert dict(schedule.variants) == {(1,): MAIN, (0,): "reuse"}
    assert schedule.policy == Interval(interval=2)
    assert schedule.mask(5) == [(1,), (0,), (1,), (0,), (1,)]
    assert cached.records[0].notes == ["2 variants, 4 sites, interval{interval=2}"]


def test_the_main_graph_computes_what_it_did(cached: Rewritten) -> None:
    assert ops(cached.after) == ops(cached.before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, c = X.to(dtype), C.to(dtype)
    after = rewrite(CACHED, capture(weights(Model(dtype)), x, c), x, c).after
    results = run_reference(after, {"x": x, "c": c})
    assert torch.equal(results[MAIN][0], results["reuse"][0])
    assert results[MAIN][0].dtype == dtype


def test_dynamic_sizes() -> None:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    sizes = {"x": {0: batch, 1: tokens}, "c": {0: batch}}
    after = rewrite(CACHED, capture(weights(Model()), X, C, dynamic_shapes=sizes), X, C).after
    states = [n for n in placeholders(after.graphs["reuse"].graph) if "state" in n.name]
    assert all(isinstance(n.meta["val"].shape[1], torch.SymInt) for n in states)
    x, c = randn(3, 5, 4), randn(3, D)
    results = run_reference(after, {"x": x, "c": c})
    torch.testing.assert_close(results["reuse"][0], weights(Model())(x, c))


def test_other_users_of_a_branch_read_the_state_too() -> None:
    class Two(Model):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            x = self.embed(x)
            extra = 0
            for block in self.blocks:
                gate, _ = block.gates(c)
                kept = block.attn(x)
                x, extra = x + gate * kept, extra + kept.sum(1)
                x = x + block.mlp(x)
            return self.head(x) + self.head(extra)[:, None]

    done = rewrite(CACHED, capture(weights(Two()), X, C), X, C)
    reuse = done.after.graphs["reuse"].graph
    state = next(n for n in placeholders(reuse) if done.after.inputs[n.name].path == PATHS[0])
    assert {str(user.target) for user in state.users} == {"aten.mul.Tensor", "aten.sum.dim_IntList"}
    assert not ops(done.after, "reuse")["aten.scaled_dot_product_attention"]


def test_a_model_without_blocks_is_left_alone() -> None:
    done = rewrite(CACHED, capture(weights(nn.Linear(4, 4)), X), X)
    assert not done.records[0].changed
    assert done.records[0].notes == [
        "no repeated blocks with residual branches were found, so nothing is cached"
    ]


def test_no_cache_while_autograd_records() -> None:
    program, _ = from_dynamo(weights(Model()), X, C, grad=True)
    (record,) = Pipeline.parse(CACHED).run(program).records
    assert record.skipped == "autograd records"
    assert list(program.graphs) == [MAIN]


def test_twice_in_a_pipeline_is_an_error(program: Program) -> None:
    with pytest.raises(PipelineError, match="insert-block-cache is in the pipeline twice"):
        Pipeline.parse(f"{CACHED},{CACHED}").run(program.copy())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{method=intervall}", "no method 'intervall'; did you mean 'interval'\\?; methods are"),
        ("{intervall=2}", "no option 'intervall'; did you mean 'interval'\\?"),
        ("{interval=two}", "option 'interval' takes int, not str 'two'"),
        ("{interval=0}", "interval must be at least 1, not 0"),
        ("{interval=2.5}", "option 'interval' takes int, not float 2.5"),
        ("{interval=true}", "option 'interval' takes int, not bool True"),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(f"insert-block-cache{text}")


@pytest.mark.parametrize("interval", [2, 3, 7])
def test_options_round_trip(interval: int) -> None:
    pipeline = Pipeline((InsertBlockCache(policy=Interval(interval=interval)),))
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_it_comes_after_cleaning_up() -> None:
    with pytest.raises(PipelineError, match="insert-block-cache must come after remove-noops"):
        Pipeline.parse(f"{CACHED},remove-noops")


def test_behind_the_exact_preset(program: Program) -> None:
    done = rewrite("balanced", program, X, C)
    assert [spec.path for spec in done.after.of_kind(InputKind.STATE)] == PATHS
    assert ops(done.after, "reuse")["aten.linear"] == 4
    exact = rewrite("exact", program, X, C).after
    assert ops(done.after) == ops(exact)


JOINT = {
    "sd3": ("attn.to_out", "attn2", "ff", "attn.to_add_out", "ff_context"),
    "flux": ("attn.to_out", "ff", "attn.to_add_out", "ff_context"),
}


@pytest.mark.parametrize("name", JOINT)
def test_both_streams_of_a_joint_block_are_sites(name: str) -> None:
    program, values = captured(name)
    named = dict(zip([n.name for n in placeholders(program.main)], values, strict=True))
    after = program.copy()
    Pipeline.parse(CACHED).run(after)
    paths = [spec.path for spec in after.of_kind(InputKind.STATE)]
    assert paths[: len(JOINT[name])] == [f"transformer_blocks.0.{site}" for site in JOINT[name]]
    assert len(paths) == len(set(paths))
    assert not ops(after, "reuse")["aten.scaled_dot_product_attention"]
    assert ops(after) == ops(program)
    states = [out.name for out in after.outputs[MAIN] if out.kind is OutputKind.STATE]
    assert states == [spec.name for spec in after.of_kind(InputKind.STATE)]
    results = run_reference(after, named)
    for first, second in zip(results[MAIN], results["reuse"], strict=True):
        torch.testing.assert_close(first, second)


def test_the_fingerprint_of_the_main_graph_tells_state_apart(cached: Rewritten) -> None:
    assert graph_fingerprint(cached.after, MAIN) != graph_fingerprint(cached.before, MAIN)


class TestOnly:
    @pytest.mark.parametrize(
        ("only", "kept"),
        [("blocks.1", PATHS[2:]), ("blocks.0.attn", PATHS[:1]), ("blocks", PATHS)],
    )
    def test_other_sites_are_computed(
        self, program: Program, only: str, kept: Sequence[str]
    ) -> None:
        done = rewrite(f"insert-block-cache{{interval=2,only=[{only}]}}", program, X, C)
        assert len(done.after.schedule.states) == len(kept)
        assert f"{len(kept)} sites" in done.records[-1].notes[-1]

    def test_a_path_without_sites(self, program: Program) -> None:
        with pytest.raises(PipelineError, match=r"only=block\.1 has no site; did you mean"):
            rewrite("insert-block-cache{interval=2,only=[block.1]}", program, X, C)

    def test_a_prefix_is_not_a_path(self, program: Program) -> None:
        with pytest.raises(PipelineError, match="has no site"):
            rewrite("insert-block-cache{interval=2,only=[blocks.0.att]}", program, X, C)

    def test_its_text_is_read_back(self) -> None:
        text = "insert-block-cache{method=interval,only=[blocks.1]}"
        assert str(Pipeline.parse(text)) == text

    def test_parts(self, program: Program) -> None:
        parts = InsertBlockCache().parts(program)
        assert list(parts) == ["blocks.0", "blocks.1"]
        assert parts["blocks.1"].only == ("blocks.1",)
