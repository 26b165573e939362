"""The statistics of a batch, and loads of what they normalize, for the batch norm kernels.

A channels_last map is a matrix of N H W rows and C columns. Sums are computed in two steps: each
program sums some rows, then a second kernel sums the results of the programs. So they do not depend
on the order in which programs end.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from mirrorgan_fast.kernels.settings import Setting


@triton.jit
def sums_kernel(
    x_ptr,  # (rows, CHANNELS)
    sums_ptr,  # (programs, 2, CHANNELS)
    rows,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum x - pivot and its square over some rows. The pivot avoids cancellation."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    present = channel < CHANNELS
    pivot = pivot_of(x_ptr, rows, channel, CHANNELS)
    total = tl.zeros((R, C), tl.float32)
    squares = tl.zeros((R, C), tl.float32)
    for step in range(STEPS):
        row, inside = rows_of(step, rows, R, STEPS)
        x = load(x_ptr, row, inside, channel, CHANNELS, CHANNELS)
        x = tl.where(inside[:, None], x - pivot[None, :], 0.0)
        total += x
        squares += x * x
    at = tl.program_id(0).to(tl.int64) * (2 * CHANNELS) + channel
    tl.store(sums_ptr + at, tl.sum(total, axis=0), mask=present)
    tl.store(sums_ptr + at + CHANNELS, tl.sum(squares, axis=0), mask=present)


@triton.jit
def moments_kernel(
    x_ptr,  # (rows, CHANNELS)
    sums_ptr,  # (programs, 2, CHANNELS)
    mean_ptr,  # (CHANNELS,)
    variance_ptr,  # (CHANNELS,)
    rows,
    programs,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Turn the sums of all programs into mean and biased variance."""
    channel = tl.program_id(0) * C + tl.arange(0, C)
    present = channel < CHANNELS
    total = tl.zeros((R, C), tl.float32)
    squares = tl.zeros((R, C), tl.float32)
    for start in range(0, programs, R):
        program = start + tl.arange(0, R)
        at = program.to(tl.int64)[:, None] * (2 * CHANNELS) + channel[None, :]
        inside = (program < programs)[:, None] & present[None, :]
        total += tl.load(sums_ptr + at, mask=inside, other=0.0)
        squares += tl.load(sums_ptr + at + CHANNELS, mask=inside, other=0.0)
    count = rows.to(tl.float32)
    shift = tl.sum(total, axis=0) / count
    variance = tl.sum(squares, axis=0) / count - shift * shift
    variance = tl.where(variance < 0.0, 0.0, variance)  # unlike tl.maximum, this keeps NaN
    pivot = pivot_of(x_ptr, rows, channel, CHANNELS)
    tl.store(mean_ptr + channel, pivot + shift, mask=present)
    tl.store(variance_ptr + channel, variance, mask=present)


@triton.jit
def pivot_of(x_ptr, rows, channel, CHANNELS: tl.constexpr):
    """Return the mean of the first 16 rows, as a single row may be an outlier."""
    row = tl.arange(0, 16)
    x = load(x_ptr, row, row < rows, channel, CHANNELS, CHANNELS)
    return tl.sum(x, axis=0) / tl.minimum(rows, 16).to(tl.float32)


@triton.jit
def rows_of(step, rows, R: tl.constexpr, STEPS: tl.constexpr):
    """Return the indices (R,) of the rows of a program's step, and which of them exist."""
    row = (tl.program_id(0).to(tl.int64) * STEPS + step) * R + tl.arange(0, R)
    return row, row < rows


@triton.jit
def load(pointer, row, inside, channel, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Return a float32 tile of a map with WIDTH channels, zero from channel CHANNELS on."""
    return tl.load(
        pointer + row[:, None] * WIDTH + channel[None, :],
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    ).to(tl.float32)


@triton.jit
def load_norm(mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, channel, END: tl.constexpr):
    """Return mean, 1 / std, weight and bias of some channels; END is the number of channels."""
    present = channel < END
    mean = tl.load(mean_ptr + channel, mask=present, other=0.0)
    inverse_std = tl.rsqrt(tl.load(variance_ptr + channel, mask=present, other=1.0) + eps)
    weight = tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=present, other=0.0).to(tl.float32)
    return mean, inverse_std, weight, bias


def as_rows(x: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as dense rows (N H W, C), channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def as_map(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows (N H W, C) as a map of the batch and size of ``like``."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def statistics(x: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,), float32, of rows (R, C)."""
    rows, channels = x.shape
    (programs, blocks), options = launch(x, channels, setting)
    options["CHANNELS"] = channels
    sums = x.new_empty((programs, 2, channels), dtype=torch.float32)
    mean, variance = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    wrap_triton(sums_kernel)[(programs, blocks)](x, sums, rows, **options)
    del options["STEPS"]
    wrap_triton(moments_kernel)[(blocks,)](x, sums, mean, variance, rows, programs, **options)
    return mean, variance


def launch(rows: Tensor, channels: int, setting: Setting) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid over rows (R, *) and channels, and the launch options of the kernels."""
    programs = triton.cdiv(len(rows), setting.rows * setting.turns)
    return (programs, triton.cdiv(channels, setting.columns)), {
        "R": setting.rows,
        "C": setting.columns,
        "STEPS": setting.turns,
        "num_warps": setting.warps,
        "num_stages": setting.stages,
    }


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Save x, weight, bias, mean, variance and the constants for the backward."""
    ctx.constants = inputs[3:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:3], *output[1:])
