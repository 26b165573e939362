"""Instance norm with what CycleGAN does around it: leaky ReLU, sum and reflection padding.

With mean and biased variance over H and W of an image's channel,

    y = a((x - mean) / sqrt(variance + eps)) + residual,    a(v) = max(v, 0) + slope min(v, 0)

and out is y with ``padding`` pixels of its reflection on each side (Ulyanov et al., 2016; Zhu et
al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", 2017, whose
generators have all of it between two convolutions).
"""

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops.wide import wide


def instance_norm(
    x: Tensor,  # (N, C, H, W)
    residual: Tensor | None = None,  # (N, C, H, W)
    slope: float = 1.0,
    padding: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel of each image, then apply a leaky ReLU, add a residual and pad.

    Gradients of any order exist. In bfloat16 and float16 everything is computed in float32 and
    rounded once.

    Args:
        x: any floating-point data type; channels_last is fastest.
        residual: is added behind the leaky ReLU, in any floating-point data type.
        slope: of the leaky ReLU for negative values: 0 is a ReLU, 1 leaves them as they are.
        padding: pixels of reflection on each side, less than H and W.
        eps: is added to the variance.

    Returns:
        out (N, C, H + 2 padding, W + 2 padding) in x's data type.
    """
    y = wide(x)
    variance, mean = torch.var_mean(y, dim=(2, 3), correction=0, keepdim=True)
    y = functional.leaky_relu((y - mean) * (variance + eps).rsqrt(), slope)
    if residual is not None:
        y = y + residual
    if padding:  # before rounding: compiled, the gradient of a padded bfloat16 map was NaN (2.13)
        y = functional.pad(y, (padding,) * 4, mode="reflect")
    return y.to(x.dtype)
