"""Pipelines: text, order, transactions, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.errors import PassError, PipelineError, VerificationError
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.printer import print_program
from dit_compile.ir.program import Program
from dit_compile.pipeline import registry
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import PassRecord, Pipeline, count_nodes
from dit_compile.pipeline.rewriter import Rewriter
from tests.ir.models import aten, calls, layers, transformer
from tests.pipeline.passes import Everything, Late, made_of, middle, scaled, swap


@pytest.fixture(scope="module", autouse=True)
def known_passes() -> Iterator[None]:
    """The registry with the tests' own passes beside the real ones."""
    known = {**registry.passes(), "everything": Everything, "late": Late}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "passes", lambda: known)
        yield


FINITE = st.floats(allow_nan=False, allow_infinity=False)
EVERYTHING = st.builds(
    Everything,
    count=st.integers(),
    max_error=FINITE,
    is_on=st.booleans(),
    word=st.text(max_size=10),
    maybe=st.none() | st.integers(),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    words=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
REAL = st.one_of(
    st.builds(registry.find_pass("remove-noops")),
    st.builds(registry.find_pass("fuse-qkv"), min_siblings=st.integers(2, 9)),
    st.builds(registry.find_pass("fuse-adaln")),
    st.builds(registry.find_pass("eliminate-dead")),
)
CACHE = st.integers(1, 9).map(
    lambda n: registry.find_pass("insert-block-cache").from_options({"interval": n})
)
ORDERED = st.tuples(
    st.lists(REAL | EVERYTHING, max_size=5), st.lists(CACHE | st.builds(Late), max_size=2)
)


@given(ORDERED)
def test_text_round_trip(parts: tuple[list[Pass], list[Pass]]) -> None:
    pipeline = Pipeline((*parts[0], *parts[1]))
    again = Pipeline.parse(str(pipeline))
    assert again == pipeline
    assert str(again) == str(pipeline)


def test_options_survive_the_text() -> None:
    pipeline = Pipeline.parse("fuse-qkv{min_siblings=3},insert-block-cache{interval=4}")
    assert str(pipeline) == (
        "fuse-qkv{min-siblings=3},insert-block-cache{method=interval,interval=4}"
    )
    assert [item.name for item in pipeline] == ["fuse-qkv", "insert-block-cache"]


def test_the_empty_pipeline() -> None:
    assert Pipeline.parse("") == Pipeline()
    assert str(Pipeline()) == ""
    program = layers()
    assert Pipeline().run(program).records == []


def test_presets_stand_for_their_passes() -> None:
    mixed = Pipeline.parse("exact,insert-block-cache{interval=2}")
    assert mixed == Pipeline.parse("balanced")
    with pytest.raises(PipelineError, match="preset 'exact' takes no options; list its passes"):
        Pipeline.parse("exact{interval=2}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuse-qvk", "unknown pass 'fuse-qvk'; did you mean 'fuse-qkv'?"),
        ("zzz", "unknown pass 'zzz'; `ditc passes` lists what there is"),
        ("balance", "unknown pass 'balance'; did you mean 'balanced'?"),
        (
            "fuse-qkv{min-sibling=2}",
            "fuse-qkv has no option 'min-sibling'; did you mean 'min-siblings'?; it takes "
            "min-siblings",
        ),
        ("fuse-adaln{x=1}", "fuse-adaln takes no options, so 'x' is unknown; remove it"),
        ("fuse-qkv{min-siblings=two}", "fuse-qkv: option 'min-siblings' takes int, not str 'two'"),
        (
            "insert-block-cache{method=intervall}",
            "insert-block-cache has no method 'intervall'; did you mean 'interval'?",
        ),
        ("insert-block-cache{interval=0}", "insert-block-cache: interval must be at least 1"),
        (
            "late,everything",
            "late must come after everything; move it behind, or leave one out",
        ),
        (
            "insert-block-cache,exact",
            "insert-block-cache must come after remove-noops; move it behind, or leave one out",
        ),
        ("fuse-qkv;fuse-adaln", "pipeline text: expected ','"),
    ],
)
def test_wrong_texts(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline.parse(text)
    assert str(caught.value).startswith(message)


def test_order_is_the_lists() -> None:
    names = [item.name for item in Pipeline.parse("fuse-adaln,remove-noops,fuse-adaln")]
    assert names == ["fuse-adaln", "remove-noops", "fuse-adaln"]
    assert Pipeline.parse("late") == Pipeline((Late(),))
    assert Pipeline.parse("everything,late") == Pipeline((Everything(), Late()))


class TestRecords:
    def test_what_each_pass_did(self) -> None:
        program = transformer()
        before = count_nodes(program)
        run = Pipeline.parse("eliminate-dead,fuse-qkv,fuse-adaln").run(program)
        dead, qkv, adaln = run.records
        assert [len(record.rewrites) for record in run.records] == [0, 3, 3]
        assert [record.changed for record in run.records] == [False, True, True]
        assert (dead.nodes_before, dead.nodes_after) == (before, before)
        assert qkv.nodes_after == adaln.nodes_before == before - 3 * 1
        assert adaln.nodes_after == count_nodes(program) == before - 3 * 4
        assert run.dropped == []
        assert 0 < sum(record.seconds for record in run.records) <= run.seconds

    def test_a_change_is_computed_not_claimed(self) -> None:
        def same_again(program: Program, rw: Rewriter) -> None:
            swap(aten.gelu.default)(program, rw)

        (record,) = Pipeline((made_of(same_again),)).run(layers()).records
        assert len(record.rewrites) == 1
        assert not record.changed

    def test_a_second_time_changes_nothing(self) -> None:
        program = transformer()
        Pipeline.parse("exact").run(program)
        again = Pipeline.parse("exact").run(program)
        assert not any(record.changed for record in again.records)


def fail_half_way(program: Program, rw: Rewriter) -> None:
    """Edit a graph, an annotation, an input and the outputs, then stumble."""
    swap(aten.relu.default)(program, rw)
    program.annotations["layers.0"] = {"scheme": "int8"}
    program.outputs["full"] = ()
    program.constants.clear()
    raise ZeroDivisionError("stumbled")


class TestTransactions:
    def test_a_failing_pass_leaves_no_trace_and_later_ones_run(self) -> None:
        failing = made_of(fail_half_way)
        good = Pipeline.parse("remove-noops,fuse-qkv")
        first, second = good.passes
        expected, program = transformer(), transformer()
        good.run(expected)

        def stumble(program: Program, rw: Rewriter) -> None:
            for norm in calls(program, aten.layer_norm.default):
                rw.graph_name = "full"
                rw.begin(norm)
                new = rw.call(aten.relu.default, norm.args[0], before=norm, replaces=[norm])
                rw.replace(norm, new)
            program.annotations["blocks.0"] = {"scheme": "int8"}
            program.constants.clear()
            raise ZeroDivisionError("stumbled")

        for bad in (made_of(stumble), failing):
            program = transformer()
            run = Pipeline((first, bad, second)).run(
                program, instruments=[StructuralCheck()], undo_failures=True
            )
            assert print_program(program) == print_program(expected)
            assert fingerprint(program) == fingerprint(expected)
            assert set(program.constants) == set(expected.constants)
            assert [record.item.name for record in run.dropped] == ["broken"]
            assert len(run.records[2].rewrites) == 3
            assert not run.records[1].changed
            assert run.records[1].rewrites == []

    def test_the_failure_names_the_pass_and_the_cause(self) -> None:
        pipeline = Pipeline((*Pipeline.parse("remove-noops").passes, made_of(fail_half_way)))
        run = pipeline.run(layers(), undo_failures=True)
        assert run.dropped[0].failure.splitlines() == [
            "pass broken (#1): ZeroDivisionError: stumbled",
            "  pipeline so far: remove-noops,broken",
        ]

    def test_a_rejected_pass_is_undone_too(self) -> None:
        program, untouched = layers(), layers()

        def lose_origin(program: Program, rw: Rewriter) -> None:
            del swap(aten.relu.default)(program, rw).meta["origin"]

        run = Pipeline((made_of(lose_origin),)).run(
            program, instruments=[StructuralCheck()], undo_failures=True
        )
        assert "does not know its origin" in run.records[0].failure
        assert print_program(program) == print_program(untouched)

    def test_several_failures(self) -> None:
        program, expected = transformer(), transformer()
        Pipeline.parse("fuse-qkv").run(expected)
        bad = made_of(fail_half_way)
        (good,) = Pipeline.parse("fuse-qkv").passes
        run = Pipeline((bad, good, bad, bad)).run(program, undo_failures=True)
        assert len(run.dropped) == 3
        assert print_program(program) == print_program(expected)

    def test_without_undoing_it_raises_with_its_cause(self) -> None:
        program, untouched = layers(), layers()
        with pytest.raises(PassError, match=r"^pass broken \(#0\): ZeroDivisionError") as caught:
            Pipeline((made_of(fail_half_way),)).run(program)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert print_program(program) == print_program(untouched)

    @pytest.mark.parametrize("undo", [True, False])
    def test_whatever_a_check_raises(self, undo: bool) -> None:
        """An error inside of an instrument counts as the pass's, not as the program's end."""

        class Shaky:
            def start(self, program: Program) -> None:
                pass

            def after(self, record: PassRecord, program: Program) -> None:
                raise KeyError("lost")

        pipeline = Pipeline((made_of(scaled(1.0)),))
        if undo:
            run = pipeline.run(layers(), instruments=[Shaky()], undo_failures=True)
            assert run.dropped[0].failure.startswith("pass broken (#0): KeyError: 'lost'")
        else:
            with pytest.raises(PassError, match="KeyError"):
                pipeline.run(layers(), instruments=[Shaky()])

    def test_a_bad_captured_program_is_no_passs_fault(self) -> None:
        program = layers()
        del middle(program).meta["origin"]
        with pytest.raises(VerificationError) as caught:
            Pipeline.parse("exact").run(
                program, instruments=[StructuralCheck()], undo_failures=True
            )
        assert str(caught.value).startswith("node %gelu_1 does not know its origin")


class TestLimits:
    def test_none_of_a_pass_is_not_running_it(self) -> None:
        program = transformer()
        run = Pipeline.parse("remove-noops,fuse-qkv,fuse-adaln").run(program, limit=(1, 0))
        assert [record.item.name for record in run.records] == ["remove-noops"]
        assert print_program(program) == print_program(transformer())

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_stops_after_n_rewrites_of_pass_i(self, count: int) -> None:
        program = transformer()
        check = StructuralCheck()
        run = Pipeline.parse("remove-noops,fuse-qkv,fuse-adaln").run(
            program, instruments=[check], limit=(1, count)
        )
        assert [record.item.name for record in run.records] == ["remove-noops", "fuse-qkv"]
        assert len(run.records[1].rewrites) == count
        assert len(calls(program, aten.split_with_sizes.default)) == count
        assert len(calls(program, aten.layer_norm.default)) == 3

    def test_a_limit_beyond_the_end(self) -> None:
        limited, whole = transformer(), transformer()
        Pipeline.parse("fuse-qkv").run(limited, limit=(0, 99))
        Pipeline.parse("fuse-qkv").run(whole)
        assert print_program(limited) == print_program(whole)

    def test_n_rewrites_are_the_first_n(self) -> None:
        program = transformer()
        run = Pipeline.parse("fuse-adaln").run(program, limit=(0, 2))
        assert [rewrite.path for rewrite in run.records[0].rewrites] == ["blocks.0", "blocks.1"]
        assert calls(program, aten.layer_norm.default)[0].name == "layer_norm_2"


class TestTraining:
    @pytest.mark.parametrize("text", ["fuse-qkv", "insert-block-cache"])
    def test_what_bakes_or_approximates_is_left_out(self, text: str) -> None:
        program = dataclasses.replace(transformer(), training=True)
        before = fingerprint(program)
        skipped, ran = Pipeline.parse(f"{text},eliminate-dead").run(program).records
        assert skipped.skipped == "autograd records"
        assert not ran.skipped
        assert fingerprint(program) == before

    def test_exact_passes_run(self) -> None:
        program = dataclasses.replace(transformer(), training=True)
        (record,) = Pipeline.parse("fuse-adaln").run(program).records
        assert len(record.rewrites) == 3


class TestKinds:
    def test_annotating_is_a_change_of_the_program_alone(self) -> None:
        def annotate(program: Program, rw: Rewriter) -> None:
            program.annotations["layers.1"] = {"scheme": "int8"}

        program = layers()
        (record,) = Pipeline((made_of(annotate, Kind.ANNOTATE),)).run(program).records
        assert record.changed
        assert program.annotations == {"layers.1": {"scheme": "int8"}}

    @pytest.mark.parametrize("through_rewriter", [True, False])
    def test_annotating_must_not_touch_a_graph(self, through_rewriter: bool) -> None:
        def annotate(program: Program, rw: Rewriter) -> Any:
            if through_rewriter:
                return swap(aten.relu.default)(program, rw)
            return setattr(middle(program), "target", aten.relu.default)

        pipeline = Pipeline((made_of(annotate, Kind.ANNOTATE, "annotate-quant"),))
        with pytest.raises(PassError) as caught:
            pipeline.run(layers())
        assert str(caught.value).splitlines() == [
            "pass annotate-quant (#0): an ANNOTATE pass must not change a graph; it may only "
            "annotate",
            "  pipeline so far: annotate-quant",
        ]

    def test_edits_go_through_the_rewriter(self) -> None:
        def edit(program: Program, rw: Rewriter) -> None:
            middle(program).target = aten.relu.default

        with pytest.raises(PassError) as caught:
            Pipeline((made_of(edit),)).run(layers())
        assert str(caught.value).splitlines() == [
            "pass broken (#0): it changed a graph without the Rewriter; edits must go through it",
            "  pipeline so far: broken",
        ]
