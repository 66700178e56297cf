"""Whether a latent follows from those before it, for samplers as they are and for noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dit_compile.runtime.descent import Point, Row

STEPS = 8

#: Schedulers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

#: Samplers that add no noise: each makes latents of earlier ones and of results.
PLAIN: dict[str, Callable[[], Any]] = {
    "euler": diffusers.EulerDiscreteScheduler,
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "dpm++ 2m": diffusers.DPMSolverMultistepScheduler,
    "dpm++ 3m": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=3),
    "unipc": diffusers.UniPCMultistepScheduler,
    "unipc 3": lambda: diffusers.UniPCMultistepScheduler(solver_order=3),
    "deis": diffusers.DEISMultistepScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "heun": diffusers.HeunDiscreteScheduler,
    "kdpm2": diffusers.KDPM2DiscreteScheduler,
    "flow euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "flow heun": diffusers.FlowMatchHeunDiscreteScheduler,
    "ddim, v": lambda: diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
}

NOISY: dict[str, Callable[[], Any]] = {
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "lcm": diffusers.LCMScheduler,
    "flow euler, stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        stochastic_sampling=True
    ),
}


def drawn(seed: int, size: int = 256) -> Row:
    return np.random.default_rng(seed).standard_normal(size)


def model(latent: torch.Tensor) -> torch.Tensor:
    """Stands for a model: its results are no multiple of what it gets."""
    return torch.tanh(latent * 0.7 + latent.roll(1) * 0.4).roll(3)


def sampled(
    make: Callable[[], Any], guide: Callable[[list[torch.Tensor]], torch.Tensor], halves: int
) -> Iterator[tuple[Row, list[Row]]]:
    """What the model gets at each evaluation, and what it returned for it."""
    scheduler = make()
    scheduler.set_timesteps(STEPS)
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    if hasattr(scheduler, "init_noise_sigma"):
        x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        results = [model(given + 0.1 * half) for half in range(halves)]
        yield _row(given), [_row(result) for result in results]
        x = scheduler.step(guide(results), t, x).prev_sample


def _row(tensor: torch.Tensor) -> Row:
    row: Row = tensor.flatten().double().numpy()
    return row


def follows(latents: Iterator[tuple[Row, list[Row]]]) -> list[bool]:
    found, point = [], None
    for latent, results in latents:
        if point is not None:
            found.append(point.leads_to(latent))
        point = point.child(latent) if point is not None else Point(latent)
        point.results.extend(results)
    return found


GUIDES: dict[str, tuple[Callable[[list[torch.Tensor]], torch.Tensor], int]] = {
    "none": (lambda results: results[0], 1),
    "guidance": (lambda results: results[0] + 4.0 * (results[1] - results[0]), 2),
    "rescaled": (
        lambda results: (
            (found := results[0] + 4.0 * (results[1] - results[0]))
            * (0.7 * results[1].std() / found.std() + 0.3)
        ),
        2,
    ),
}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_samplers_without_noise(
    make: Callable[[], Any], guide: tuple[Callable[[list[torch.Tensor]], torch.Tensor], int]
) -> None:
    assert all(follows(sampled(make, *guide)))


@pytest.mark.parametrize("make", NOISY.values(), ids=NOISY)
def test_samplers_with_noise(make: Callable[[], Any]) -> None:
    """The last steps of some add hardly any."""
    assert not any(follows(sampled(make, *GUIDES["none"]))[:3])


class TestPoint:
    def test_itself(self) -> None:
        assert Point(drawn(0)).leads_to(drawn(0))

    def test_another_seed(self) -> None:
        assert not Point(drawn(0), [drawn(1)]).leads_to(drawn(2))

    def test_as_much_noise_as_is_seen(self) -> None:
        """A tenth of a latent is another's; rounding to bfloat16 is not."""
        point, noise = Point(drawn(0), [drawn(1)]), drawn(2)
        step = 0.9 * drawn(0) + 0.3 * drawn(1)
        assert not point.leads_to(step + 0.1 * noise)
        rounded = torch.from_numpy(step).bfloat16().double().numpy()
        assert point.leads_to(rounded)

    def test_parts_that_are_held(self) -> None:
        """Inpainting clamps them, and image-to-video its first frame."""
        point = Point(drawn(0), [drawn(1)])
        after = 0.9 * drawn(0) + 0.3 * drawn(1)
        after[:100] = drawn(0)[:100]
        assert point.leads_to(after)

    def test_few_elements_prove_little(self) -> None:
        """Any latent of 8 lies in the span of 8 vectors."""
        point = Point(drawn(0, 8), [drawn(seed, 8) for seed in range(1, 8)])
        assert not point.leads_to(drawn(9, 8))

    def test_another_size(self) -> None:
        assert not Point(drawn(0, 64)).leads_to(drawn(0, 32))

    @pytest.mark.parametrize("odd", [np.nan, np.inf])
    def test_no_numbers(self, odd: float) -> None:
        assert not Point(drawn(0), [np.full(256, odd)]).leads_to(drawn(1))
        assert not Point(drawn(0)).leads_to(np.full(256, odd))

    def test_zeros(self) -> None:
        assert not Point(np.zeros(256), [np.zeros(256)]).leads_to(drawn(1))
        assert Point(drawn(0), [drawn(1)]).leads_to(drawn(0) * 0 + drawn(1))

    def test_what_came_long_before_is_forgotten(self) -> None:
        point = Point(drawn(0))
        for seed in range(1, 20):
            point = point.child(drawn(seed))
        assert len([*point.lineage()]) == 4
        assert not point.leads_to(drawn(0))
