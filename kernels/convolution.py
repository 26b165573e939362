"""What the convolutions have in common: the sum over taps and channels, as one matrix product.

Rows are pixels (N H W) of a channels_last map, columns are channels of the result, and the depth is
taps times channels: pixel p meets the pixel that a tap away lies beside it, or zero outside of the
map. Of an upsampled map there are four phases of four taps on the small one (see
`mirrorgan_fast.ops.packing`), and the upsampled map does not exist.
"""

import triton
import triton.language as tl
from torch import Tensor

from mirrorgan_fast.kernels.products import dot
from mirrorgan_fast.kernels.settings import convolution


@triton.jit
def block_of(pid, COLUMNS: tl.constexpr, PHASES: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Return the pixels (M,), the first of N columns and the phase of a program.

    Programs of the same pixels follow each other, so that the map is read from the cache.
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
    """Return weight * x, float32 (M, N)."""
    side: tl.constexpr = 3 if TAPS == 9 else (2 if TAPS == 4 else 1)
    steps: tl.constexpr = (CHANNELS + K - 1) // K
    y = pixel // width % height
    x = pixel % width
    # the tap of row 0 and column 0 lies up and left; in phases 1 and 3 (2 and 3) it lies here
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
    weight: Tensor,  # rows (phases, taps, C, columns)
) -> tuple[int, dict[str, int]]:
    """Return how many programs, and what the kernels are told of shapes."""
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
