"""Batch norm and leaky ReLU, forward and backward; the op is `ops/batch_norm_leaky_relu.py`.

Forward: two passes that read, of which the second writes. Backward: likewise.
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
    """Write some rows and C channels."""
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
    gradient_ptr,  # (rows, CHANNELS)
    x_ptr,  # (rows, CHANNELS)
    mean_ptr,  # (CHANNELS,)
    variance_ptr,  # (CHANNELS,)
    weight_ptr,  # (CHANNELS,)
    bias_ptr,  # (CHANNELS,)
    sums_ptr,  # (programs, 2, CHANNELS) to write, or (2, CHANNELS) to read
    of_x_ptr,  # (rows, CHANNELS), or None: write the sums
    rows,
    slope,
    eps,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum the gradients of y and of y times x^ over some rows; or, given them of all, write x's."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    present = channel < CHANNELS
    mean, scale, weight, bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, CHANNELS
    )
    if of_x_ptr is None:
        total = tl.zeros((R, C), tl.float32)
        product = tl.zeros((R, C), tl.float32)
    else:
        count = rows.to(tl.float32)
        of_bias = tl.load(sums_ptr + channel, mask=present, other=0.0) / count
        of_weight = tl.load(sums_ptr + CHANNELS + channel, mask=present, other=0.0) / count
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        gradient = load(gradient_ptr, row, inside, channel, CHANNELS, CHANNELS)
        x = (load(x_ptr, row, inside, channel, CHANNELS, CHANNELS) - mean) * scale
        of_y = tl.where(x * weight + bias > 0.0, gradient, gradient * slope)
        if of_x_ptr is None:
            total += of_y
            product += of_y * x
        else:
            of_x = (of_y - of_bias - x * of_weight) * (weight * scale)
            tl.store(
                of_x_ptr + row[:, None] * CHANNELS + channel[None, :],
                of_x.to(of_x_ptr.dtype.element_ty),
                mask=inside[:, None] & present[None, :],
            )
    if of_x_ptr is None:
        at = sums_ptr + tl.program_id(0).to(tl.int64) * (2 * CHANNELS) + channel
        tl.store(at, tl.sum(total, axis=0), mask=present)
        tl.store(at + CHANNELS, tl.sum(product, axis=0), mask=present)


@triton_op("mirrorgan::batch_norm_leaky_relu_triton", mutates_args=())
def batch_norm_leaky_relu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `mirrorgan_fast.ops.batch_norm_leaky_relu` does."""
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
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and, (2, C), of bias and weight, given that of the result."""
    rows = as_rows(x)
    given = (as_rows(gradient), rows, mean, variance, weight.contiguous(), bias.contiguous())
    grid, options = launch(rows, x.shape[1], batch_norm(x.shape[1]))
    options["CHANNELS"] = x.shape[1]
    sums = torch.empty((grid[0], 2, x.shape[1]), dtype=torch.float32, device=x.device)
    wrap_triton(backward_kernel)[grid](*given, sums, None, len(rows), slope, eps, **options)
    total = sums.sum(dim=0)
    of_x = torch.empty_like(rows)
    wrap_triton(backward_kernel)[grid](*given, total, of_x, len(rows), slope, eps, **options)
    return as_map(of_x, x), total


def _backward(
    ctx: Any, gradient: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    if torch.is_grad_enabled():  # this gradient will be differentiated, as by R1
        slope, eps = ctx.constants

        def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
            return functional.leaky_relu(y, slope)

        return *torch.func.vjp(plain, *ctx.saved_tensors[:3])[1](gradient), None, None
    of_x, (of_bias, of_weight) = batch_norm_leaky_relu_triton_backward(
        gradient, *ctx.saved_tensors, *ctx.constants
    )
    return of_x, of_weight, of_bias, None, None


batch_norm_leaky_relu_triton.register_autograd(_backward, setup_context=save)
