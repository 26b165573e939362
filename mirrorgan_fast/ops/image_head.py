"""A generator's last step: a 3x3 convolution, tanh, and grey levels.

    out = round((1 + tanh(weight * x + bias)) 127.5)

This is G_i of MirrorGAN's generators, with the image as files have it.
"""

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_out, refuse, write_to
from mirrorgan_fast.ops.choice import REFERENCE, TRITON, run_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.packing import check_packed, choose_packed, convolve_packed

_NAME = "image_head"
_MOST_CHANNELS = 16


def image_head(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed, of 3 channels
    bias: Tensor,  # (3,)
    out: Tensor | None = None,  # (N, H, W, 3)
) -> Tensor:
    """Turn features into images of grey levels.

    For inference: there is no gradient. NaN becomes 0.

    Args:
        x: float32, bfloat16 or float16; channels_last is fast.
        weight: from ``pack(..., glu=False, upsample=False)``, of x's data type.
        bias: float32, of as many channels as the images have: 3, and at most 16.
        out: where to write the result, contiguous; None makes a new tensor.

    Returns:
        ``out``, uint8 in [0, 255], (N, H, W, 3).

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    if check_packed(_NAME, x, weight, bias, glu=False) != 1:
        refuse(_NAME, "weight", weight, "one phase: packed without upsample")
    if len(bias) > _MOST_CHANNELS:
        refuse(_NAME, "bias", bias, f"at most {_MOST_CHANNELS} channels")
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
    weight: Tensor,  # packed, of 3 channels
    bias: Tensor,  # (3,)
) -> Tensor:
    """What `image_head` means, in plain PyTorch; the arguments are the same, and trusted."""
    image = convolve_packed(x, weight, bias, glu=False).tanh().nan_to_num(nan=-1.0)
    return image.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@inference_op(_NAME)
def _op(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    # The CPU implementation is csrc/cpu/image_head.cpp.
    out.copy_(reference(x, weight, bias))
