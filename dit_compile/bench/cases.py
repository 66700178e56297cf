"""Models that are measured: published sizes, random weights.

What a model is called serves the table alone; the compiler never sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dit_compile.errors import find_named
from dit_compile.optional import require

#: Shape of an input, or a function of the batch that makes one.
_Maker = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One model at one resolution.

    Attributes:
        name: what the command line calls it.
        cls: class of diffusers.
        config: its arguments.
        latent: shape of one sample's latent, and ``noise`` the argument that takes it.
        given: other inputs, each made from the batch size; the same at every step.
        blocks: names of the arguments that count blocks; ``--blocks`` cuts them.
        scale: the timestep that stands for pure noise.
        whole: whether timesteps are integers.
        note: what differs from the published model.
    """

    name: str
    cls: str
    config: Mapping[str, Any]
    latent: tuple[int, ...]
    given: Mapping[str, _Maker] = field(default_factory=dict)
    noise: str = "hidden_states"
    blocks: tuple[str, ...] = ("num_layers",)
    scale: float = 1000.0
    whole: bool = True
    note: str = ""

    def build(self, dtype: torch.dtype, device: str, blocks: int | None = None) -> nn.Module:
        """The model with random weights.

        Raises:
            MissingDependencyError: diffusers is missing.
        """
        diffusers = require("diffusers", "bench")
        cut = dict.fromkeys(self.blocks, blocks) if blocks else {}
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            model: nn.Module = getattr(diffusers, self.cls)(**{**self.config, **cut})
        return model.to(dtype).eval()

    def inputs(self, batch: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
        """The arguments of one call but for the timestep."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made = {name: make(batch) for name, make in self.given.items()}
            made[self.noise] = torch.randn(batch, *self.latent)
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in made.items()
        }

    def timesteps(self, steps: int, dtype: torch.dtype) -> torch.Tensor:
        """The timesteps of a generation, falling; ``dtype`` is the model's."""
        ladder = torch.linspace(self.scale * 0.98, self.scale * 0.01, steps)
        return ladder.to(torch.int64 if self.whole else dtype)


def _normal(*shape: int) -> _Maker:
    return lambda batch: torch.randn(batch, *shape)


def _labels(batch: int) -> torch.Tensor:
    """The second half is the null class: guidance by a doubled batch."""
    return torch.tensor([1] * (batch - batch // 2) + [1000] * (batch // 2))


def _grid_ids(side: int) -> _Maker:
    """Row and column of each image token, as FLUX numbers them, ``[side * side, 3]``."""
    zero, side_range = torch.zeros(1), torch.arange(float(side))
    return lambda _: torch.cartesian_prod(zero, side_range, side_range)


def _dit(side: int) -> dict[str, Any]:
    return {
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": side,
    }


def _pixart(name: str, side: int) -> Case:
    config = _dit(side) | {"cross_attention_dim": 1152, "caption_channels": 4096}
    return Case(
        name,
        "PixArtTransformer2DModel",
        config | {"norm_type": "ada_norm_single", "use_additional_conditions": False},
        (4, side, side),
        {"encoder_hidden_states": _normal(300, 4096)},
    )


CASES = (
    Case("dit-xl-2-256", "DiTTransformer2DModel", _dit(32), (4, 32, 32), {"class_labels": _labels}),
    Case("dit-xl-2-512", "DiTTransformer2DModel", _dit(64), (4, 64, 64), {"class_labels": _labels}),
    _pixart("pixart-sigma-512", 64),
    _pixart("pixart-sigma-1024", 128),
    Case(
        "sd3-medium-512",
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "in_channels": 16,
            "out_channels": 16,
            "pos_embed_max_size": 192,
        },
        (16, 64, 64),
        {"encoder_hidden_states": _normal(154, 4096), "pooled_projections": _normal(2048)},
    ),
    Case(
        "flux-1-512",
        "FluxTransformer2DModel",
        {"num_layers": 2, "num_single_layers": 4, "guidance_embeds": True},
        (1024, 64),
        {
            "encoder_hidden_states": _normal(256, 4096),
            "pooled_projections": _normal(768),
            "img_ids": _grid_ids(32),
            "txt_ids": lambda _: torch.zeros(256, 3),
            "guidance": lambda batch: torch.full((batch,), 3.5),
        },
        blocks=("num_layers", "num_single_layers"),
        scale=1.0,
        whole=False,
        note="2 of 19 and 4 of 38 blocks",
    ),
    Case(
        "wan-2.1-1.3b",
        "WanTransformer3DModel",
        {
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "ffn_dim": 8960,
            "num_layers": 30,
            "text_dim": 4096,
        },
        (16, 2, 32, 32),
        {"encoder_hidden_states": _normal(226, 4096)},
        note="2 latent frames of 32x32",
    ),
    Case(
        "latte-1",
        "LatteTransformer3DModel",
        _dit(32)
        | {
            "cross_attention_dim": 1152,
            "caption_channels": 4096,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "video_length": 4,
        },
        (4, 4, 32, 32),
        {"encoder_hidden_states": _normal(120, 4096)},
        note="4 latent frames of 32x32",
    ),
    Case(
        "hunyuan-dit-512",
        "HunyuanDiT2DModel",
        {
            "num_attention_heads": 16,
            "attention_head_dim": 88,
            "in_channels": 4,
            "patch_size": 2,
            "hidden_size": 1408,
            "num_layers": 40,
            "mlp_ratio": 4.3637,
            "sample_size": 64,
            "activation_fn": "gelu-approximate",
        },
        (4, 64, 64),
        {
            "encoder_hidden_states": _normal(77, 1024),
            "text_embedding_mask": lambda batch: torch.ones(batch, 77),
            "encoder_hidden_states_t5": _normal(256, 2048),
            "text_embedding_mask_t5": lambda batch: torch.ones(batch, 256),
            "image_meta_size": lambda batch: torch.tensor([[512.0, 512, 512, 512, 0, 0]] * batch),
            "style": lambda batch: torch.zeros(batch, dtype=torch.long),
        },
        whole=False,
        note="without rotary embedding",
    ),
)
"""Every case, in the order of the table."""


def find_case(name: str) -> Case:
    """The case called ``name``.

    Raises:
        OptionError: there is none.
    """
    return find_named("model", name, {case.name: case for case in CASES})
