"""CIELAB, in which equal distances look about equally different."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

# sRGB's red, green and blue in CIE XYZ (IEC 61966-2-1); rows add up to its white, D65.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = _TO_XYZ.sum(axis=1)
_LINEAR_BELOW = 216 / 24389
_SLOPE = 24389 / 27


def to_lab(rgb: ArrayLike) -> NDArray[np.float64]:
    """Convert sRGB to CIELAB (CIE 1976) with the white D65.

    Args:
        rgb: levels from 0 to 255 (..., 3).

    Returns:
        L* from 0 to 100, a* and b*, (..., 3).
    """
    levels = np.asarray(rgb, np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    ratio = (linear[..., None, :] * _TO_XYZ).sum(axis=-1) / _WHITE
    root = np.where(ratio > _LINEAR_BELOW, np.cbrt(ratio), (_SLOPE * ratio + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def shrunk(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale a picture of any size (H, W, 3) to (side, side, 3), each pixel a mean of its area."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
