"""Batch norm in training, followed by a leaky ReLU.

With mean and biased variance over N, H and W of a batch, x^ = (x - mean) / sqrt(variance + eps),
and y = weight x^ + bias,

    out = max(y, 0) + slope min(y, 0)

The discriminators do this after their convolutions (Ioffe and Szegedy, 2015; Maas et al., 2013).
The Triton kernels write neither x^ nor y to memory.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops.batch_norm_glu import batch_norm, check_batch_norm
from mirrorgan_fast.ops.choice import REFERENCE, choose, needs_grad, run_reference

_NAME = "batch_norm_leaky_relu"


def batch_norm_leaky_relu(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    slope: float = 0.2,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the statistics of the batch, scale, shift, and apply a leaky ReLU.

    Gradients of any order exist for x, weight and bias. In bfloat16 and float16 everything is
    computed in float32 and rounded once (the reference also rounds before the leaky ReLU). mean and
    variance are for running averages and have no gradient.

    Args:
        x: Any floating-point data type; channels_last is fastest.
        weight: Scale of each channel, float32 or x's data type.
        bias: In the same data type as ``weight``.
        slope: Slope for negative values, at least 0.
        eps: Added to the variance.

    Returns:
        out (N, C, H, W) in x's data type, and each channel's mean and biased variance, float32 or
        wider.

    Raises:
        InputError: Shapes, data types or devices do not match, or there is only one value per
            channel, which has no variance.
    """
    check_batch_norm(_NAME, x, weight, bias)
    choice = choose(_NAME, x.device.type, x.dtype, needs_grad=needs_grad(x, weight, bias))
    if choice.implementation == REFERENCE or weight.dtype != torch.float32:
        return run_reference(reference, x, weight, bias, slope, eps)
    from mirrorgan_fast.kernels.batch_norm_leaky_relu import batch_norm_leaky_relu_triton

    out, mean, variance = batch_norm_leaky_relu_triton(x, weight, bias, slope, eps)
    return out, mean, variance


def reference(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    slope: float = 0.2,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Define `batch_norm_leaky_relu` in plain PyTorch. Same arguments, not checked."""
    y, mean, variance = batch_norm(x, weight, bias, eps)
    return functional.leaky_relu(y, slope), mean, variance
