"""Image models of one token stream: the text comes by cross-attention, by modulation or inline."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from ._case import HEADS, Case, Draw, Inputs, grid, make


def _sizes(d: Draw) -> Inputs:
    """Size conditioning as SDXL and CogView take it, two numbers each."""
    return {
        "original_size": d.pooled(2).abs() * 64,
        "target_size": d.pooled(2).abs() * 64,
        "crop_coords": d.pooled(2).abs() * 8,
    }


def _hunyuan_dit(d: Draw) -> Inputs:
    return {
        "hidden_states": d.image(4),
        "timestep": d.step(),
        "encoder_hidden_states": d.tokens(5, 32),
        "text_embedding_mask": d.mask(count=5),
        "encoder_hidden_states_t5": d.tokens(6, 32),
        "text_embedding_mask_t5": d.mask(count=6),
        "image_meta_size": d.pooled(6).abs() * 64,
        "style": torch.zeros(d.b, dtype=torch.long),
        "image_rotary_emb": d.rope(d.patches, 16),
    }


def _ideogram(d: Draw) -> Inputs:
    image = torch.tensor([3] * d.n + [2] * d.patches).expand(d.b, -1)  # the roles text and image
    ids = torch.cat([grid(d.n, 1, 1), grid(1, d.h // 2, d.w // 2, offset=64)])
    return {
        "hidden_states": d.tokens(d.n + d.patches, 8),
        "timestep": d.sigma(),
        "encoder_hidden_states": d.tokens(d.n + d.patches, 24),
        "position_ids": ids.long().expand(d.b, -1, -1),
        "segment_ids": torch.ones(d.b, d.n + d.patches, dtype=torch.long),
        "indicator": image.contiguous(),
    }


CASES: tuple[Case, ...] = (
    make(
        "dit",
        "DiTTransformer2DModel",
        "class label by adaLN-Zero",
        {"transformer_blocks": 3},
        {**HEADS, "in_channels": 4, "num_layers": 3, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda d: {
            "hidden_states": d.image(4, square=True),
            "timestep": d.int_step(),
            "class_labels": d.ints(10, d.b),
        },
    ),
    make(
        "pixart",
        "PixArtTransformer2DModel",
        "shared adaLN and cross-attention",
        {"transformer_blocks": 4},
        {
            **HEADS,
            "num_layers": 4,
            "sample_size": 8,
            "cross_attention_dim": 32,
            "caption_channels": 24,
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "timestep": d.int_step(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "encoder_attention_mask": d.mask(),
        },
    ),
    make(
        "sana",
        "SanaTransformer2DModel",
        "linear attention and convolutional feed-forward",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "sample_size": 8,
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "timestep": d.step(),
            "encoder_attention_mask": d.mask(),
        },
    ),
    make(
        "prx",
        "PRXTransformer2DModel",
        "image queries over text and image keys",
        {"blocks": 3},
        {
            "in_channels": 4,
            "context_in_dim": 24,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 3,
            "axes_dim": [8, 8],
        },
        lambda d: {
            "hidden_states": d.image(4),
            "timestep": d.sigma(),
            "encoder_hidden_states": d.text(24),
            "attention_mask": d.mask(torch.bool),
        },
    ),
    make(
        "hunyuan_dit",
        "HunyuanDiT2DModel",
        "long skip connections between blocks",
        {"blocks": 6},
        {
            **HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 32,
            "num_layers": 6,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 32,
            "cross_attention_dim_t5": 32,
            "pooled_projection_dim": 16,
            "text_len": 5,
            "text_len_t5": 6,
        },
        _hunyuan_dit,
    ),
    make(
        "lumina_next",
        "LuminaNextDiT2DModel",
        "sandwich norms, grouped queries, complex rotary input",
        {"layers": 3},
        {
            "sample_size": 8,
            "hidden_size": 32,
            "num_layers": 3,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "cross_attention_dim": 24,
        },
        lambda d: {
            "hidden_states": d.image(4),
            "timestep": d.sigma(),
            "encoder_hidden_states": d.text(24),
            "encoder_mask": d.mask(),
            "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 16, 16),
            "cross_attention_kwargs": {},
        },
    ),
    make(
        "ernie_image",
        "ErnieImageTransformer2DModel",
        "one modulation for all blocks, sequence first",
        {"layers": 3},
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 3,
            "ffn_hidden_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 24,
            "rope_axes_dim": (4, 4, 8),
        },
        lambda d: {
            "hidden_states": d.image(4),
            "timestep": d.step(),
            "text_bth": d.text(24),
            "text_lens": torch.full((d.b,), d.n) - torch.arange(d.b),
        },
    ),
    make(
        "ideogram4",
        "Ideogram4Transformer2DModel",
        "roles of tokens in one packed sequence",
        {"layers": 3},
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 3,
            "intermediate_size": 48,
            "adaln_dim": 16,
            "llm_features_dim": 24,
            "mrope_section": (4, 2, 2),
        },
        _ideogram,
    ),
    make(
        "krea2",
        "Krea2Transformer2DModel",
        "fusion of text encoder layers, gated attention",
        {
            "text_fusion.layerwise_blocks": 2,
            "text_fusion.refiner_blocks": 2,
            "transformer_blocks": 3,
        },
        {
            **HEADS,
            "in_channels": 16,
            "num_layers": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "timestep_embed_dim": 32,
            "text_hidden_dim": 24,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda d: {
            "hidden_states": d.tokens(d.patches, 16),
            "encoder_hidden_states": d.randn(d.b, d.n, 3, 24),
            "timestep": d.sigma(),
            "position_ids": torch.cat([torch.zeros(d.n, 3), grid(1, d.h // 2, d.w // 2)]),
            "encoder_attention_mask": d.mask(torch.bool),
        },
    ),
    make(
        "z_image",
        "ZImageTransformer2DModel",
        "lists of samples, refiners, modulated single stream",
        {"noise_refiner": 2, "context_refiner": 2, "layers": 3},
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 3,
            "n_refiner_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 24,
            "axes_dims": [4, 4, 8],
            "axes_lens": [96, 32, 32],
        },
        lambda d: {
            "x": list(d.randn(d.b, 4, 1, d.h, d.w).unbind()),
            "t": d.sigma(),
            "cap_feats": list(d.text(24).unbind()),
        },
        latent="x",
        timestep="t",
    ),
    make(
        "prior",
        "PriorTransformer",
        "CLIP embedding diffusion, causal",
        {"transformer_blocks": 3},
        {**HEADS, "num_layers": 3, "embedding_dim": 24, "num_embeddings": 7},
        lambda d: {
            "hidden_states": d.pooled(24),
            "timestep": d.int_step(),
            "proj_embedding": d.pooled(24),
            "encoder_hidden_states": d.tokens(7, 24),
            "attention_mask": d.mask(torch.bool, count=7),
        },
    ),
    make(
        "cogview3",
        "CogView3PlusTransformer2DModel",
        "size conditioning, learned positions",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "text_embed_dim": 24,
            "time_embed_dim": 32,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 8,
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "timestep": d.step(),
            **_sizes(d),
        },
    ),
    make(
        "cogview4",
        "CogView4Transformer2DModel",
        "size conditioning, rotary positions",
        {"transformer_blocks": 4},
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 32,
            "condition_dim": 8,
            "sample_size": 8,
            "rope_axes_dim": (16, 16),
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "timestep": d.step(),
            **_sizes(d),
        },
    ),
    make(
        "glm_image",
        "GlmImageTransformer2DModel",
        "prior tokens added to the latent",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "text_embed_dim": 24,
            "time_embed_dim": 32,
            "condition_dim": 8,
            "prior_vq_quantizer_codebook_size": 20,
        },
        lambda d: {
            "hidden_states": d.image(4),
            "encoder_hidden_states": d.text(24),
            "prior_token_id": d.ints(20, d.b, d.patches),
            "prior_token_drop": torch.zeros(d.b, d.patches, dtype=torch.bool),
            "timestep": d.step(),
            "target_size": d.pooled(2).abs() * 64,
            "crop_coords": d.pooled(2).abs() * 8,
        },
    ),
)
