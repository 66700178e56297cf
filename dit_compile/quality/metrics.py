"""Image and feature measures, computed in float64.

Each measure is defined here once, so that every number reported anywhere means the same thing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_compile.optional import require


def psnr(a: Tensor, b: Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images of each image's own value.

    The dB values are averaged and not the errors, so one bad image cannot be hidden by many good
    ones, nor the other way round. Arguments and errors are those of :func:`psnr_each`.

    Returns:
        dB; `inf` if any image equals its counterpart exactly, since the mean is then infinite, and
        `nan` if any compared value is NaN.
    """
    return float(psnr_each(a, b, data_range).mean())


def psnr_each(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(data_range^2 / MSE).

    Both inputs are first clipped to [-1, 1], as they would be for display.

    Args:
        a: images [N, ...] of any shape, nominally in [-1, 1].
        b: images of the same shape.
        data_range: width of the range of values, 2 for [-1, 1].

    Returns:
        dB, float64 [N].

    Raises:
        ValueError: the shapes differ, have one axis alone or are empty, or `data_range` is not
            positive.
    """
    _check_images(a, b, data_range)
    mse = (_clipped(a) - _clipped(b)).square().flatten(1).mean(dim=1)
    return 10.0 * torch.log10(data_range**2 / mse)


def ssim_each(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity of each image, 1 for equal ones, as scikit-image computes it.

    Wang et al. (2004), "Image quality assessment: from error visibility to structural similarity",
    with a uniform window of 7 pixels. Both inputs are first clipped to [-1, 1].

    Args:
        a: images [N, C, H, W] of 7 pixels a side at least, nominally in [-1, 1].
        b: images of the same shape.
        data_range: width of the range of values, 2 for [-1, 1].

    Returns:
        Similarities in [-1, 1], float64 [N].

    Raises:
        MissingDependencyError: scikit-image is not installed.
        ValueError: as for :func:`psnr_each`, or they are no images that hold the window.
    """
    _check_images(a, b, data_range)
    if a.dim() != 4 or min(a.shape[2:]) < 7:
        raise ValueError(
            f"ssim compares images [N, C, H, W] of 7 pixels a side at least, not {list(a.shape)}"
        )
    similarity = require("skimage.metrics", "bench").structural_similarity
    pairs = zip(_clipped(a).numpy(), _clipped(b).numpy(), strict=True)
    values = [similarity(x, y, data_range=data_range, channel_axis=0) for x, y in pairs]
    return torch.tensor(values, dtype=torch.float64)


def relative_l2(a: Tensor, b: Tensor) -> float:
    """Relative Euclidean error |a - b| / |b| over all elements; `b` is the reference.

    Args:
        a: tensor of any shape.
        b: reference of the same shape.

    Returns:
        A ratio; 0 if both are zero, `inf` if only the reference is.

    Raises:
        ValueError: the shapes differ or are empty.
    """
    _check_same_shape(a, b)
    error = float(torch.linalg.vector_norm(_double(a) - _double(b)))
    scale = float(torch.linalg.vector_norm(_double(b)))
    if scale == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / scale


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), with unbiased covariances, as
    in Heusel et al. (2017), "GANs trained by a two time-scale update rule". The estimate is biased
    upwards for small sets, so compare only values taken with equal numbers of samples.

    Args:
        features_a: features [N, D], N at least 2.
        features_b: features [M, D], M at least 2.

    Returns:
        The distance, in squared units of the features; never negative.

    Raises:
        ValueError: the inputs are not two such matrices of equal width, or are not finite.
    """
    return FrechetReference(features_b).distance(features_a)


class FrechetReference:
    """A set of features that others are held against, see :func:`frechet_distance`.

    Args:
        features: features [M, D], M at least 2.

    Raises:
        ValueError: they are no such matrix, or are not finite.
    """

    def __init__(self, features: Tensor) -> None:
        self._mean, self._covariance = _moments(features)
        self._root = _symmetric_root(self._covariance)

    def distance(self, features: Tensor) -> float:
        """The squared Fréchet distance of ``features`` [N, D] to the reference.

        Raises:
            ValueError: they are no such matrix of equal width, or are not finite.
        """
        mean, covariance = _moments(features)
        if len(mean) != len(self._mean):
            raise ValueError(f"features differ in width: {len(mean)} and {len(self._mean)}")
        # cov_a cov_b is not symmetric, but it has the eigenvalues of the symmetric matrix
        # cov_b^(1/2) cov_a cov_b^(1/2), and only the trace of its root is needed.
        inner = self._root @ covariance @ self._root
        cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
        traces = covariance.trace() + self._covariance.trace()
        distance = (mean - self._mean).square().sum() + traces - 2 * cross
        return max(0.0, float(distance))


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share, from 0 to 1, of rows whose largest logit is at their label.

    Args:
        logits: [N, C].
        labels: int [N], the class asked for.

    Raises:
        ValueError: the shapes do not match or are empty.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or logits.numel() == 0:
        raise ValueError(
            f"class_accuracy takes logits [N, C] and labels [N], not {list(logits.shape)} "
            f"and {list(labels.shape)}"
        )
    return float((logits.argmax(dim=1) == labels).double().mean())


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    if a.numel() == 0:
        raise ValueError(f"nothing to compare: the shape is {list(a.shape)}")


def _check_images(a: Tensor, b: Tensor, data_range: float) -> None:
    _check_same_shape(a, b)
    if a.dim() < 2:
        raise ValueError(f"images are [N, ...], not {list(a.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, not {data_range}")


def _clipped(images: Tensor) -> Tensor:
    return _double(images).clamp(-1.0, 1.0)


def _double(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D]."""
    if features.dim() != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(f"features must be [N, D] with N at least 2, not {list(features.shape)}")
    x = _double(features)
    if not torch.isfinite(x).all():
        raise ValueError("features must be finite")
    mean = x.mean(0)
    centred = x - mean
    return mean, (centred.T @ centred).div(len(x) - 1)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    # Rounding makes eigenvalues of a singular covariance slightly negative.
    return torch.matmul(vectors * values.clamp(min=0).sqrt(), vectors.T)
