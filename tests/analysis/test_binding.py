"""Binding times: what is told by structure, by declaration, and what stays latent."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.analysis.binding import node_bindings, settle, timestep_candidates
from dit_compile.errors import BindingError
from dit_compile.ir.program import Binding, Program
from tests import zoo
from tests.analysis.structures import captured
from tests.passes.irtest import capture, randn, weights

D = 8


def sinusoid(t: Tensor) -> Tensor:
    angles = t[..., None] * torch.exp(-math.log(100) * torch.arange(D // 2) / (D // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Model(nn.Module):
    """A token model with a timestep, a label of the same shape, and rotary position ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.time, self.label = nn.Linear(4, D), nn.Linear(D, D), nn.Embedding(3, D)
        self.up, self.head = nn.Linear(D, D), nn.Linear(D, 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        h = self.embed(x)
        c = self.time(sinusoid(t)) + self.label(y)
        h = h + self.up(h + c[:, None]).relu()
        return self.head(h + F.scaled_dot_product_attention(h * sinusoid(ids), h, h))


def inputs() -> tuple[Tensor, ...]:
    return randn(2, 6, 4), torch.tensor([3.0, 4.0]), torch.tensor([0, 2]), torch.arange(6.0)


@pytest.fixture
def program() -> Program:
    return capture(weights(Model()), *inputs())


def bindings(program: Program) -> dict[str, tuple[Binding, bool]]:
    return {
        spec.path: (spec.binding, spec.settled)
        for spec in program.inputs.values()
        if spec.binding is not Binding.WEIGHT
    }


def test_the_timestep_is_told_by_its_embedding(program: Program) -> None:
    """Position ids feed sines and cosines too, which rotate the queries of an attention."""
    assert timestep_candidates(program) == ("t",)


def test_structure_settles_the_timestep_and_the_latent(program: Program) -> None:
    settle(program)
    assert bindings(program) == {
        "x": (Binding.LATENT, True),
        "t": (Binding.TIMESTEP, True),
        "y": (Binding.INVARIANT, False),
        "ids": (Binding.INVARIANT, False),
    }, "the rest is a guess, and says so"


def test_declarations_settle_the_rest(program: Program) -> None:
    settle(program, {"y": "invariant", "ids": "INVARIANT"})
    found = bindings(program)
    assert found["y"] == found["ids"] == (Binding.INVARIANT, True)
    settle(program, {"t": "latent"})
    assert bindings(program)["t"] == (Binding.LATENT, True), "what is declared wins"


def test_without_a_latent_nothing_is_guessed() -> None:
    program = capture(lambda x, y: (x + y).sum(), randn(2), randn(2))
    settle(program)
    assert set(bindings(program).values()) == {(Binding.LATENT, False)}


def test_two_candidates_settle_neither() -> None:
    class Guided(Model):
        def forward(self, x: Tensor, t: Tensor, guidance: Tensor) -> Tensor:
            c = self.time(sinusoid(t)) + self.time(sinusoid(guidance))
            return self.head(self.embed(x) + c[:, None])

    x, t, *_ = inputs()
    program = capture(weights(Guided()), x, t, t + 1)
    assert timestep_candidates(program) == ("t", "guidance")
    settle(program)
    assert bindings(program)["t"] == bindings(program)["guidance"] == (Binding.TIMESTEP, False)
    settle(program, {"t": "timestep", "guidance": "invariant"})
    assert bindings(program)["t"] == (Binding.TIMESTEP, True)


def sine_alone(self: Model, x: Tensor, t: Tensor) -> Tensor:
    return self.time(t[:, None].expand(-1, D).sin())


def embedded_before(self: Model, x: Tensor, t: Tensor) -> Tensor:
    y = self.time(t[:, None].expand(-1, D))
    return self.time(y.sin() + y.cos())


@pytest.mark.parametrize("wrong", [sine_alone, embedded_before])
def test_near_misses_of_a_timestep(wrong: Callable[..., Tensor]) -> None:
    class Near(Model):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.head(self.embed(x) + wrong(self, x, t)[:, None])

    assert timestep_candidates(capture(weights(Near()), *inputs()[:2])) == ()


@pytest.mark.parametrize("written_out", [True, False])
def test_positions_are_never_settled_as_the_timestep(written_out: bool) -> None:
    """Their sines meet the stream before any product: added to it, or before an attention."""

    class Positions(Model):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            h = self.embed(x)
            if not written_out:
                return self.head(self.up(h + sinusoid(ids)))
            q = h * sinusoid(ids)
            return self.head((q @ q.transpose(1, 2)).softmax(-1) @ h)

    program = capture(weights(Positions()), randn(2, 6, 4), torch.arange(6.0))
    settle(program)
    assert not bindings(program)["ids"][1]


def test_a_latent_that_feeds_sines_is_no_timestep() -> None:
    class Waves(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.time(torch.cat([x.sin(), x.cos()], -1)))

    assert timestep_candidates(capture(weights(Waves()), randn(2, 6, 4))) == ()


def test_a_node_takes_the_latest_of_its_arguments(program: Program) -> None:
    settle(program, {"y": "invariant", "ids": "invariant"})
    found = node_bindings(program)
    for node, binding in found.items():
        if node.op == "call_function":
            expected = max((found[arg] for arg in node.all_input_nodes), default=Binding.WEIGHT)
            assert binding is expected
    embedding = next(node for node in found if "embedding" in str(node.target))
    assert found[embedding] is Binding.INVARIANT
    exp = next(node for node in found if str(node.target) == "aten.exp.default")
    assert found[exp] is Binding.WEIGHT, "frequencies depend on nothing"
    times = {found[node] for node in found if node.op == "call_function"}
    assert times == set(Binding)


def test_random_operators_are_latent() -> None:
    program = capture(lambda x: torch.randn(3) + x.sin() * torch.ones(3), randn(3))
    program.bind("x", Binding.INVARIANT)
    found = {str(node.target): binding for node, binding in node_bindings(program).items()}
    assert found["aten.randn.default"] is Binding.LATENT
    assert found["aten.add.Tensor"] is Binding.LATENT
    assert found["aten.sin.default"] is Binding.INVARIANT
    assert found["aten.ones.default"] is Binding.WEIGHT


@given(st.lists(st.sampled_from(list(Binding)), min_size=1, max_size=4))
def test_bindings_are_ordered_from_fixed_to_changing(times: list[Binding]) -> None:
    order = ["weight", "invariant", "timestep", "latent"]
    assert str(max(times)) == max(map(str, times), key=order.index)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"idx": "invariant"}, "no input 'idx'; did you mean 'ids'\\?; inputs are x, t, y, ids$"),
        ({"y": "fixed"}, "'y' cannot be 'fixed'; choose invariant, timestep or latent$"),
        ({"y": "weight"}, "'y' is an argument of the call, so it is never fixed for good; choose"),
    ],
)
def test_wrong_declarations(program: Program, declared: dict[str, str], message: str) -> None:
    with pytest.raises(BindingError, match=f"^bindings: .*{message}"):
        settle(program, declared)


@pytest.mark.parametrize("name", ["dit", "flux", "wan"])
def test_real_models(name: str) -> None:
    """The latent and the timestep are found; nothing that is neither is called a timestep."""
    program, case = captured(name)[0].copy(), zoo.case(name)
    assert case.timestep in timestep_candidates(program)
    settle(program)
    found = bindings(program)
    assert found[case.latent] == (Binding.LATENT, True)
    steps = {path for path, known in found.items() if known == (Binding.TIMESTEP, True)}
    assert steps <= {case.timestep}
