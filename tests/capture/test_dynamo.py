"""Capture from torch.compile: what the model means is in the graph, and nothing is lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional as F

from dit_compile.capture.dynamo import capture_dynamo, records_gradients
from dit_compile.errors import CaptureError
from dit_compile.ir.origin import origin_of
from dit_compile.ir.printer import print_graph
from dit_compile.ir.program import Binding, InputKind, Output, OutputKind, Program, placeholders
from dit_compile.ir.verifier import Verifier
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import ops, randn, weights


def results(program: Program, values: dict[str, Any]) -> list[Tensor]:
    """What the caller gets, after the verifier has seen the program."""
    Verifier().check(program)
    made = run(program, values)
    kinds = [output.kind for output in program.outputs["full"]]
    return [value for kind, value in zip(kinds, made, strict=True) if kind is OutputKind.USER]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


def test_operators_stay_whole_and_know_their_module() -> None:
    model, x = weights(MLP()), randn(2, 4)
    program, values = from_dynamo(model, x)
    nodes = [node for node in program.main.nodes if node.op == "call_function"]
    assert [str(node.target) for node in nodes] == [
        "aten.layer_norm.default",
        "aten.linear.default",
        "aten.gelu.default",
        "aten.linear.default",
    ]
    assert [origin_of(node).path for node in nodes] == ["norm", "up", "", "down"]
    assert origin_of(nodes[2]).source.startswith(__file__)
    assert torch.equal(results(program, values)[0], model(x))


def test_weights_are_inputs_by_path() -> None:
    program, _ = from_dynamo(weights(MLP()), randn(2, 4))
    found = {spec.path: (spec.kind, spec.binding) for spec in program.inputs.values()}
    assert found.pop("x") == (InputKind.USER, Binding.LATENT)
    assert set(found) == {name for name, _ in MLP().named_parameters()}
    assert set(found.values()) == {(InputKind.WEIGHT, Binding.WEIGHT)}
    assert not program.constants


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2, 2, -1).sin() * x.shape[1]


def test_dynamic_sizes_stay_symbolic() -> None:
    program, _ = from_dynamo(Sizes(), randn(8, 6), dynamic=True)
    value = next(node for node in placeholders(program.main) if node.name == "x").meta["val"]
    assert all(isinstance(size, torch.SymInt) for size in value.shape)
    assert len(program.of_kind(InputKind.SIZE)) == 2
    other = randn(4, 10)
    sizes = {
        spec.name: int(other.shape[i]) for i, spec in enumerate(program.of_kind(InputKind.SIZE))
    }
    assert torch.equal(results(program, {**sizes, "x": other})[0], Sizes()(other))


def test_static_sizes_are_numbers() -> None:
    program, values = from_dynamo(Sizes(), randn(8, 6))
    assert not program.of_kind(InputKind.SIZE)
    assert ", 2, -1]" in print_graph(program)
    assert torch.equal(results(program, values)[0], Sizes()(randn(8, 6)))


def test_numbers_and_keywords_in_any_order() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, t: Tensor, *, y: Tensor, scale: float, flag: bool) -> Tensor:
            return x * t - y * scale if flag else x

    x, t, y = randn(2), randn(2, seed=1), randn(2, seed=2)
    for names in itertools.permutations(("x", "t", "y")):
        given = {name: {"x": x, "t": t, "y": y}[name] for name in names}
        program, values = from_dynamo(Model(), flag=True, scale=1.5, **given)
        assert {spec.path for spec in program.inputs.values()} == {"x", "t", "y"}
        assert torch.equal(results(program, values)[0], x * t - y * 1.5)


def test_a_dynamic_number_is_an_input() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return x * n

    program, values = from_dynamo(Model(), randn(2, 3), 7, dynamic=True)
    (n,) = [spec for spec in program.of_kind(InputKind.SIZE) if spec.path == "n"]
    values[n.name] = 9
    torch.testing.assert_close(results(program, values)[0], randn(2, 3) * 9)


class Writes(nn.Module):
    """Writes into its argument, a buffer, a parameter and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[0] = 5.0
        self.count.add_(1)
        with torch.no_grad():
            self.weight.add_(1)
        return x * self.weight + self.count


def test_mutations_leave_as_outputs() -> None:
    program, values = from_dynamo(Writes(), torch.ones(2, 3))
    mutated = [out.name for out in program.outputs["full"] if out.kind is OutputKind.MUTATION]
    assert sorted(program.inputs[name].path for name in mutated) == ["count", "weight", "x"]
    assert program.outputs["full"][-1] == Output(OutputKind.USER)
    values |= {"x": torch.ones(2, 3), "count": torch.zeros(3), "weight": torch.ones(3)}
    made = run(program, values)
    want_x = torch.tensor([[5.0] * 3, [2.0] * 3])
    wanted = {"x": want_x, "count": torch.ones(3), "weight": torch.full((3,), 2.0)}
    for name, value in zip(mutated, made, strict=False):
        assert torch.equal(value, wanted[name]), name
    assert torch.equal(values["x"], torch.ones(2, 3)), "the graph itself writes nothing"
    assert torch.equal(made[-1], want_x * 2 + 1)


def test_mutations_are_copied_back() -> None:
    model, wanted = Writes(), Writes()
    compiled = torch.compile(model, backend="ditc", options={"target": "eager", "strict": True})
    with torch.no_grad():
        for _ in range(2):
            x, want_x = torch.ones(2, 3), torch.ones(2, 3)
            assert torch.equal(compiled(x), wanted(want_x))
            assert torch.equal(x, want_x)
            assert torch.equal(model.count, wanted.count)
            assert torch.equal(model.weight, wanted.weight)


class Autocast(nn.Module):
    """Autocast inside, off again inside that."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            low = self.low(x)
            with torch.autocast("cpu", enabled=False):
                high = self.high(x)
            mixed = low @ high.t()
        return low, high, mixed


def test_autocast_inside_the_model_becomes_casts() -> None:
    model, x = weights(Autocast()), randn(2, 4)
    program, values = from_dynamo(model, x)
    assert ops(program)["aten._to_copy"] == 4, "x, the weight and bias of low, and one operand"
    assert "autocast" not in print_graph(program)
    made = results(program, values)
    with torch.no_grad():
        for value, want in zip(made, model(x), strict=True):
            assert value.dtype == want.dtype
            assert torch.equal(value, want)


def test_ambient_autocast_becomes_casts() -> None:
    model, x = weights(MLP()), randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        program, values = from_dynamo(model, x)
        with torch.no_grad():
            want = model(x)
    made = results(program, values)[0]
    assert made.dtype == want.dtype == torch.bfloat16
    assert torch.equal(made, want)


def test_compiled_regions_of_autocast_equal_eager() -> None:
    model, x = weights(Autocast()), randn(2, 4)
    compiled = torch.compile(model, backend="ditc", options={"target": "eager", "strict": True})
    with torch.no_grad():
        for value, want in zip(compiled(x), model(x), strict=True):
            assert value.dtype == want.dtype
            assert torch.equal(value, want)


def test_a_region_without_autocast_inside_an_ambient_one() -> None:
    model, x = weights(Autocast()), randn(2, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="ditc", options={"target": "eager", "strict": True})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for value, want in zip(compiled(x), model(x), strict=True):
            assert value.dtype == want.dtype
            assert torch.equal(value, want)


def test_random_operators_stay_in_order() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn_like(x) - torch.rand(3) * torch.randn_like(x)

    program, _ = from_dynamo(Model(), randn(3))
    assert ops(program)["aten.randn_like"] == 2
    compiled = torch.compile(Model(), backend="ditc", options={"target": "eager", "strict": True})
    torch.manual_seed(3)
    made = compiled(randn(3))
    torch.manual_seed(3)
    assert torch.equal(made, Model()(randn(3)))


TABLE = torch.arange(3.0)


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.full((3,), 2.0))
        self.register_buffer("lost", torch.full((3,), 3.0), persistent=False)
        self.plain = torch.full((3,), 4.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept + self.lost * self.plain + torch.tensor([1.0, 2.0, 3.0]) + TABLE


def test_buffers_and_constants_are_inputs() -> None:
    model, x = Constants(), randn(2, 3)
    program, values = from_dynamo(model, x)
    assert not [node for node in program.main.nodes if node.op == "get_attr"]
    kinds = {spec.path: spec.kind for spec in program.inputs.values()}
    assert kinds["kept"] is kinds["lost"] is InputKind.WEIGHT
    (literal,) = program.constants.values()
    assert torch.equal(literal, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(results(program, values)[0], model(x))


def test_tied_weights_are_one_input() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model, x = weights(Tied()), randn(2, 3)
    program, values = from_dynamo(model, x)
    paths = [spec.path for spec in program.of_kind(InputKind.WEIGHT)]
    assert paths == ["a.weight", "a.bias", "b.bias"]
    assert torch.equal(results(program, values)[0], model(x))


def test_views_and_writes_to_views_are_functional() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros(4, 3)
            y[1:3] = x
            y[:, 0].add_(1)
            y.t()[1].copy_(torch.arange(4.0))
            return y

    program, values = from_dynamo(Model(), x := randn(2, 3))
    assert not any("_." in str(node.target) for node in program.main.nodes)
    assert torch.equal(results(program, values)[0], Model()(x))


def test_results_that_are_no_tensors() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"none": None, "sample": x.sin(), "twice": (x.sin(), 3)}

    compiled = torch.compile(Model(), backend="ditc", options={"target": "eager", "strict": True})
    x = randn(3)
    made = compiled(x)
    assert made["none"] is None
    assert made["twice"][1] == 3
    assert torch.equal(made["sample"], x.sin())
    assert made["sample"] is not made["twice"][0]


def test_captured_twice_is_the_same_and_leaves_the_graph_alone() -> None:
    texts: list[tuple[str, str]] = []

    def backend(module: torch.fx.GraphModule, _: list[Any]) -> Any:
        before = module.print_readable(print_output=False)
        for _ in range(2):
            texts.append((print_graph(capture_dynamo(module)), before))
        assert module.print_readable(print_output=False) == before
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(weights(Autocast()), backend=backend)(randn(2, 4))
    assert len(texts) == 2
    assert len(set(texts)) == 1


class NoTensors(nn.Module):
    def forward(self, n: int) -> Tensor:
        return torch.ones(3) * n


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))


@pytest.mark.parametrize(
    ("model", "argument", "message"),
    [
        (NoTensors(), 3, "the graph takes no tensors, so there is nothing to compile"),
        (Branches(), torch.ones(3), "control flow inside a model is not supported yet"),
    ],
)
def test_what_cannot_be_captured_says_so(model: nn.Module, argument: Any, message: str) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        from_dynamo(model, argument)
    error = caught.value.inner_exception
    assert isinstance(error, CaptureError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_records_gradients() -> None:
    weight, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    assert records_gradients([3, plain, weight])
    assert not records_gradients([3, plain])
    with torch.no_grad():
        assert not records_gradients([weight])
