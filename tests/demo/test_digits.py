"""The bundled model: it is what it claims to be, and it draws digits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dit_compile.demo import digits
from dit_compile.errors import MissingDependencyError
from dit_compile.quality.metrics import class_accuracy

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def model() -> Any:
    return digits.load_model()


@pytest.fixture(scope="module")
def classifier() -> digits.DigitClassifier:
    return digits.load_classifier()


class Recorder:
    """A stand-in for the model that notes each call and predicts given noise."""

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.predict = predict
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, latents: Tensor, *, timestep: Tensor, class_labels: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        assert return_dict is False
        assert not torch.is_grad_enabled()
        self.calls.append((latents, timestep, class_labels))
        return (self.predict(latents, class_labels),)


def test_importing_is_light() -> None:
    code = (
        "import sys, dit_compile.demo.digits\n"
        "assert not {'diffusers', 'sklearn', 'triton', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call", [digits.load_model, digits.scheduler])
def test_missing_diffusers(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"diffusers.*dit-compile\[demo\]"):
        call()


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"scikit-learn.*dit-compile\[demo\]"):
        digits.real_digits("test")


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("name", "limit"),
        [(digits.MODEL_FILE, 12_000_000), (digits.CLASSIFIER_FILE, 1_000_000)],
    )
    def test_size(self, name: str, limit: int) -> None:
        file = resources.files("dit_compile") / "data" / name
        assert 0 < len(file.read_bytes()) <= limit

    @pytest.mark.parametrize("name", [digits.MODEL_FILE, digits.CLASSIFIER_FILE])
    def test_config_is_in_the_metadata(self, name: str) -> None:
        with (
            resources.as_file(resources.files("dit_compile") / "data" / name) as path,
            safe_open(path, framework="pt") as file,
        ):
            assert isinstance(json.loads(file.metadata()["config"]), dict)

    def test_shape_of_the_model(self, model: Any) -> None:
        tokens = (model.config.sample_size // model.config.patch_size) ** 2
        assert len(model.transformer_blocks) >= 12
        assert tokens >= 64
        assert not model.training
        rows = model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings
        assert rows == digits.NULL_CLASS + 1

    def test_every_block_was_trained(self, model: Any) -> None:
        # adaLN starts at zero, where a block is the identity and nothing is worth compiling.
        for block in model.transformer_blocks:
            assert block.norm1.linear.weight.abs().max() > 0.01

    def test_dtype(self) -> None:
        half = digits.load_model(torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        images = digits.sample(half, torch.tensor([1, 2]), num_inference_steps=2)
        assert images.dtype == torch.float32
        assert torch.isfinite(images).all()


class TestRealDigits:
    def test_split(self) -> None:
        train, train_labels = digits.real_digits("train")
        test, test_labels = digits.real_digits("test")
        assert len(train) + len(test) == 1797
        assert train.shape[1:] == test.shape[1:] == digits.IMAGE_SHAPE
        assert train.dtype == torch.float32
        assert (float(train.min()), float(train.max())) == (-1.0, 1.0)
        for labels in (train_labels, test_labels):
            shares = labels.bincount(minlength=10) / len(labels)
            assert labels.dtype == torch.int64
            assert (shares - 0.1).abs().max() < 0.01

    def test_no_image_is_on_both_sides(self) -> None:
        train, test = (digits.real_digits(split)[0].flatten(1) for split in ("train", "test"))
        assert torch.cdist(test, train).min() > 0

    def test_unknown_split(self) -> None:
        with pytest.raises(ValueError, match="split must be"):
            digits.real_digits("validation")  # type: ignore[arg-type]


def test_classifier_on_held_out_digits(classifier: digits.DigitClassifier) -> None:
    images, labels = digits.real_digits("test")
    with torch.no_grad():
        assert class_accuracy(classifier(images), labels) >= 0.97
        assert classifier.features(images).shape == (len(images), 32)


class TestSample:
    def test_calls(self) -> None:
        model = Recorder(lambda latents, _: torch.zeros_like(latents))
        steps: list[tuple[int, int, Tensor]] = []
        labels = torch.tensor([3, 1, 4])
        images = digits.sample(
            model, labels, num_inference_steps=5, on_step=lambda *step: steps.append(step)
        )
        timesteps = digits.scheduler(5).timesteps.tolist()
        assert len(timesteps) == 5
        assert timesteps == sorted(timesteps, reverse=True)
        assert [(index, t) for index, t, _ in steps] == list(enumerate(timesteps))
        assert torch.equal(steps[-1][2].clamp(-1, 1), images)
        assert images.shape == (3, 1, 8, 8)
        for (latents, t_batch, class_labels), t in zip(model.calls, timesteps, strict=True):
            assert torch.equal(*latents.chunk(2))
            assert class_labels is model.calls[0][2]
            assert class_labels.tolist() == [3, 1, 4, 10, 10, 10]
            assert (t_batch.dtype, t_batch.tolist()) == (torch.int64, [t] * 6)

    def test_guidance(self) -> None:
        # The conditional half predicts 1 and the other 0, so guidance predicts its own scale.
        def predict(_: Tensor, class_labels: Tensor) -> Tensor:
            return (class_labels != digits.NULL_CLASS).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

        def constant(latents: Tensor, _: Tensor) -> Tensor:
            return torch.full_like(latents, 2.5)

        labels = torch.tensor([0, 9])
        guided = digits.sample(Recorder(predict), labels, num_inference_steps=3, guidance_scale=2.5)
        expected = digits.sample(Recorder(constant), labels, num_inference_steps=3)
        torch.testing.assert_close(guided, expected)

    def test_a_perfect_predictor_recovers_the_image(self) -> None:
        # Knowing the image, v at timestep t is (sqrt(alpha) x - image) / sqrt(1 - alpha).
        image = digits.real_digits("test")[0][:1]
        alphas = digits.scheduler().alphas_cumprod

        def model(
            latents: Tensor, *, timestep: Tensor, class_labels: Tensor, return_dict: bool
        ) -> tuple[Tensor]:
            alpha = alphas[timestep].view(-1, 1, 1, 1)
            return ((alpha.sqrt() * latents - image) / (1 - alpha).sqrt(),)

        drawn = digits.sample(model, torch.tensor([0]))
        torch.testing.assert_close(drawn, image, atol=1e-3, rtol=0)

    def test_seed(self, model: Any) -> None:
        labels = torch.tensor([7, 7])
        first, again, other = (
            digits.sample(model, labels, num_inference_steps=2, seed=seed) for seed in (5, 5, 6)
        )
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)
        assert not torch.allclose(first[0], first[1])

    @pytest.mark.parametrize(
        "labels",
        [
            torch.tensor([10]),
            torch.tensor([-1]),
            torch.tensor([[1]]),
            torch.tensor([1.0]),
            torch.tensor([], dtype=torch.int64),
        ],
    )
    def test_bad_labels(self, labels: Tensor) -> None:
        with pytest.raises(ValueError, match="labels must"):
            digits.sample(Recorder(lambda latents, _: latents), labels)

    @pytest.mark.parametrize("steps", [0, 1001])
    def test_bad_step_count(self, steps: int) -> None:
        with pytest.raises(ValueError, match="num_inference_steps"):
            digits.scheduler(steps)


@pytest.mark.slow
def test_samples_are_digits_of_the_class_asked_for(
    model: Any, classifier: digits.DigitClassifier
) -> None:
    labels = torch.arange(10).repeat(12)
    images = digits.sample(model, labels, num_inference_steps=50, guidance_scale=3.0, seed=1)
    with torch.no_grad():
        assert class_accuracy(classifier(images), labels) >= 0.95
    # They lie as near to the training images as held-out digits do: digits, but not copies.
    real, held_out = (digits.real_digits(split)[0].flatten(1) for split in ("train", "test"))
    nearest = torch.cdist(images.flatten(1), real).amin(1).median()
    usual = torch.cdist(held_out, real).amin(1).median()
    assert 0.75 * usual < nearest < 1.25 * usual
