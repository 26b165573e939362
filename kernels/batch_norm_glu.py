"""Batch norm and gated linear unit, forward and backward; the op is `ops/batch_norm_glu.py`.

Forward: two passes that read, of which the second writes. Backward: likewise.
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
    """Write some rows and C channels."""
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
    gradient_ptr,  # (rows, HALF)
    x_ptr,  # (rows, 2 HALF)
    mean_ptr,  # (2 HALF,)
    variance_ptr,  # (2 HALF,)
    weight_ptr,  # (2 HALF,)
    bias_ptr,  # (2 HALF,)
    sums_ptr,  # (programs, 2, 2 HALF) to write, or (2, 2 HALF) to read
    of_x_ptr,  # (rows, 2 HALF), or None: write the sums
    rows,
    eps,
    HALF: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum the gradients of y and of y times x^ over some rows; or, given them of all, write x's."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    present = channel < HALF
    value_mean, value_scale, value_weight, value_bias = load_norm(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, HALF
    )
    gate_mean, gate_scale, gate_weight, gate_bias = load_norm(
        mean_ptr + HALF, variance_ptr + HALF, weight_ptr + HALF, bias_ptr + HALF, eps, channel, HALF
    )
    if of_x_ptr is None:
        value_sum = tl.zeros((R, C), tl.float32)
        gate_sum = tl.zeros((R, C), tl.float32)
        value_product = tl.zeros((R, C), tl.float32)
        gate_product = tl.zeros((R, C), tl.float32)
    else:
        count = rows.to(tl.float32)
        sums = sums_ptr + channel
        value_of_bias = tl.load(sums, mask=present, other=0.0) / count
        gate_of_bias = tl.load(sums + HALF, mask=present, other=0.0) / count
        value_of_weight = tl.load(sums + 2 * HALF, mask=present, other=0.0) / count
        gate_of_weight = tl.load(sums + 3 * HALF, mask=present, other=0.0) / count
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        gradient = load(gradient_ptr, row, inside, channel, HALF, HALF)
        value = load(x_ptr, row, inside, channel, HALF, 2 * HALF)
        gate = load(x_ptr + HALF, row, inside, channel, HALF, 2 * HALF)
        value = (value - value_mean) * value_scale
        gate = (gate - gate_mean) * gate_scale
        sigmoid = tl.sigmoid(gate * gate_weight + gate_bias)
        of_value = gradient * sigmoid
        of_gate = of_value * (value * value_weight + value_bias) * (1.0 - sigmoid)
        if of_x_ptr is None:
            value_sum += of_value
            gate_sum += of_gate
            value_product += of_value * value
            gate_product += of_gate * gate
        else:
            of_value = of_value - value_of_bias - value * value_of_weight
            of_gate = of_gate - gate_of_bias - gate * gate_of_weight
            at = of_x_ptr + row[:, None] * (2 * HALF) + channel[None, :]
            mask = inside[:, None] & present[None, :]
            dtype = of_x_ptr.dtype.element_ty
            tl.store(at, (of_value * (value_weight * value_scale)).to(dtype), mask=mask)
            tl.store(at + HALF, (of_gate * (gate_weight * gate_scale)).to(dtype), mask=mask)
    if of_x_ptr is None:
        at = sums_ptr + tl.program_id(0).to(tl.int64) * (4 * HALF) + channel
        tl.store(at, tl.sum(value_sum, axis=0), mask=present)
        tl.store(at + HALF, tl.sum(gate_sum, axis=0), mask=present)
        tl.store(at + 2 * HALF, tl.sum(value_product, axis=0), mask=present)
        tl.store(at + 3 * HALF, tl.sum(gate_product, axis=0), mask=present)


@triton_op("mirrorgan::batch_norm_glu_triton", mutates_args=())
def batch_norm_glu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `mirrorgan_fast.ops.batch_norm_glu` does."""
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
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and, (2, 2C), of bias and weight, given that of the result."""
    rows = as_rows(x)
    given = (as_rows(gradient), rows, mean, variance, weight.contiguous(), bias.contiguous())
    half = x.shape[1] // 2
    grid, options = launch(rows, half, batch_norm(half))
    options["HALF"] = half
    sums = torch.empty((grid[0], 2, x.shape[1]), dtype=torch.float32, device=x.device)
    wrap_triton(backward_kernel)[grid](*given, sums, None, len(rows), eps, **options)
    total = sums.sum(dim=0)
    of_x = torch.empty_like(rows)
    wrap_triton(backward_kernel)[grid](*given, total, of_x, len(rows), eps, **options)
    return as_map(of_x, x), total


def _backward(
    ctx: Any, gradient: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    of_x, (of_bias, of_weight) = batch_norm_glu_triton_backward(
        gradient, *ctx.saved_tensors, *ctx.constants
    )
    return of_x, of_weight, of_bias, None


batch_norm_glu_triton.register_autograd(_backward, setup_context=save)
