"""Structural similarity of two pictures (Wang et al., 2004)."""

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _SIGMA = 11, 1.5  # pixels, as in the paper
_K1, _K2 = 0.01, 0.03


def ssim(
    images: Tensor,  # (N, 3, H, W)
    others: Tensor,  # (N, 3, H, W)
) -> Tensor:
    """Return the SSIM of pairs of images, (N,): 1 for equal ones, about 0 for unrelated ones.

    It is the mean over channels and over all places where the Gaussian window of 11 x 11 pixels
    fits (equation 13, with the paper's constants).

    Args:
        images: gray levels from 0 to 255, at least 11 pixels a side.
        others: likewise.
    """
    x, y = images.double(), others.double()
    place = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-(place**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    channels = x.shape[1]

    def blurred(image: Tensor) -> Tensor:
        down, across = (
            line.view(shape).expand(channels, 1, -1, -1) for shape in ((-1, 1), (1, -1))
        )
        return functional.conv2d(
            functional.conv2d(image, down, groups=channels), across, groups=channels
        )

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3))
