"""The bundled joint-stream, flow-matching model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_compile.demo import digits
from dit_compile.demo.flow import DigitsFlow

BUNDLED = DigitsFlow()


def test_shape() -> None:
    model: Any = BUNDLED.load()
    double, single = model.transformer_blocks, model.single_transformer_blocks
    assert min(len(double), len(single)) >= 3
    assert len(double) + len(single) >= 12
    image = torch.zeros(1, *digits.IMAGE_SHAPE)
    assert BUNDLED.pack(image).shape == (1, 64, model.config.in_channels)


def test_every_block_was_trained() -> None:
    # The modulation starts at zero, where a block is the identity and nothing is worth compiling.
    model: Any = BUNDLED.load()
    norms = [block.norm for block in model.single_transformer_blocks]
    norms += [block.norm1 for block in model.transformer_blocks]
    norms += [block.norm1_context for block in model.transformer_blocks]
    for norm in norms:
        assert norm.linear.weight.abs().max() > 0.01


def test_packing() -> None:
    images = torch.arange(128.0).reshape(2, *digits.IMAGE_SHAPE)
    tokens = BUNDLED.pack(images)
    assert tokens[1, :, 0].tolist() == list(range(64, 128))
    assert torch.equal(BUNDLED.unpack(tokens), images)


class TestConditions:
    def test_each_class_has_its_own_prompt(self) -> None:
        prompts = BUNDLED.prompts()
        for table in (prompts.embeds, prompts.pooled):
            assert len(table) == digits.NULL_CLASS + 1
            assert torch.pdist(table.flatten(1)).min() > 0.1
            assert not table.requires_grad

    def test_rows_of_the_classes_asked_for(self) -> None:
        prompts = BUNDLED.prompts()
        made = BUNDLED.conditions(torch.tensor([4, digits.NULL_CLASS]), torch.bfloat16)
        assert torch.equal(made["encoder_hidden_states"], prompts.embeds[[4, 10]].bfloat16())
        assert torch.equal(made["pooled_projections"], prompts.pooled[[4, 10]].bfloat16())

    def test_positions_follow_the_packing(self) -> None:
        made = BUNDLED.conditions(torch.tensor([4]))
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        places = torch.stack([torch.zeros(8, 8), rows, columns]).unsqueeze(1)
        packed = torch.cat([BUNDLED.pack(place[None]) for place in places], dim=2)[0]
        assert torch.equal(made["img_ids"], packed)
        assert made["txt_ids"].shape == (made["encoder_hidden_states"].shape[1], 3)
        assert not made["txt_ids"].any()


def test_equal_steps_of_sigma() -> None:
    scheduler = BUNDLED.scheduler(4)
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert BUNDLED.timesteps(4).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert BUNDLED.timesteps(4).dtype == torch.float32


def test_a_perfect_predictor_recovers_the_image() -> None:
    # Knowing the image, the velocity noise - image at sigma is (x - image) / sigma.
    image = BUNDLED.pack(digits.real_digits("test")[0][:1])

    def model(latents: Tensor, *, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        return ((latents - image) / timestep.view(-1, 1, 1),)

    drawn = BUNDLED.sample(model, torch.tensor([0]))
    torch.testing.assert_close(BUNDLED.pack(drawn), image, atol=1e-3, rtol=0)
