"""How a picture is prepared for training: the part that is the same in every epoch.

Training examples are cut from prepared pictures. A prepared picture has the same pixels whether it
comes from a cache or is made again in each epoch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.pictures import square

VERSION = 1
"""Raised with each change of a prepared picture's pixels, so that older caches are not used."""
LONGEST = 8
"""The longer side of a prepared picture is at most this many times the shorter side. Otherwise a
picture 1 pixel wide and a million high would take gigabytes when it is scaled up."""


@dataclass(frozen=True)
class Preparation:
    """Scales pictures for training on images of ``image_size`` pixels a side.

    With augmentation, the whole picture is scaled so that its shorter side has ``shorter_side``
    pixels, as in AttnGAN and MirrorGAN: the examples are crops of it. Of a picture that is longer
    than ``LONGEST`` times its shorter side, only the middle is kept. Without augmentation, the
    center square is scaled to ``image_size``.

    Attributes:
        image_size: of the examples.
        augment: whether the examples are random crops.
    """

    image_size: int
    augment: bool

    @property
    def shorter_side(self) -> int:
        """The shorter side of a prepared picture in pixels."""
        return round(self.image_size * 76 / 64) if self.augment else self.image_size

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return the prepared picture, uint8 (H, W, 3); picture is of mode "RGB"."""
        if not self.augment:
            return np.asarray(square(picture, self.image_size))
        width, height = self._kept(picture.size)
        left, top = (picture.width - width) / 2, (picture.height - height) / 2
        rows, columns = self.shape(picture.size)
        scaled = picture.resize(
            (columns, rows),
            Image.Resampling.BILINEAR,
            box=(left, top, left + width, top + height),
        )
        return np.asarray(scaled)

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (H, W) of a prepared picture, given (width, height) of the picture."""
        if not self.augment:
            return self.image_size, self.image_size
        width, height = self._kept(size)
        scale = self.shorter_side / min(width, height)
        return round(height * scale), round(width * scale)

    def part(self, size: tuple[int, int]) -> Box:
        """Return which part is kept of a picture of (width, height), in shares of it."""
        width, height = self._kept(size)
        share_x, share_y = width / size[0], height / size[1]
        return (1 - share_x) / 2, (1 - share_y) / 2, share_x, share_y

    def _kept(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) of the part that is kept, in pixels."""
        longest = (LONGEST if self.augment else 1) * min(size)
        return min(size[0], longest), min(size[1], longest)
