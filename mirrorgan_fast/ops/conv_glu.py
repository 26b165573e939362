"""A 3x3 or 1x1 convolution followed by a gated linear unit (GLU), in one pass.

    y = weight * x + bias,   out = y[:C'] sigmoid(y[C':])

The convolution is of x, or of x upsampled by two, in which case the upsampled map is never written
(see `mirrorgan_fast.ops.packing`). In inference a batch norm between convolution and GLU is folded
into weight and bias. This is an up-block, the first half of a residual block or, as 1x1, a linear
layer of MirrorGAN's generators.
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
    weight: Tensor,  # packed, for 2C' output channels
    bias: Tensor,  # (2C',)
    out: Tensor | None = None,  # (N, C', H', W')
) -> Tensor:
    """Convolve, add the bias, and gate the first half of the channels by the second.

    For inference: if a gradient is needed, the reference runs. In bfloat16 and float16 everything
    but the products is computed in float32 and rounded once. An error of a gate's argument becomes
    a relative error of the gated value, so errors grow with the scale of y. Relative to the largest
    result, the error in bfloat16 is 5e-3 if y has a standard deviation of 1, and 3e-2 if it has 10
    (without AMX; PyTorch's own errors are 5e-3 and 9e-3).

    Args:
        x: float32, bfloat16 or float16; channels_last is fastest.
        weight: From ``pack(..., glu=True)``, in x's data type.
        bias: float32, all values before all gates.
        out: Where to write the result; must not overlap ``x``. None: a new map is made.

    Returns:
        ``out``, channels_last and in x's data type. H' = 2H and W' = 2W if ``weight`` was packed
        with ``upsample``, otherwise H and W.

    Raises:
        InputError: Shapes, data types or devices do not match.
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
    weight: Tensor,  # packed, for 2C' output channels
    bias: Tensor,  # (2C',)
) -> Tensor:
    """Define `conv_glu` in plain PyTorch. Same arguments, not checked."""
    values, gates = convolve_packed(x, weight, bias, glu=True).chunk(2, dim=1)
    out = (values * gates.sigmoid()).to(x.dtype)
    return out.contiguous(memory_format=torch.channels_last)


@inference_op(_NAME)
def _op(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    # The compiled implementations are csrc/cpu/conv_glu.cpp and csrc/cuda/conv_glu.cu.
    out.copy_(reference(x, weight, bias))
