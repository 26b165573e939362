"""Convolutions to test with, and random inputs for them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """The sizes of a convolution."""

    batch: int
    channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    transposed: bool = False


def make_inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and bias in float64."""
    rng = torch.Generator().manual_seed(seed)
    planes = (case.out_channels, case.channels)
    weight_shape = (*(reversed(planes) if case.transposed else planes), *case.kernel)
    x = torch.randn(case.batch, case.channels, *case.size, generator=rng, dtype=torch.float64)
    weight = torch.randn(weight_shape, generator=rng, dtype=torch.float64)
    return x, weight, torch.randn(case.out_channels, generator=rng, dtype=torch.float64)
