"""The images to evaluate. The Sampler generates them, so they are the images that users get."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.sampling.captions import Request
from mirrorgan_fast.sampling.sampler import Result, Sampler


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
