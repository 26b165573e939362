"""The last step of a generator: a 3x3 convolution, tanh, and rounding to gray levels.

    out = round((1 + tanh(weight * x + bias)) 127.5)

This is G_i of MirrorGAN's generators, with its images as 8-bit integers.
"""

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_out, refuse, write_to
from mirrorgan_fast.ops.choice import REFERENCE, TRITON, run_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.packing import check_packed, choose_packed, convolve_packed

_NAME = "image_head"
_MAX_CHANNELS = 16


def image_head(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, for 3 output channels
    bias: Tensor,  # (3,)
    out: Tensor | None = None,  # (N, H, W, 3)
) -> Tensor:
    """Turn features into images.

    For inference: there is no gradient. NaN becomes 0.

    Args:
        x: float32, bfloat16 or float16; channels_last is fastest.
        weight: From ``pack(..., glu=False, upsample=False)``, in x's data type.
        bias: float32. Its size is the number of image channels, usually 3 and at most 16.
        out: Where to write the result, contiguous. None: a new tensor is made.

    Returns:
        ``out``, uint8 in [0, 255], (N, H, W, 3).

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    if check_packed(_NAME, x, weight, bias, glu=False) != 1:
        refuse(_NAME, "weight", weight, "weights packed without upsample")
    if len(bias) > _MAX_CHANNELS:
        refuse(_NAME, "bias", bias, f"at most {_MAX_CHANNELS} channels")
    shape = (x.shape[0], *x.shape[2:], len(bias))
    if out is not None:
        check_out(_NAME, out, x, shape, torch.uint8, torch.contiguous_format)
    implementation = choose_packed(_NAME, x, weight, needs_grad=False)
    if implementation == REFERENCE:
        return write_to(out, run_reference(reference, x, weight, bias))
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=x.device)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.image_head import image_head_triton

        image_head_triton(x, weight, bias, out)
    else:
        _op(x, weight, bias, out)
    return out


def reference(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, for 3 output channels
    bias: Tensor,  # (3,)
) -> Tensor:
    """Define `image_head` in plain PyTorch. Same arguments, not checked."""
    image = convolve_packed(x, weight, bias, glu=False).tanh().nan_to_num(nan=-1.0)
    return image.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@inference_op(_NAME)
def _op(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    # The CPU implementation is csrc/cpu/image_head.cpp.
    out.copy_(reference(x, weight, bias))
