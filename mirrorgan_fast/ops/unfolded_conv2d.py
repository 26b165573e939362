"""A convolution of small maps by a kernel with many numbers, as a matrix product.

    out[n, o, p] = bias[o] + sum_{c, t} weight[o, c, t] x[n, c, stride p + t - padding]

Such are the last convolutions of a discriminator: for four images of 256 pixels, a kernel of 33
million numbers on 64 pixels. oneDNN spends most of the time bringing the kernel into an order of
its own. Here the values of x that a pixel of the result needs are copied into a row, and the
convolution and both of its gradients are a product each, of matrices as they lie in memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import REFERENCE, choose, needs_grad

_NAME = "unfolded_conv2d"
# A product is faster if a row is longer than this many times the number of rows. For the weight's
# gradient in bfloat16 it is so from fewer on. Measured on an EPYC (Zen 4), one thread.
_LENGTH = 16
_LENGTH_FOR_WEIGHT = {torch.bfloat16: 4, torch.float32: 16}


def suits(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C', C, K, K)
    stride: int,
    padding: int,
) -> bool:
    """Return whether `unfolded_conv2d` is faster here than PyTorch's convolution.

    Under autocast, the data type is the one that it would convert to.
    """
    dtype = _dtype(x)
    if choose(_NAME, x.device.type, dtype, needs_grad=False).implementation == REFERENCE:
        return False
    rows, length = _rows(x, weight, stride, padding), weight[0].numel()
    least = _LENGTH_FOR_WEIGHT[dtype] if needs_grad(weight) else _LENGTH
    return 0 < rows * least <= length


def unfolded_conv2d(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C', C, K, K)
    bias: Tensor | None = None,  # (C',)
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolve, as PyTorch's ``conv2d`` does. Gradients of any order exist.

    Args:
        x: float32 or bfloat16, or wider; channels_last is fastest.
        weight: in the same data type, unless autocast converts both; channels_last is fastest.
        bias: one value per channel of the result; None: no bias.
        stride: step between the kernel's places, in both dimensions.
        padding: zeros around the map, in both dimensions.

    Returns:
        (N, C', H', W'), channels_last.

    Raises:
        InputError: x is no map, or weight no stack of kernels for it.
    """
    if x.dim() != 4:
        refuse(_NAME, "x", x, "shape (N, C, H, W)")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1]:
        refuse(_NAME, "weight", weight, f"shape (C', C, K, K) with C = {x.shape[1]}")
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _op(x.to(dtype), weight.to(dtype), stride, padding)
        return out if bias is None else out + bias.to(dtype)[:, None, None]


def _dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _rows(x: Tensor, weight: Tensor, stride: int, padding: int) -> int:
    """Return the number of pixels of the result, of all images."""
    height, width = _size(x, weight.shape[2:], stride, padding)
    return len(x) * height * width


def _size(x: Tensor, kernel: tuple[int, ...], stride: int, padding: int) -> tuple[int, int]:
    """Return the height and width of the result."""
    height, width = (
        (side + 2 * padding - taps) // stride + 1
        for side, taps in zip(x.shape[2:], kernel, strict=True)
    )
    return height, width


def _unfold(x: Tensor, kernel: tuple[int, ...], stride: int, padding: int) -> Tensor:
    """Return the values that each pixel of the result needs, (N H' W', K K C)."""
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, *[padding] * 4))
    windows = padded.unfold(1, kernel[0], stride).unfold(2, kernel[1], stride)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _as_map(rows: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
    """Return rows (N H W, C) as a map (N, C, H, W)."""
    return rows.view(batch, *size, rows.shape[1]).permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as rows (N H W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a stack of kernels (C', C, K, K) as (C', K K C)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


@torch.library.custom_op(f"mirrorgan::{_NAME}", mutates_args=())
def _op(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel = tuple(weight.shape[2:])
    if _rows(x, weight, stride, padding) * _LENGTH > weight[0].numel():
        out = functional.conv2d(x, weight, None, stride, padding)
        return out.contiguous(memory_format=torch.channels_last)
    rows = _unfold(x, kernel, stride, padding) @ _as_matrix(weight).t()
    return _as_map(rows, len(x), _size(x, kernel, stride, padding))


@_op.register_fake
def _(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    size = _size(x, tuple(weight.shape[2:]), stride, padding)
    return x.new_empty((len(x), *size, len(weight))).permute(0, 3, 1, 2)


@torch.library.custom_op(f"mirrorgan::{_NAME}_input_gradient", mutates_args=())
def _input_gradient_op(
    grad_out: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    batch, channels, (vertical, horizontal) = len(grad_out), weight.shape[1], weight.shape[2:]
    if grad_out[:, 0].numel() * _LENGTH > weight[0].numel():
        shape = (batch, channels, height, width)
        grad_x: Tensor = conv2d_input(shape, weight, grad_out, stride, padding)
        return grad_x.contiguous(memory_format=torch.channels_last)
    rows = _as_rows(grad_out) @ _as_matrix(weight)
    down, right = grad_out.shape[2:]
    values = rows.view(batch, down, right, vertical, horizontal, channels)
    # Summed in float32: up to K K values meet in a pixel
    wide = torch.promote_types(rows.dtype, torch.float32)
    padded = rows.new_zeros(
        (batch, height + 2 * padding, width + 2 * padding, channels), dtype=wide
    )
    for i in range(vertical):
        for j in range(horizontal):
            place = padded[:, i : i + stride * down : stride, j : j + stride * right : stride]
            place += values[:, :, :, i, j]
    inside = padded[:, padding : padding + height, padding : padding + width]
    return inside.to(rows.dtype).contiguous().permute(0, 3, 1, 2)


@_input_gradient_op.register_fake
def _(
    grad_out: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    shape = (len(grad_out), height, width, weight.shape[1])
    return grad_out.new_empty(shape).permute(0, 3, 1, 2)


@torch.library.custom_op(f"mirrorgan::{_NAME}_weight_gradient", mutates_args=())
def _weight_gradient_op(
    grad_out: Tensor, x: Tensor, vertical: int, horizontal: int, stride: int, padding: int
) -> Tensor:
    product = _as_rows(grad_out).t() @ _unfold(x, (vertical, horizontal), stride, padding)
    shape = (grad_out.shape[1], vertical, horizontal, x.shape[1])
    return product.view(shape).permute(0, 3, 1, 2)


@_weight_gradient_op.register_fake
def _(
    grad_out: Tensor, x: Tensor, vertical: int, horizontal: int, stride: int, padding: int
) -> Tensor:
    shape = (grad_out.shape[1], vertical, horizontal, x.shape[1])
    return x.new_empty(shape).permute(0, 3, 1, 2)


# The three ops are the derivatives of one form, sum(out * conv(x, weight)), which is linear in each
# of its three tensors. So the gradients of each op are the two others.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    how = (ctx.stride, ctx.padding)
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient_op(grad_out, weight, *x.shape[2:], *how)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient_op(grad_out, x, *weight.shape[2:], *how)
    return grad_x, grad_weight, None, None


def _save_of_input_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_out, weight, _, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(grad_out, weight)


def _backward_of_input_gradient(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, weight = ctx.saved_tensors
    how = (ctx.stride, ctx.padding)
    grad_grad_out = _op(x, weight, *how) if ctx.needs_input_grad[0] else None
    grad_weight = None
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient_op(grad_out, x, *weight.shape[2:], *how)
    return grad_grad_out, grad_weight, None, None, None, None


def _save_of_weight_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_out, x, _, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(grad_out, x)


def _backward_of_weight_gradient(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, x = ctx.saved_tensors
    how = (ctx.stride, ctx.padding)
    grad_grad_out = _op(x, weight, *how) if ctx.needs_input_grad[0] else None
    grad_x = None
    if ctx.needs_input_grad[1]:
        grad_x = _input_gradient_op(grad_out, weight, *x.shape[2:], *how)
    return grad_grad_out, grad_x, None, None, None, None


_op.register_autograd(_backward, setup_context=_save)
_input_gradient_op.register_autograd(
    _backward_of_input_gradient, setup_context=_save_of_input_gradient
)
_weight_gradient_op.register_autograd(
    _backward_of_weight_gradient, setup_context=_save_of_weight_gradient
)
