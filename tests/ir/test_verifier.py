"""The invariants, each broken in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import fx

from dit_compile.errors import VerificationError
from dit_compile.ir import printer, verifier
from dit_compile.ir.fake import evaluate
from dit_compile.ir.program import (
    Output,
    OutputKind,
    Program,
    output_args,
    output_node,
    placeholders,
)
from dit_compile.ir.verifier import Verifier, check_printing, excerpt
from dit_compile.pipeline.pipeline import Pipeline
from tests.ir import models
from tests.ir.models import aten, calls, layers, transformer


def gelu(program: Program) -> fx.Node:
    return calls(program, aten.gelu.default)[1]


def before(node: fx.Node, op: str, target: object, args: tuple[object, ...] = ()) -> fx.Node:
    """A raw node in front of another one."""
    with node.graph.inserting_before(node):
        return node.graph.create_node(op, target, args)


def attribute(program: Program) -> None:
    program.graphs["full"].register_buffer("table", torch.ones(8))
    before(gelu(program), "get_attr", "table")


def method(program: Program) -> None:
    before(gelu(program), "call_method", "relu", (gelu(program).args[0],))


def undeclared(program: Program) -> None:
    before(next(iter(program.main.nodes)), "placeholder", "guest")


def no_value(program: Program) -> None:
    del gelu(program).meta["val"]


def no_origin(program: Program) -> None:
    del gelu(program).meta["origin"]


def false_shape(program: Program) -> None:
    node = gelu(program)
    node.meta["val"] = calls(program, aten.linear.default)[0].meta["val"][:1]


def false_dtype(program: Program) -> None:
    node = gelu(program)
    node.meta["val"] = node.meta["val"].double()


def false_device(program: Program) -> None:
    node = gelu(program)
    with program.fake_mode:
        node.meta["val"] = node.meta["val"].to("meta")


def bad_arguments(program: Program) -> None:
    node = calls(program, aten.linear.default)[1]
    node.args = (node.args[0], node.args[2], node.args[1])


def writing(program: Program) -> None:
    gelu(program).target = aten.gelu_.default


def one_result_too_many(program: Program) -> None:
    end = output_node(program.main)
    end.args = ((*output_args(program.main), gelu(program)),)


def undeclared_state(program: Program) -> None:
    one_result_too_many(program)
    program.outputs["full"] += (Output(OutputKind.STATE, "ghost"),)


def use_before_definition(program: Program) -> None:
    first, *_, last = calls(program, aten.gelu.default)
    first.args = (last,)


def no_function(program: Program) -> None:
    gelu(program).target = "gelu"


BROKEN: list[tuple[Callable[[Program], None], str]] = [
    (attribute, "%table reads an attribute; make it an input of the program"),
    (method, "%relu is a call_method; only calls of operators are allowed"),
    (undeclared, "placeholder %guest is no declared input of the program"),
    (no_value, "node %gelu_1 has no fake value; make nodes with Rewriter.call"),
    (no_origin, "node %gelu_1 does not know its origin; make nodes with Rewriter.call"),
    (false_shape, "%gelu_1 claims f32[1,4,8], but its operator aten.gelu.default gives shape "),
    (false_dtype, "%gelu_1 claims f64[2,4,8], but its operator aten.gelu.default gives dtype f32"),
    (
        false_device,
        "%gelu_1 claims f32[2,4,8], but its operator aten.gelu.default gives device cpu",
    ),
    (bad_arguments, "%linear_1 = aten.linear.default rejects its arguments: "),
    (writing, "%gelu_1 = aten.gelu_.default writes to its argument; use the functional form"),
    (one_result_too_many, "graph @full returns 2 values but declares 1"),
    (undeclared_state, "graph @full returns state 'ghost', which is no declared input"),
    (use_before_definition, "graph @full does not lint: Argument 'gelu_2' of Node 'gelu' was used"),
    (no_function, "graph @full does not lint: Node gelu_1 target gelu has type str"),
]


@pytest.mark.parametrize(("edit", "text"), BROKEN, ids=[edit.__name__ for edit, _ in BROKEN])
def test_broken_invariants(edit: Callable[[Program], None], text: str) -> None:
    program = layers()
    edit(program)
    with pytest.raises(VerificationError) as caught:
        Verifier().check(program)
    assert str(caught.value).splitlines()[0].startswith(text)
    assert len(str(caught.value).splitlines()) <= 15  # never the whole graph


def test_good_programs_pass() -> None:
    program = transformer()
    check = Verifier()
    check.check(program)
    Pipeline.parse("exact,insert-block-cache").run(program)
    check.check(program)


class TestSignature:
    """What the caller gets stays what it was."""

    @staticmethod
    def changed(edit: Callable[[Program], None]) -> str:
        program = layers()
        check = Verifier()
        check.check(program)
        edit(program)
        with pytest.raises(VerificationError) as caught:
            check.check(program)
        return str(caught.value)

    def test_shape(self) -> None:
        def edit(program: Program) -> None:
            (last,) = output_args(program.main)
            end = output_node(program.main)
            made = before(end, "call_function", aten.unsqueeze.default, (last, 0))
            made.meta["origin"] = last.meta["origin"]
            made.meta["val"] = evaluate(made, program.fake_mode)
            end.args = ((made,),)

        head, *lines = self.changed(edit).splitlines()
        assert head == (
            "result 0 of graph @full has shape f32[1,2,4,8], not f32[2,4,8]; a pass must not "
            "change what the caller gets"
        )
        assert "  > %unsqueeze_default = aten.unsqueeze(%add_2, 0) : f32[1,2,4,8]" in lines
        assert "  module: layers.2" in lines

    def test_number(self) -> None:
        def edit(program: Program) -> None:
            one_result_too_many(program)
            program.outputs["full"] *= 2

        assert self.changed(edit) == "graph @full returns 2 results to the caller, not 1"

    def test_state_may_be_added(self) -> None:
        program = transformer()
        check = Verifier()
        check.check(program)
        Pipeline.parse("insert-block-cache").run(program)
        check.check(program)
        assert len(output_args(program.main)) > 1

    def test_state_has_the_shape_that_is_read(self) -> None:
        program = transformer()
        Pipeline.parse("insert-block-cache").run(program)
        state = next(out.name for out in program.outputs["full"] if out.kind is OutputKind.STATE)
        read = next(
            node for node in placeholders(program.graphs["reuse"].graph) if node.target == state
        )
        read.meta["val"] = read.meta["val"].double()
        with pytest.raises(VerificationError) as caught:
            Verifier().check(program)
        head = str(caught.value).splitlines()[0]
        assert head == (
            f"graph @full returns {state!r} with dtype f32, not f64 as graph @reuse reads it"
        )


def test_a_second_look_evaluates_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = layers()
    check = Verifier()
    check.check(program)
    looked: list[str] = []

    def watched(node: fx.Node, mode: object) -> object:
        looked.append(node.name)
        return evaluate(node, mode)

    monkeypatch.setattr(verifier, "evaluate", watched)
    check.check(program)
    assert looked == []
    node = calls(program, aten.mul.Tensor)[1]
    node.args = (node.args[0], 3)
    check.check(program)
    assert looked == [node.name]


def test_what_was_wrong_is_still_wrong_at_a_second_look() -> None:
    program = layers()
    false_shape(program)
    check = Verifier()
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"%gelu_1 claims"):
            check.check(program)


def test_excerpt() -> None:
    program = layers()
    node = gelu(program)
    head, *lines = excerpt(program, "full", node).splitlines()
    assert head == "  in graph @full:"
    *text, module, source = lines
    assert len(text) == 10
    assert [line for line in text if line.startswith("  > ")] == [
        "  > %gelu_1 = aten.gelu(%linear_1) : f32[2,4,8]"
    ]
    assert module == "  module: layers.1"
    assert source.startswith(f"  source: {models.__file__}:")


def test_excerpt_at_the_ends() -> None:
    program = layers()
    first = calls(program, aten.linear.default)[0]
    last = output_node(program.main)
    assert excerpt(program, "full", first).splitlines()[1].startswith("  > %linear = ")
    assert "  > return ..." in excerpt(program, "full", last).splitlines()


def test_text_that_changes_between_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    program = layers()
    check_printing(program, "full")
    texts = iter(["a\nb", "a\nc"])
    monkeypatch.setattr(verifier, "print_graph", lambda *_: next(texts))
    with pytest.raises(VerificationError, match="prints differently twice: 'b', 'c'"):
        check_printing(program, "full")
    assert printer.print_graph(program)


def test_training_graphs_may_hold_switches_without_a_value() -> None:
    program = layers()
    before(gelu(program), "call_function", torch._C._set_grad_enabled, (False,))
    with pytest.raises(VerificationError, match="no fake value"):
        Verifier().check(program)
    Verifier().check(dataclasses.replace(program, training=True))
