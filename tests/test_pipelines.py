"""Whole diffusers pipelines of tiny components, saved, loaded, compiled, and pictures out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.quality.compilations import Compilations
from tests import zoo
from tests.zoo._case import HEADS

STEPS = 8
CACHED = "exact,insert-block-cache{method=interval,interval=2}"
DECIDED = "exact,insert-block-cache{method=first-block,residual-diff-threshold=0.2}"
TEXT = 24


def _vae(channels: int = 4) -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        shift_factor=0.0,
    )


def _embeds(tokens: int = 5, width: int = TEXT, seed: int = 0) -> Tensor:
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))


def _dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(transformer, _vae(), diffusers.DDIMScheduler(clip_sample=False))


def _pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=_vae(),
        transformer=zoo.build(zoo.case("pixart")),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _sd3() -> Any:
    nothing = dict.fromkeys(
        f"{what}{number}" for what in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=zoo.build(zoo.case("sd3")),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        **nothing,
    )


def _flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        transformer=transformer,
        **nothing,
    )


def _wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[0, 1, 1]
    )
    return diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(flow_shift=3.0),
        transformer=transformer,
    )


@dataclass(frozen=True)
class Family:
    """A pipeline, how it is called, and how many lanes its guidance has."""

    make: Callable[[], Any]
    call: dict[str, Any]
    lanes: int = 1
    #: Arguments of another resolution; another batch where a pipeline has one resolution.
    other: dict[str, Any] = field(default_factory=lambda: {"height": 32, "width": 48})


FAMILIES = {
    "dit": Family(
        _dit,
        {"class_labels": [1, 2], "guidance_scale": 4.0},
        other={"class_labels": [1, 2, 3]},
    ),
    "pixart": Family(
        _pixart,
        {
            "negative_prompt": None,
            "prompt_embeds": _embeds(),
            "prompt_attention_mask": torch.ones(1, 5),
            "negative_prompt_embeds": _embeds(seed=1),
            "negative_prompt_attention_mask": torch.ones(1, 5),
            "height": 16,
            "width": 16,
            "use_resolution_binning": False,
        },
    ),
    "sd3": Family(
        _sd3,
        {
            "prompt_embeds": _embeds(),
            "negative_prompt_embeds": _embeds(seed=1),
            "pooled_prompt_embeds": _embeds(1, 16)[:, 0],
            "negative_pooled_prompt_embeds": _embeds(1, 16, seed=1)[:, 0],
            "height": 16,
            "width": 16,
        },
    ),
    "flux": Family(
        _flux,
        {
            "prompt_embeds": _embeds(),
            "pooled_prompt_embeds": _embeds(1, 16)[:, 0],
            "negative_prompt_embeds": _embeds(seed=1),
            "negative_pooled_prompt_embeds": _embeds(1, 16, seed=1)[:, 0],
            "true_cfg_scale": 2.0,
            "height": 16,
            "width": 16,
        },
        lanes=2,
    ),
    "wan": Family(
        _wan,
        {
            "prompt_embeds": _embeds(),
            "negative_prompt_embeds": _embeds(seed=1),
            "height": 16,
            "width": 16,
            "num_frames": 5,
        },
        lanes=2,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    torch._dynamo.reset()
    return str(request.param)


@pytest.fixture
def pipe(family: str, tmp_path: Path) -> Any:
    """The pipeline as it comes from disk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = FAMILIES[family].make()
        for parameter in made.transformer.parameters():  # gates are zero in an untrained model
            nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(tmp_path, safe_serialization=True)
    missing = {name: None for name, part in made.components.items() if part is None}
    loaded = type(made).from_pretrained(tmp_path, **missing)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pictures(pipe: Any, family: str, seed: int = 3, **others: Any) -> np.ndarray[Any, Any]:
    done = pipe(
        **(FAMILIES[family].call | others),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    return np.asarray(getattr(done, "images", None) if hasattr(done, "images") else done.frames)


@pytest.mark.slow
def test_pictures_of_the_exact_preset_are_the_pipeline_s_own(pipe: Any, family: str) -> None:
    want = pictures(pipe, family)
    options = {"strict": True, "target": "eager"}
    pipe.transformer = torch.compile(pipe.transformer, backend="ditc", options=options)
    with ditc.session(pipe.transformer):
        np.testing.assert_allclose(pictures(pipe, family), want, atol=1e-3)


@pytest.mark.slow
def test_a_cache_reuses_in_every_lane_and_leaves_nothing_behind(pipe: Any, family: str) -> None:
    options = {"strict": True, "target": "eager", "passes": CACHED}
    pipe.transformer = torch.compile(pipe.transformer, backend="ditc", options=options)
    with ditc.session(pipe.transformer) as session:
        first = pictures(pipe, family)
    summary = session.summary()
    assert summary["lanes"] == FAMILIES[family].lanes
    assert summary["reused"] >= FAMILIES[family].lanes * (STEPS // 2 - 1)
    assert np.isfinite(first).all()
    assert first.std() > 0
    np.testing.assert_array_equal(pictures(pipe, family), first, "a second generation is the same")


@pytest.mark.slow
@pytest.mark.parametrize("passes", [CACHED, DECIDED], ids=["static", "dynamic"])
def test_nothing_compiles_after_a_generation_at_each_of_two_resolutions(
    pipe: Any, family: str, passes: str
) -> None:
    options = {"strict": True, "target": "inductor", "passes": passes}
    pipe.transformer = torch.compile(pipe.transformer, backend="ditc", options=options)
    others = ({}, FAMILIES[family].other)
    with Compilations() as all_told:
        first = [pictures(pipe, family, **other) for other in others]
        with Compilations() as late:
            again = [pictures(pipe, family, **other) for other in others]
    assert first[0].shape != first[1].shape
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # a graph of any size rounds otherwise
    assert all_told.inductor_calls >= 2
    assert (all_told.graph_breaks, late.dynamo_graphs, late.inductor_calls) == (0, 0, 0)


@pytest.mark.slow
def test_calibration_runs_the_pipeline_itself(pipe: Any, family: str) -> None:
    options = {"strict": True, "target": "eager"}
    plan = ditc.calibrate(
        lambda seed: torch.from_numpy(pictures(pipe, family, seed)),
        pipe.transformer,
        passes="exact,insert-block-cache{method=smooth,alpha=9}",
        samples=1,
        options=options,
        progress=False,
    )
    assert plan.steps == STEPS
    pipe.transformer = torch.compile(
        pipe.transformer, backend="ditc", options=options | {"plan": plan}
    )
    with ditc.session(pipe.transformer) as session:
        assert np.isfinite(pictures(pipe, family)).all()
    assert session.summary()["computed"] == FAMILIES[family].lanes * 2, "every fourth step"
