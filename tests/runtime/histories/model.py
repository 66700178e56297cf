"""A small model with all that a Session must keep apart: text, positions, lanes, two outputs."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16
#: Features of a token of the latent, and of one of the text.
LATENT, TEXT = 8, 12


class Painter(nn.Module):
    """Two blocks of self attention with adaptive norm and cross attention to a text.

    Keys and values of the text, and the positions, which depend on the integer ``fps``, are the
    same in all steps, so they move out of the loop. So does the second output, which reads the
    text alone.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.head = nn.Linear(LATENT, WIDTH), nn.Linear(WIDTH, LATENT)
            self.time, self.scale = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.place, self.note = nn.Linear(WIDTH, WIDTH), nn.Linear(TEXT, 4)
            self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.eval()

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, fps: int = 24, g: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x [B, N, LATENT], t [B], text [B, L, TEXT], g [B] -> [B, N, LATENT], [B, 4]``."""
        c = self.time(_waves(t))
        if g is not None:
            c = c + self.scale(_waves(g))
        moments = torch.arange(x.shape[1]) * (24.0 / fps)
        x = self.embed(x) + self.place(_waves(moments))
        for block in self.blocks:
            x = block(x, c, text)
        return self.head(x), self.note(text.mean(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        self.attn, self.cross = Attention(WIDTH), Attention(TEXT)

    def forward(self, x: Tensor, c: Tensor, text: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(F.silu(c))[:, None].chunk(3, -1)
        h = self.norm(x) * (1 + scale) + shift
        x = x + (1 + gate) * self.attn(h, h)
        return x + self.cross(x, text)


class Attention(nn.Module):
    def __init__(self, source: int) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(source, WIDTH), nn.Linear(source, WIDTH)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = self.q(2 * x)[:, None], self.k(source)[:, None], self.v(2 * source)[:, None]
        return self.o(2 * F.scaled_dot_product_attention(q, k, v)[:, 0])


def twin(model: Painter) -> Painter:
    """Another module of the very same parameters, for hooks that compiled calls must not see."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def _waves(t: Tensor) -> Tensor:
    half = WIDTH // 2
    angles = t[:, None] * torch.exp(-math.log(1e3) * torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], -1)
