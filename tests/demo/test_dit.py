"""The bundled class-conditional model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_compile.demo import digits
from dit_compile.demo.dit import DigitsDiT

BUNDLED = DigitsDiT()


def test_shape() -> None:
    model: Any = BUNDLED.load()
    assert len(model.transformer_blocks) >= 12
    assert (model.config.sample_size // model.config.patch_size) ** 2 >= 64
    rows = model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings
    assert rows == digits.NULL_CLASS + 1


def test_every_block_was_trained() -> None:
    # adaLN starts at zero, where a block is the identity and nothing is worth compiling.
    model: Any = BUNDLED.load()
    for block in model.transformer_blocks:
        assert block.norm1.linear.weight.abs().max() > 0.01


def test_what_the_model_is_given() -> None:
    latents, labels = torch.zeros(2, *digits.IMAGE_SHAPE), torch.tensor([4, digits.NULL_CLASS])
    call = BUNDLED.arguments(latents, torch.tensor(981), BUNDLED.conditions(labels))
    assert call.args[0] is latents
    assert call.kwargs["class_labels"] is labels
    assert call.kwargs["timestep"].tolist() == [981, 981]
    assert call.kwargs["timestep"].dtype == torch.int64


def test_a_perfect_predictor_recovers_the_image() -> None:
    # Knowing the image, v at timestep t is (sqrt(alpha) x - image) / sqrt(1 - alpha).
    image = digits.real_digits("test")[0][:1]
    alphas = BUNDLED.scheduler().alphas_cumprod

    def model(latents: Tensor, *, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        alpha = alphas[timestep].view(-1, 1, 1, 1)
        return ((alpha.sqrt() * latents - image) / (1 - alpha).sqrt(),)

    drawn = BUNDLED.sample(model, torch.tensor([0]))
    torch.testing.assert_close(drawn, image, atol=1e-3, rtol=0)
