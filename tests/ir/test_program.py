"""The Program as data."""

from __future__ import annotations

import pytest
import torch

from dit_compile.errors import VerificationError
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.printer import print_program
from dit_compile.ir.program import (
    Binding,
    InputKind,
    Output,
    OutputKind,
    output_args,
    output_node,
    placeholders,
)
from dit_compile.pipeline.pipeline import Pipeline
from tests.ir.models import aten, calls, layers, noise, program_of, transformer


def test_bindings_are_ordered_by_time() -> None:
    assert list(map(str, sorted(Binding))) == ["weight", "invariant", "timestep", "latent"]
    assert max(Binding.TIMESTEP, Binding.WEIGHT) is Binding.TIMESTEP


def test_captured_inputs() -> None:
    program = layers()
    assert [spec.path for spec in program.of_kind(InputKind.USER)] == ["x"]
    weights = program.of_kind(InputKind.WEIGHT)
    assert weights[0].path == "layers.0.proj.weight"
    assert {(spec.binding, spec.settled) for spec in weights} == {(Binding.WEIGHT, True)}
    assert [node.name for node in placeholders(program.main)] == list(program.inputs)
    assert set(program.constants) == {spec.name for spec in weights}


def test_kinds_of_nodes() -> None:
    program = layers()
    *weights, x = placeholders(program.main)
    assert program.weight_nodes(program.main) == weights
    assert program.kind_of(x) is InputKind.USER
    assert program.kind_of(weights[0]) is InputKind.WEIGHT
    gelu = calls(program, aten.gelu.default)[0]
    assert program.kind_of(gelu) is None
    assert not program.is_weight(gelu)


def test_bind_settles() -> None:
    program = layers()
    program.bind("x", Binding.INVARIANT)
    assert (program.inputs["x"].binding, program.inputs["x"].settled) == (Binding.INVARIANT, True)


def test_a_copy_is_equal_and_independent() -> None:
    program = transformer()
    program.annotations["blocks.0"] = {"scheme": "int8"}
    text, mark = print_program(program), fingerprint(program)
    copy = program.copy()
    assert print_program(copy) == text
    assert fingerprint(copy) == mark

    Pipeline.parse("exact,insert-block-cache").run(copy)
    copy.bind("x", Binding.INVARIANT)
    copy.annotations["blocks.0"]["scheme"] = "int4"
    copy.constants.clear()
    for node in copy.main.nodes:
        node.meta.clear()
    assert print_program(program) == text
    assert fingerprint(program) == mark
    assert program.constants

    again = copy.copy()
    assert set(again.graphs) == set(copy.graphs) > set(program.graphs)


def test_a_copy_shares_tensors() -> None:
    program = transformer()
    copy = program.copy()
    assert all(copy.constants[name] is value for name, value in program.constants.items())


def test_restore_takes_everything_back() -> None:
    program = transformer()
    saved, text = program.copy(), print_program(program)
    Pipeline.parse("exact").run(program)
    assert print_program(program) != text
    program.restore(saved)
    assert print_program(program) == text


def test_graph_fragments() -> None:
    program = program_of(lambda x: (x + 1, x * 2), noise(2))
    first, second = output_args(program.main)
    assert (first.target, second.target) == (aten.add.Tensor, aten.mul.Tensor)
    assert program.outputs["full"] == (Output(OutputKind.USER),) * 2
    program.main.erase_node(output_node(program.main))
    with pytest.raises(VerificationError, match="a graph has one output node, not 0"):
        output_node(program.main)


def test_writes_to_inputs_are_outputs() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2

    program = program_of(step, noise(2))
    kinds = [(output.kind, output.name) for output in program.outputs["full"]]
    name = program.of_kind(InputKind.USER)[0].name
    assert kinds == [(OutputKind.MUTATION, name), (OutputKind.USER, "")]
