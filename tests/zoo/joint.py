"""Image models in which text and image tokens attend to each other in one joint sequence."""

from __future__ import annotations

from typing import Any

import torch

from ._case import HEADS, Case, Draw, Inputs, grid, make

PACKED: dict[str, Any] = {
    **HEADS,
    "in_channels": 16,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 4, 8),
}
DOUBLE_SINGLE = ("transformer_blocks", "single_transformer_blocks")
REFINER = "context_embedder.token_refiner.refiner_blocks"


def _packed(d: Draw, axes: int = 3) -> Inputs:
    """Latents packed to 2 x 2 patches, and position ids, as FLUX takes them."""
    image = grid(*[1] * (axes - 2), d.h // 2, d.w // 2)
    if axes == 4:  # FLUX.2 numbers time, height, width and text token
        image = image[:, [0, 2, 3, 1]]
    return {
        "hidden_states": d.tokens(d.patches, 16),
        "encoder_hidden_states": d.text(24),
        "timestep": d.sigma(),
        "img_ids": image,
        "txt_ids": torch.zeros(d.n, axes),
    }


def _flux3(d: Draw) -> Inputs:
    return _packed(d, axes=4) | {
        "image_cond_hidden_states": d.tokens(d.n + 4, 16),
        "image_cond_ids": grid(1, 1, 1, d.n + 4, offset=1),
    }


def _joint_mask(d: Draw) -> torch.Tensor:
    return torch.cat([d.mask(torch.bool), torch.ones(d.b, d.patches, dtype=torch.bool)], dim=1)


CASES: tuple[Case, ...] = (
    make(
        "sd3",
        "SD3Transformer2DModel",
        "MMDiT, dual attention in the first blocks",
        {"transformer_blocks": 4},
        {
            **HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 12,
            "qk_norm": "rms_norm",
            "dual_attention_layers": (0, 1),
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "pooled_projections": d.pooled(16),
            "timestep": d.step(),
        },
    ),
    make(
        "aura_flow",
        "AuraFlowTransformer2DModel",
        "register tokens, no biases",
        {"joint_transformer_blocks": 2, "single_transformer_blocks": 3},
        {
            **HEADS,
            "sample_size": 16,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 3,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "timestep": d.sigma(),
        },
    ),
    make(
        "flux",
        "FluxTransformer2DModel",
        "double and single stream, guidance embedding",
        dict(zip(DOUBLE_SINGLE, (2, 3), strict=True)),
        {
            **PACKED,
            "num_layers": 2,
            "num_single_layers": 3,
            "pooled_projection_dim": 16,
            "guidance_embeds": True,
        },
        lambda d: _packed(d) | {"pooled_projections": d.pooled(16), "guidance": d.sigma() * 4},
    ),
    make(
        "flux2",
        "Flux2Transformer2DModel",
        "double and single stream, modulation shared by all blocks",
        dict(zip(DOUBLE_SINGLE, (2, 4), strict=True)),
        {
            **PACKED,
            "num_layers": 2,
            "num_single_layers": 4,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        lambda d: _packed(d, axes=4) | {"guidance": d.sigma() * 4},
    ),
    make(
        "flux3",
        "Flux3Transformer2DModel",
        "separate stack for each modality, then joint",
        {
            "txt_mode_blocks": 2,
            "mode_blocks.image": 2,
            "mode_blocks.image_cond": 2,
            "single_transformer_blocks": 3,
        },
        {
            **PACKED,
            "cond_in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 3,
            "timestep_channels": 32,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        _flux3,
    ),
    make(
        "chroma",
        "ChromaTransformer2DModel",
        "modulation from one distilled network",
        dict(zip(DOUBLE_SINGLE, (3, 2), strict=True)),
        {
            **PACKED,
            "num_layers": 3,
            "num_single_layers": 2,
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 24,
            "approximator_layers": 2,
        },
        lambda d: _packed(d) | {"attention_mask": _joint_mask(d)},
    ),
    make(
        "bria",
        "BriaTransformer2DModel",
        "double and single stream, time only",
        dict(zip(DOUBLE_SINGLE, (2, 3), strict=True)),
        {**PACKED, "num_layers": 2, "num_single_layers": 3},
        lambda d: _packed(d) | {"timestep": d.step()},
    ),
    make(
        "bria_fibo",
        "BriaFiboTransformer2DModel",
        "a text encoder layer injected into each block",
        dict(zip(DOUBLE_SINGLE, (3, 2), strict=True)),
        {**PACKED, "num_layers": 3, "num_single_layers": 2, "text_encoder_dim": 20},
        lambda d: _packed(d) | {"text_encoder_layers": [d.text(20) for _ in range(5)]},
    ),
    make(
        "ovis_image",
        "OvisImageTransformer2DModel",
        "double and single stream, SwiGLU",
        dict(zip(DOUBLE_SINGLE, (2, 3), strict=True)),
        {**PACKED, "out_channels": 16, "num_layers": 2, "num_single_layers": 3},
        _packed,
    ),
    make(
        "longcat_image",
        "LongCatImageTransformer2DModel",
        "double and single stream, plain embedders",
        dict(zip(DOUBLE_SINGLE, (2, 4), strict=True)),
        {**PACKED, "num_layers": 2, "num_single_layers": 4, "pooled_projection_dim": 16},
        _packed,
    ),
    make(
        "qwen_image",
        "QwenImageTransformer2DModel",
        "double stream only, rotary table from image shapes",
        {"transformer_blocks": 3},
        {**PACKED, "out_channels": 4, "num_layers": 3},
        lambda d: {
            "hidden_states": d.tokens(d.patches, 16),
            "encoder_hidden_states": d.text(24),
            "encoder_hidden_states_mask": d.mask(torch.bool),
            "timestep": d.sigma(),
            "img_shapes": [[(1, d.h // 2, d.w // 2)]] * d.b,
        },
    ),
    make(
        "hunyuan_image",
        "HunyuanImageTransformer2DModel",
        "token refiner, double and single stream",
        {REFINER: 2} | dict(zip(DOUBLE_SINGLE, (3, 4), strict=True)),
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_single_layers": 4,
            "text_embed_dim": 24,
            "rope_axes_dim": (8, 8),
        },
        lambda d: {
            "hidden_states": d.image(4),
            "timestep": d.step(),
            "encoder_hidden_states": d.text(24),
            "encoder_attention_mask": d.mask(),
        },
    ),
    make(
        "joyimage_edit",
        "JoyImageEditTransformer3DModel",
        "double stream of an edited and a reference image",
        {"double_blocks": 3},
        {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 24,
            "num_layers": 3,
            "rope_dim_list": [4, 4, 8],
        },
        lambda d: {
            "hidden_states": d.randn(d.b, 2, 4, 1, d.h, d.w),
            "timestep": d.step(),
            "encoder_hidden_states": d.text(24),
        },
    ),
    make(
        "joyimage_edit_plus",
        "JoyImageEditPlusTransformer3DModel",
        "double stream of several images, patches of all in one row",
        {"double_blocks": 3},
        {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 24,
            "num_layers": 3,
            "rope_dim_list": [4, 4, 8],
        },
        lambda d: {
            "hidden_states": d.randn(d.b, 2 * d.patches, 4, 1, 2, 2),
            "timestep": d.step(),
            "encoder_hidden_states": d.text(24),
            "encoder_hidden_states_mask": d.mask(),
            "shape_list": [[(1, d.h // 2, d.w // 2)] * 2] * d.b,
        },
    ),
    make(
        "nucleus_moe",
        "NucleusMoEImageTransformer2DModel",
        "experts choose tokens",
        {"transformer_blocks": 4},
        {
            **PACKED,
            "out_channels": 4,
            "num_layers": 4,
            "num_key_value_heads": 1,
            "dense_moe_strategy": "leave_first_block_dense",
            "num_experts": 4,
            "moe_intermediate_dim": 24,
            "capacity_factors": 2.0,
            "mlp_ratio": 8.0,
        },
        lambda d: {
            "hidden_states": d.tokens(d.patches, 16),
            "img_shapes": [(1, d.h // 2, d.w // 2)] * d.b,
            "encoder_hidden_states": d.text(24),
            "encoder_hidden_states_mask": d.mask(torch.bool),
            "timestep": d.sigma(),
        },
    ),
)
