"""R-precision: how often an image matches its own caption better than captions of other images.

It is measured as in AttnGAN (Xu et al., 2018, section 4.1): DAMSM computes the image's code and the
captions' sentence features, the match is their cosine, and the caption competes with 99 others,
drawn at random from the captions of images of other classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.wide import wide


class CaptionPool(NamedTuple):
    """M captions to choose from."""

    texts: Sequence[str]
    labels: Sequence[int]
    """The class of each caption's image; captions of the same class do not compete."""
    sentences: Tensor
    """The sentence feature s of each caption, (M, D)."""


def r_precision(
    codes: Tensor,  # (N, D)
    own: Sequence[int],  # (N,)
    pool: CaptionPool,
    rng: np.random.Generator,
    *,
    candidates: int = 100,
    repeats: int = 10,
    best: Sequence[int] = (1, 2, 3),
) -> dict[int, float]:
    """Return the share of images whose own caption is among the best k, for each k of ``best``.

    Args:
        codes: DAMSM's codes of the images.
        own: the position in the pool of each image's own caption.
        pool: the captions. A caption competes if its class and its text differ.
        rng: draws the competing captions.
        candidates: number of captions to choose from, including the image's own.
        repeats: number of draws per image.
        best: the ranks k.

    Raises:
        InputError: the pool has too few competing captions.
    """
    texts, labels = np.asarray(pool.texts), np.asarray(pool.labels)
    found = np.zeros(len(best))
    for code, caption in zip(codes, own, strict=True):
        fits = sentence_similarity(pool.sentences, code[None])[0].cpu().numpy()
        others = np.flatnonzero((labels != labels[caption]) & (texts != texts[caption]))
        if len(others) < candidates - 1:
            raise InputError(
                f"R-precision needs {candidates - 1} captions of other images for each image, but "
                f"there are {len(others)}; evaluate on more images"
            )
        for _ in range(repeats):
            drawn = rng.choice(others, candidates - 1, replace=False)
            # Ties and NaN count against the caption, so that uninformative codes do not score.
            rank = int((~(fits[drawn] < fits[caption])).sum())
            found += rank < np.asarray(best)
    return dict(zip(best, (found / (len(own) * repeats)).tolist(), strict=True))


def sentence_similarity(
    sentences: Tensor,  # (M, D)
    codes: Tensor,  # (N, D)
) -> Tensor:
    """Return the cosine (N, M) of every image's code with every sentence (AttnGAN, eq. 13)."""
    with torch.autocast(codes.device.type, enabled=False):  # autocast would multiply in bfloat16
        directions = functional.normalize(wide(codes), dim=1)
        return directions @ functional.normalize(wide(sentences), dim=1).T
