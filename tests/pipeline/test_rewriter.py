"""The Rewriter's books."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor

from dit_compile.errors import PassError
from dit_compile.ir.origin import Origin, origin_of
from dit_compile.ir.program import Binding, InputKind, OutputKind, Program, placeholders
from dit_compile.ir.verifier import Verifier
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.rewriter import Miss, RewriteLimitReached, Rewriter
from dit_compile.runtime.reference import run_reference
from tests.ir import models
from tests.ir.models import (
    Transformer,
    aten,
    calls,
    capture,
    layers,
    noise,
    program_of,
    seeded,
    transformer,
)
from tests.pipeline.passes import middle


def rewriter(program: Program, limit: int | None = None) -> Rewriter:
    made = Rewriter(program, limit=limit)
    made.graph_name = "full"
    return made


class TestNewNodes:
    def test_inherit_where_they_come_from(self) -> None:
        program = layers()
        rw = rewriter(program)
        gelu, mul = middle(program), calls(program, aten.mul.Tensor)[1]
        rw.begin(gelu)
        new = rw.call(aten.relu.default, gelu.args[0], before=gelu, replaces=[gelu, mul])
        origin = origin_of(new)
        assert origin.path == "layers.1"
        assert origin.parents == ("gelu_1", "mul_1")
        assert origin.source.startswith(f"{models.__file__}:")
        assert new.meta["nn_module_stack"] is gelu.meta["nn_module_stack"]
        assert new.meta["stack_trace"] == gelu.meta["stack_trace"]

    def test_have_a_value_and_a_readable_name(self) -> None:
        program = layers()
        rw = rewriter(program)
        gelu = middle(program)
        rw.begin(gelu)
        new = rw.call(aten.mean.dim, gelu.args[0], [-1], before=gelu, replaces=[gelu])
        assert list(new.meta["val"].shape) == [2, 4]
        assert new.meta["val"].fake_mode is program.fake_mode
        assert new.name == "mean"

    def test_parents_are_the_captured_nodes(self) -> None:
        """Rewriting what a rewrite made leads back to the capture, not to the first rewrite."""
        program = layers()
        rw = rewriter(program)
        gelu = middle(program)
        rw.begin(gelu)
        first = rw.call(aten.relu.default, gelu.args[0], before=gelu, replaces=[gelu])
        rw.replace(gelu, first)
        second = rw.call(aten.silu.default, first.args[0], before=first, replaces=[first])
        assert origin_of(second).parents == ("gelu_1",)

    def test_bad_arguments_are_an_error_at_once(self) -> None:
        program = layers()
        rw = rewriter(program)
        gelu = middle(program)
        rw.begin(gelu)
        with pytest.raises(RuntimeError, match="shape"):
            rw.call(aten.view.default, gelu, [7], before=gelu, replaces=[gelu])


class TestBooks:
    def test_a_rewrite_keeps_its_lines_in_order(self) -> None:
        program = transformer()
        (record,) = Pipeline.parse("fuse-adaln").run(program).records
        first = record.rewrites[0]
        assert (first.graph, first.path) == ("full", "blocks.0")
        assert first.source.startswith(f"{models.__file__}:")
        removed = [line.partition(" = ")[0] for line in first.removed]
        assert removed == ["%layer_norm", "%add", "%mul", "%add_1"]
        assert first.added == [
            "%adaln_norm = ditc.adaln_norm(%x, %getitem, %getitem_1, 1e-05) : f32[2,4,8]"
        ]

    def test_results_that_are_unpacked_share_a_line(self) -> None:
        (record,) = Pipeline.parse("fuse-qkv").run(transformer()).records
        assert len(record.rewrites) == 3
        assert [line.rpartition(" = ")[0] for line in record.rewrites[0].added] == [
            "%linear_12",
            "%getitem_6, %getitem_7, %getitem_8",
        ]

    def test_a_node_that_is_read_twice_is_removed_once(self) -> None:
        def forward(x: Tensor) -> Tensor:
            gate = x.exp()
            return gate * (gate + 1)

        program = program_of(forward, noise(2))
        rw = rewriter(program)
        (product,) = calls(program, aten.mul.Tensor)
        rw.begin(product)
        new = rw.call(
            aten.relu.default, placeholders(program.main)[0], before=product, replaces=[product]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rw.replace(product, new)
        rw.finish()
        removed = [line.partition(" = ")[0] for line in rw.rewrites[0].removed]
        assert removed == ["%exp", "%add", "%mul"]
        assert [node.name for node in program.main.nodes if node.op == "call_function"] == ["relu"]

    def test_what_others_read_stays(self) -> None:
        program = layers()
        rw = rewriter(program)
        mul = calls(program, aten.mul.Tensor)[1]
        linear = middle(program).args[0]
        rw.begin(mul)
        rw.replace(mul, rw.call(aten.relu.default, linear, before=mul, replaces=[mul]))
        rw.finish()
        assert rw.rewrites[0].removed == [
            "%gelu_1 = aten.gelu(%linear_1) : f32[2,4,8]",
            "%mul_1 = aten.mul(%gelu_1, 2) : f32[2,4,8]",
        ]

    def test_random_operators_stay(self) -> None:
        program = program_of(lambda x: torch.bernoulli(x.abs()), noise(2))
        rw = rewriter(program)
        (draw,) = calls(program, aten.bernoulli.default)
        rw.begin(draw)
        rw.replace(draw, draw.args[0])
        assert calls(program, aten.bernoulli.default) == [draw]

    def test_nodes_that_come_and_go_in_one_rewrite_are_not_shown(self) -> None:
        program = layers()
        rw = rewriter(program)
        gelu = middle(program)
        rw.begin(gelu)
        trial = rw.call(aten.relu.default, gelu.args[0], before=gelu, replaces=[gelu])
        rw.sweep(trial)
        rw.finish()
        assert (rw.rewrites[0].removed, rw.rewrites[0].added) == ([], [])

    def test_one_user_is_redirected(self) -> None:
        program = layers()
        rw = rewriter(program)
        add, linear = calls(program, aten.add.Tensor)[1], calls(program, aten.linear.default)[1]
        first, product = add.args
        rw.begin(add)
        rw.replace_input(add, first, linear)
        rw.replace_input(add, product, linear)
        rw.finish()
        assert add.args == (linear, linear)
        assert rw.rewrites[0].removed == ["%add_1 = aten.add(%add, %mul_1) : f32[2,4,8]"]
        assert rw.rewrites[0].added == ["%add_1 = aten.add(%linear_1, %linear_1) : f32[2,4,8]"]

    def test_an_edit_outside_of_a_rewrite(self) -> None:
        program = layers()
        rw = rewriter(program)
        gelu = middle(program)
        rw.call(aten.relu.default, gelu.args[0], before=gelu, replaces=[gelu])
        with pytest.raises(PassError, match=r"a pass must call Rewriter.begin before it edits"):
            rw.finish()

    def test_the_limit(self) -> None:
        program = layers()
        rw = rewriter(program, limit=1)
        rw.begin(middle(program))
        with pytest.raises(RewriteLimitReached):
            rw.begin(middle(program))
        assert len(rw.rewrites) == 1

    def test_rewrites_belong_to_their_graph(self) -> None:
        program = transformer()
        run = Pipeline.parse("insert-block-cache,fuse-adaln").run(program)
        graphs = [rewrite.graph for rewrite in run.records[1].rewrites]
        assert graphs.count("full") == 3
        assert set(graphs) <= {"full", "reuse"}


class TestMisses:
    def test_say_where_why_and_because_of_whom(self) -> None:
        program = capture(seeded(lambda: Transformer(2, affine=(1,))), noise(2, 4, 8), noise(2, 8))
        (record,) = Pipeline.parse("fuse-adaln").run(program).records
        (miss,) = record.misses
        assert len(record.rewrites) == 1
        assert dataclasses.replace(miss, source="") == Miss(
            "full",
            "blocks.1.norm",
            "layer_norm_1",
            "the layer norm has an affine weight",
            "@blocks.1.norm.weight",
        )
        assert miss.source.startswith(f"{models.__file__}:")

    def test_culprits_may_be_values_or_nobody(self) -> None:
        program = layers()
        rw = rewriter(program)
        gelu = middle(program)
        rw.miss(gelu, "too small", gelu.args[0])
        rw.miss(gelu, "too small")
        assert [miss.culprit for miss in rw.misses] == ["%linear_1", ""]

    def test_notes(self) -> None:
        rw = rewriter(layers())
        rw.note("3 variants")
        assert rw.notes == ["3 variants"]


class TestDerivedWeights:
    @staticmethod
    def joined(program: Program, path: str = "joined", dim: int = 0) -> Rewriter:
        """Concatenate the weights of the first two linears."""
        rw = rewriter(program)
        first, second = calls(program, aten.linear.default)[:2]
        rw.begin(first)
        rw.made = rw.derive(
            aten.cat.default, [first.args[1], second.args[1]], dim, path=path, before=first
        )
        return rw

    def test_become_inputs_computed_by_the_weights_graph(self) -> None:
        program = layers()
        node = self.joined(program).made
        spec = program.inputs[node.target]
        assert (spec.kind, spec.binding, spec.path) == (InputKind.DERIVED, Binding.WEIGHT, "joined")
        assert program.is_weight(node)
        assert list(node.meta["val"].shape) == [16, 8]
        assert [output.kind for output in program.outputs["weights"]] == [OutputKind.DERIVED]
        assert origin_of(node) == Origin(
            "joined", "", ("layers_0_proj_weight", "layers_1_proj_weight")
        )
        Verifier().check(program)

    def test_are_computed_once_for_one_path(self) -> None:
        program = layers()
        first, second = self.joined(program), self.joined(program)
        assert first.made is second.made
        assert len(calls(program, aten.cat.default, "weights")) == 1

    def test_a_path_stands_for_one_value(self) -> None:
        program = layers()
        self.joined(program)
        with pytest.raises(PassError) as caught:
            self.joined(program, dim=1)
        assert (
            str(caught.value) == "'joined' is the path of another value already; give a unique one"
        )

    def test_paths_that_look_alike_get_names_of_their_own(self) -> None:
        program = layers()
        names = {self.joined(program, path).made.name for path in ("a.b", "a|b", "a_b")}
        assert names == {"a_b", "a_b_2", "a_b_3"}

    def test_from_derived_ones(self) -> None:
        program = layers()
        rw = self.joined(program)
        first = calls(program, aten.linear.default)[0]
        half = rw.derive(aten.slice.Tensor, rw.made, 0, 0, 8, path="half", before=first)
        rw.replace_input(first, first.args[1], half)
        rw.finish()
        Verifier().check(program)
        expected = run_reference(layers(), {"x": noise(2, 4, 8)})
        found = run_reference(program, {"x": noise(2, 4, 8)})
        assert torch.equal(found["full"][0], expected["full"][0])

    def test_only_from_weights(self) -> None:
        program = layers()
        gelu = middle(program)
        rw = rewriter(program)
        rw.begin(gelu)
        with pytest.raises(PassError, match="bad: only weights can be computed ahead of the loop"):
            rw.derive(aten.relu.default, gelu.args[0], path="bad", before=gelu)
        with pytest.raises(PassError, match="only weights"):
            rw.derive(aten.relu.default, placeholders(program.main)[-1], path="bad", before=gelu)
        assert "weights" not in program.graphs

    def test_not_while_autograd_records(self) -> None:
        program = dataclasses.replace(layers(), training=True)
        with pytest.raises(
            PassError, match="nothing can be computed ahead of the loop while autograd records"
        ):
            self.joined(program)

    def test_a_missing_producer(self) -> None:
        program = layers()
        placeholders(program.main)[-1].target = "elsewhere"
        with pytest.raises(PassError, match="no graph of the program returns 'x'"):
            rewriter(program).placeholder("x", like=[])
