"""The bundled models through ``torch.compile(backend="ditc")``, whole, strict and with Inductor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile.demo.models import BUNDLED
from dit_compile.quality.compilations import Compilations
from dit_compile.quality.metrics import relative_l2

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", BUNDLED)]

STEPS = 7
LABELS = torch.tensor([3, 8])


def compiled(name: str, preset: str) -> Any:
    torch._dynamo.reset()
    options = {"strict": True, "preset": preset}
    return torch.compile(
        BUNDLED[name].load(), backend="ditc", fullgraph=True, dynamic=False, options=options
    )


def generate(name: str, model: Any, two_calls: bool = False) -> tuple[Tensor, dict[str, int]]:
    """Images of one stated generation, and its counters."""
    bundled = BUNDLED[name]
    with ditc.session(model, timesteps=bundled.timesteps(STEPS)) as stated:
        images = bundled.sample(model, LABELS, num_inference_steps=STEPS, two_calls=two_calls)
        return images, stated.summary()


def test_exact(name: str) -> None:
    model = compiled(name, "exact")
    expected = BUNDLED[name].sample(BUNDLED[name].load(), LABELS, num_inference_steps=STEPS)
    with Compilations() as counted:
        images, counts = generate(name, model)
    assert relative_l2(images, expected) < 1e-5
    assert (counts["lanes"], counts["computed"], counts["reused"]) == (1, STEPS, 0)
    assert counted.graph_breaks == 0
    with Compilations() as late:
        again, _ = generate(name, model)
    assert torch.equal(again, images)
    assert (late.dynamo_graphs, late.inductor_calls) == (0, 0)


def test_fast(name: str) -> None:
    """The preset's interval is 3. Guidance by two calls is two lanes, which never mix."""
    model = compiled(name, "fast")
    expected = BUNDLED[name].sample(BUNDLED[name].load(), LABELS, num_inference_steps=STEPS)
    images, counts = generate(name, model)
    assert (counts["lanes"], counts["computed"], counts["reused"]) == (1, 3, 4)
    assert 1e-3 < relative_l2(images, expected) < 0.3
    twice, counts = generate(name, model, two_calls=True)
    assert (counts["lanes"], counts["computed"], counts["reused"]) == (2, 6, 8)
    assert relative_l2(twice, images) < 1e-4
