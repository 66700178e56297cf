"""Programs and plain models that the tests of structure share."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from dit_compile.capture.dynamo import capture_dynamo
from dit_compile.capture.export import capture_module
from dit_compile.errors import CaptureError
from dit_compile.ir.origin import Origin
from dit_compile.ir.program import Program, placeholders
from tests import zoo

FAMILIES = ("dit", "pixart", "sd3", "flux", "wan", "latte")
OTHERS = tuple(case.name for case in zoo.CASES if case.name not in FAMILIES)


def each(names: Iterable[str], *, quick: Collection[str] = ()) -> list[ParameterSet]:
    """Parameters of a test that runs on many classes: of the slow tests, unless they are ``quick``.

    Those that are in none of the :data:`FAMILIES` are of the full stage, outside CI.

    A capture takes ten times as long as what a test does with it, so the tests of a class run one
    after the other, in whatever file they are, and :func:`captured` captures it once for them.
    """
    return [
        pytest.param(name)
        if name in quick
        else pytest.param(
            name,
            marks=[
                pytest.mark.slow if name in FAMILIES else pytest.mark.full,
                pytest.mark.together(name),
            ],
        )
        for name in names
    ]


@functools.cache
def captured(name: str, variant: int = 0) -> tuple[Program, tuple[Any, ...]]:
    """A case of the zoo as a Program, with a value for each placeholder. Tests edit copies of it.

    The inputs of ``variant`` 1 are larger, and two samples.
    """
    case = zoo.case(name)
    model = zoo.build(case)
    kwargs = case.inputs(variant, torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            program = capture_module(model, (), kwargs)
        except CaptureError:
            return through_dynamo(model, **kwargs)
    given = iter([leaf for leaf in pytree.tree_leaves(kwargs) if isinstance(leaf, Tensor)])
    names = [node.name for node in placeholders(program.main)]
    values = [program.constants[n] if n in program.constants else next(given) for n in names]
    return program, tuple(values)


def through_dynamo(
    model: nn.Module, *args: Any, dynamic: bool = False, **kwargs: Any
) -> tuple[Program, tuple[Any, ...]]:
    """A model as torch.compile hands it to a backend, with a value for each placeholder."""
    made: list[tuple[Program, tuple[Any, ...]]] = []

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        program = capture_dynamo(module)
        given = iter(inputs)
        names = [node.name for node in placeholders(program.main)]
        values = [program.constants[n] if n in program.constants else next(given) for n in names]
        made.append((program, tuple(values)))
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*args, **kwargs)
    return made[0]


def plain(model: nn.Module, *args: Tensor) -> Program:
    """A plain model as a Program."""
    with torch.no_grad():
        return capture_module(model.eval(), args)


def stripped(program: Program) -> Program:
    """A copy that has forgotten where its nodes come from."""
    copy = program.copy()
    for node in copy.main.nodes:
        node.meta["origin"] = Origin()
    return copy


def tokens(count: int = 6, width: int = 16) -> Tensor:
    return torch.randn(2, count, width, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Attention written out, over the tokens or over a context."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.v(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.o(self.mix(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return scores.softmax(-1) @ v


class LinearAttention(Attention):
    """Attention without a softmax, keys and values first."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.relu(q), F.relu(k)
        mixed = q @ (k.transpose(-1, -2) @ v)
        return mixed / (q @ k.sum(-2, keepdim=True).transpose(-1, -2) + 1e-6)


class MLP(nn.Module):
    def __init__(self, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class PreNorm(nn.Module):
    """A pre-norm block; ``order`` gives its branches: a(ttention), c(ross), m(lp)."""

    def __init__(self, order: str = "am", hidden: int = 32, eps: float = 1e-5) -> None:
        super().__init__()
        self.order = order
        self.branches = nn.ModuleDict(
            {
                f"{i}{kind}": MLP(hidden=hidden) if kind == "m" else Attention()
                for i, kind in enumerate(order)
            }
        )
        self.norm = nn.LayerNorm(16, eps=eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for name, branch in self.branches.items():
            y = self.norm(x)
            x = x + (branch(y, context) if name[-1] == "c" else branch(y))
        return x


class Chain(nn.Module):
    """Blocks in a list between an embedding and a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, *context)
        return self.head(x)
