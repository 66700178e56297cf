"""Models that Dynamo does not capture whole: it breaks each step into several graphs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

from ._case import HEADS, Case, Draw, Inputs, make

REASONS: dict[str, str] = {
    "lumina2": "puts lengths read from the text mask into a Python set",
    "wan_animate2": "reads the sizes of grids from a tensor",
    "omnigen": "branches on the largest position id",
    "hidream": "loops over token counts of experts, read with numpy",
    "bria_fibo2": "enters a `torch.device` as a context",
    "qwen_image21": "makes a list of a boolean tensor",
    "hunyuan_video15": "branches on whether the image embedding is all zero",
}


def _lumina2(d: Draw) -> Inputs:
    return {
        "hidden_states": d.image(4),
        "timestep": d.sigma(),
        "encoder_hidden_states": d.text(24),
        "encoder_attention_mask": d.mask(),
    }


def _wan_animate2(d: Draw) -> Inputs:
    """A step behind the reference pass, whose keys and values a cache holds."""
    d.b = 1
    area = d.patches
    cache = WanAnimate2KVCache(3)
    for layer in cache.layer_caches:
        layer.store(d.randn(1, area, 2, 16), d.randn(1, area, 2, 16))
    return {
        "hidden_states": [d.randn(4, d.f, d.h, d.w)],
        "timestep": d.step(),
        "encoder_hidden_states": [d.randn(d.n, 24)],
        "condition_latents": [d.randn(5, d.f, d.h, d.w)],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": d.f * area,
        "encoder_hidden_states_image": d.tokens(d.n + 2, 1280),
        "reference_grid_sizes": torch.tensor([[1, d.h // 2, d.w // 2]]),
        "origin_len": 4 * d.f,
        "origin_area": [8 * d.h, 8 * d.w],
    }


def _omnigen(d: Draw) -> Inputs:
    tokens = d.n + 1 + d.patches
    return {
        "hidden_states": d.image(4),
        "timestep": d.sigma(),
        "input_ids": d.ints(30, d.b, d.n),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(d.b, tokens, tokens).tril(),
        "position_ids": torch.arange(tokens).expand(d.b, -1),
    }


def _hidream(d: Draw) -> Inputs:
    return {
        "hidden_states": d.image(4),
        "timesteps": d.int_step(),
        "encoder_hidden_states_t5": d.text(24),
        "encoder_hidden_states_llama3": d.randn(2, d.b, d.n + 2, 24),
        "pooled_embeds": d.pooled(16),
    }


def _qwen_image21(d: Draw) -> Inputs:
    mask = torch.zeros(d.b, d.n + d.patches // 4, dtype=torch.bool)
    mask[:, d.n :] = True
    return {
        "hidden_states": d.tokens(d.patches, 16),
        "encoder_hidden_states": d.text(24),
        "timestep": d.sigma()[:1],
        "img_shapes": [[(1, d.h // 2, d.w // 2)]] * d.b,
        "img_mask": mask,
    }


def _hunyuan_video15(d: Draw) -> Inputs:
    return {
        "hidden_states": d.video(4),
        "timestep": d.step(),
        "encoder_hidden_states": d.text(24),
        "encoder_attention_mask": d.mask(),
        "encoder_hidden_states_2": d.tokens(d.n + 1, 20),
        "encoder_attention_mask_2": d.mask(count=d.n + 1),
        "image_embeds": d.tokens(d.n + 2, 12),
    }


IN_OUT: dict[str, Any] = {"in_channels": 4, "out_channels": 4}

CASES: tuple[Case, ...] = (
    make(
        "lumina2",
        "Lumina2Transformer2DModel",
        "text and image refined apart, then one stream of true lengths",
        {"context_refiner": 2, "noise_refiner": 2, "layers": 3},
        {
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 3,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 4, 8),
            "axes_lens": (64, 24, 24),
            "cap_feat_dim": 24,
        },
        _lumina2,
    ),
    make(
        "wan_animate2",
        "WanAnimate2Transformer3DModel",
        "reference tokens by flex attention, from a cache",
        {"blocks": 3},
        {
            "text_len": 16,
            "in_dim": 9,
            "dim": 32,
            "ffn_dim": 64,
            "freq_dim": 32,
            "text_dim": 24,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 3,
        },
        _wan_animate2,
    ),
    make(
        "omnigen",
        "OmniGenTransformer2DModel",
        "a language model's blocks over text, time and image",
        {"layers": 3},
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "num_layers": 3,
            "pad_token_id": 0,
            "vocab_size": 32,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            "pos_embed_max_size": 16,
            "time_step_dim": 32,
        },
        _omnigen,
    ),
    make(
        "hidream",
        "HiDreamImageTransformer2DModel",
        "experts routed by token, two text encoders",
        {"double_stream_blocks": 1, "single_stream_blocks": 1},
        {
            **HEADS,
            **IN_OUT,
            "patch_size": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [24, 24],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (4, 4, 8),
            "max_resolution": (24, 24),
            "llama_layers": [0, 1],
            "force_inference_output": True,
        },
        _hidream,
        timestep="timesteps",
    ),
    make(
        "bria_fibo2",
        "BriaFibo2Transformer2DModel",
        "text made a few tokens, layers of its encoder injected",
        {"noise_refiner": 2, "layers": 3},
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 3,
            "n_heads": 2,
            "cap_feat_dim": 24,
            "injection_layer_ids": (1,),
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 2,
            "gist_min_text_len": 4,
            "gist_max_text_len": 8,
            "axes_dims": (4, 4, 8),
            "axes_lens": (32, 24, 24),
        },
        lambda d: {
            "hidden_states": d.image(4),
            "timestep": d.sigma(),
            "encoder_hidden_states": d.randn(d.b, 2, d.n, 24),
        },
    ),
    make(
        "qwen_image21",
        "QwenImage21Transformer2DModel",
        "text and images interleaved, causal from block to block",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 3,
            "context_in_dim": 24,
            "axes_dims_rope": (4, 4, 8),
        },
        _qwen_image21,
    ),
    make(
        "hunyuan_video15",
        "HunyuanVideo15Transformer3DModel",
        "valid tokens of three conditions sorted to the front",
        {"context_embedder.token_refiner.refiner_blocks": 2, "transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 3,
            "num_refiner_layers": 2,
            "text_embed_dim": 24,
            "text_embed_2_dim": 20,
            "image_embed_dim": 12,
            "rope_axes_dim": (4, 4, 8),
            "target_size": 16,
        },
        _hunyuan_video15,
    ),
)
