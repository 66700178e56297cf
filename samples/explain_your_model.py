"""Look at what each pass does to a model of yours, and check it against float64.

Run it with ``python samples/explain_your_model.py``. The command line does the same with
``ditc explain samples/explain_your_model.py:target --diff``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import dit_compile as ditc


class Block(nn.Module):
    """A transformer block with adaptive layer norm, written without any library."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def attend(self, x: Tensor) -> Tensor:
        """Self attention over tokens ``[B, N, D]``."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` under a condition ``[B, D]``."""
        modulation = self.modulation(nn.functional.silu(condition)).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Denoiser(nn.Module):
    """A small diffusion transformer over tokens."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.embed = nn.Linear(2 * 16, width)

    def forward(self, tokens: Tensor, timestep: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` at the timesteps ``[B]``."""
        frequencies = torch.exp(-torch.arange(16) * 0.5)
        angles = timestep[:, None] * frequencies
        condition = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        for block in self.blocks:
            tokens = block(tokens, condition)
        return tokens


def target() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model and one call of it: what ``ditc explain file.py:target`` asks for."""
    torch.manual_seed(0)
    return Denoiser().eval(), (torch.randn(2, 32, 64),), {"timestep": torch.tensor([500.0, 500.0])}


def main() -> None:
    """Print the pass table, one diff, and what the cache does to the work of a step."""
    model, args, kwargs = target()
    found = ditc.explain(model, args, kwargs)
    found.print()
    print(found.diff("fuse-qkv"))
    ditc.explain(model, args, kwargs, passes="balanced").print()


if __name__ == "__main__":
    main()
