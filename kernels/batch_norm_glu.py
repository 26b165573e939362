"""Batch norm and gated linear unit, forward and backward, for `ops/batch_norm_glu.py`.

The forward reads x twice: once for the statistics, once for the result. The backward also takes two
passes: one for the sums over x and the grad_out, one for the grad_out of x.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

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
def batch_norm_glu_kernel(
    x_ptr,  # (rows, 2 HALF)
    mean_ptr,  # (2 HALF,)
    variance_ptr,  # (2 HALF,)
    weight_ptr,  # (2 HALF,)
    bias_ptr,  # (2 HALF,)
    out_ptr,  # (rows, HALF)
    rows,
    eps,
    HALF: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write the result of some rows and C channels."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    value_mean, value_scale, value_weight, value_bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, HALF
    )
    gate_mean, gate_scale, gate_weight, gate_bias = load_norm(
        mean_ptr + HALF, variance_ptr + HALF, weight_ptr + HALF, bias_ptr + HALF, eps, channel, HALF
    )
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        value = load(x_ptr, row, inside, channel, HALF, 2 * HALF)
        gate = load(x_ptr + HALF, row, inside, channel, HALF, 2 * HALF)
        value = (value - value_mean) * value_scale * value_weight + value_bias
        gate = (gate - gate_mean) * gate_scale * gate_weight + gate_bias
        tl.store(
            out_ptr + row[:, None] * HALF + channel[None, :],
            (value * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty),
            mask=inside[:, None] & (channel < HALF)[None, :],
        )


@triton.jit
def backward_kernel(
    grad_out_ptr,  # (rows, HALF)
    x_ptr,  # (rows, 2 HALF)
    mean_ptr,  # (2 HALF,)
    variance_ptr,  # (2 HALF,)
    weight_ptr,  # (2 HALF,)
    bias_ptr,  # (2 HALF,)
    sums_ptr,  # written (programs, 2, 2 HALF), or read (2, 2 HALF)
    grad_x_ptr,  # (rows, 2 HALF); None: write the sums
    rows,
    eps,
    HALF: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum grad_y and grad_y x^ over some rows; or, given both sums over all rows, write grad_x."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    present = channel < HALF
    value_mean, value_scale, value_weight, value_bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, HALF
    )
    gate_mean, gate_scale, gate_weight, gate_bias = load_norm(
        mean_ptr + HALF, variance_ptr + HALF, weight_ptr + HALF, bias_ptr + HALF, eps, channel, HALF
    )
    if grad_x_ptr is None:
        value_sum = tl.zeros((R, C), tl.float32)
        gate_sum = tl.zeros((R, C), tl.float32)
        value_product = tl.zeros((R, C), tl.float32)
        gate_product = tl.zeros((R, C), tl.float32)
    else:
        count = rows.to(tl.float32)
        sums = sums_ptr + channel
        value_mean_grad = tl.load(sums, mask=present, other=0.0) / count
        gate_mean_grad = tl.load(sums + HALF, mask=present, other=0.0) / count
        value_mean_product = tl.load(sums + 2 * HALF, mask=present, other=0.0) / count
        gate_mean_product = tl.load(sums + 3 * HALF, mask=present, other=0.0) / count
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        grad_out = load(grad_out_ptr, row, inside, channel, HALF, HALF)
        value = load(x_ptr, row, inside, channel, HALF, 2 * HALF)
        gate = load(x_ptr + HALF, row, inside, channel, HALF, 2 * HALF)
        value = (value - value_mean) * value_scale
        gate = (gate - gate_mean) * gate_scale
        sigmoid = tl.sigmoid(gate * gate_weight + gate_bias)
        grad_value = grad_out * sigmoid
        grad_gate = grad_value * (value * value_weight + value_bias) * (1.0 - sigmoid)
        if grad_x_ptr is None:
            value_sum += grad_value
            gate_sum += grad_gate
            value_product += grad_value * value
            gate_product += grad_gate * gate
        else:
            grad_value = grad_value - value_mean_grad - value * value_mean_product
            grad_gate = grad_gate - gate_mean_grad - gate * gate_mean_product
            at = grad_x_ptr + row[:, None] * (2 * HALF) + channel[None, :]
            mask = inside[:, None] & present[None, :]
            dtype = grad_x_ptr.dtype.element_ty
            tl.store(at, (grad_value * (value_weight * value_scale)).to(dtype), mask=mask)
            tl.store(at + HALF, (grad_gate * (gate_weight * gate_scale)).to(dtype), mask=mask)
    if grad_x_ptr is None:
        at = sums_ptr + tl.program_id(0).to(tl.int64) * (4 * HALF) + channel
        tl.store(at, tl.sum(value_sum, axis=0), mask=present)
        tl.store(at + HALF, tl.sum(gate_sum, axis=0), mask=present)
        tl.store(at + 2 * HALF, tl.sum(value_product, axis=0), mask=present)
        tl.store(at + 3 * HALF, tl.sum(gate_product, axis=0), mask=present)


@triton_op("mirrorgan::batch_norm_glu_triton", mutates_args=())
def batch_norm_glu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Implement `mirrorgan_fast.ops.batch_norm_glu`."""
    rows = as_rows(x)
    half = x.shape[1] // 2
    setting = batch_norm(half)
    mean, variance = statistics(rows, setting)
    out = rows.new_empty((len(rows), half))
    grid, options = launch(rows, half, setting)
    wrap_triton(batch_norm_glu_kernel)[grid](
        rows,
        mean,
        variance,
        weight.contiguous(),
        bias.contiguous(),
        out,
        len(rows),
        eps,
        HALF=half,
        **options,
    )
    return as_map(out, x), mean, variance


@triton_op("mirrorgan::batch_norm_glu_triton_backward", mutates_args=())
def batch_norm_glu_triton_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, and those of bias and weight as one tensor (2, 2C)."""
    rows = as_rows(x)
    inputs = (as_rows(grad_out), rows, mean, variance, weight.contiguous(), bias.contiguous())
    half = x.shape[1] // 2
    grid, options = launch(rows, half, batch_norm(half))
    options["HALF"] = half
    sums = torch.empty((grid[0], 2, x.shape[1]), dtype=torch.float32, device=x.device)
    wrap_triton(backward_kernel)[grid](*inputs, sums, None, len(rows), eps, **options)
    total = sums.sum(dim=0)
    grad_x = torch.empty_like(rows)
    wrap_triton(backward_kernel)[grid](*inputs, total, grad_x, len(rows), eps, **options)
    return as_map(grad_x, x), total


def _backward(
    ctx: Any, grad_out: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    grad_x, (grad_bias, grad_weight) = batch_norm_glu_triton_backward(
        grad_out, *ctx.saved_tensors, *ctx.constants
    )
    return grad_x, grad_weight, grad_bias, None


batch_norm_glu_triton.register_autograd(_backward, setup_context=save)
