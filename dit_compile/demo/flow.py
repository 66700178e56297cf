"""The bundled model `digits-flow`: a joint-stream transformer, sampled along a straight flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dit_compile.demo.bundled import TRAIN_TIMESTEPS, BundledModel, Conditions, check_steps
from dit_compile.demo.digits import IMAGE_SHAPE, read_checkpoint
from dit_compile.optional import require


class Prompts(nn.Module):
    """A learned prompt for each class and one for none, in the place of text encoders.

    Args:
        embeds: text tokens [11, tokens, width].
        pooled: pooled prompts [11, pooled_width].
    """

    def __init__(self, embeds: Tensor, pooled: Tensor) -> None:
        super().__init__()
        self.embeds, self.pooled = nn.Parameter(embeds), nn.Parameter(pooled)

    def forward(self, labels: Tensor) -> dict[str, Tensor]:
        """What the transformer is told of the classes `labels` [N], apart from the timestep."""
        _, height, width = IMAGE_SHAPE
        rows = torch.arange(height).repeat_interleave(width)
        columns = torch.arange(width).repeat(height)
        # Image tokens are numbered by row and column and text tokens not at all, as in FLUX.
        positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
        return {
            "encoder_hidden_states": self.embeds[labels],
            "pooled_projections": self.pooled[labels],
            "img_ids": positions.to(labels.device, torch.float32),
            "txt_ids": torch.zeros(self.embeds.shape[1], 3, device=labels.device),
        }


@dataclass(frozen=True)
class DigitsFlow(BundledModel):
    """A diffusers `FluxTransformer2DModel`, trained by `samples/train_digits_flow.py`.

    It predicts the velocity noise - image at latents (1 - sigma) image + sigma noise (Lipman et
    al., 2023; Liu et al., 2023): pixels as tokens [N, 64, 1], sigmas [N] in [0, 1], text tokens, a
    pooled prompt and position ids -> [N, 64, 1].
    """

    name: ClassVar[str] = "digits-flow"
    file: ClassVar[str] = "digits_flow.safetensors"
    transformer: ClassVar[str] = "FluxTransformer2DModel"
    prefix: ClassVar[str] = "transformer."

    def scheduler(self, num_inference_steps: int = 50) -> Any:
        """The `FlowMatchEulerDiscreteScheduler` with equal steps; see the base class."""
        check_steps(num_inference_steps)
        euler = require("diffusers", "demo").FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS
        )
        # The spacing of FLUX's pipeline; the scheduler's own ends with a step 20 times too short.
        euler.set_timesteps(
            sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)]
        )
        return euler

    def conditions(self, labels: Tensor, dtype: torch.dtype = torch.float32) -> Conditions:
        """Text tokens and a pooled prompt for each class, and position ids (always float32)."""
        made: dict[str, Tensor] = self.prompts().to(labels.device)(labels)
        for name in ("encoder_hidden_states", "pooled_projections"):
            made[name] = made[name].to(dtype)
        return made

    def prompts(self) -> Prompts:
        """Load the prompts that were learned with the transformer (float32), on the CPU."""
        _, state = read_checkpoint(self.data / self.file, "prompts.")
        embeds, pooled = (state[name].float() for name in ("embeds", "pooled"))
        return Prompts(embeds, pooled).requires_grad_(False)

    def clock(self, timesteps: Tensor) -> Tensor:
        """Sigma, from 1 (noise) to 0 (image)."""
        return timesteps / TRAIN_TIMESTEPS

    def pack(self, images: Tensor) -> Tensor:
        """One token a pixel, row by row: [N, 1, 8, 8] -> [N, 64, 1]."""
        return images.flatten(2).transpose(1, 2)

    def unpack(self, output: Tensor) -> Tensor:
        """The inverse of `pack`."""
        return output.transpose(1, 2).reshape(len(output), *IMAGE_SHAPE)
