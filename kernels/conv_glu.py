"""A convolution and a gated linear unit as one matrix product, for `ops/conv_glu.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.convolution import block_of, convolve, launch


@triton.jit
def conv_glu_kernel(
    x_ptr,  # (pixels, CHANNELS)
    weight_ptr,  # (PHASES, TAPS, CHANNELS, COLUMNS), each value followed by its gate
    bias_ptr,  # (COLUMNS,), all values before all gates
    out_ptr,  # (PHASES * pixels, COLUMNS / 2)
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
    """Write value sigmoid(gate) for M pixels and N columns of one phase."""
    phases: tl.constexpr = 4 if TAPS == 4 else 1
    half: tl.constexpr = COLUMNS // 2
    pixel, first, phase = block_of(tl.program_id(0), COLUMNS, phases, M, N)
    y = convolve(
        x_ptr, weight_ptr, pixels, height, width, pixel, first + tl.arange(0, N), phase,
        CHANNELS, COLUMNS, TAPS, K,
    )  # fmt: skip
    # A value and its gate are neighbors, so that the same thread has both.
    value, gate = tl.split(y.reshape(M, N // 2, 2))
    channel = first // 2 + tl.arange(0, N // 2)
    value += tl.load(bias_ptr + channel, mask=channel < half, other=0.0)[None, :]
    gate += tl.load(bias_ptr + half + channel, mask=channel < half, other=0.0)[None, :]
    target = pixel
    if phases == 4:
        target = (pixel // width * 2 + phase // 2) * (2 * width) + pixel % width * 2 + phase % 2
    tl.store(
        out_ptr + target.to(tl.int64)[:, None] * half + channel[None, :],
        (value * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty),
        mask=(pixel < pixels)[:, None] & (channel < half)[None, :],
    )


@triton_op("mirrorgan::conv_glu_triton", mutates_args=("out",))
def conv_glu_triton(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Implement `mirrorgan_fast.ops.conv_glu` for weights in the layout ``rows``."""
    x = x.contiguous(memory_format=torch.channels_last)
    programs, shapes = launch(x, weight)
    if programs:
        wrap_triton(conv_glu_kernel)[(programs,)](x, weight, bias, out, **shapes)
