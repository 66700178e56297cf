"""What a case of the zoo is, and how its example inputs are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
"""Hidden size 32, in the words that most classes use."""


@dataclass(frozen=True)
class Case:
    """A tiny configuration of one diffusers transformer class, with example inputs."""

    name: str
    build: Callable[[], nn.Module]
    """Makes the model as diffusers initialises it; `zoo.build` also draws weights that matter."""
    inputs: Callable[[int, torch.Generator], Inputs]
    """Keyword arguments of `forward` for variant 0 or 1, which differ in every size that may."""
    blocks: tuple[int, ...]
    """Configured number of transformer blocks of each stack that `forward` runs."""
    stacks: tuple[str, ...]
    """Module path of each of those stacks, in the order in which `forward` first runs them."""
    family: str
    """What sets the architecture apart, in a few words."""
    latent: str = "hidden_states"
    """The keyword argument that holds the noisy latent."""
    timestep: str = "timestep"
    """The keyword argument that holds the timestep."""
    unscaled: str = ""
    """Path of a module whose layers divide weights by the root of their input's size themselves."""


class Draw:
    """Draws the example inputs of one variant.

    The sizes are `b` samples, `f` latent frames, an `h` x `w` latent, and `n` text tokens; those of
    variant 1 are pairwise distinct, so that a mix-up of two symbolic sizes shows.
    """

    def __init__(self, variant: int, generator: torch.Generator) -> None:
        sizes = ((1, 2, 8, 8, 5), (2, 3, 12, 16, 7))
        self.b, self.f, self.h, self.w, self.n = sizes[variant]
        self.variant = variant
        self.generator = generator

    @property
    def patches(self) -> int:
        """Number of 2 x 2 patches of the latent."""
        return self.h * self.w // 4

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def ints(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def image(self, channels: int, *, square: bool = False) -> Tensor:
        return self.randn(self.b, channels, self.h, self.h if square else self.w)

    def video(self, channels: int) -> Tensor:
        return self.randn(self.b, channels, self.f, self.h, self.w)

    def tokens(self, count: int, channels: int) -> Tensor:
        return self.randn(self.b, count, channels)

    def text(self, channels: int) -> Tensor:
        return self.tokens(self.n, channels)

    def pooled(self, channels: int) -> Tensor:
        return self.randn(self.b, channels)

    def mask(self, dtype: torch.dtype = torch.int64, count: int | None = None) -> Tensor:
        """A text mask with the last token of the last sample padded."""
        mask = torch.ones(self.b, count or self.n, dtype=dtype)
        mask[-1, -1] = 0
        return mask

    def sigma(self) -> Tensor:
        """Timesteps in (0, 1), one a sample, as flow matching uses them."""
        return torch.rand(self.b, generator=self.generator) * 0.8 + 0.1

    def step(self) -> Tensor:
        """Timesteps in (0, 1000), float."""
        return self.sigma() * 1000

    def int_step(self) -> Tensor:
        """Timesteps in (0, 1000), int64."""
        return self.step().long()

    def rope(self, count: int, dim: int) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines of shape `[count, dim]`, each angle repeated twice."""
        angles = self.randn(count, dim // 2).repeat_interleave(2, dim=1)
        return angles.cos(), angles.sin()


def grid(*sizes: int, offset: int = 0) -> Tensor:
    """Position ids of a grid, `[prod(sizes), len(sizes)]`, float."""
    axes = torch.meshgrid(*(torch.arange(size) + offset for size in sizes), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(math.prod(sizes), len(sizes)).float()


def make(
    name: str,
    cls: str,
    family: str,
    stacks: Mapping[str, int],
    config: Mapping[str, Any],
    inputs: Callable[[Draw], Inputs],
    *,
    return_dict: bool = True,
    latent: str = "hidden_states",
    timestep: str = "timestep",
    unscaled: str = "",
) -> Case:
    """Describe a case; the class is imported from diffusers only when the case is built.

    Pass `return_dict=False` for a class whose `forward` has no such argument.
    """

    def construct() -> nn.Module:
        model: nn.Module = getattr(diffusers, cls)(**config)
        return model

    def draw(variant: int, generator: torch.Generator) -> Inputs:
        kwargs = inputs(Draw(variant, generator))
        return kwargs | {"return_dict": False} if return_dict else kwargs

    return Case(
        name=name,
        build=construct,
        inputs=draw,
        blocks=tuple(stacks.values()),
        stacks=tuple(stacks),
        family=family,
        latent=latent,
        timestep=timestep,
        unscaled=unscaled,
    )
