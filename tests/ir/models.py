"""Small models as Programs, shared by the tests of the IR and of all that works on it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dit_compile.capture.export import capture_module
from dit_compile.ir.program import Program

aten = torch.ops.aten


class Function(nn.Module):
    """A function of tensors as a module; ``weights`` come first among its arguments."""

    def __init__(self, function: Callable[..., Any], *weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(weights)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*self.weights, *args)


class Layer(nn.Module):
    """Four operators, one of them in a module of its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.proj(x)) * 2


class Layers(nn.Module):
    """Three layers: long enough that an excerpt is not the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    """Adaptive layer norm, then attention."""

    def __init__(self, width: int = 8, *, affine: bool = False) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c).unsqueeze(1).chunk(2, -1)
        y = self.norm(x) * (1 + scale) + shift
        return x + F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))


class Transformer(nn.Module):
    """Equal blocks, of which those in ``affine`` have a norm that cannot be fused."""

    def __init__(self, blocks: int = 3, affine: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(affine=i in affine) for i in range(blocks))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, c)
        return x


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module with the same weights every time, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(dtype).eval()


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def capture(model: nn.Module, *args: Tensor, **options: Any) -> Program:
    with torch.no_grad():
        return capture_module(model, args, **options)


def program_of(
    function: Callable[..., Any], *args: Tensor, weights: tuple[Tensor, ...] = ()
) -> Program:
    """A function as a Program."""
    return capture(Function(function, *weights), *args)


@functools.cache
def _captured(kind: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Program:
    return capture(seeded(kind), *(noise(*shape) for shape in shapes))


def layers() -> Program:
    """A fresh copy of :class:`Layers` as a Program."""
    return _captured(Layers, (2, 4, 8)).copy()


def transformer() -> Program:
    """A fresh copy of :class:`Transformer` as a Program."""
    return _captured(Transformer, (2, 4, 8), (2, 8)).copy()


def calls(program: Program, target: Any, graph: str = "full") -> list[fx.Node]:
    """The calls of one operator, in order."""
    return list(program.graphs[graph].graph.find_nodes(op="call_function", target=target))
