"""The data type of sums, losses and similarities."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return a floating-point tensor in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
