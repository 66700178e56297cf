"""Each way in which a pass can lie, and who finds out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dit_compile.errors import DitcError, NumericError, OptionError, VerificationError
from dit_compile.ir.fake import evaluate
from dit_compile.ir.program import Program, output_node
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.instruments import NumericCheck, StructuralCheck
from dit_compile.pipeline.pipeline import Pipeline, PipelineRun
from dit_compile.pipeline.rewriter import Rewriter
from tests.ir import models
from tests.ir.models import (
    Layers,
    aten,
    calls,
    capture,
    layers,
    noise,
    program_of,
    seeded,
    transformer,
)
from tests.pipeline.passes import made_of, middle, scaled, swap

Edit = Callable[[Program, Rewriter], Any]


def numeric(shape: tuple[int, ...] = (2, 4, 8), **options: Any) -> NumericCheck:
    return NumericCheck({"x": noise(*shape, **options)})


def rejected(edit: Edit, kind: Kind = Kind.EXACT, program: Program | None = None) -> DitcError:
    """What stops a pass after ``remove-noops``, with every check on."""
    pipeline = Pipeline((*Pipeline.parse("remove-noops").passes, made_of(edit, kind)))
    with pytest.raises(DitcError) as caught:
        pipeline.run(program or layers(), instruments=[StructuralCheck(), numeric()])
    return caught.value


def assert_context(error: DitcError, head: str, *, marked: str, module: str) -> None:
    """The message has the form that style.md asks for."""
    first, where, *rest = str(error).splitlines()
    *lines, path, source, pipeline = rest
    assert re.fullmatch(head, first), first
    assert where == "  in graph @full:"
    assert 5 <= len(lines) <= 10
    assert [line for line in lines if line.startswith("  > ")] == [f"  > {marked}"]
    assert path == f"  module: {module}"
    assert re.fullmatch(rf"  source: {re.escape(models.__file__)}:\d+", source)
    assert pipeline == "  pipeline so far: remove-noops,broken"


def false_meta(change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(program: Program, rw: Rewriter) -> None:
        node = swap(aten.relu.default)(program, rw)
        node.meta["val"] = change(node.meta["val"])

    return edit


def changed_result(target: Any, *rest: Any, **options: Any) -> Edit:
    def edit(program: Program, rw: Rewriter) -> None:
        for _ in rw.graphs():
            last = calls(program, aten.add.Tensor)[-1]
            rw.begin(last)
            new = rw.call(
                target,
                last,
                *rest,
                before=output_node(program.main),
                replaces=[last],
                **options,
            )
            output_node(program.main).replace_input_with(last, new)

    return edit


class TestStructure:
    def test_wrong_shape_of_the_result(self) -> None:
        error = rejected(changed_result(aten.unsqueeze.default, 0))
        assert isinstance(error, VerificationError)
        assert_context(
            error,
            r"pass broken \(#1\): result 0 of graph @full has shape f32\[1,2,4,8\], not "
            r"f32\[2,4,8\]; a pass must not change what the caller gets",
            marked="%unsqueeze = aten.unsqueeze(%add_2, 0) : f32[1,2,4,8]",
            module="layers.2",
        )

    def test_wrong_dtype_of_the_result(self) -> None:
        error = rejected(changed_result(aten._to_copy.default, dtype=torch.bfloat16))
        assert_context(
            error,
            r"pass broken \(#1\): result 0 of graph @full has dtype bf16, not f32; .*",
            marked="%_to_copy = aten._to_copy(%add_2, dtype=bf16) : bf16[2,4,8]",
            module="layers.2",
        )

    def test_wrong_claim_about_a_shape(self) -> None:
        assert_context(
            rejected(false_meta(lambda value: value[:1])),
            r"pass broken \(#1\): %relu claims f32\[1,4,8\], but its operator aten.relu.default "
            r"gives shape f32\[2,4,8\], not f32\[1,4,8\]",
            marked="%relu = aten.relu(%linear_1) : f32[1,4,8]",
            module="layers.1",
        )

    def test_wrong_claim_about_a_dtype(self) -> None:
        assert_context(
            rejected(false_meta(Tensor.double)),
            r"pass broken \(#1\): %relu claims f64\[2,4,8\], but its operator aten.relu.default "
            r"gives dtype f32, not f64",
            marked="%relu = aten.relu(%linear_1) : f64[2,4,8]",
            module="layers.1",
        )

    def test_a_shape_that_does_not_fit_its_users(self) -> None:
        error = rejected(swap(aten.unsqueeze.default, 0))
        assert_context(
            error,
            r"pass broken \(#1\): %mul_1 claims f32\[2,4,8\], but its operator aten.mul.Tensor "
            r"gives shape f32\[1,2,4,8\], not f32\[2,4,8\]",
            marked="%mul_1 = aten.mul(%unsqueeze, 2) : f32[2,4,8]",
            module="layers.1",
        )

    def test_mutation(self) -> None:
        assert_context(
            rejected(swap(aten.relu_.default)),
            r"pass broken \(#1\): %relu_ = aten.relu_.default writes to its argument; use the "
            r"functional form",
            marked="%relu_ = aten.relu_(%linear_1) : f32[2,4,8]",
            module="layers.1",
        )

    def test_no_origin(self) -> None:
        def edit(program: Program, rw: Rewriter) -> None:
            del swap(aten.relu.default)(program, rw).meta["origin"]

        first, *rest = str(rejected(edit)).splitlines()
        assert first == (
            "pass broken (#1): node %relu does not know its origin; make nodes with Rewriter.call"
        )
        assert "  > %relu = aten.relu(%linear_1) : f32[2,4,8]" in rest
        assert rest[-1] == "  pipeline so far: remove-noops,broken"

    def test_a_raw_node_has_neither_value_nor_origin(self) -> None:
        def edit(program: Program, rw: Rewriter) -> None:
            old = middle(program)
            with program.main.inserting_before(old):
                new = program.main.call_function(aten.relu.default, (old.args[0],))
            rw.graph_name = "full"
            rw.begin(old)
            rw.replace(old, new)

        assert "node %relu_default has no fake value" in str(rejected(edit))

    def test_an_edit_past_the_rewriter(self) -> None:
        def edit(program: Program, rw: Rewriter) -> None:
            middle(program).target = aten.relu.default

        assert str(rejected(edit)).splitlines() == [
            "pass broken (#1): it changed a graph without the Rewriter; edits must go through it",
            "  pipeline so far: remove-noops,broken",
        ]

    def test_an_annotation_that_changes_the_graph(self) -> None:
        assert str(rejected(swap(aten.relu.default), Kind.ANNOTATE)).splitlines() == [
            "pass broken (#1): an ANNOTATE pass must not change a graph; it may only annotate",
            "  pipeline so far: remove-noops,broken",
        ]

    def test_a_graph_out_of_order(self) -> None:
        def edit(program: Program, rw: Rewriter) -> None:
            rw.graph_name = "full"
            first, *_, last = calls(program, aten.gelu.default)
            rw.begin(first)
            rw.replace(first, last)

        assert_context(
            rejected(edit),
            r"pass broken \(#1\): %mul reads %gelu_2, which is made after it or was erased",
            marked="%mul = aten.mul(%gelu_2, 2) : f32[2,4,8]",
            module="layers.0",
        )

    def test_time_is_kept_apart(self) -> None:
        check = StructuralCheck()
        run = Pipeline.parse("exact").run(transformer(), instruments=[check])
        spent = [record.details.get("verify_seconds") for record in run.records]
        assert [each is not None for each in spent] == [record.changed for record in run.records]
        assert 0 < sum(each for each in spent if each) < check.seconds


def checked(
    edit: Edit, program: Program, check: NumericCheck, kind: Kind = Kind.EXACT
) -> PipelineRun:
    return Pipeline((made_of(edit, kind),)).run(program, instruments=[check])


def unfused_linear(program: Program, rw: Rewriter) -> None:
    """The product and the bias one after the other: only rounding moves."""
    for _ in rw.graphs():
        for linear in calls(program, aten.linear.default):
            x, weight, bias = linear.args
            rw.begin(linear)
            turned = rw.call(aten.t.default, weight, before=linear, replaces=[linear])
            product = rw.call(aten.matmul.default, x, turned, before=linear, replaces=[linear])
            total = rw.call(aten.add.Tensor, product, bias, before=linear, replaces=[linear])
            rw.replace(linear, total)


def through_half(program: Program, rw: Rewriter) -> None:
    """The same mathematics with far worse rounding."""
    for _ in rw.graphs():
        gelu = middle(program)
        rw.begin(gelu)
        for dtype in (torch.bfloat16, torch.float32):
            cast = rw.call(
                aten._to_copy.default,
                gelu.args[0] if dtype is torch.bfloat16 else cast,  # noqa: F821 - the last round's
                dtype=dtype,
                before=gelu,
                replaces=[gelu],
            )
        rw.replace_input(gelu, gelu.args[0], cast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestNumbers:
    def test_rounding_is_accepted(self, dtype: torch.dtype) -> None:
        program = capture(seeded(Layers, dtype), noise(2, 4, 8, dtype=dtype))
        (record,) = checked(unfused_linear, program, numeric(dtype=dtype)).records
        assert len(record.rewrites) == 3
        growth = record.details["error_growth"]
        assert isinstance(growth, float)
        assert 0 < growth < 3

    @pytest.mark.parametrize("kind", [Kind.EXACT, Kind.LOWER])
    def test_an_error_of_one_in_a_thousand_is_not(self, dtype: torch.dtype, kind: Kind) -> None:
        program = capture(seeded(Layers, dtype), noise(2, 4, 8, dtype=dtype))
        with pytest.raises(NumericError, match=r"result 0 of graph @full moves by 0.001 \("):
            checked(scaled(1.001), program, numeric(dtype=dtype), kind)

    def test_an_approximation_is_measured_not_judged(self, dtype: torch.dtype) -> None:
        program = capture(seeded(Layers, dtype), noise(2, 4, 8, dtype=dtype))
        run = checked(scaled(1.5), program, numeric(dtype=dtype), Kind.APPROX)
        growth = run.records[0].details["error_growth"]
        assert isinstance(growth, float)
        assert growth > 10


class TestNumericCheck:
    def test_the_message(self) -> None:
        error = rejected(scaled(1.001))
        assert isinstance(error, NumericError)
        head, where, removed, *added, module, source, pipeline = str(error).splitlines()
        assert head == (
            "pass broken (#1): the pass is not exact: result 0 of graph @full moves by 0.001 "
            "(relative L2) even in float64"
        )
        assert where == "  first of 1 rewrites, in graph @full:"
        assert removed == "  - %add_2 = aten.add(%add_1, %mul_2) : f32[2,4,8]"
        assert added == [
            "  + %add_3 = aten.add(%add_1, %mul_2) : f32[2,4,8]",
            "  + %mul_3 = aten.mul(%add_3, 1.001) : f32[2,4,8]",
        ]
        assert module == "  module: layers.2"
        assert re.fullmatch(rf"  source: {re.escape(models.__file__)}:\d+", source)
        assert pipeline == "  pipeline so far: remove-noops,broken"

    def test_a_wrong_function_far_from_the_result(self) -> None:
        def tanh(program: Program, rw: Rewriter) -> None:
            for _ in rw.graphs():
                old = middle(program)
                rw.begin(old)
                new = rw.call(
                    aten.gelu.default, old.args[0], approximate="tanh", before=old, replaces=[old]
                )
                rw.replace(old, new)

        error = rejected(tanh)
        assert isinstance(error, NumericError)
        assert "  + %gelu_3 = aten.gelu(%linear_1, approximate='tanh') : f32[2,4,8]" in str(error)

    def test_rounding_worse_than_before(self) -> None:
        error = rejected(through_half)
        assert isinstance(error, NumericError)
        assert re.search(
            r"result 0 of graph @full is \S+ away from float64 \(relative L2\), \S+ before it; at "
            r"most 2 x \S+ \+ 1.19e-07 is rounding",
            str(error),
        )

    def test_not_a_number(self) -> None:
        with pytest.raises(NumericError, match="moves by nan"):
            checked(scaled(math.nan), layers(), numeric())

    def test_every_graph_is_judged(self) -> None:
        def spoil_the_variant(program: Program, rw: Rewriter) -> None:
            for graph in rw.graphs():
                last = calls(program, aten.add.Tensor, rw.graph_name)[-1]
                if rw.graph_name == "reuse":
                    rw.begin(last)
                    new = rw.call(
                        aten.mul.Tensor, last, 1.001, before=output_node(graph), replaces=[last]
                    )
                    output_node(graph).replace_input_with(last, new)

        pipeline = Pipeline(
            (*Pipeline.parse("insert-block-cache").passes, made_of(spoil_the_variant))
        )
        inputs = {"x": noise(2, 4, 8), "c": noise(2, 8)}
        with pytest.raises(NumericError, match="result 0 of graph @reuse"):
            pipeline.run(transformer(), instruments=[NumericCheck(inputs)])

    def test_after_an_approximation_exact_means_no_further(self) -> None:
        """An exact pass is compared with what the approximation left."""
        pipeline = Pipeline((made_of(scaled(1.5), Kind.APPROX), made_of(unfused_linear)))
        run = pipeline.run(layers(), instruments=[numeric()])
        assert run.records[1].details["error_growth"] == pytest.approx(1.0, rel=1e-3)
        pipeline = Pipeline((made_of(scaled(1.5), Kind.APPROX), made_of(scaled(1.001))))
        with pytest.raises(NumericError, match=r"moves by 0\.001"):
            pipeline.run(layers(), instruments=[numeric()])

    def test_nothing_changed_nothing_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check = numeric()
        check.start(layers())
        monkeypatch.setattr(check, "_errors", lambda program: pytest.fail("ran again"))
        (record,) = Pipeline.parse("fuse-adaln").run(layers()).records
        check.after(record, layers())
        assert "error_growth" not in record.details

    @pytest.mark.parametrize(
        "results",
        [
            lambda x: (x.sin() * 1, x.argmax(-1)),
            lambda x: (x.sin() * 1, None, 3),
            lambda x: (x.sin() * 1, x[:0].sin()),
            lambda x: torch.complex(x * 1, x),
            lambda x: (x * 1) > 0,
            lambda x: x * 1 * 0,
        ],
        ids=["integers", "no tensors", "empty", "complex", "booleans", "zeros"],
    )
    def test_results_of_all_sorts(self, results: Callable[[Tensor], Any]) -> None:
        x = noise(2, 4)
        program = program_of(results, x)
        (name,) = program.inputs
        check = NumericCheck({name: x})
        (record,) = Pipeline.parse("remove-noops").run(program, instruments=[check]).records
        assert record.changed
        growth = record.details["error_growth"]
        assert isinstance(growth, float)
        assert growth <= 1

    def test_wrong_integers(self) -> None:
        x = noise(2, 4)
        program = program_of(lambda x: (x.argmax(-1) + 0) * 2, x)
        (name,) = program.inputs

        def one_more(program: Program, rw: Rewriter) -> None:
            for _ in rw.graphs():
                (add,) = calls(program, aten.add.Tensor)
                rw.begin(add)
                args = (add.args[0], 1)
                rw.replace(add, rw.call(aten.add.Tensor, *args, before=add, replaces=[add]))

        with pytest.raises(NumericError):
            checked(one_more, program, NumericCheck({name: x}))

    def test_complex_errors_count_in_both_parts(self) -> None:
        x = noise(2, 4)
        program = program_of(lambda x: torch.complex(x, x.sin()), x)
        (name,) = program.inputs

        def spoil(program: Program, rw: Rewriter) -> None:
            for _ in rw.graphs():
                (sin,) = calls(program, aten.sin.default)
                rw.begin(sin)
                new = rw.call(aten.cos.default, sin.args[0], before=sin, replaces=[sin])
                rw.replace(sin, new)

        with pytest.raises(NumericError):
            checked(spoil, program, NumericCheck({name: x}))

    def test_random_models_cannot_be_compared(self) -> None:
        program = program_of(lambda x: F.dropout(x), noise(2))
        with pytest.raises(OptionError) as caught:
            NumericCheck({"x": noise(2)}).start(program)
        assert str(caught.value) == (
            "the model draws random numbers (%native_dropout), so its results cannot be compared; "
            "call model.eval(), or turn the numeric check off"
        )


def test_values_of_new_nodes_are_those_of_their_operators() -> None:
    program = layers()
    Pipeline((made_of(unfused_linear),)).run(program)
    for node in program.main.nodes:
        if node.op == "call_function":
            assert evaluate(node, program.fake_mode).shape == node.meta["val"].shape
