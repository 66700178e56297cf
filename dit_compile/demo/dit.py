"""The bundled model `digits`: a class-conditional DiT, sampled by DDIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dit_compile.demo.bundled import TRAIN_TIMESTEPS, BundledModel, Conditions, check_steps
from dit_compile.optional import require


@dataclass(frozen=True)
class DigitsDiT(BundledModel):
    """A diffusers `DiTTransformer2DModel`, trained by `samples/train_digits.py`.

    It predicts the velocity v = sqrt(alpha) noise - sqrt(1 - alpha) image (Salimans and Ho, 2022):
    latents [N, 1, 8, 8], int64 timesteps [N] in [0, 1000) and class labels [N] in
    [0, `NULL_CLASS`] -> [N, 1, 8, 8].
    """

    name: ClassVar[str] = "digits"
    file: ClassVar[str] = "digits_dit.safetensors"
    transformer: ClassVar[str] = "DiTTransformer2DModel"

    def scheduler(self, num_inference_steps: int = 50) -> Any:
        """The `DDIMScheduler` with linear betas and v-prediction; see the base class."""
        check_steps(num_inference_steps)
        ddim = require("diffusers", "demo").DDIMScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            prediction_type="v_prediction",
            # By default DDIM clips the image it expects but not the noise it expects with it.
            # Guidance overshoots [-1, 1] at every step; that mismatch then turns digits inside out.
            clip_sample=False,
        )
        ddim.set_timesteps(num_inference_steps)
        return ddim

    def conditions(self, labels: Tensor, dtype: torch.dtype = torch.float32) -> Conditions:
        """The class labels themselves."""
        return {"class_labels": labels}
