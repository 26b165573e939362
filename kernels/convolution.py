"""The part that the convolutions share: the sum over taps and channels, as one matrix product.

The rows are the pixels (N H W) of a channels_last map, the columns are the channels of the result,
and the product sums over taps times channels. Outside of the map x is zero. A convolution of the
upsampled map has four phases of four taps on the small map (see `mirrorgan_fast.ops.packing`); the
upsampled map is never written.
"""

import triton
import triton.language as tl
from torch import Tensor

from mirrorgan_fast.kernels.products import dot
from mirrorgan_fast.kernels.settings import convolution


@triton.jit
def block_of(pid, COLUMNS: tl.constexpr, PHASES: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Return the pixels (M,), the first of the N columns, and the phase of a program.

    Programs with the same pixels follow each other, so that they read the map from the cache.
    """
    blocks: tl.constexpr = (COLUMNS + N - 1) // N
    phase = pid % PHASES
    pixel = pid // (PHASES * blocks) * M + tl.arange(0, M)
    return pixel, pid // PHASES % blocks * N, phase


@triton.jit
def convolve(
    x_ptr,  # (pixels, CHANNELS)
    weight_ptr,  # (PHASES, TAPS, CHANNELS, COLUMNS)
    pixels,
    height,
    width,
    pixel,  # (M,)
    column,  # (N,)
    phase,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    K: tl.constexpr,
):
    """Return the convolution weight * x, float32 (M, N)."""
    side: tl.constexpr = 3 if TAPS == 9 else (2 if TAPS == 4 else 1)
    steps: tl.constexpr = (CHANNELS + K - 1) // K
    y = pixel // width % height
    x = pixel % width
    # How far up and left of the pixel the first tap is. In phases 2 and 3 it is in the pixel's row,
    # in phases 1 and 3 in its column.
    up = tl.where(TAPS == 4, 1 - phase // 2, side // 2)
    left = tl.where(TAPS == 4, 1 - phase % 2, side // 2)
    acc = tl.zeros((pixel.shape[0], column.shape[0]), tl.float32)
    for step in range(TAPS * steps):
        tap = step // steps
        channel = step % steps * K + tl.arange(0, K)
        down = tap // side - up
        right = tap % side - left
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        inside = inside & (pixel < pixels)
        rows = (pixel + down * width + right).to(tl.int64) * CHANNELS
        a = tl.load(
            x_ptr + rows[:, None] + channel[None, :],
            mask=inside[:, None] & (channel < CHANNELS)[None, :],
            other=0.0,
        )
        depth = (phase * TAPS + tap) * CHANNELS + channel
        b = tl.load(
            weight_ptr + depth[:, None] * COLUMNS + column[None, :],
            mask=(channel < CHANNELS)[:, None] & (column < COLUMNS)[None, :],
            other=0.0,
        )
        acc = dot(a, b, acc)
    return acc


def launch(
    x: Tensor,  # (N, C, H, W), channels_last
    weight: Tensor,  # (phases, taps, C, columns)
) -> tuple[int, dict[str, int]]:
    """Return the number of programs, and the kernel's arguments for shapes and launch."""
    batch, channels, height, width = x.shape
    phases, taps, _, columns = weight.shape
    setting = convolution(channels, columns, x.dtype)
    pixels = batch * height * width
    blocks = triton.cdiv(pixels, setting.rows) * triton.cdiv(columns, setting.columns)
    return blocks * phases, {
        "pixels": pixels,
        "height": height,
        "width": width,
        "CHANNELS": channels,
        "COLUMNS": columns,
        "TAPS": taps,
        "M": setting.rows,
        "N": setting.columns,
        "K": setting.depth,
        "num_warps": setting.warps,
        "num_stages": setting.stages,
    }
