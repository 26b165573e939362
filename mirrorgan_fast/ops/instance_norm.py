"""Instance norm with what CycleGAN does around it: leaky ReLU, sum and reflection padding.

With mean and biased variance over H and W of an image's channel,

    z = (x - mean) / sqrt(variance + eps)
    y = max(z, 0) + slope min(z, 0) + residual

and out is y with ``padding`` pixels of its reflection on each side (Ulyanov et al., 2016; Zhu et
al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", 2017, whose
generators have all of it between two convolutions). The compiled kernels write neither z nor y to
memory, and keep channels_last maps as they are, which PyTorch's instance norm copies twice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import REFERENCE, choose, needs_grad, run_reference
from mirrorgan_fast.ops.wide import wide

_NAME = "instance_norm"


def instance_norm(
    x: Tensor,  # (N, C, H, W)
    residual: Tensor | None = None,  # (N, C, H, W)
    slope: float = 1.0,
    padding: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel of each image, then apply a leaky ReLU, add a residual and pad.

    First-order gradients exist for x and residual. Second-order gradients exist in the reference
    only; the compiled implementation raises. In bfloat16 and float16 everything is computed in
    float32 and rounded once; the compiled backward also rounds the gradient of y.

    Args:
        x: Any floating-point data type; channels_last is fastest.
        residual: Is added behind the leaky ReLU; of any floating-point data type, but x's is
            fastest. It may be the inside of a padded map.
        slope: Of the leaky ReLU for negative values: 0 is a ReLU, 1 leaves them as they are.
        padding: Pixels of reflection on each side, less than H and W.
        eps: Is added to the variance.

    Returns:
        out (N, C, H + 2 padding, W + 2 padding) in x's data type.

    Raises:
        InputError: Shapes, data types or devices do not match, or the padding is too large.
    """
    if x.dim() != 4 or not x.is_floating_point() or not x.numel():
        refuse(_NAME, "x", x, "floating point of shape (N, C, H, W), with at least one pixel")
    if residual is not None and (
        residual.shape != x.shape or not residual.is_floating_point() or residual.device != x.device
    ):
        refuse(_NAME, "residual", residual, f"floating point of shape {tuple(x.shape)}, as x")
    if not 0 <= padding < min(x.shape[2:]):
        raise InputError(
            f"{_NAME}: padding: found {padding} for a map of {tuple(x.shape[2:])}, wanted 0 or "
            f"more, less than H and W"
        )
    choice = choose(_NAME, x.device.type, x.dtype, needs_grad=needs_grad(x, residual))
    other_type = residual is not None and residual.dtype != x.dtype
    if choice.implementation == REFERENCE or other_type:
        return run_reference(reference, x, residual, slope, padding, eps)
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous(memory_format=torch.channels_last)
    out: Tensor = _op(x, residual, slope, padding, eps)[0]
    return out


def reference(
    x: Tensor,  # (N, C, H, W)
    residual: Tensor | None,  # (N, C, H, W)
    slope: float,
    padding: int,
    eps: float,
) -> Tensor:
    """Define `instance_norm` in plain PyTorch. Same arguments, not checked."""
    z = wide(x)
    variance, mean = torch.var_mean(z, dim=(2, 3), correction=0, keepdim=True)
    y = functional.leaky_relu((z - mean) * (variance + eps).rsqrt(), slope)
    if residual is not None:
        y = y + residual
    if padding:  # before rounding: compiled, the gradient of a padded bfloat16 map was NaN (2.13)
        y = functional.pad(y, (padding,) * 4, mode="reflect")
    return y.to(x.dtype)


def backward_reference(
    grad_out: Tensor,  # (N, C, H + 2 padding, W + 2 padding)
    x: Tensor,  # (N, C, H, W)
    mean: Tensor,  # (N, C)
    variance: Tensor,  # (N, C)
    slope: float,
    padding: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Define the gradients of x, and of y, which is that of the residual."""
    grad_y = wide(grad_out)
    if padding:
        grad_y = torch.ops.aten.reflection_pad2d_backward(grad_y, x, (padding,) * 4)
    inverse_std = (variance + eps).rsqrt()[:, :, None, None]
    z = (wide(x) - mean[:, :, None, None]) * inverse_std
    grad_z = torch.where(z < 0, slope * grad_y, grad_y)
    tilt = (grad_z * z).mean(dim=(2, 3), keepdim=True)
    grad_x = inverse_std * (grad_z - grad_z.mean(dim=(2, 3), keepdim=True) - tilt * z)
    grad_x, grad_y = (
        grad.to(x.dtype).contiguous(memory_format=torch.channels_last) for grad in (grad_x, grad_y)
    )
    return grad_x, grad_y


@torch.library.custom_op(f"mirrorgan::{_NAME}", mutates_args=())
def _op(
    x: Tensor, residual: Tensor | None, slope: float, padding: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # The CPU implementation is csrc/cpu/instance_norm.cpp.
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)
    out = reference(x, residual, slope, padding, eps)
    return out.contiguous(memory_format=torch.channels_last), mean, variance


@_op.register_fake
def _(
    x: Tensor, residual: Tensor | None, slope: float, padding: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, channels, height + 2 * padding, width + 2 * padding)
    mean = x.new_empty(batch, channels, dtype=torch.float32)
    return out.contiguous(memory_format=torch.channels_last), mean, torch.empty_like(mean)


@torch.library.custom_op(f"mirrorgan::{_NAME}_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    slope: float,
    padding: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    # The CPU implementation is csrc/cpu/instance_norm.cpp.
    return backward_reference(grad_out, x, mean, variance, slope, padding, eps)


@_backward_op.register_fake
def _(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    slope: float,
    padding: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(x).contiguous(memory_format=torch.channels_last)
    return grad_x, torch.empty_like(grad_x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, ctx.slope, ctx.padding, ctx.eps = inputs
    ctx.has_residual = residual is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, *output[1:])


def _backward(
    ctx: Any, grad_out: Tensor, *_: Tensor | None
) -> tuple[Tensor, Tensor | None, None, None, None]:
    arguments = (*ctx.saved_tensors, ctx.slope, ctx.padding, ctx.eps)
    grad_x, grad_y = _backward_op(grad_out, *arguments)
    return grad_x, grad_y if ctx.has_residual else None, None, None, None


_op.register_autograd(_backward, setup_context=_save)
