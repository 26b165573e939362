"""A convolution, 3x3 or 1x1, and the gated linear unit behind it, in one pass.

    y = weight * x + bias,   out = y[:C'] sigmoid(y[C':])

on the map itself or on the map upsampled by two, which then never exists (see
`mirrorgan_fast.ops.packing`). A batch norm of fixed statistics between the two is part of weight
and bias. This is an up-block, the first half of a residual block or (as 1x1)
a linear layer of MirrorGAN's generators.
"""

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_out, write_to
from mirrorgan_fast.ops.choice import REFERENCE, TRITON, needs_grad, run_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import new_map
from mirrorgan_fast.ops.packing import check_packed, choose_packed, convolve_packed

_NAME = "conv_glu"


def conv_glu(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, of 2C' channels
    bias: Tensor,  # (2C',)
    out: Tensor | None = None,  # (N, C', H', W')
) -> Tensor:
    """Convolve, add the bias, gate one half of the channels by the other.

    For inference; where a gradient is needed the reference runs. Below float32 everything but the
    products is computed in float32 and rounded once. A gate turns the error of its argument into a
    share of its value, so errors grow with the scale of what is gated: of the largest result 5e-3
    in bfloat16 at a standard deviation of 1, 3e-2 at 10 (without AMX; PyTorch's own 5e-3 and 9e-3).

    Args:
        x: float32, bfloat16 or float16; channels_last is fast.
        weight: from ``pack(..., glu=True)``, of x's data type.
        bias: float32, values before gates.
        out: where to write the result, not ``x``; None makes a new map.

    Returns:
        ``out``, channels_last and of x's data type; H' = 2H and W' = 2W if ``weight`` was packed
        with ``upsample``, else H and W.

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    scale = check_packed(_NAME, x, weight, bias, glu=True)
    batch, _, height, width = x.shape
    shape = (batch, len(bias) // 2, height * scale, width * scale)
    if out is not None:
        check_out(_NAME, out, x, shape, x.dtype)
    implementation = choose_packed(_NAME, x, weight, needs_grad=needs_grad(x, weight, bias))
    if implementation == REFERENCE:
        return write_to(out, run_reference(reference, x, weight, bias))
    if out is None:
        out = new_map(shape, x)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.conv_glu import conv_glu_triton

        conv_glu_triton(x, weight, bias, out)
    else:
        _op(x, weight, bias, out)
    return out


def reference(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, of 2C' channels
    bias: Tensor,  # (2C',)
) -> Tensor:
    """What `conv_glu` means, in plain PyTorch; the arguments are the same, and trusted."""
    values, gates = convolve_packed(x, weight, bias, glu=True).chunk(2, dim=1)
    out = (values * gates.sigmoid()).to(x.dtype)
    return out.contiguous(memory_format=torch.channels_last)


@inference_op(_NAME)
def _op(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    # The compiled implementations are csrc/cpu/conv_glu.cpp and csrc/cuda/conv_glu.cu.
    out.copy_(reference(x, weight, bias))
