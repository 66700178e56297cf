"""Video models."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from ._case import HEADS, Case, Draw, Inputs, make

IN_OUT: dict[str, Any] = {"in_channels": 4, "out_channels": 4}
WAN: dict[str, Any] = {
    **HEADS,
    **IN_OUT,
    "text_dim": 24,
    "freq_dim": 32,
    "ffn_dim": 64,
    "rope_max_seq_len": 32,
}
LTX2: dict[str, Any] = {
    **HEADS,
    "in_channels": 8,
    "out_channels": 8,
    "cross_attention_dim": 32,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 3,
    "caption_channels": 24,
}
REFINER = "context_embedder.token_refiner.refiner_blocks"


def _wan(d: Draw) -> Inputs:
    return {
        "hidden_states": d.video(4),
        "timestep": d.int_step(),
        "encoder_hidden_states": d.text(24),
    }


def _cogvideo(d: Draw) -> Inputs:
    return {
        "hidden_states": d.randn(d.b, d.f, 4, d.h, d.w),
        "encoder_hidden_states": d.text(24),
        "timestep": d.int_step(),
        "image_rotary_emb": d.rope(d.f * d.patches, 16),
    }


def _allegro(d: Draw) -> Inputs:
    t, h, w, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        24, ((0, 0), (d.h // 2, d.w // 2)), (d.h // 2, d.w // 2), d.f
    )
    ids = torch.cartesian_prod(grid_t, grid_h, grid_w).long().T.unsqueeze(1).contiguous()
    return {
        "hidden_states": d.video(4),
        "encoder_hidden_states": d.text(24),
        "timestep": d.int_step(),
        "encoder_attention_mask": d.mask(),
        "image_rotary_emb": ((t, h, w), tuple(ids)),
    }


def _ltx2(d: Draw) -> Inputs:
    return {
        "hidden_states": d.tokens(d.f * d.patches, 8),
        "audio_hidden_states": d.tokens(d.n + 6, 8),
        "encoder_hidden_states": d.text(24),
        "audio_encoder_hidden_states": d.text(24),
        "timestep": d.step(),
        "encoder_attention_mask": d.mask(),
        "audio_encoder_attention_mask": d.mask(),
        "num_frames": d.f,
        "height": d.h // 2,
        "width": d.w // 2,
        "fps": 24.0,
        "audio_num_frames": d.n + 6,
    }


def _helios(d: Draw) -> Inputs:
    def history(frames: int) -> torch.Tensor:
        return d.randn(d.b, 4, frames, d.h, d.w)

    index = torch.arange(d.f + 7).expand(d.b, -1)
    return _wan(d) | {
        "indices_hidden_states": index[:, 7:],
        "indices_latents_history_short": index[:, 6:7],
        "indices_latents_history_mid": index[:, 4:6],
        "indices_latents_history_long": index[:, :4],
        "latents_history_short": history(1),
        "latents_history_mid": history(2),
        "latents_history_long": history(4),
    }


def _any_flow_far(d: Draw) -> Inputs:
    """Two chunks, the latter of one frame."""
    frames = d.f + 1
    times = d.step()[:, None].repeat(1, frames)
    return {
        "hidden_states": d.randn(d.b, frames, 4, d.h, d.w),
        "timestep": times,
        "r_timestep": times * 0.5,
        "encoder_hidden_states": d.text(24),
        "chunk_partition": [d.f, 1],
    }


def _framepack(d: Draw) -> Inputs:
    """One sample: the class does not take more where texts differ in length."""
    d.b = 1

    def history(frames: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        return d.randn(1, 4, frames, d.h, d.w), torch.arange(frames) + first

    clean, near, far = history(2, 0), history(2, 2), history(4, 4)
    return _wan(d) | {
        "encoder_attention_mask": d.mask(),
        "pooled_projections": d.pooled(16),
        "guidance": d.sigma() * 6000,
        "image_embeds": d.tokens(d.n + 2, 20),
        "indices_latents": torch.arange(d.f) + 8,
        "latents_clean": clean[0],
        "indices_latents_clean": clean[1],
        "latents_history_2x": near[0],
        "indices_latents_history_2x": near[1],
        "latents_history_4x": far[0],
        "indices_latents_history_4x": far[1],
    }


def _wan_animate(d: Draw) -> Inputs:
    return _wan(d) | {
        "hidden_states": d.randn(d.b, 12, d.f + 1, d.h, d.w),
        "encoder_hidden_states_image": d.tokens(d.n + 2, 20),
        "pose_hidden_states": d.video(4),
        "face_pixel_values": d.randn(d.b, 3, 4 * d.f - 3, 16, 16),
    }


def _sana_wm(d: Draw) -> Inputs:
    return {
        "hidden_states": d.video(4),
        "timestep": d.step()[:, None, None].repeat(1, 1, d.f),
        "encoder_hidden_states": d.randn(d.b, 1, d.n, 24),
        "encoder_attention_mask": d.mask(),
        "camera_conditions": d.randn(d.b, d.f, 20),
    }


def _sana_wm_refiner(d: Draw) -> Inputs:
    count = d.f * d.patches
    return {
        "hidden_states": d.tokens(count, 8),
        "encoder_hidden_states": d.text(24),
        "timestep": d.step()[:, None].repeat(1, count),
        "video_rotary_emb": tuple(table.expand(d.b, -1, -1) for table in d.rope(count, 32)),
        "encoder_attention_mask": d.mask(),
    }


def _kandinsky(d: Draw, channels: int) -> Inputs:
    return {
        "hidden_states": d.randn(d.b, d.f, d.h, d.w, channels),
        "encoder_hidden_states": d.text(24),
        "timestep": d.step(),
        "pooled_projections": d.pooled(16),
        "visual_rope_pos": tuple(torch.arange(n) for n in (d.f, d.h // 2, d.w // 2)),
    }


CASES: tuple[Case, ...] = (
    make(
        "wan",
        "WanTransformer3DModel",
        "3-D rotary, cross-attention, float32 modulation",
        {"blocks": 3},
        {**WAN, "num_layers": 3},
        _wan,
    ),
    make(
        "wan_vace",
        "WanVACETransformer3DModel",
        "control stack feeding hints into the main one",
        {"vace_blocks": 2, "blocks": 4},
        {**WAN, "num_layers": 4, "vace_layers": [0, 2], "vace_in_channels": 6},
        lambda d: (
            _wan(d)
            | {
                "control_hidden_states": d.video(6),
                "control_hidden_states_scale": torch.tensor([1.0, 0.5]),
            }
        ),
    ),
    make(
        "skyreels_v2",
        "SkyReelsV2Transformer3DModel",
        "diffusion forcing: a timestep for each frame",
        {"blocks": 3},
        {**WAN, "num_layers": 3},
        lambda d: _wan(d) | {"timestep": d.ints(1000, d.b, d.f), "enable_diffusion_forcing": True},
    ),
    make(
        "chrono_edit",
        "ChronoEditTransformer3DModel",
        "temporal skip in rotary positions, image conditioning",
        {"blocks": 4},
        {**WAN, "num_layers": 4, "image_dim": 20, "added_kv_proj_dim": 32},
        lambda d: _wan(d) | {"encoder_hidden_states_image": d.tokens(d.n + 2, 20)},
    ),
    make(
        "any_flow",
        "AnyFlowTransformer3DModel",
        "flow map with two timesteps",
        {"blocks": 3},
        {**WAN, "num_layers": 3},
        lambda d: {
            "hidden_states": d.randn(d.b, d.f, 4, d.h, d.w),
            "timestep": d.step()[:, None].repeat(1, d.f),
            "r_timestep": d.step()[:, None].repeat(1, d.f),
            "encoder_hidden_states": d.text(24),
        },
    ),
    make(
        "any_flow_far",
        "AnyFlowFARTransformer3DModel",
        "causal chunks by flex attention, earlier ones compressed",
        {"blocks": 3},
        {**WAN, "num_layers": 3, "full_chunk_limit": 2},
        _any_flow_far,
    ),
    make(
        "helios",
        "HeliosTransformer3DModel",
        "autoregressive with a compressed history",
        {"blocks": 3},
        {
            **{k: v for k, v in WAN.items() if k != "rope_max_seq_len"},
            "num_layers": 3,
            "rope_dim": (8, 4, 4),
        },
        _helios,
    ),
    make(
        "latte",
        "LatteTransformer3DModel",
        "spatial and temporal blocks in turn",
        {"transformer_blocks": 3, "temporal_transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 3,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "video_length": 3,
        },
        lambda d: {
            "hidden_states": d.randn(d.b, 4, 3, d.h, d.w),
            "timestep": d.int_step(),
            "encoder_hidden_states": d.text(24),
        },
    ),
    make(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        "expert adaLN, frames before channels",
        {"transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 3,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "use_rotary_positional_embeddings": True,
        },
        _cogvideo,
    ),
    make(
        "consisid",
        "ConsisIDTransformer3DModel",
        "identity injected into every other block",
        {"transformer_blocks": 4},
        {
            **IN_OUT,
            "num_attention_heads": 3,
            "attention_head_dim": 16,
            "num_layers": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "use_rotary_positional_embeddings": True,
            "is_train_face": True,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 24,
            "LFE_vit_dim": 20,
            "LFE_depth": 2,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 4,
            "LFE_output_dim": 32,
            "LFE_num_scale": 2,
        },
        lambda d: (
            _cogvideo(d)
            | {"id_cond": d.pooled(24), "id_vit_hidden": [d.tokens(6, 20) for _ in range(2)]}
        ),
    ),
    make(
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        "MMDiT video with its own rotary positions",
        {"transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "patch_size": 2,
            "num_layers": 3,
            "mmdit_layers": 3,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
        },
        _wan,
    ),
    make(
        "allegro",
        "AllegroTransformer3DModel",
        "rotary tables looked up by position",
        {"transformer_blocks": 3},
        {
            **IN_OUT,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 3,
            "cross_attention_dim": 48,
            "caption_channels": 24,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
        },
        _allegro,
    ),
    make(
        "mochi",
        "MochiTransformer3DModel",
        "asymmetric streams, learned rotary frequencies",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 3,
            "pooled_projection_dim": 16,
            "text_embed_dim": 24,
            "time_embed_dim": 32,
        },
        lambda d: _wan(d) | {"encoder_attention_mask": d.mask(torch.bool)},
    ),
    make(
        "ltx",
        "LTXVideoTransformer3DModel",
        "fractional rotary over packed patches",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "num_layers": 3,
            "caption_channels": 24,
        },
        lambda d: {
            "hidden_states": d.tokens(d.f * d.patches, 8),
            "encoder_hidden_states": d.text(24),
            "timestep": d.step(),
            "encoder_attention_mask": d.mask(),
            "num_frames": d.f,
            "height": d.h // 2,
            "width": d.w // 2,
            "rope_interpolation_scale": (1 / 3, 32, 32),
        },
    ),
    make(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        "video and audio streams with cross-attention both ways",
        {"transformer_blocks": 3},
        LTX2,
        _ltx2,
    ),
    make(
        "hunyuan_video",
        "HunyuanVideoTransformer3DModel",
        "token refiner, double and single stream, padded text",
        {REFINER: 2, "transformer_blocks": 2, "single_transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 2,
            "num_single_layers": 3,
            "text_embed_dim": 24,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 4, 8),
        },
        lambda d: (
            _wan(d)
            | {
                "encoder_attention_mask": d.mask(),
                "pooled_projections": d.pooled(16),
                "guidance": d.sigma() * 6000,
            }
        ),
    ),
    make(
        "framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        "history at three scales, text cut to its length",
        {REFINER: 2, "transformer_blocks": 2, "single_transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 2,
            "num_single_layers": 3,
            "num_refiner_layers": 2,
            "text_embed_dim": 24,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 4, 8),
            "has_image_proj": True,
            "image_proj_dim": 20,
            "has_clean_x_embedder": True,
        },
        _framepack,
    ),
    make(
        "motif_video",
        "MotifVideoTransformer3DModel",
        "double and single stream, text cross-attention in both",
        {"transformer_blocks": 2, "single_transformer_blocks": 4},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 2,
            "num_single_layers": 4,
            "text_embed_dim": 24,
            "rope_axes_dim": (4, 4, 8),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        lambda d: _wan(d) | {"encoder_attention_mask": d.mask()},
    ),
    make(
        "sana_video",
        "SanaVideoTransformer3DModel",
        "linear attention with rotary, temporal convolution",
        {"transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 3,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "rope_max_seq_len": 32,
        },
        lambda d: _wan(d) | {"encoder_attention_mask": d.mask()},
    ),
    make(
        "cosmos",
        "CosmosTransformer3DModel",
        "low-rank adaLN, learned and rotary positions",
        {"transformer_blocks": 3},
        {
            **HEADS,
            **IN_OUT,
            "num_layers": 3,
            "text_embed_dim": 24,
            "adaln_lora_dim": 8,
            "max_size": (8, 24, 24),
            "concat_padding_mask": False,  # the mask is resized by torchvision
        },
        lambda d: _wan(d) | {"timestep": d.step(), "fps": 24},
    ),
    make(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        "text encoder blocks, then visual decoder blocks",
        {"text_transformer_blocks": 2, "visual_transformer_blocks": 3},
        {
            "in_visual_dim": 4,
            "in_text_dim": 24,
            "in_text_dim2": 16,
            "time_dim": 32,
            "out_visual_dim": 4,
            "model_dim": 32,
            "ff_dim": 64,
            "num_text_blocks": 2,
            "num_visual_blocks": 3,
            "axes_dims": (4, 4, 8),
        },
        lambda d: _kandinsky(d, 4) | {"text_rope_pos": torch.arange(d.n)},
    ),
    make(
        "kandinsky6",
        "Kandinsky6Transformer3DModel",
        "fused video and audio decoder blocks",
        {
            "video_text_transformer_blocks": 2,
            "audio_text_transformer_blocks": 2,
            "visual_transformer_blocks": 3,
        },
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 24,
            "in_text_dim2": 16,
            "time_dim": 32,
            "model_dim": 32,
            "ff_dim": 64,
            "num_text_blocks": 2,
            "num_visual_blocks": 3,
            "axes_dims": (4, 4, 8),
            "in_audio_dim": 6,
            "out_audio_dim": 6,
        },
        lambda d: _kandinsky(d, 9) | {"audio_hidden_states": d.tokens(d.n + 6, 6)},
    ),
    make(
        "wan_animate",
        "WanAnimateTransformer3DModel",
        "motion of a face injected by cross-attention",
        {"blocks": 4},
        {
            **WAN,
            "in_channels": 12,
            "latent_channels": 4,
            "num_layers": 4,
            "image_dim": 20,
            "added_kv_proj_dim": 32,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        _wan_animate,
        unscaled="motion_encoder",
    ),
    make(
        "kandinsky6_sr",
        "Kandinsky6SRTransformer3DModel",
        "blocks of tokens chosen by content, flex attention",
        {"visual_transformer_blocks": 3},
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 32,
            "model_dim": 32,
            "ff_dim": 64,
            "num_visual_blocks": 3,
            "axes_dims": (4, 4, 8),
            "nabla_window": (3, 3, 3),
        },
        lambda d: {
            "hidden_states": d.randn(d.b, d.f, 16, 16 + 8 * d.variant, 9),
            "timestep": d.step(),
        },
    ),
    make(
        "sana_wm",
        "SanaWMTransformer3DModel",
        "linear attention over time, softmax in every other block, cameras",
        {"blocks": 4},
        {
            "in_channels": 4,
            "num_layers": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "linear_head_dim": 16,
            "caption_channels": 24,
            "softmax_every_n": 2,
            "chunk_plucker_channels": 6,
            "chunk_plucker_post_attn_blocks": 4,
        },
        _sana_wm,
    ),
    make(
        "sana_wm_refiner",
        "SanaWMLTX2RefinerTransformer3DModel",
        "refines one block of a longer video",
        {"transformer_blocks": 3},
        LTX2,
        _sana_wm_refiner,
    ),
)
