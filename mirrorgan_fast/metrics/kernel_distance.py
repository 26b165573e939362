"""The kernel distance (KID): how far the features of generated images are from those of real ones.

Binkowski et al., "Demystifying MMD GANs", 2018: the squared maximum mean discrepancy with the
kernel (x . y / d + 1)^3. Its estimate has no bias, so sets of a few hundred images can be compared,
and two halves of the real images have a distance of 0 in the mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError


class KernelDistance(NamedTuple):
    """An estimate of the kernel distance."""

    mean: float
    """Over subsets. It may be slightly below 0."""
    deviation: float
    """The standard deviation over subsets; 0 if there is one subset."""


def kernel_distance(
    real: Tensor,  # (N, D)
    generated: Tensor,  # (M, D)
    *,
    subsets: int = 100,
    most: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Return the kernel distance of two sets of features.

    Args:
        real: features of real images.
        generated: features of generated images, by the same network.
        subsets: how many random subsets of both are compared.
        most: images of each subset; at most as many as the smaller set has.
        seed: of the choice of the subsets.

    Raises:
        InputError: a set has fewer than two rows, the features have different lengths, or one is
            not finite.
    """
    for name, features in (("real", real), ("generated", generated)):
        if features.dim() != 2 or len(features) < 2:
            raise InputError(
                f"kernel distance: the {name} features have the shape {tuple(features.shape)}, "
                f"expected two rows or more of equal length"
            )
        if not features.isfinite().all():
            raise InputError(f"kernel distance: the {name} features have NaN or infinity")
    if real.shape[1] != generated.shape[1]:
        raise InputError(
            f"kernel distance: the features have {real.shape[1]} and {generated.shape[1]} numbers, "
            f"expected those of one network"
        )
    size = min(len(real), len(generated), most)
    chance = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        one, other = (
            features[torch.randperm(len(features), generator=chance)[:size]].double()
            for features in (real, generated)
        )
        found.append(_squared_discrepancy(one, other))
    values = torch.stack(found)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def _squared_discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """Return the unbiased estimate for two sets of the same size, (N, D) each."""
    size = len(one)

    def mean_of_pairs(x: Tensor) -> Tensor:
        kernel = _kernel(x, x)
        return (kernel.sum() - kernel.diagonal().sum()) / (size * (size - 1))

    return mean_of_pairs(one) + mean_of_pairs(other) - 2 * _kernel(one, other).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    kernel: Tensor = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel
