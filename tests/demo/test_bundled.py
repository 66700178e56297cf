"""Every bundled model: it is what it claims to be, and it draws digits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_compile.demo import digits
from dit_compile.demo.bundled import BundledModel
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import MissingDependencyError
from dit_compile.quality.metrics import class_accuracy

Call = tuple[Tensor, dict[str, Any]]


@pytest.fixture(scope="module", params=BUNDLED)
def bundled(request: pytest.FixtureRequest) -> BundledModel:
    return BUNDLED[request.param]


class Recorder:
    """A stand-in for the model that notes each call and predicts what it is told to."""

    def __init__(self, predict: Callable[[int, Tensor], Tensor]) -> None:
        self.predict = predict
        self.calls: list[Call] = []

    def __call__(self, latents: Tensor, *, return_dict: bool, **kwargs: Any) -> tuple[Tensor]:
        assert return_dict is False
        assert not torch.is_grad_enabled()
        self.calls.append((latents, kwargs))
        return (self.predict(len(self.calls) - 1, latents),)


def still(_: int, latents: Tensor) -> Tensor:
    return torch.zeros_like(latents)


@pytest.mark.parametrize("method", ["load", "scheduler"])
def test_missing_diffusers(
    bundled: BundledModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"diffusers.*dit-compile\[demo\]"):
        getattr(bundled, method)()


class TestCheckpoint:
    def test_size(self, bundled: BundledModel) -> None:
        assert 0 < (bundled.data / bundled.file).stat().st_size <= 12_000_000

    def test_loading(self, bundled: BundledModel) -> None:
        model = bundled.load()
        assert type(model).__name__ == bundled.transformer
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_dtype(self, bundled: BundledModel) -> None:
        half = bundled.load(torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        labels = torch.tensor([1, 2])
        images = bundled.sample(half, labels, num_inference_steps=2)
        assert images.dtype == torch.float32
        full = bundled.sample(bundled.load(), labels, num_inference_steps=2)
        torch.testing.assert_close(images, full, atol=0.1, rtol=0)

    def test_example(self, bundled: BundledModel) -> None:
        call = bundled.example(torch.tensor([3]))
        with torch.no_grad():
            output = bundled.unpack(bundled.load()(*call.args, **call.kwargs)[0])
        assert output.shape == (2, *digits.IMAGE_SHAPE)
        assert not torch.equal(*output)  # one latent with a class, and another without


class TestSample:
    def test_calls(self, bundled: BundledModel) -> None:
        model = Recorder(still)
        steps: list[tuple[int, float, Tensor]] = []
        labels = torch.tensor([3, 1, 4])
        images = bundled.sample(
            model, labels, num_inference_steps=5, on_step=lambda *step: steps.append(step)
        )
        timesteps = bundled.scheduler(5).timesteps.tolist()
        assert len(timesteps) == 5
        assert timesteps == sorted(timesteps, reverse=True)
        assert [(index, t) for index, t, _ in steps] == list(enumerate(timesteps))
        assert torch.equal(steps[-1][2].clamp(-1, 1), images)
        assert images.shape == (3, *digits.IMAGE_SHAPE)
        assert len(model.calls) == 5
        for (latents, kwargs), t in zip(model.calls, bundled.timesteps(5), strict=True):
            assert torch.equal(*latents.chunk(2))
            assert torch.equal(kwargs["timestep"], t.repeat(6))

    def test_conditions_stay_the_same_objects(self, bundled: BundledModel) -> None:
        model = Recorder(still)
        bundled.sample(model, torch.tensor([3, 1]), num_inference_steps=3, two_calls=True)
        for _, kwargs in model.calls:
            del kwargs["timestep"]
        for lane in (0, 1):
            (_, first), *later = model.calls[lane::2]
            for _, kwargs in later:
                assert all(kwargs[name] is value for name, value in first.items())

    def test_two_calls(self, bundled: BundledModel) -> None:
        doubled, twice = Recorder(still), Recorder(still)
        labels = torch.tensor([3, 1])
        bundled.sample(doubled, labels, num_inference_steps=2)
        bundled.sample(twice, labels, num_inference_steps=2, two_calls=True)
        assert len(twice.calls) == 2 * len(doubled.calls)
        asked, none = (bundled.conditions(x) for x in (labels, torch.full_like(labels, 10)))
        for step, (latents, kwargs) in enumerate(doubled.calls):
            pair = twice.calls[2 * step : 2 * step + 2]
            assert torch.equal(latents, torch.cat([call[0] for call in pair]))
            assert torch.equal(kwargs["timestep"], torch.cat([c[1]["timestep"] for c in pair]))
            for (_, given), expected in zip(pair, (asked, none), strict=True):
                assert all(torch.equal(given[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("two_calls", [False, True])
    def test_guidance(self, bundled: BundledModel, two_calls: bool) -> None:
        # The conditional half predicts 1 and the other 0, so guidance predicts its own scale.
        def conditional(call: int, latents: Tensor) -> Tensor:
            if two_calls:
                return torch.full_like(latents, 1.0 - call % 2)
            asked, none = latents.chunk(2)
            return torch.cat([torch.ones_like(asked), torch.zeros_like(none)])

        def constant(_: int, latents: Tensor) -> Tensor:
            return torch.full_like(latents, 2.5)

        labels = torch.tensor([0, 9])
        guided = bundled.sample(
            Recorder(conditional),
            labels,
            num_inference_steps=3,
            guidance_scale=2.5,
            two_calls=two_calls,
        )
        expected = bundled.sample(Recorder(constant), labels, num_inference_steps=3)
        torch.testing.assert_close(guided, expected)

    def test_the_trained_model_in_either_way(self, bundled: BundledModel) -> None:
        model, labels = bundled.load(), torch.tensor([5, 8])
        doubled, twice = (
            bundled.sample(model, labels, num_inference_steps=3, two_calls=two_calls)
            for two_calls in (False, True)
        )
        torch.testing.assert_close(doubled, twice, atol=1e-4, rtol=0)

    def test_seed(self, bundled: BundledModel) -> None:
        model, labels = bundled.load(), torch.tensor([7, 7])
        first, again, other = (
            bundled.sample(model, labels, num_inference_steps=2, seed=seed) for seed in (5, 5, 6)
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
    def test_bad_labels(self, bundled: BundledModel, labels: Tensor) -> None:
        with pytest.raises(ValueError, match="labels must"):
            bundled.sample(Recorder(still), labels)
        with pytest.raises(ValueError, match="labels must"):
            bundled.example(labels)

    @pytest.mark.parametrize("steps", [0, 1001])
    def test_bad_step_count(self, bundled: BundledModel, steps: int) -> None:
        with pytest.raises(ValueError, match="num_inference_steps"):
            bundled.scheduler(steps)


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [2.0, 4.0])
def test_samples_are_digits_of_the_class_asked_for(
    bundled: BundledModel, guidance_scale: float
) -> None:
    labels = torch.arange(10).repeat(12)
    images = bundled.sample(bundled.load(), labels, guidance_scale=guidance_scale, seed=1)
    with torch.no_grad():
        assert class_accuracy(digits.load_classifier()(images), labels) >= 0.95
    # They lie as near to the training images as held-out digits do: digits, but not copies.
    real, held_out = (digits.real_digits(split)[0].flatten(1) for split in ("train", "test"))
    nearest = torch.cdist(images.flatten(1), real).amin(1).median()
    usual = torch.cdist(held_out, real).amin(1).median()
    assert 0.75 * usual < nearest < 1.25 * usual
