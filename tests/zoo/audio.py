"""Audio and music models, and one of spectrograms."""

from __future__ import annotations

import torch

from ._case import HEADS, Case, Draw, Inputs, grid, make


def _frames(d: Draw) -> int:
    return (10, 26)[d.variant]


def _minimax_h3(d: Draw) -> Inputs:
    video, audio = d.f * d.patches, _frames(d)
    counts = [d.n, video, audio]
    text, image, sound = torch.split(torch.arange(sum(counts)), counts)
    ids = torch.cat([grid(1, 1, d.n), grid(d.f, d.h // 2, d.w // 2), grid(audio, 1, 1)])
    tags = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(counts))
    return {
        "hidden_states": d.randn(1, video, 16),
        "audio_hidden_states": d.randn(1, audio, 6),
        "encoder_hidden_states": d.randn(1, d.n, 24),
        "timestep": torch.cat([d.step()[:1], torch.zeros(1)]),
        "timestep_indices": (tags == 0).long(),  # text is clean
        "token_tags": tags,
        "position_ids": ids,
        "video_indices": image,
        "audio_indices": sound,
        "text_indices": text,
    }


CASES: tuple[Case, ...] = (
    make(
        "stable_audio",
        "StableAudioDiTModel",
        "prepended global token, partial rotary, grouped queries",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 3,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": 16,
            "time_proj_dim": 16,
            "global_states_input_dim": 24,
            "cross_attention_input_dim": 24,
        },
        lambda d: {
            "hidden_states": d.randn(d.b, 8, _frames(d)),
            "timestep": d.sigma(),
            "encoder_hidden_states": d.text(24),
            "global_hidden_states": d.tokens(1, 24),
            "rotary_embedding": d.rope(_frames(d) + 1, 8),
        },
    ),
    make(
        "stable_audio3",
        "StableAudio3DiTModel",
        "differential attention, memory tokens",
        {"transformer_blocks": 3},
        {
            "io_channels": 8,
            "embed_dim": 32,
            "depth": 3,
            "num_heads": 2,
            "cond_token_dim": 24,
            "global_cond_dim": 20,
            "local_add_cond_dim": 9,
            "timestep_features_dim": 16,
            "num_memory_tokens": 4,
        },
        lambda d: {
            "hidden_states": d.randn(d.b, 8, _frames(d)),
            "timestep": d.sigma(),
            "encoder_hidden_states": d.text(24),
            "global_hidden_states": d.pooled(20),
            "encoder_attention_mask": d.mask(),
            "local_add_cond": d.randn(d.b, 9, _frames(d)),
        },
    ),
    make(
        "ace_step",
        "AceStepTransformer1DModel",
        "sliding and full attention in turn, grouped queries",
        {"layers": 4},
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "sliding_window": 2,
            "encoder_hidden_size": 24,
        },
        lambda d: {
            "hidden_states": d.tokens(_frames(d), 8),
            "timestep": d.sigma(),
            "timestep_r": d.sigma(),
            "encoder_hidden_states": d.text(24),
            "context_latents": d.tokens(_frames(d), 16),
        },
    ),
    make(
        "longcat_audio",
        "LongCatAudioDiTTransformer",
        "global adaLN, text convolution, long skip",
        {"blocks": 3},
        {"dit_dim": 32, "dit_depth": 3, "dit_heads": 2, "dit_text_dim": 24, "latent_dim": 8},
        lambda d: {
            "hidden_states": d.tokens(_frames(d), 8),
            "encoder_hidden_states": d.text(24),
            "encoder_attention_mask": d.mask(torch.bool),
            "timestep": d.sigma(),
            "attention_mask": d.mask(torch.bool, count=_frames(d)),
            "latent_cond": d.tokens(_frames(d), 8),
        },
    ),
    make(
        "minimax_music",
        "MiniMaxMusic3Transformer1DModel",
        "time as a token, no modulation",
        {"transformer_blocks": 3},
        {
            **HEADS,
            "in_channels": 4,
            "condition_dim": 8,
            "num_layers": 3,
            "ff_inner_dim": 48,
            "rotary_dim": 8,
            "fourier_embedding_dim": 16,
        },
        lambda d: {
            "hidden_states": d.randn(d.b, 4, _frames(d)),
            "timestep": d.sigma(),
            "encoder_hidden_states": d.tokens(_frames(d), 8),
        },
    ),
    make(
        "minimax_h3",
        "MiniMaxH3Transformer3DModel",
        "video, audio and text packed, a modulation for each",
        {"token_refiner.refiner_blocks": 2, "transformer_blocks": 3},
        {
            **HEADS,
            "hidden_size": 32,
            "num_layers": 3,
            "num_refiner_layers": 2,
            "ffn_dim": 48,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 24,
            "freq_dim": 32,
            "time_embed_hidden_dim": 32,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        _minimax_h3,
    ),
    make(
        "t5_film",
        "T5FilmDecoder",
        "T5 decoder with FiLM",
        {"decoders": 3},
        {
            "input_dims": 8,
            "targets_length": 32,
            "d_model": 32,
            "num_layers": 3,
            "num_heads": 2,
            "d_kv": 16,
            "d_ff": 64,
        },
        lambda d: {
            "encodings_and_masks": [(d.text(32), d.mask()), (d.tokens(4, 32), d.mask(count=4))],
            "decoder_input_tokens": d.tokens(_frames(d), 8),
            "decoder_noise_time": d.sigma(),
        },
        return_dict=False,
        latent="decoder_input_tokens",
        timestep="decoder_noise_time",
    ),
)
