"""The measures against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from dit_compile.quality.metrics import (
    class_accuracy,
    frechet_distance,
    psnr,
    relative_l2,
    ssim_each,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Rows whose sample mean and unbiased covariance are exactly those asked for."""
    x = torch.randn(count, len(mean), generator=_generator(seed), dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(x.T)).T, x, upper=True, left=False
    )
    return torch.matmul(x, torch.linalg.cholesky(covariance).T) + mean


class TestPsnr:
    def test_constant_error(self) -> None:
        a = torch.zeros(3, 1, 8, 8)
        assert psnr(a, a + 0.02) == pytest.approx(40.0, abs=1e-5)

    def test_gaussian_noise(self) -> None:
        a = torch.zeros(4, 3, 64, 64)
        noise = 0.05 * torch.randn(a.shape, generator=_generator())
        assert psnr(a, a + noise) == pytest.approx(20 * math.log10(2 / 0.05), abs=0.1)

    def test_decibels_are_averaged_not_errors(self) -> None:
        a = torch.zeros(2, 1, 4, 4)
        b = a.clone()
        b[0], b[1] = 0.2, 0.002
        assert psnr(a, b) == pytest.approx((20 + 60) / 2, abs=1e-5)

    def test_values_outside_the_range_are_clipped(self) -> None:
        a = torch.full((1, 1, 4, 4), 0.9)
        assert psnr(a, torch.full_like(a, 5.0)) == pytest.approx(20 * math.log10(2 / 0.1), abs=1e-4)
        assert psnr(torch.full_like(a, 1.5), torch.full_like(a, 7.0)) == math.inf

    def test_data_range(self) -> None:
        a = torch.zeros(1, 1, 4, 4)
        loss = psnr(a, a + 0.1, data_range=2.0) - psnr(a, a + 0.1, data_range=1.0)
        assert loss == pytest.approx(20 * math.log10(2))

    def test_identical_images(self) -> None:
        a = torch.randn(2, 1, 8, 8, generator=_generator())
        assert psnr(a, a.clone()) == math.inf

    def test_half_precision_is_measured_in_double(self) -> None:
        a = torch.rand(2, 1, 8, 8, generator=_generator()).to(torch.bfloat16)
        b = a + 0.1
        assert psnr(a, b) == psnr(a.double(), b.double())

    def test_nan_is_not_hidden(self) -> None:
        a = torch.zeros(2, 1, 4, 4)
        b = a + 0.1
        b[0, 0, 0, 0] = math.nan
        assert math.isnan(psnr(a, b))

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            ((1, 1, 4, 4), (2, 1, 4, 4), "shapes differ"),
            ((4,), (4,), r"\[N, \.\.\.\]"),
            ((0, 1, 4, 4), (0, 1, 4, 4), "nothing to compare"),
        ],
    )
    def test_bad_shapes(self, a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            psnr(torch.zeros(a), torch.zeros(b))

    def test_bad_range(self) -> None:
        with pytest.raises(ValueError, match="data_range"):
            psnr(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), data_range=0.0)


class TestRelativeL2:
    def test_known_ratio(self) -> None:
        b = torch.tensor([3.0, 4.0])
        assert relative_l2(b + torch.tensor([0.0, 0.5]), b) == pytest.approx(0.1)

    def test_scale_does_not_matter_and_the_second_is_the_reference(self) -> None:
        a, b = torch.randn(2, 5, 7, generator=_generator())
        assert relative_l2(64 * a, 64 * b) == relative_l2(a, b)
        assert relative_l2(2 * b, b) == pytest.approx(1.0)
        assert relative_l2(b, 2 * b) == pytest.approx(0.5)

    def test_zero_reference(self) -> None:
        zero = torch.zeros(3)
        assert relative_l2(zero, zero) == 0.0
        assert relative_l2(zero + 1, zero) == math.inf

    def test_shapes_must_match(self) -> None:
        with pytest.raises(ValueError, match="shapes differ"):
            relative_l2(torch.zeros(2), torch.zeros(3))


class TestFrechetDistance:
    def test_diagonal_gaussians(self) -> None:
        mean_a, mean_b = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
        sd_a, sd_b = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 0.5]], dtype=torch.float64)
        a = _gaussian(mean_a, torch.diag(sd_a**2), 50, seed=1)
        b = _gaussian(mean_b, torch.diag(sd_b**2), 80, seed=2)
        expected = (mean_a - mean_b).square().sum() + (sd_a - sd_b).square().sum()
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)

    def test_covariances_that_do_not_commute(self) -> None:
        # For 2 x 2 matrices tr((AB)^(1/2)) = sqrt(tr(AB) + 2 sqrt(det(AB))).
        cov_a = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
        cov_b = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
        assert not torch.allclose(cov_a @ cov_b, cov_b @ cov_a)
        zero = torch.zeros(2, dtype=torch.float64)
        product = cov_a @ cov_b
        cross = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
        expected = cov_a.trace() + cov_b.trace() - 2 * cross
        a, b = _gaussian(zero, cov_a, 40, seed=3), _gaussian(zero, cov_b, 40, seed=4)
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)

    def test_shift_alone(self) -> None:
        a = torch.randn(64, 5, generator=_generator(), dtype=torch.float64)
        assert frechet_distance(a, a + 2.0) == pytest.approx(5 * 4.0, rel=1e-9)

    def test_zero_for_the_same_set_in_another_order(self) -> None:
        a = torch.randn(64, 8, generator=_generator())
        assert frechet_distance(a, a.flip(0)) == pytest.approx(0.0, abs=1e-8)

    def test_singular_covariance(self) -> None:
        a = torch.randn(10, 32, generator=_generator())
        a[:, :16] = 0.0  # features that never fire, and fewer samples than features
        distance = frechet_distance(a, a + 1.0)
        assert distance == pytest.approx(32.0, abs=1e-4)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (torch.zeros(4, 2), torch.zeros(4, 3), "differ in width"),
            (torch.zeros(1, 2), torch.zeros(4, 2), "at least 2"),
            (torch.zeros(4), torch.zeros(4), r"\[N, D\]"),
            (torch.full((4, 2), math.nan), torch.zeros(4, 2), "finite"),
        ],
    )
    def test_bad_input(self, a: torch.Tensor, b: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            frechet_distance(a, b)


class TestClassAccuracy:
    def test_counts_hits(self) -> None:
        logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
        assert class_accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75

    def test_bad_shapes(self) -> None:
        with pytest.raises(ValueError, match="class_accuracy"):
            class_accuracy(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


class TestSsim:
    def test_equal_images(self) -> None:
        a = torch.rand(3, 2, 8, 9, generator=_generator())
        assert ssim_each(a, a.clone()).tolist() == [1, 1, 1]

    def test_one_window_is_the_formula(self) -> None:
        a, b = torch.rand(2, 1, 1, 7, 7, generator=_generator(), dtype=torch.float64)
        x, y = a.flatten(), b.flatten()
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        covariance = torch.cov(torch.stack([x, y]))
        means = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
        spread = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
        assert ssim_each(a, b).item() == pytest.approx(float(means * spread))

    def test_each_image_has_its_own(self) -> None:
        a = torch.rand(2, 1, 8, 8, generator=_generator())
        b = torch.stack([a[0], 1 - a[1]])
        same, other = ssim_each(a, b).tolist()
        assert same == 1
        assert other < 0.5

    @pytest.mark.parametrize("shape", [(1, 1, 6, 8), (1, 8, 8), (0, 1, 8, 8)])
    def test_what_it_cannot_compare(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"7 pixels|\[N, C, H, W\]|nothing"):
            ssim_each(torch.zeros(shape), torch.zeros(shape))
