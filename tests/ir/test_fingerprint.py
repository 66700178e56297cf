"""Fingerprints see computations, not names or the order of what is independent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.nn import functional as F

from dit_compile.errors import VerificationError
from dit_compile.ir.fingerprint import computation, fingerprint
from dit_compile.ir.program import Binding, Output, OutputKind, Program, output_node
from dit_compile.ir.schedule import Schedule
from dit_compile.passes.block_cache.interval import Interval
from tests.ir.models import aten, calls, layers, noise, program_of, transformer


def mark(function: Callable[..., Any], *args: Tensor, weights: tuple[Tensor, ...] = ()) -> str:
    return fingerprint(program_of(function, *(args or (noise(2, 4),)), weights=weights))


def renamed_and_reordered(program: Program, order: list[float]) -> Program:
    """A program with other node names, in another topological order; ``order`` gives priorities."""
    old = program.main
    priority = dict(zip(old.nodes, order, strict=True))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    waiting = [node for node in old.nodes if node.op != "output"]
    while waiting:
        ready = [node for node in waiting if all(arg in copies for arg in node.all_input_nodes)]
        node = min(ready, key=priority.__getitem__)
        waiting.remove(node)
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].name = f"renamed_{len(copies)}"
    graph.node_copy(output_node(old), copies.__getitem__)
    copy = program.copy()
    copy.graphs["full"] = fx.GraphModule({}, graph)
    return copy


NODES = len(transformer().main.nodes)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=NODES, max_size=NODES))
def test_names_and_independent_order_do_not_count(order: list[float]) -> None:
    program = transformer()
    other = renamed_and_reordered(program, order)
    assert [n.name for n in other.main.nodes] != [n.name for n in program.main.nodes]
    assert fingerprint(other) == fingerprint(program)


def test_equal_captures_are_equal() -> None:
    assert mark(lambda x: F.silu(x) + 1) == mark(lambda x: F.silu(x) + 1)


def test_weights_do_not_count_by_value() -> None:
    marks = {mark(lambda w, x: x * w, weights=(torch.full((4,), v),)) for v in (1.0, 2.0)}
    assert len(marks) == 1


DIFFERENT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "operator": (lambda x: x + 1, lambda x: x * 1),
    "constant": (lambda x: x + 1, lambda x: x + 2),
    "kind of number": (lambda x: x + 1, lambda x: x + 1.0),
    "keyword": (lambda x: F.gelu(x), lambda x: F.gelu(x, approximate="tanh")),
    "dtype": (lambda x: x.to(torch.float16), lambda x: x.to(torch.bfloat16)),
    "dimensions": (lambda x: x.sum((0,)), lambda x: x.sum((1,))),
    "operand order": (lambda x: x.sin() - x.cos(), lambda x: x.cos() - x.sin()),
    "result order": (lambda x: (x.sin(), x.cos()), lambda x: (x.cos(), x.sin())),
    "another result": (lambda x: x.sin(), lambda x: (x.sin(), x.sin())),
    "one draw or two": (
        lambda x: F.dropout(x) - F.dropout(x),
        lambda x: (lambda a, b: a - a)(F.dropout(x), F.dropout(x)),
    ),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_what_is_computed_counts(pair: tuple[Callable[..., Any], Callable[..., Any]]) -> None:
    assert mark(pair[0]) != mark(pair[1])


def test_shapes_and_dtypes_of_weights_count() -> None:
    weights = [torch.ones(4), torch.ones(1, 4), torch.ones(1), torch.ones(4, dtype=torch.float64)]
    assert len({mark(lambda w, x: x * w, weights=(w,)) for w in weights}) == len(weights)


def test_shapes_of_inputs_count() -> None:
    assert mark(lambda x: x + 1, noise(2, 4)) != mark(lambda x: x + 1, noise(4, 4))


def edited(edit: Callable[[Program], object]) -> Program:
    program = layers()
    edit(program)
    return program


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p.bind("x", Binding.INVARIANT),
        lambda p: p.outputs.update(full=(Output(OutputKind.STATE, "x"),)),
        lambda p: setattr(p, "schedule", Schedule("full", Interval(interval=2))),
        lambda p: setattr(p, "schedule", Schedule("full", Interval(interval=3))),
        lambda p: (
            p.graphs.update(other=p.copy().graphs["full"])
            or p.outputs.update(other=p.outputs["full"])
        ),
        lambda p: p.inputs.update(x=dataclasses.replace(p.inputs["x"], path="y")),
    ],
    ids=["binding", "meaning of a result", "schedule", "another schedule", "graph", "path"],
)
def test_what_surrounds_the_graphs_counts(edit: Callable[[Program], object]) -> None:
    plain = layers()
    marks = {fingerprint(plain), fingerprint(edited(edit))}
    assert len(marks) == 2
    assert computation(plain) != computation(edited(edit))


def test_interval_of_the_schedule_counts() -> None:
    marks = set()
    for interval in (2, 3):
        program = layers()
        program.schedule = Schedule("full", Interval(interval=interval))
        marks.add(fingerprint(program))
    assert len(marks) == 2


def test_annotations_are_no_computation() -> None:
    annotated = edited(lambda p: p.annotations.update({"layers.0": {"scheme": "int8"}}))
    assert fingerprint(annotated) != fingerprint(layers())
    assert computation(annotated) == computation(layers())


def test_dead_operators_count() -> None:
    program = layers()
    (*_, last) = calls(program, aten.mul.Tensor)
    with program.main.inserting_before(last):
        program.main.call_function(aten.mul.Tensor, (last.args[0], 3))
    assert fingerprint(program) != fingerprint(layers())


def test_reading_a_value_before_it_is_made() -> None:
    program = layers()
    first, *_, last = calls(program, aten.gelu.default)
    first.args = (last,)
    with pytest.raises(VerificationError) as caught:
        fingerprint(program)
    head, *lines = str(caught.value).splitlines()
    assert head == "%gelu reads %gelu_2, which is made after it or was erased"
    assert "  > %gelu = aten.gelu(%gelu_2) : f32[2,4,8]" in lines
    assert "  module: layers.0" in lines
