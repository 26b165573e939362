"""Batch norm in training and the leaky ReLU behind it.

With mean and (biased) variance over N, H and W of a batch, x^ = (x - mean) / sqrt(variance + eps),
and y = weight x^ + bias,

    out = max(y, 0) + slope min(y, 0)

which is what the discriminators do after their convolutions (Ioffe and Szegedy, 2015; Maas et al.,
2013). Neither x^ nor y is ever written.
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
    """Normalize by the batch's own statistics, scale, and flatten what is negative.

    Gradients exist for x, weight and bias, of any order. Below float32 everything is computed in
    float32 and rounded once (by the reference, before the leaky ReLU too). mean and variance are
    for running averages and have no gradient.

    Args:
        x: any floating data type; channels_last is fast.
        weight: scale of each channel, float32 or x's data type.
        bias: of the same data type as ``weight``.
        slope: of the negative side, not below 0.
        eps: added to the variance.

    Returns:
        out (N, C, H, W), of x's data type; and of each channel the mean and the biased variance,
        float32 or wider.

    Raises:
        InputError: shapes, data types or devices do not fit together, or there is one value a
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
    """What `batch_norm_leaky_relu` means, in plain PyTorch; same arguments, trusted."""
    y, mean, variance = batch_norm(x, weight, bias, eps)
    return functional.leaky_relu(y, slope), mean, variance
