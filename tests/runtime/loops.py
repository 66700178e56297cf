"""A small adaLN transformer, sampling loops over it, and what caching them must give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dit_compile as ditc

WIDTH = 16
#: Eight steps; one more at this spacing would fall below zero.
TIMES = (841.0, 721.0, 601.0, 481.0, 361.0, 241.0, 121.0, 1.0)

Inputs = dict[str, Any]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.attn = Attention()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        s1, b1, g1, s2, b2, g2 = self.modulation(F.silu(c))[:, None].chunk(6, -1)
        x = x + g1 * self.attn(self.norm(x) * (1 + s1) + b1)
        return x + g2 * self.mlp(self.norm(x) * (1 + s2) + b2)


class Toy(nn.Module):
    """Three blocks; ``y`` is class labels (integers) or a pooled prompt (floats)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
            self.time, self.scale = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.label, self.prompt = nn.Embedding(5, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.eval()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, g: Tensor | None = None, skip: Sequence[int] = ()
    ) -> Tensor:
        c = self.time(_waves(t)) + (self.prompt(y) if y.is_floating_point() else self.label(y))
        if g is not None:
            c = c + self.scale(_waves(g))
        x = self.embed(x)
        for position, block in enumerate(self.blocks):
            if position not in skip:
                x = block(x, c)
        return self.head(x)


def _waves(t: Tensor) -> Tensor:
    half = WIDTH // 2
    angles = t[:, None] * torch.exp(-math.log(1e3) * torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], -1)


def compiled(model: nn.Module, interval: int = 2, **options: Any) -> Any:
    """The model with all branches cached between every ``interval``-th step."""
    passes = f"exact,insert-block-cache{{method=interval,interval={interval}}}"
    options = {"strict": True, "target": "eager", "passes": passes} | options
    return torch.compile(model, backend="ditc", fullgraph=True, options=options)


def label(number: int, batch: int = 1) -> Tensor:
    return torch.full((batch,), number)


def prompt(seed: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(seed))


def latents(shape: Sequence[int], seed: int, steps: int) -> list[Tensor]:
    """Latents of a sampler that moves little, so that each follows from the one before."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(*shape, generator=generator) for _ in range(2))
    angles = [0.015 * step for step in range(steps)]
    return [math.cos(angle) * one + math.sin(angle) * other for angle in angles]


@dataclass
class Loop:
    """The calls of one lane of one generation; its latents are drawn from ``seed``."""

    y: Tensor
    seed: int = 0
    times: Sequence[float] = TIMES
    tokens: int = 6

    def __iter__(self) -> Iterator[Inputs]:
        batch = self.y.shape[0]
        drawn = latents((batch, self.tokens, 8), self.seed, len(self.times))
        for x, t in zip(drawn, self.times, strict=True):
            yield {"x": x, "t": torch.full((batch,), t), "y": self.y}


def closing_halves() -> list[Inputs]:
    """The calls of guidance by a doubled batch, whose halves differ less from step to step."""
    generator = torch.Generator().manual_seed(0)
    y = prompt(0, batch=2).repeat(2, 1)
    calls = []
    for step, (x, t) in enumerate(zip(latents((2, 6, 8), 0, len(TIMES)), TIMES, strict=True)):
        away = 2.0 * torch.randn(2, 6, 8, generator=generator) / (1 + step) ** 2
        calls.append({"x": torch.cat([x + away, x]), "t": torch.full((4,), t), "y": y})
    return calls


def every(interval: int, steps: int) -> str:
    """``c`` for each computed step and ``r`` for each reused one, the last step computed."""
    return "".join("c" if i % interval == 0 or i == steps - 1 else "r" for i in range(steps))


@torch.no_grad()
def run(fast: Any, calls: Iterator[Inputs] | Sequence[Inputs] | Loop) -> list[Tensor]:
    return [fast(**call) for call in calls]


@torch.no_grad()
def alone(model: Toy, calls: Sequence[Inputs] | Loop, pattern: str) -> list[Tensor]:
    """What a cache with this pattern gives for one lane by itself, by hooks on the branches."""
    kept: dict[nn.Module, Tensor] = {}
    mode = "c"

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return kept[module] if mode == "r" else kept.setdefault(module, output)

    branches = [part for block in model.blocks for part in (block.attn, block.mlp)]
    handles = [part.register_forward_hook(hook) for part in branches]
    results = []
    for call, mode in zip(calls, pattern, strict=True):  # the hook reads the mode
        if mode == "c":
            kept.clear()
        results.append(model(**call))
    for handle in handles:
        handle.remove()
    return results


def counters(session: ditc.Session) -> dict[str, int]:
    """What a session counted of one that only computes or reuses."""
    return {key: session.summary()[key] for key in ("generations", "lanes", "computed", "reused")}


def assert_same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    assert len(got) == len(want)
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda m, s=step: f"{s}: {m}")
