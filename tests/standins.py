"""Tiny pipelines under the names of published ones, with random weights, for the examples.

``from_pretrained`` finds them in the working directory. Where a pipeline would read a prompt, a few
random numbers stand for it, drawn from the prompt's own text.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from torch import Tensor, nn

_PARTS = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
)
_TEXT, _POOLED = 24, 16


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put the pipelines and two LoRAs, ``ink`` and ``chalk``, into ``folder``, and go there."""
    monkeypatch.chdir(folder)
    for kind, encode in _ENCODERS.items():
        monkeypatch.setattr(kind, "encode_prompt", encode)
        optional = [*kind._optional_components, *_PARTS]
        monkeypatch.setattr(kind, "_optional_components", optional)
    for kind in (diffusers.FluxPipeline, diffusers.FluxImg2ImgPipeline):
        small = property(lambda pipe: 8, lambda pipe, value: None)
        monkeypatch.setattr(kind, "default_sample_size", small, raising=False)
    _by_default(monkeypatch, diffusers.WanPipeline, height=16, width=16, num_frames=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _flux().save_pretrained("black-forest-labs/FLUX.1-dev")
        _sd3().save_pretrained("stabilityai/stable-diffusion-3-medium-diffusers")
        _wan().save_pretrained("Wan-AI/Wan2.2-T2V-A14B-Diffusers")
        for seed, name in enumerate(("ink", "chalk")):
            _save_lora(name, seed)


def pipeline() -> Any:
    """A pipeline, as an example may have one already."""
    return diffusers.FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev")


def _flux() -> Any:
    """A pipeline of the family of FLUX.1, guidance distilled."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_TEXT,
        pooled_projection_dim=_POOLED,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts: Any = dict.fromkeys(_PARTS[:2] + _PARTS[3:5])
    return diffusers.FluxPipeline(
        scheduler=scheduler, vae=_vae(), transformer=_drawn(transformer, 0), **parts
    )


def _sd3() -> Any:
    """A pipeline of the family of Stable Diffusion 3, guidance by a doubled batch."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=_TEXT,
        caption_projection_dim=32,
        pooled_projection_dim=_POOLED,
        pos_embed_max_size=12,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts: Any = dict.fromkeys(_PARTS)
    return diffusers.StableDiffusion3Pipeline(
        scheduler=scheduler, vae=_vae(), transformer=_drawn(transformer, 3), **parts
    )


def _vae() -> nn.Module:
    """Eight pixels a latent, as published ones have."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        shift_factor=0.0,
    )


def _wan() -> Any:
    """A pipeline of two experts, as Wan 2.2 has."""
    experts = [
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=_TEXT,
            freq_dim=32,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
        )
        for _ in range(2)
    ]
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[0, 1, 1]
    )
    return diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=12.0),
        transformer=_drawn(experts[0], 1),
        transformer_2=_drawn(experts[1], 2),
        boundary_ratio=0.875,
    )


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights that matter: gates are zero in an untrained one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return model


def _save_lora(name: str, seed: int) -> None:
    transformer = _flux().transformer
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"])
    transformer.add_adapter(config)
    weights = peft.get_peft_model_state_dict(transformer)
    generator = torch.Generator().manual_seed(seed)
    drawn = {k: 0.3 * torch.randn(w.shape, generator=generator) for k, w in weights.items()}
    diffusers.FluxPipeline.save_lora_weights(
        ".", transformer_lora_layers=drawn, weight_name=f"{name}.safetensors"
    )


def _embedding(prompt: str | list[str], *shape: int) -> Tensor:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    seeds = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in prompts]
    return torch.stack([torch.randn(shape, generator=seed) for seed in seeds])


def _encode_for_flux(
    pipe: Any, prompt: str | list[str], num_images_per_prompt: int = 1, **rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = _embedding(prompt, 5, _TEXT).repeat_interleave(num_images_per_prompt, 0)
    pooled = _embedding(prompt, _POOLED).repeat_interleave(num_images_per_prompt, 0)
    dtype = pipe.transformer.dtype
    return tokens.to(dtype), pooled.to(dtype), torch.zeros(tokens.shape[1], 3, dtype=dtype)


def _encode_for_sd3(
    pipe: Any, prompt: str | list[str], negative_prompt: str | None = None, **rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    texts = (prompt, negative_prompt or "")
    tokens, pooled = ([_embedding(text, *of) for text in texts] for of in ((5, _TEXT), (_POOLED,)))
    return tokens[0], tokens[1], pooled[0], pooled[1]


def _encode_for_wan(
    pipe: Any, prompt: str | list[str], negative_prompt: str | None = None, **rest: Any
) -> tuple[Tensor, Tensor]:
    return _embedding(prompt, 5, _TEXT), _embedding(negative_prompt or "", 5, _TEXT)


_ENCODERS: dict[Any, Callable[..., Any]] = {
    diffusers.FluxPipeline: _encode_for_flux,
    diffusers.FluxImg2ImgPipeline: _encode_for_flux,
    diffusers.StableDiffusion3Pipeline: _encode_for_sd3,
    diffusers.WanPipeline: _encode_for_wan,
}


def _by_default(monkeypatch: pytest.MonkeyPatch, kind: type[Any], **sizes: int) -> None:
    """Let calls of a pipeline have these arguments where they are not given."""
    original: Callable[..., Any] = kind.__call__

    def call(self: Any, *args: Any, **given: Any) -> Any:
        bound = inspect.signature(original).bind_partial(self, *args, **given).arguments
        return original(self, *args, **given, **{k: v for k, v in sizes.items() if k not in bound})

    monkeypatch.setattr(kind, "__call__", call)
