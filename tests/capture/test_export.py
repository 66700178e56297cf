"""Capture from torch.export: the same form, with the weights' values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_compile.capture.export import capture_module
from dit_compile.errors import CaptureError
from dit_compile.explanation import example_inputs
from dit_compile.ir.origin import identifier
from dit_compile.ir.printer import print_graph
from dit_compile.ir.program import InputKind, OutputKind, Program
from dit_compile.ir.verifier import Verifier
from tests.capture.test_dynamo import MLP, Autocast, Constants, Writes
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import ops, randn, weights


def capture(model: nn.Module, *args: Any, dynamic_shapes: Any = None, **kwargs: Any) -> Program:
    with torch.no_grad():
        program = capture_module(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    Verifier().check(program)
    return program


def call(program: Program, *args: Any, **kwargs: Any) -> list[Any]:
    return run(program, {**program.constants, **example_inputs(program, args, kwargs)})


def test_it_has_the_operators_and_inputs_that_dynamo_gives() -> None:
    model, x = weights(MLP()), randn(2, 4)
    exported, (compiled, _) = capture(model, x), from_dynamo(model, x)
    assert ops(exported) == ops(compiled)
    assert {spec.path for spec in exported.inputs.values()} == {
        spec.path for spec in compiled.inputs.values()
    }


def test_weights_come_with_their_values() -> None:
    model, x = weights(MLP()), randn(2, 4)
    program = capture(model, x)
    for name, parameter in model.named_parameters():
        assert torch.equal(program.constants[identifier(name)], parameter)
    assert torch.equal(call(program, x)[0], model(x))


def test_buffers_and_constants() -> None:
    model, x = Constants(), randn(2, 3)
    program = capture(model, x)
    assert len(program.of_kind(InputKind.USER)) == 1
    assert torch.equal(call(program, x)[0], model(x))


def test_tied_weights() -> None:
    model = weights(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    model[1].weight = model[0].weight
    program = capture(model, x := randn(2, 3))
    assert torch.equal(call(program, x)[0], model(x))
    (first, second) = program.main.find_nodes(
        op="call_function", target=torch.ops.aten.linear.default
    )
    assert first.args[1] is second.args[1]


def test_dynamic_sizes_stay_symbolic() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0] // 2, -1).sin() * x.shape[1]

    sizes = {"x": {0: 2 * torch.export.Dim("half"), 1: torch.export.Dim("width")}}
    program = capture(Model(), randn(6, 5), dynamic_shapes=sizes)
    other = randn(4, 7)
    assert torch.equal(call(program, other)[0], Model()(other))
    (result,) = program.main.find_nodes(op="output")
    assert all(isinstance(size, torch.SymInt) for size in result.args[0][0].meta["val"].shape)


def test_mutations_leave_as_outputs() -> None:
    program = capture(Writes(), torch.ones(2, 3))
    outputs = program.outputs["full"]
    names = [program.inputs[out.name].path for out in outputs if out.kind is OutputKind.MUTATION]
    assert sorted(names) == ["count", "weight", "x"]
    assert [out.kind for out in outputs].count(OutputKind.USER) == 1
    made = dict(zip([*names, "result"], call(program, torch.ones(2, 3)), strict=True))
    assert torch.equal(made["weight"], torch.full((3,), 2.0))
    assert torch.equal(made["count"], torch.ones(3))
    assert torch.equal(made["x"], torch.tensor([[5.0] * 3, [2.0] * 3]))
    assert torch.equal(made["result"], made["x"] * 2 + 1)


def test_autocast_becomes_casts() -> None:
    model, x = weights(Autocast()), randn(2, 4)
    program = capture(model, x)
    assert "autocast" not in print_graph(program)
    with torch.no_grad():
        for value, want in zip(call(program, x), model(x), strict=True):
            assert value.dtype == want.dtype
            assert torch.equal(value, want)


def test_keywords_in_any_order() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, t: Tensor, y: Tensor, flag: bool = False) -> Tensor:
            return x - t * y if flag else x

    given = {"y": randn(2), "flag": True, "x": randn(2, seed=1), "t": randn(2, seed=2)}
    program = capture(Model(), **given)
    assert {spec.path for spec in program.of_kind(InputKind.USER)} == {"x", "t", "y"}
    assert torch.equal(call(program, **given)[0], Model()(**given))


def test_python_values_are_baked_and_returned() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, n: int, s: str, none: None) -> tuple[Any, ...]:
            return x * n, none, len(s), x if none is None else n

    program = capture(Model(), x := randn(2), 3, "four", None)
    assert [spec.path for spec in program.of_kind(InputKind.USER)] == ["x"]
    made = call(program, x)
    assert torch.equal(made[0], x * 3)
    assert made[1:3] == [None, 4]


def test_nested_arguments_keep_their_order() -> None:
    class Model(nn.Module):
        def forward(self, many: dict[str, Any], last: Tensor) -> Tensor:
            return many["b"][0] - many["a"] * many["b"][1] / last

    many = {"b": [randn(2), randn(2, seed=1)], "a": randn(2, seed=2)}
    program = capture(Model(), many, torch.full((2,), 2.0))
    assert torch.equal(
        call(program, many, torch.full((2,), 2.0))[0], Model()(many, torch.full((2,), 2.0))
    )


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))


class NoTensors(nn.Module):
    def forward(self, n: int) -> int:
        return n + 1


@pytest.mark.parametrize(
    ("model", "argument", "message"),
    [
        (DataDependent(), torch.ones(3), "torch.export cannot trace DataDependent: "),
        (Branches(), torch.ones(3), "control flow inside a model is not supported yet"),
        (NoTensors(), 3, "the model takes no tensors, so there is nothing to compile"),
    ],
)
def test_what_cannot_be_captured_says_so(model: nn.Module, argument: Any, message: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, argument)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("blocks.0.attn.to_q.weight", "blocks_0_attn_to_q_weight"),
        ("0.weight", "_0_weight"),
        ("state.blocks.0.mlp", "state_blocks_0_mlp"),
        ("", "_"),
        ("..", "_"),
    ],
)
def test_identifier(path: str, name: str) -> None:
    assert identifier(path) == name
    assert name.isidentifier()
