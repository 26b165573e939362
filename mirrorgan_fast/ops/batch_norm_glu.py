"""Batch norm in training, followed by a gated linear unit (GLU).

With mean and biased variance over N, H and W of a batch, x^ = (x - mean) / sqrt(variance + eps),
and y = weight x^ + bias with 2C channels,

    out = y[:C] sigmoid(y[C:])

MirrorGAN's generators do this after most of their convolutions (Ioffe and Szegedy, 2015; Dauphin et
al., 2017). The compiled kernels write neither x^ nor y to memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import REFERENCE, TRITON, choose, needs_grad, run_reference

_NAME = "batch_norm_glu"


def batch_norm_glu(
    x: Tensor,  # (N, 2C, H, W)
    weight: Tensor,  # (2C,)
    bias: Tensor,  # (2C,)
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the statistics of the batch, scale, shift, and gate half of the channels.

    First-order gradients exist for x, weight and bias. Second-order gradients exist in the
    reference only; the compiled implementation raises. In bfloat16 and float16 everything is
    computed in float32 and rounded once. mean and variance are for running averages and have no
    gradient.

    Args:
        x: Any floating-point data type; channels_last is fastest.
        weight: Scale of each channel, float32 or x's data type.
        bias: In the same data type as ``weight``.
        eps: Added to the variance.

    Returns:
        out (N, C, H, W) in x's data type, and the mean and biased variance of each of the 2C
        channels, float32 or wider.

    Raises:
        InputError: Shapes, data types or devices do not match, or there is only one value per
            channel, which has no variance.
    """
    if x.dim() != 4 or x.shape[1] % 2:
        refuse(_NAME, "x", x, "floating point of shape (N, 2C, H, W)")
    check_batch_norm(_NAME, x, weight, bias)
    choice = choose(_NAME, x.device.type, x.dtype, needs_grad=needs_grad(x, weight, bias))
    if choice.implementation == REFERENCE or weight.dtype != torch.float32:
        return run_reference(reference, x, weight, bias, eps)
    implementation = _op
    if choice.implementation == TRITON:
        from mirrorgan_fast.kernels.batch_norm_glu import batch_norm_glu_triton

        implementation = batch_norm_glu_triton
    out, mean, variance = implementation(x, weight.contiguous(), bias.contiguous(), eps)
    return out, mean, variance


def reference(
    x: Tensor,  # (N, 2C, H, W)
    weight: Tensor,  # (2C,)
    bias: Tensor,  # (2C,)
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Define `batch_norm_glu` in plain PyTorch. Same arguments, not checked."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normalized, mean, variance = batch_norm(wide, weight, bias, eps)
    values, gates = normalized.chunk(2, dim=1)
    return (values * gates.sigmoid()).to(x.dtype), mean, variance


def batch_norm(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and each channel's mean and biased variance, float32 or wider."""
    # The backward of PyTorch's batch norm may mistake channels for pixels in a channels_last map
    # with one row or one column.
    if 1 in x.shape[2:]:
        x = x.contiguous()
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, variance = x.new_zeros((2, x.shape[1]), dtype=wide).unbind()
    normalized = functional.batch_norm(
        x,
        mean,  # with momentum 1 the running averages become the batch's statistics
        variance,
        weight.to(wide),
        bias.to(wide),
        training=True,
        momentum=1.0,
        eps=eps,
    )
    count = x.numel() // x.shape[1]
    return normalized, mean, variance * ((count - 1) / count)


def backward_reference(
    grad_out: Tensor,  # (N, C, H, W)
    x: Tensor,  # (N, 2C, H, W)
    weight: Tensor,  # (2C,)
    bias: Tensor,  # (2C,)
    mean: Tensor,  # (2C,)
    variance: Tensor,  # (2C,)
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Define the gradients of x, weight and bias, given the gradient of ``out``."""
    per_channel = (slice(None), None, None)
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse_std = (variance + eps).rsqrt()[per_channel]
    normalized = (x.to(wide) - mean[per_channel]) * inverse_std
    values, gates = (normalized * weight[per_channel] + bias[per_channel]).chunk(2, dim=1)
    s = gates.sigmoid()
    grad_values = grad_out.to(wide) * s
    grad_y = torch.cat([grad_values, grad_values * values * (1 - s)], dim=1)
    mean_grad, mean_product = (part.mean(dim=(0, 2, 3)) for part in (grad_y, grad_y * normalized))
    centered = grad_y - mean_grad[per_channel] - normalized * mean_product[per_channel]
    grad_x = centered * weight[per_channel] * inverse_std
    count = x.numel() // x.shape[1]
    return (
        grad_x.to(x.dtype).contiguous(memory_format=torch.channels_last),
        (mean_product * count).to(weight.dtype),
        (mean_grad * count).to(bias.dtype),
    )


@torch.library.custom_op(f"mirrorgan::{_NAME}", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    # The CPU implementation is csrc/cpu/batch_norm_glu.cpp.
    out, mean, variance = reference(x, weight, bias, eps)
    return out, mean.float(), variance.float()


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, channels // 2, height, width)
    return (
        out.contiguous(memory_format=torch.channels_last),
        torch.empty_like(weight, dtype=torch.float32),
        torch.empty_like(weight, dtype=torch.float32),
    )


@torch.library.custom_op(f"mirrorgan::{_NAME}_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # The CPU implementation is csrc/cpu/batch_norm_glu.cpp.
    return backward_reference(grad_out, x, weight, bias, mean, variance, eps)


@_backward_op.register_fake
def _(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x).contiguous(memory_format=torch.channels_last)
    return grad_x, torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(
    ctx: Any, grad_out: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    grad_x, grad_weight, grad_bias = _backward_op(grad_out, *ctx.saved_tensors, ctx.eps)
    return grad_x, grad_weight, grad_bias, None


_op.register_autograd(_backward, setup_context=_save)


def check_batch_norm(op: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Check the inputs that the batch norm ops share."""
    if x.dim() != 4 or not x.is_floating_point():
        refuse(op, "x", x, "floating point of shape (N, C, H, W)")
    channels = x.shape[1]
    if x.numel() <= channels:
        refuse(op, "x", x, "more than one value per channel: one has no variance")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            refuse(op, name, tensor, f"shape (C,) = ({channels},), one value per channel of x")
        if tensor.dtype not in (torch.float32, x.dtype) or tensor.dtype != weight.dtype:
            wanted = f"{torch.float32} or {x.dtype}, the same for weight and bias"
            refuse(op, name, tensor, wanted)
        if tensor.device != x.device:
            refuse(op, name, tensor, f"device {x.device}, as x")
