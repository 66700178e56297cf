"""Regions that a model marks as repeating are seen through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import nested_compile_region
from torch.nn import functional as F

from dit_compile.capture.export import capture_module
from dit_compile.ir.fingerprint import computation
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import Program
from dit_compile.ir.verifier import Verifier
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import randn, weights


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x if c is None else x * c.unsqueeze(1)
        hidden = self.up(self.norm(x))
        return x + self.down(F.gelu(hidden)), hidden.mean(-1)


class Marked(Plain):
    @nested_compile_region
    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(x, c)


class Outer(Plain):
    """A region with a region in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Marked()

    @nested_compile_region
    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, hidden = self.inner(x, c)
        return super().forward(x.sin(), c)[0], hidden


class Model(nn.Module):
    def __init__(self, kind: type[Plain]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(3))
        self.last = kind()

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x, _ = block(x, c)
        return self.last(x)  # told apart: it has no conditions


def operators(program: Program) -> list[tuple[str, str]]:
    """All operators and the modules that they are in."""
    nodes = [node for node in program.main.nodes if node.op == "call_function"]
    return [(str(node.target), origin_of(node).path) for node in nodes]


def paths(program: Program) -> list[str]:
    return [path for _, path in operators(program)]


def test_marks_change_nothing() -> None:
    inputs = randn(2, 6, 8), randn(2, 8, seed=1)
    plain, marked = weights(Model(Plain)), weights(Model(Marked))
    want, _ = from_dynamo(plain, *inputs)
    program, values = from_dynamo(marked, *inputs)
    Verifier().check(program)
    assert operators(program) == operators(want)
    for have, expected in zip(run(program, values), plain(*inputs), strict=True):
        torch.testing.assert_close(have, expected)


def test_regions_in_regions() -> None:
    inputs, model = (randn(2, 6, 8), randn(2, 8, seed=1)), weights(Model(Outer))
    program, values = from_dynamo(model, *inputs)
    Verifier().check(program)
    assert {"blocks.2.inner.up", "blocks.2.up", "last.inner.norm"} <= set(paths(program))
    for have, expected in zip(run(program, values), model(*inputs), strict=True):
        torch.testing.assert_close(have, expected)


def test_gradients_pass_through() -> None:
    inputs, model = (randn(2, 6, 8), randn(2, 8, seed=1)), weights(Model(Marked))
    compiled = torch.compile(model, backend="ditc", fullgraph=True, options={"strict": True})
    compiled(*inputs)[0].sum().backward()
    got = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    model(*inputs)[0].sum().backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(got[name], weight.grad)


def test_offline() -> None:
    inputs, model = (randn(2, 6, 8), randn(2, 8, seed=1)), weights(Model(Marked))
    with torch.no_grad():
        program = capture_module(model, inputs)
        want = capture_module(weights(Model(Plain)), inputs)
    Verifier().check(program)
    assert computation(program) == computation(want)
    blocks = {"blocks.0", "blocks.1", "blocks.2", "last"}
    assert set(paths(program)) <= blocks  # torch.export tells no more of what is in a region
