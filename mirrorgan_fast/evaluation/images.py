"""The images to evaluate. The Sampler generates them, so they are the images that users get."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.text_to_image import TextToImage, in_evaluation
from mirrorgan_fast.pictures import from_image, to_signed, to_uint8
from mirrorgan_fast.sampling.captions import Request
from mirrorgan_fast.sampling.sampler import Result, Sampler

_BATCH = 16


def generate(
    sampler: Sampler,
    captions: Sequence[str],
    indices: Sequence[int],
    seed: int,
    *,
    title: str,
    quiet: bool = False,
) -> Tensor:
    """Generate an image for each caption, from the noise of each index and the seed.

    Args:
        sampler: of the model.
        captions: N captions.
        indices: N indices, which select the noise together with ``seed``.
        seed: of the noise.
        title: of the progress bar.
        quiet: no progress bar.

    Returns:
        uint8 (N, 3, S, S) on the CPU.

    Raises:
        InputError: the model knows no word of a caption.
    """
    requests = [
        Request(number + 1, number, caption, seed, index)
        for number, (caption, index) in enumerate(zip(captions, indices, strict=True))
    ]
    images: list[np.ndarray] = []
    with tqdm(total=len(requests), desc=title, unit="image", disable=quiet) as bar:
        for result in sampler.stream(requests):
            if not isinstance(result, Result):
                raise InputError(
                    f"no word of the caption {captions[len(images)]!r:.60} is known to the model; "
                    f"it was trained on other captions than it is evaluated on"
                )
            images.append(result.image)
            bar.update()
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def real_picture(images: CaptionedImages, index: int, size: int) -> Tensor:
    """Return a picture at the size of generated images: uint8 (1, 3, S, S) on the CPU."""
    return to_uint8(from_image(images.image(index), size)[None]).permute(0, 3, 1, 2).cpu()


@torch.no_grad()
def look(model: TextToImage, pictures: Tensor) -> tuple[Tensor, list[str] | None]:
    """Return DAMSM's codes (N, D) of uint8 images (N, 3, S, S), and STREAM's descriptions.

    The descriptions are None if the system has no STREAM.
    """
    assert isinstance(model.image_encoder, DAMSMImageEncoder)
    encoder = in_evaluation(model.image_encoder)
    stream = in_evaluation(model.stream) if isinstance(model, MirrorGAN) else None
    codes: list[Tensor] = []
    descriptions: list[str] = []
    for batch in pictures.split(_BATCH):
        images = to_signed(batch, next(model.parameters()).device)
        codes.append(encoder(images)[1])
        if stream is not None:
            descriptions += [model.vocabulary.decode(row) for row in stream.describe(images)]
    return torch.cat(codes), None if stream is None else descriptions
