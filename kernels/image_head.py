"""A convolution, tanh and rounding to gray levels in one pass, for `ops/image_head.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.convolution import block_of, convolve, launch

# float32 numbers from 2^23 on have no fraction. So adding this and subtracting it again rounds to
# an integer, half to even.
_NO_FRACTION = tl.constexpr(1.5 * 2**23)


@triton.jit
def image_head_kernel(
    x_ptr,  # (pixels, CHANNELS)
    weight_ptr,  # (1, TAPS, CHANNELS, COLUMNS)
    bias_ptr,  # (COLUMNS,)
    out_ptr,  # (pixels, COLUMNS), uint8
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
    """Write round((1 + tanh(y)) 127.5) for M pixels."""
    pixel, first, phase = block_of(tl.program_id(0), COLUMNS, 1, M, N)
    column = first + tl.arange(0, N)
    y = convolve(
        x_ptr, weight_ptr, pixels, height, width, pixel, column, phase,
        CHANNELS, COLUMNS, TAPS, K,
    )  # fmt: skip
    y += tl.load(bias_ptr + column, mask=column < COLUMNS, other=0.0)[None, :]
    level = 255.0 * tl.sigmoid(2.0 * y)  # (1 + tanh(y)) 127.5
    level = tl.where(level == level, level, 0.0)  # NaN becomes 0
    level = (level + _NO_FRACTION) - _NO_FRACTION
    tl.store(
        out_ptr + pixel.to(tl.int64)[:, None] * COLUMNS + column[None, :],
        level.to(tl.uint8),
        mask=(pixel < pixels)[:, None] & (column < COLUMNS)[None, :],
    )


@triton_op("mirrorgan::image_head_triton", mutates_args=("out",))
def image_head_triton(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Implement `mirrorgan_fast.ops.image_head` for weights in the layout ``rows``."""
    x = x.contiguous(memory_format=torch.channels_last)
    programs, shapes = launch(x, weight)
    if programs:
        wrap_triton(image_head_kernel)[(programs,)](x, weight, bias, out, **shapes)
