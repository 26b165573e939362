"""A convolution, 3x3 or 1x1, and the residual it is added to, in one pass.

    out = weight * x + bias + residual

A batch norm of fixed statistics behind the convolution is part of weight and bias. This is the
second half of a residual block of MirrorGAN's generators.
"""

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_beside, check_out, refuse, share_memory, write_to
from mirrorgan_fast.ops.choice import (
    CUDA,
    REFERENCE,
    TRITON,
    has_wgmma,
    needs_grad,
    run_reference,
)
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import new_map
from mirrorgan_fast.ops.packing import check_packed, choose_packed, convolve_packed

_NAME = "conv_add"


def conv_add(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, of C' channels
    bias: Tensor,  # (C',)
    residual: Tensor | None = None,  # (N, C', H, W)
    out: Tensor | None = None,  # (N, C', H, W)
) -> Tensor:
    """Convolve, add the bias and, where there is one, the residual.

    For inference; where a gradient is needed the reference runs. Below float32 the sums are of
    float32 and rounded once.

    Args:
        x: float32, bfloat16 or float16; channels_last is fast.
        weight: from ``pack(..., glu=False, upsample=False)``, of x's data type.
        bias: float32.
        residual: of x's data type. None: the convolution alone.
        out: where to write the result, which may be ``residual`` but not ``x``, and may share
            memory with neither in another way; None makes a new map.

    Returns:
        ``out``, channels_last and of x's data type.

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    if check_packed(_NAME, x, weight, bias, glu=False) != 1:
        refuse(_NAME, "weight", weight, "one phase: packed without upsample")
    shape = (x.shape[0], len(bias), *x.shape[2:])
    if residual is not None:
        check_beside(_NAME, "residual", residual, x, shape, x.dtype)
    if out is not None:
        check_out(_NAME, out, x, shape, x.dtype)
        if residual is not None and share_memory(out, residual) and not _are_one(out, residual):
            refuse(_NAME, "out", out, "all of residual's memory in its order, or none of it")
    differentiated = needs_grad(x, weight, bias, residual)
    implementation = choose_packed(_NAME, x, weight, needs_grad=differentiated)
    if implementation == CUDA and not _fits_cuda(x, weight):
        implementation = TRITON
    if implementation == REFERENCE:
        return write_to(out, run_reference(reference, x, weight, bias, residual))
    if out is None:
        out = new_map(shape, x)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.conv_add import conv_add_triton

        conv_add_triton(x, weight, bias, residual, out)
    else:
        _op(x, weight, bias, residual, out)
    return out


def _are_one(out: Tensor, residual: Tensor) -> bool:
    """Whether each result is written where the value that it is added to was read."""
    if out is residual:
        return True
    dense = residual.is_contiguous(memory_format=torch.channels_last)
    return dense and out.data_ptr() == residual.data_ptr()


def _fits_cuda(x: Tensor, weight: Tensor) -> bool:
    """Whether the CUDA kernel, which is for Hopper and 64 channels, takes them."""
    return tuple(weight.shape) == (1, 9, 64, 64) and has_wgmma(x.device)


def reference(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, of C' channels
    bias: Tensor,  # (C',)
    residual: Tensor | None = None,  # (N, C', H, W)
) -> Tensor:
    """What `conv_add` means, in plain PyTorch; the arguments are the same, and trusted."""
    out = convolve_packed(x, weight, bias, glu=False)
    if residual is not None:
        out = out + residual
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


@inference_op(_NAME)
def _op(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor) -> None:
    # The compiled implementations are csrc/cpu/conv_add.cpp and csrc/cuda/conv_add.cu.
    out.copy_(reference(x, weight, bias, residual))
