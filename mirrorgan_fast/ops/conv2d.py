"""A convolution for training, in which the gradient of the weight is faster than PyTorch's.

    out[n, o, p] = bias[o] + sum_{c, t} weight[o, c, t] x[n, c, stride p + t - padding]

Forward and the gradient of x are PyTorch's own. In float32 without AVX-512, oneDNN's gradient of
the weight of channels_last maps takes twice as long as its forward. Here it is a product of packed
blocks of pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import REFERENCE, choose, needs_grad
from mirrorgan_fast.ops.unfolded_conv2d import suits, unfolded_conv2d

_NAME = "conv2d"
_MIN_CHANNELS = 16  # below, oneDNN is faster: 3.4 times from 3 channels to 32


def conv2d(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C', C, K, K), or (C, C', K, K) if transposed
    bias: Tensor | None = None,  # (C',)
    stride: int = 1,
    padding: int = 0,
    *,
    transposed: bool = False,
) -> Tensor:
    """Convolve, or convolve transposed, as PyTorch's ``conv2d`` and ``conv_transpose2d`` do.

    Gradients of any order exist for x, weight and bias. Under autocast it is PyTorch's convolution.

    Args:
        x: Any floating-point data type; channels_last is fastest.
        weight: In the same data type, unless autocast converts both.
        bias: One value per channel of the result; None: no bias.
        stride: Step between the kernel's places, in both dimensions.
        padding: Zeros around the map, in both dimensions.
        transposed: Whether this is the transposed convolution.

    Returns:
        (N, C', H', W').

    Raises:
        InputError: x is no map, or weight no stack of kernels for it.
    """
    if x.dim() != 4:
        refuse(_NAME, "x", x, "shape (N, C, H, W)")
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[0 if transposed else 1] != channels:
        form = "(C, C', K, K)" if transposed else "(C', C, K, K)"
        refuse(_NAME, "weight", weight, f"shape {form} with C = {channels}")
    if not transposed and suits(x, weight, stride, padding):
        return unfolded_conv2d(x, weight, bias, stride, padding)
    # The columns of the product that is the gradient of the weight
    columns = weight.shape[1]
    device = x.device.type
    narrow = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if narrow else x.dtype
    choice = choose(_NAME, device, dtype, needs_grad=needs_grad(weight))
    if choice.implementation == REFERENCE or not needs_grad(weight) or columns < _MIN_CHANNELS:
        return reference(x, weight, bias, stride, padding, transposed=transposed)
    out: Tensor = _op(x, weight, bias, stride, padding, transposed)
    return out


def reference(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (C', C, K, K), or (C, C', K, K) if transposed
    bias: Tensor | None = None,  # (C',)
    stride: int = 1,
    padding: int = 0,
    *,
    transposed: bool = False,
) -> Tensor:
    """Define `conv2d` in plain PyTorch. Same arguments, not checked."""
    if transposed:
        return functional.conv_transpose2d(x, weight, bias, stride, padding)
    return functional.conv2d(x, weight, bias, stride, padding)


@torch.library.custom_op(f"mirrorgan::{_NAME}", mutates_args=())
def _op(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
) -> Tensor:
    out = reference(x, weight, bias, stride, padding, transposed=transposed)
    return out.contiguous(memory_format=torch.channels_last)


@_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
) -> Tensor:
    out = reference(x, weight, bias, stride, padding, transposed=transposed)
    return torch.empty_like(out, memory_format=torch.channels_last)


@torch.library.custom_op(f"mirrorgan::{_NAME}_weight_gradient", mutates_args=())
def _weight_gradient_op(
    grad_out: Tensor, x: Tensor, kernel_height: int, kernel_width: int, stride: int, padding: int
) -> Tensor:
    # The CPU implementation is csrc/cpu/conv2d.cpp.
    shape = (grad_out.shape[1], x.shape[1], kernel_height, kernel_width)
    grad = _gradient(grad_out, x, x.new_empty(shape), stride, padding, False, of=1)
    return grad.contiguous(memory_format=torch.channels_last)


@_weight_gradient_op.register_fake
def _(
    grad_out: Tensor, x: Tensor, kernel_height: int, kernel_width: int, stride: int, padding: int
) -> Tensor:
    shape = (grad_out.shape[1], x.shape[1], kernel_height, kernel_width)
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _gradient(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    *,
    of: int,
) -> Tensor:
    """Return PyTorch's gradient of x (``of`` 0) or of weight (1)."""
    grads = torch.ops.aten.convolution_backward(
        grad_out,
        x,
        weight,
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        transposed,
        [0, 0],
        1,
        [of == 0, of == 1, False],
    )
    grad: Tensor = grads[of]
    return grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride, ctx.padding, ctx.transposed = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    stride, padding, transposed = ctx.stride, ctx.padding, ctx.transposed
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        grad_x = _gradient(grad_out, x, weight, stride, padding, transposed, of=0)
    if needs_weight:
        maps = (x, grad_out) if transposed else (grad_out, x)
        grad_weight = _weight_gradient_op(*maps, *weight.shape[2:], stride, padding)
    if needs_bias:
        grad_bias = grad_out.sum(dim=(0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None, None


def _save_maps(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_out, x, _, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(grad_out, x)


def _second_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate <cotangent, gradient of the weight>, which is linear in both maps."""
    grad_out, x = ctx.saved_tensors
    grad_grad_out = functional.conv2d(x, cotangent, None, ctx.stride, ctx.padding)
    grad_x = _gradient(grad_out, x, cotangent, ctx.stride, ctx.padding, False, of=0)
    return grad_grad_out, grad_x, None, None, None, None


_op.register_autograd(_backward, setup_context=_save)
_weight_gradient_op.register_autograd(_second_backward, setup_context=_save_maps)
