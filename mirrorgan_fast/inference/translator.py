"""The translator: a generator of CycleGAN, made ready for pictures of any size."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.packing import fastest_dtype
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.pictures import Picture, to_picture, to_signed, to_uint8

MAX_SIZE = 1024
"""The default for the longer side of a translated picture in pixels."""
_MULTIPLE = 4  # each generator halves the image twice
_LEAST = 8  # pixels; a smaller map cannot be padded by reflection inside the network


class Translator:
    """Translates pictures to a domain of a model.

    Args:
        model: whose weights are copied. It may be in training mode.
        to: the domain's name (default: the model's second one).
        dtype: of the generator's weights and features: float32, bfloat16 or float16 (default: what
            is fastest on the model's device).

    Raises:
        InputError: the model has no such domain, a weight is NaN or infinite, or the data type is
            another.
    """

    def __init__(
        self, model: CycleGAN, to: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.to = model.config.y if to is None else to
        self.image_size = model.config.image_size
        """Of the images that the model was trained with."""
        generator = model.to_domain(self.to)
        for name, tensor in generator.state_dict().items():
            if not tensor.isfinite().all():
                raise InputError(
                    f"weights {name}: found NaN or infinity, expected finite numbers; did the "
                    f"training diverge?"
                )
        self.device = next(generator.parameters()).device
        self.dtype = fastest_dtype(self.device.type) if dtype is None else dtype
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype is {dtype}, expected float32, bfloat16 or float16")
        self.generator = (
            copy.deepcopy(generator)
            .eval()
            .requires_grad_(False)
            .to(self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        )

    def __call__(self, picture: Picture, max_size: int = MAX_SIZE) -> Image.Image:
        """Translate a picture.

        Args:
            picture: a Pillow image, a path or an array (see ``pictures.Picture``). It is rotated as
                its EXIF data says, and transparent pixels are on white.
            max_size: a larger picture is scaled down until its longer side has so many pixels.

        Raises:
            InputError: it cannot be read.
        """
        pixels = np.asarray(scaled(to_picture(picture, "the picture"), max_size))
        return Image.fromarray(self.translate([pixels])[0])

    @torch.no_grad()
    def translate(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Translate a batch of images, each uint8 (H, W, 3) in RGB; the results are like them.

        Each is padded by reflection, at the right and below, and its result is cut back. Images are
        translated as a whole: memory grows with their size.

        Args:
            images: of one ``padded_size``.
        """
        padded = np.stack(
            [image[_reflected(image.shape[0])][:, _reflected(image.shape[1])] for image in images]
        )
        signed = to_signed(torch.from_numpy(padded).permute(0, 3, 1, 2), self.device)
        translated = to_uint8(self.generator(signed.to(self.dtype))).cpu().numpy()
        return [
            made[: image.shape[0], : image.shape[1]]
            for made, image in zip(translated, images, strict=True)
        ]


def scaled(picture: Image.Image, max_size: int) -> Image.Image:
    """Return a picture whose longer side has at most ``max_size`` pixels."""
    longer = max(picture.size)
    if longer <= max_size:
        return picture
    width, height = (max(1, round(side * max_size / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def padded_size(image: NDArray[np.uint8]) -> tuple[int, int]:
    """Return (H, W) of an image (H, W, 3) when it is padded to multiples of 4, at least 8."""
    return len(_reflected(image.shape[0])), len(_reflected(image.shape[1]))


def _reflected(size: int) -> NDArray[np.intp]:
    """Return which pixel of a side each pixel of the padded side shows."""
    padded = max(_LEAST, -(-size // _MULTIPLE) * _MULTIPLE)
    place = np.arange(padded) % max(1, 2 * size - 2)
    return np.minimum(place, np.maximum(0, 2 * size - 2 - place))
