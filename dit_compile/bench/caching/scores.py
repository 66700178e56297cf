"""How good a set of sampled digits is, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from dit_compile.demo import digits
from dit_compile.quality.bootstrap import bootstrap
from dit_compile.quality.metrics import (
    FrechetReference,
    class_accuracy,
    psnr_each,
    ssim_each,
)

Interval = tuple[float, float]

_DRAWS = 200


@dataclass(frozen=True)
class ImageScores:
    """Scores of images [N, 1, 8, 8] against those of the plain model with the same seeds.

    Attributes:
        psnr: mean of the images' dB; ``inf`` if one is equal.
        psnr_interval: its 95 % interval.
        ssim: mean structural similarity.
        frechet: Fréchet distance to real digits in the features of the classifier.
        accuracy: share of images classified as the class asked for.
    """

    psnr: float
    psnr_interval: Interval
    ssim: float
    frechet: float
    accuracy: float
    psnr_of_each: Tensor = field(repr=False)
    features: Tensor = field(repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, images: Tensor, reference: Tensor, labels: Tensor) -> ImageScores:
        """Score ``images`` against ``reference``, both [N, 1, 8, 8], of classes ``labels`` [N]."""
        classifier = digits.load_classifier()
        decibels = psnr_each(images, reference)
        features = classifier.features(images)
        return cls(
            psnr=float(decibels.mean()),
            psnr_interval=bootstrap(len(decibels), lambda at: float(decibels[at].mean())),
            ssim=float(ssim_each(images, reference).mean()),
            frechet=_real().distance(features),
            accuracy=class_accuracy(classifier(images), labels),
            psnr_of_each=decibels,
            features=features,
        )

    def psnr_gain(self, other: ImageScores) -> tuple[float, Interval]:
        """How many dB these images are above others, pair by pair, and the 95 % interval."""
        gain = self.psnr_of_each - other.psnr_of_each
        return float(gain.mean()), bootstrap(len(gain), lambda at: float(gain[at].mean()))

    def frechet_gain(self, other: ImageScores) -> tuple[float, Interval]:
        """How much farther from real digits than others, below 0 if nearer; 95 % interval."""

        def gain(at: Tensor) -> float:
            return _real().distance(self.features[at]) - _real().distance(other.features[at])

        count = len(self.features)
        return gain(torch.arange(count)), bootstrap(count, gain, draws=_DRAWS)

    def summary(self) -> dict[str, float | Interval]:
        """The numbers, without what they were computed from."""
        return {
            "psnr": self.psnr,
            "psnr_interval": self.psnr_interval,
            "ssim": self.ssim,
            "frechet": self.frechet,
            "accuracy": self.accuracy,
        }


@cache
@torch.no_grad()
def _real() -> FrechetReference:
    images, _ = digits.real_digits("test")
    return FrechetReference(digits.load_classifier().features(images))
