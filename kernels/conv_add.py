"""A convolution plus a residual as one matrix product, for `ops/conv_add.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.convolution import block_of, convolve, launch


@triton.jit
def conv_add_kernel(
    x_ptr,  # (pixels, CHANNELS)
    weight_ptr,  # (1, TAPS, CHANNELS, COLUMNS)
    bias_ptr,  # (COLUMNS,)
    residual_ptr,  # (pixels, COLUMNS), or None
    out_ptr,  # (pixels, COLUMNS); may be the residual
    pixels,
    height,
    width,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Write the result of M pixels and N columns."""
    pixel, first, phase = block_of(tl.program_id(0), COLUMNS, 1, M, N)
    column = first + tl.arange(0, N)
    y = convolve(
        x_ptr, weight_ptr, pixels, height, width, pixel, column, phase,
        CHANNELS, COLUMNS, TAPS, K,
    )  # fmt: skip
    y += tl.load(bias_ptr + column, mask=column < COLUMNS, other=0.0)[None, :]
    target = pixel.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    inside = (pixel < pixels)[:, None] & (column < COLUMNS)[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + target, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + target, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton_op("mirrorgan::conv_add_triton", mutates_args=("out",))
def conv_add_triton(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor
) -> None:
    """Implement `mirrorgan_fast.ops.conv_add` for weights in the layout ``rows``."""
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    programs, shapes = launch(x, weight)
    if programs:
        wrap_triton(conv_add_kernel)[(programs,)](x, weight, bias, residual, out, **shapes)
