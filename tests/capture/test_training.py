"""While autograd records: results and gradients are those of eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.ir.printer import print_graph
from dit_compile.pipeline.pipeline import Pipeline
from tests.capture.through_dynamo import from_dynamo
from tests.passes.irtest import ops, randn, weights


class Block(nn.Module):
    """Attention behind adaptive layer norm, with a part that must get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.mod = nn.Linear(8, 24)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.mod(F.silu(c))[:, None].chunk(3, -1)
        y = F.layer_norm(x, (8,)) * (1 + scale) + shift
        y = F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        with torch.no_grad():
            frozen = self.q(x)
        return x + gate * y + frozen * self.q(x) + self.v(x).detach()


def gradients(model: Any, module: nn.Module, *inputs: Tensor) -> dict[str, Tensor | None]:
    """The loss, and the gradients of parameters and inputs, by name."""
    module.zero_grad()
    leaves = [value.clone().requires_grad_() for value in inputs]
    loss = model(*leaves).square().mean()
    loss.backward()
    named = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"loss": loss.detach(), **named, **{f"input{i}": v.grad for i, v in enumerate(leaves)}}


@pytest.mark.parametrize("target", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_gradients_are_those_of_eager(target: str) -> None:
    model, x, c = weights(Block()).train(), randn(2, 4, 8), randn(2, 8, seed=1)
    wanted = gradients(model, model, x, c)
    torch._dynamo.reset()
    options = {"target": target, "strict": True}
    made = gradients(torch.compile(model, backend="ditc", options=options), model, x, c)
    assert wanted.keys() == made.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_fusions_that_bake_no_weights_still_fire() -> None:
    program, _ = from_dynamo(weights(Block()), randn(2, 4, 8), randn(2, 8), grad=True)
    Pipeline.parse("exact").run(program)
    assert program.training
    assert ops(program)["ditc.adaln_norm"] == 1
    assert ops(program)["aten.linear"] == 6


def test_modes_are_in_the_graph_and_not_around_it() -> None:
    program, _ = from_dynamo(weights(Block()), randn(2, 4, 8), randn(2, 8), grad=True)
    assert "set_grad_enabled" not in print_graph(program)
    assert ops(program)["aten.detach"] == 2
    program, _ = from_dynamo(weights(Block()), randn(2, 4, 8), randn(2, 8))
    assert not program.training
    assert "set_grad_enabled" not in print_graph(program)


def test_a_region_with_gradients_inside_one_without() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.a(x)
                with torch.enable_grad():
                    z = self.b(y)
                w = self.a(z)
            return w * z

    model, x = weights(Model()), randn(2, 4)
    wanted = gradients(model, model, x)
    torch._dynamo.reset()
    options = {"target": "eager", "strict": True}
    made = gradients(torch.compile(model, backend="ditc", options=options), model, x)
    assert wanted["a.weight"] is made["a.weight"] is made["input0"] is None
    torch.testing.assert_close(made["b.weight"], wanted["b.weight"])


def test_active_dropout_draws_as_eager_does() -> None:
    model = weights(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.5))).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="ditc", options={"target": "eager", "strict": True})
    torch.manual_seed(0)
    wanted = model(randn(8, 4))
    torch.manual_seed(0)
    assert torch.equal(compiled(randn(8, 4)), wanted)
    assert (wanted == 0).any()
