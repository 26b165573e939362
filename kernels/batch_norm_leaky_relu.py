"""Batch norm and leaky ReLU, forward and backward, for `ops/batch_norm_leaky_relu.py`.

The forward reads x twice: once for the statistics, once for the result. The backward also takes two
passes: one for the sums over x and the grad_out, one for the grad_out of x.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.nn import functional

from mirrorgan_fast.kernels.batch_norm import (
    as_map,
    as_rows,
    launch,
    load,
    load_norm,
    rows_of,
    save,
    statistics,
)
from mirrorgan_fast.kernels.settings import batch_norm


@triton.jit
def batch_norm_leaky_relu_kernel(
    x_ptr,  # (rows, CHANNELS)
    mean_ptr,  # (CHANNELS,)
    variance_ptr,  # (CHANNELS,)
    weight_ptr,  # (CHANNELS,)
    bias_ptr,  # (CHANNELS,)
    out_ptr,  # (rows, CHANNELS)
    rows,
    slope,
    eps,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write the result of some rows and C channels."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    mean, scale, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, CHANNELS
    )
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        x = load(x_ptr, row, inside, channel, CHANNELS, CHANNELS)
        y = (x - mean) * scale * weight + bias
        tl.store(
            out_ptr + row[:, None] * CHANNELS + channel[None, :],
            tl.where(y > 0.0, y, y * slope).to(out_ptr.dtype.element_ty),
            mask=inside[:, None] & (channel < CHANNELS)[None, :],
        )


@triton.jit
def backward_kernel(
    grad_out_ptr,  # (rows, CHANNELS)
    x_ptr,  # (rows, CHANNELS)
    mean_ptr,  # (CHANNELS,)
    variance_ptr,  # (CHANNELS,)
    weight_ptr,  # (CHANNELS,)
    bias_ptr,  # (CHANNELS,)
    sums_ptr,  # written (programs, 2, CHANNELS), or read (2, CHANNELS)
    grad_x_ptr,  # (rows, CHANNELS); None: write the sums
    rows,
    slope,
    eps,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum grad_y and grad_y x^ over some rows; or, given both sums over all rows, write grad_x."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    present = channel < CHANNELS
    mean, scale, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, CHANNELS
    )
    if grad_x_ptr is None:
        total = tl.zeros((R, C), tl.float32)
        product = tl.zeros((R, C), tl.float32)
    else:
        count = rows.to(tl.float32)
        mean_grad = tl.load(sums_ptr + channel, mask=present, other=0.0) / count
        mean_product = tl.load(sums_ptr + CHANNELS + channel, mask=present, other=0.0) / count
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        grad_out = load(grad_out_ptr, row, inside, channel, CHANNELS, CHANNELS)
        x = (load(x_ptr, row, inside, channel, CHANNELS, CHANNELS) - mean) * scale
        grad_y = tl.where(x * weight + bias > 0.0, grad_out, grad_out * slope)
        if grad_x_ptr is None:
            total += grad_y
            product += grad_y * x
        else:
            grad_x = (grad_y - mean_grad - x * mean_product) * (weight * scale)
            tl.store(
                grad_x_ptr + row[:, None] * CHANNELS + channel[None, :],
                grad_x.to(grad_x_ptr.dtype.element_ty),
                mask=inside[:, None] & present[None, :],
            )
    if grad_x_ptr is None:
        at = sums_ptr + tl.program_id(0).to(tl.int64) * (2 * CHANNELS) + channel
        tl.store(at, tl.sum(total, axis=0), mask=present)
        tl.store(at + CHANNELS, tl.sum(product, axis=0), mask=present)


@triton_op("mirrorgan::batch_norm_leaky_relu_triton", mutates_args=())
def batch_norm_leaky_relu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Implement `mirrorgan_fast.ops.batch_norm_leaky_relu`."""
    rows = as_rows(x)
    setting = batch_norm(x.shape[1])
    mean, variance = statistics(rows, setting)
    out = torch.empty_like(rows)
    grid, options = launch(rows, x.shape[1], setting)
    wrap_triton(batch_norm_leaky_relu_kernel)[grid](
        rows, mean, variance, weight.contiguous(), bias.contiguous(), out, len(rows), slope, eps,
        CHANNELS=x.shape[1], **options,
    )  # fmt: skip
    return as_map(out, x), mean, variance


@triton_op("mirrorgan::batch_norm_leaky_relu_triton_backward", mutates_args=())
def batch_norm_leaky_relu_triton_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, and those of bias and weight as one tensor (2, C)."""
    rows = as_rows(x)
    inputs = (as_rows(grad_out), rows, mean, variance, weight.contiguous(), bias.contiguous())
    grid, options = launch(rows, x.shape[1], batch_norm(x.shape[1]))
    options["CHANNELS"] = x.shape[1]
    sums = torch.empty((grid[0], 2, x.shape[1]), dtype=torch.float32, device=x.device)
    wrap_triton(backward_kernel)[grid](*inputs, sums, None, len(rows), slope, eps, **options)
    total = sums.sum(dim=0)
    grad_x = torch.empty_like(rows)
    wrap_triton(backward_kernel)[grid](*inputs, total, grad_x, len(rows), slope, eps, **options)
    return as_map(grad_x, x), total


def _backward(
    ctx: Any, grad_out: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    if torch.is_grad_enabled():  # this gradient will itself be differentiated, e.g. by R1
        slope, eps = ctx.constants

        def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
            return functional.leaky_relu(y, slope)

        return *torch.func.vjp(plain, *ctx.saved_tensors[:3])[1](grad_out), None, None
    grad_x, (grad_bias, grad_weight) = batch_norm_leaky_relu_triton_backward(
        grad_out, *ctx.saved_tensors, *ctx.constants
    )
    return grad_x, grad_weight, grad_bias, None, None


batch_norm_leaky_relu_triton.register_autograd(_backward, setup_context=save)
