"""eliminate-dead: what nobody reads goes, weights baked for nobody too."""

from __future__ import annotations

import torch
from torch import nn

from dit_compile.ir.program import WEIGHTS, InputKind, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.rewriter import Rewriter
from tests.passes.irtest import capture, check, ops, randn, return_first, rewrite, weights


class Spare(nn.Module):
    """Two linears, the second of which is computed for nobody."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4, dtype=dtype)
        self.spare = nn.Linear(4, 4, dtype=dtype)

    # RUN: eliminate-dead
    # CHECK-NOT: spare
    # CHECK: %linear = aten.linear(%x, @used.weight, @used.bias)
    # CHECK-NEXT: %relu = aten.relu(%linear)
    # CHECK-NEXT: return %relu
    def forward(self, x):
        y = self.used(x)
        return y.relu(), self.spare(y).sigmoid().chunk(2, 1)[1].sum()


def test_a_chain_goes_with_its_weights() -> None:
    done = check(weights(Spare()), randn(2, 4), edit=return_first)
    read = {node.name for node in placeholders(done.after.main)}
    assert read == {"used_weight", "used_bias", "x"}
    assert "spare_weight" in done.after.inputs, "the caller still passes it"


def test_half_precision() -> None:
    check(weights(Spare(torch.bfloat16)), randn(2, 4, dtype=torch.bfloat16), edit=return_first)


def test_dynamic_sizes() -> None:
    batch = torch.export.Dim("batch")
    sizes = {"x": {0: batch}}
    check(weights(Spare()), randn(3, 4), dynamic_shapes=sizes, edit=return_first)


def test_one_use_is_enough_to_stay() -> None:
    # RUN: eliminate-dead
    # CHECK: aten.relu(%x)
    # CHECK-NOT: aten.sin
    def forward(x):
        y = x.relu()
        return y * 2, (y + 1).sin()

    done = check(forward, randn(2, 4), edit=return_first)
    assert ops(done.after) == {"aten.relu": 1, "aten.mul": 1}


def test_random_operators_stay_since_later_ones_draw_after_them() -> None:
    program = capture(lambda x: torch.randn_like(x) + x, randn(2, 4))
    rewriter = Rewriter(program)
    for graph in rewriter.graphs():  # torch.export itself drops what nobody reads
        first = next(node for node in graph.nodes if node.op == "call_function")
        rewriter.begin(first)
        rewriter.call(first.target, *first.args, before=first, replaces=[first])
    Pipeline.parse("eliminate-dead").run(program)
    assert ops(program) == {"aten.randn_like": 2, "aten.add": 1}


def test_arguments_stay_though_nobody_reads_them() -> None:
    program = capture(lambda x, unused: x.relu(), randn(2), randn(3))
    Pipeline.parse("eliminate-dead").run(program)
    assert [node.name for node in placeholders(program.main)] == ["x", "unused"]


class Siblings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.q(x).sin() * self.k(x)
        return y.relu(), self.a(y).sin() * self.b(y)


def test_weights_baked_for_nobody_are_not_computed() -> None:
    program, x = capture(weights(Siblings()), randn(2, 4)), randn(2, 4)
    return_first(program)
    done = rewrite("fuse-qkv,eliminate-dead", program, x)
    baked = rewrite("fuse-qkv", program, x).after
    paths = {spec.path for spec in baked.of_kind(InputKind.DERIVED)}
    assert {"a.weight|b.weight", "a.bias|b.bias"} < paths
    assert {spec.path for spec in done.after.of_kind(InputKind.DERIVED)} == {
        "q.weight|k.weight",
        "q.bias|k.bias",
    }
    assert len(done.after.outputs[WEIGHTS]) == 2
    assert {node.name for node in placeholders(done.after.graphs[WEIGHTS].graph)} == {
        "q_weight",
        "k_weight",
        "q_bias",
        "k_bias",
    }


def test_the_weights_graph_goes_when_nothing_reads_it() -> None:
    class Model(Siblings):
        def forward(self, x):
            return x.relu(), self.q(x).sin() * self.k(x)

    program = capture(weights(Model()), randn(2, 4))
    return_first(program)
    done = rewrite("fuse-qkv,eliminate-dead", program, randn(2, 4))
    assert list(done.after.graphs) == list(done.after.outputs) == ["full"]
    assert not done.after.of_kind(InputKind.DERIVED)
    assert ops(done.after) == {"aten.relu": 1}


def test_in_the_exact_preset_it_sweeps_last() -> None:
    # RUN: exact
    # CHECK: @full
    # CHECK-NEXT: ditc.adaln_norm
    # CHECK-NEXT: return
    def forward(x, scale, shift):
        y = nn.functional.layer_norm(x, (4,)) * (1 + scale) + shift
        return y, (y + 1).sin()

    check(forward, randn(2, 4), randn(2, 4), randn(2, 4), edit=return_first)
