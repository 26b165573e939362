"""SSIM against a loop over windows."""

import numpy as np
import torch

from mirrorgan_fast.metrics.ssim import ssim


def by_loop(x: np.ndarray, y: np.ndarray) -> float:
    """Return the SSIM of two planes (H, W), window by window."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(values))


def test_it_is_the_mean_over_windows_and_channels() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 3, 14, 17)).astype(float)
    y = 0.7 * x + rng.normal(0, 20, x.shape) + 10
    found = ssim(torch.from_numpy(x), torch.from_numpy(y))
    for n in range(2):
        wanted = np.mean([by_loop(x[n, c], y[n, c]) for c in range(3)])
        assert abs(float(found[n]) - wanted) < 1e-9


def test_equal_images_have_one_and_unrelated_ones_about_zero() -> None:
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.integers(0, 256, (2, 1, 3, 40, 40), dtype=np.uint8))
    assert abs(float(ssim(x, x)) - 1) < 1e-12
    assert abs(float(ssim(x, y))) < 0.1
