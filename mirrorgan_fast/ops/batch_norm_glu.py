"""Batch norm and the gated linear unit behind it, as they train.

With x normalized over the batch and the pixels, x^ = (x - mean) / sqrt(variance + eps), and
y = weight x^ + bias of 2C channels,

    out = y[:C] sigmoid(y[C:])

which is what MirrorGAN's generators do after most of their convolutions (Ioffe and Szegedy, 2015;
Dauphin et al., 2017). Neither x^ nor y is ever written.
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
    """Normalize by the batch's own statistics, scale, and gate one half of the channels.

    First-order gradients exist for x, weight and bias; through the compiled implementation a second
    order raises. Below float32 everything is computed in float32 and rounded once. mean and
    variance are for running averages and have no gradient.

    Args:
        x: any floating data type; channels_last is fast.
        weight: scale of each channel, float32 or x's data type.
        bias: of the same data type as ``weight``.
        eps: added to the variance.

    Returns:
        out (N, C, H, W), of x's data type; and of each of the 2C channels the mean and the biased
        variance, float32 or wider.

    Raises:
        InputError: shapes, data types or devices do not fit together, or there is one value a
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
    """What `batch_norm_glu` means, in plain PyTorch; the arguments are the same, and trusted."""
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
    """Return y, and mean and biased variance of each channel, the two float32 or wider."""
    if 1 in x.shape[2:]:  # or PyTorch may take channels for pixels in the backward of such a map
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
    gradient: Tensor,  # (N, C, H, W)
    x: Tensor,  # (N, 2C, H, W)
    weight: Tensor,  # (2C,)
    bias: Tensor,  # (2C,)
    mean: Tensor,  # (2C,)
    variance: Tensor,  # (2C,)
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradients for x, weight and bias are, given that of ``out``, in plain PyTorch."""
    of_channel = (slice(None), None, None)
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse_std = (variance + eps).rsqrt()[of_channel]
    normalized = (x.to(wide) - mean[of_channel]) * inverse_std
    values, gates = (normalized * weight[of_channel] + bias[of_channel]).chunk(2, dim=1)
    s = gates.sigmoid()
    of_values = gradient.to(wide) * s
    of_y = torch.cat([of_values, of_values * values * (1 - s)], dim=1)
    of_bias, of_weight = (part.mean(dim=(0, 2, 3)) for part in (of_y, of_y * normalized))
    centered = of_y - of_bias[of_channel] - normalized * of_weight[of_channel]
    of_x = centered * weight[of_channel] * inverse_std
    count = x.numel() // x.shape[1]
    return (
        of_x.to(x.dtype).contiguous(memory_format=torch.channels_last),
        (of_weight * count).to(weight.dtype),
        (of_bias * count).to(bias.dtype),
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
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # The CPU implementation is csrc/cpu/batch_norm_glu.cpp.
    return backward_reference(gradient, x, weight, bias, mean, variance, eps)


@_backward_op.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    of_x = torch.empty_like(x).contiguous(memory_format=torch.channels_last)
    return of_x, torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(
    ctx: Any, gradient: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    of_x, of_weight, of_bias = _backward_op(gradient, *ctx.saved_tensors, ctx.eps)
    return of_x, of_weight, of_bias, None


_op.register_autograd(_backward, setup_context=_save)


def check_batch_norm(op: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Check what the ops with a batch norm have in common."""
    if x.dim() != 4 or not x.is_floating_point():
        refuse(op, "x", x, "floating point of shape (N, C, H, W)")
    channels = x.shape[1]
    if x.numel() <= channels:
        refuse(op, "x", x, "more than one value a channel, or there is no variance")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            refuse(op, name, tensor, f"shape (C,) = ({channels},), as many as x has channels")
        if tensor.dtype not in (torch.float32, x.dtype) or tensor.dtype != weight.dtype:
            wanted = f"{torch.float32} or {x.dtype}, the same for weight and bias"
            refuse(op, name, tensor, wanted)
        if tensor.device != x.device:
            refuse(op, name, tensor, f"device {x.device}, that of x")
