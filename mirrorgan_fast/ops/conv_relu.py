"""A 3x3 or 1x1 convolution, plus a residual if there is one, followed by a ReLU, in one pass.

    out = max(0, weight * x + bias + residual)

The convolution is of x, or of x upsampled by two, in which case the upsampled map is never written
(see `mirrorgan_fast.ops.packing`). In inference a batch norm after the convolution is folded into
weight and bias. This is an up-block, a half of a residual block or, as 1x1, a linear layer of
StackGAN's generators.
"""

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_out, check_tensor, refuse, share_memory, write_to
from mirrorgan_fast.ops.choice import REFERENCE, needs_grad, run_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import new_map
from mirrorgan_fast.ops.packing import check_packed, choose_packed, convolve_packed

_NAME = "conv_relu"


def conv_relu(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, for C' output channels
    bias: Tensor,  # (C',)
    residual: Tensor | None = None,  # (N, C', H', W')
    out: Tensor | None = None,  # (N, C', H', W')
) -> Tensor:
    """Convolve, add the bias and, if given, the residual, and set what is below zero to zero.

    For inference: if a gradient is needed, the reference runs. In bfloat16 and float16 the sums are
    computed in float32 and rounded once.

    Args:
        x: float32, bfloat16 or float16; channels_last is fastest.
        weight: From ``pack(..., glu=False)`` or ``pack_transposed``, in x's data type.
        bias: float32.
        residual: In x's data type. None: there is none.
        out: Where to write the result; must not overlap ``x`` or the residual. None: a new map is
            made.

    Returns:
        ``out``, channels_last and in x's data type. H' = 2H and W' = 2W if ``weight`` was packed
        with ``upsample`` or is transposed, otherwise H and W.

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    scale = check_packed(_NAME, x, weight, bias, glu=False)
    batch, _, height, width = x.shape
    shape = (batch, len(bias), height * scale, width * scale)
    if residual is not None:
        check_tensor(_NAME, "residual", residual, x, shape, x.dtype)
    if out is not None:
        check_out(_NAME, out, x, shape, x.dtype)
        if residual is not None and share_memory(out, residual):
            refuse(_NAME, "out", out, "none of the residual's memory")
    differentiated = needs_grad(x, weight, bias, residual)
    implementation = choose_packed(_NAME, x, weight, needs_grad=differentiated)
    if implementation == REFERENCE:
        return write_to(out, run_reference(reference, x, weight, bias, residual))
    if out is None:
        out = new_map(shape, x)
    _op(x, weight, bias, residual, out)
    return out


def reference(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, for C' output channels
    bias: Tensor,  # (C',)
    residual: Tensor | None = None,  # (N, C', H', W')
) -> Tensor:
    """Define `conv_relu` in plain PyTorch. Same arguments, not checked."""
    out = convolve_packed(x, weight, bias, glu=False)
    if residual is not None:
        out = out + residual
    return out.relu().to(x.dtype).contiguous(memory_format=torch.channels_last)


@inference_op(_NAME)
def _op(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor) -> None:
    # The compiled implementation is csrc/cpu/conv_relu.cpp.
    out.copy_(reference(x, weight, bias, residual))
