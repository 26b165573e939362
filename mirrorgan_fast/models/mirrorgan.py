"""MirrorGAN: a caption goes in, an image comes out, and the image is described back."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.models.text_to_image import Cascade, in_evaluation
from mirrorgan_fast.pictures import Picture, from_image
from mirrorgan_fast.vocabulary import Vocabulary

_DESCRIBED_TOGETHER = 64  # images, so that memory does not grow with their number


class MirrorGAN(Cascade):
    """STEM, GLAM and STREAM, with DAMSM's image encoder beside them.

    STEM encodes a caption into word and sentence features. GLAM generates images from them and from
    noise, coarse to fine. STREAM describes an image in words. The image encoder measures how well
    images match captions, and can be part of the generator's loss. The discriminators exist only in
    training.
    """

    SYSTEM = "mirrorgan"
    CONFIG = MirrorGANConfig
    config: MirrorGANConfig
    SHARED: ClassVar[Mapping[str, str]] = {"stream.cnn.": "image_encoder.cnn."}
    WORD_TABLES = Cascade.WORD_TABLES | {"stream.embedding", "stream.word_linear"}

    def __init__(self, config: MirrorGANConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.stream = STREAM(config, len(vocabulary))
        self.image_encoder = DAMSMImageEncoder(config)

    @torch.no_grad()
    def describe(self, images: Picture | Sequence[Picture]) -> list[str]:
        """Say what is in each image, with STREAM. The model may be in training mode.

        Args:
            images: of any size: images of Pillow, paths, or arrays, uint8 (H, W), (H, W, 3) or
                (H, W, 4); or one of these. Each is turned upright as its EXIF says, what is
                transparent is put on white, and a square is cut from its middle.

        Returns:
            a caption for each.

        Raises:
            InputError: an item is not an image of these kinds or cannot be read, or the weights
                give NaN.
        """
        if isinstance(images, Image.Image | str | os.PathLike) or (
            isinstance(images, np.ndarray) and images.ndim < 4
        ):
            images = [images]
        if not isinstance(images, Iterable):
            raise InputError(f"describe: found {type(images).__name__}, wanted images")
        size, device = self.config.image_size, next(self.parameters())
        stream = in_evaluation(self.stream)
        described: list[str] = []
        numbered = enumerate(images)
        while batch := list(islice(numbered, _DESCRIBED_TOGETHER)):
            # each is scaled down before the next one is read
            tensors = [from_image(image, size, f"image {i}") for i, image in batch]
            tokens = stream.describe(torch.stack(tensors).to(device))
            described += [self.vocabulary.decode(row) for row in tokens]
        return described
