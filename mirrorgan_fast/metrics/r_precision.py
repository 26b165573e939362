"""R-precision: how often an image's own caption fits it best among captions of other images.

As AttnGAN measures it (Xu et al., 2018, section 4.1): the image's code and the captions' sentences
are DAMSM's, the fit is their cosine, and the caption competes with 99 drawn at random from those
of images of other classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.errors import InputError


class CaptionPool(NamedTuple):
    """M captions to choose among."""

    texts: Sequence[str]
    labels: Sequence[int]
    """The class of the image of each; captions of one class do not compete."""
    sentences: Tensor
    """s of each, (M, D)."""


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
        own: where in the pool each image's own caption is.
        pool: the captions; those of another class and another wording compete.
        rng: draws the competitors.
        candidates: captions an image chooses among, its own included.
        repeats: draws an image.
        best: the ranks.

    Raises:
        InputError: the pool has too few captions that may compete.
    """
    texts, labels = np.asarray(pool.texts), np.asarray(pool.labels)
    found = np.zeros(len(best))
    for code, caption in zip(codes, own, strict=True):
        fits = sentence_similarity(pool.sentences, code[None])[0].cpu().numpy()
        others = np.flatnonzero((labels != labels[caption]) & (texts != texts[caption]))
        if len(others) < candidates - 1:
            raise InputError(
                f"R-precision needs {candidates - 1} captions of other images for each, there are "
                f"{len(others)}; evaluate on more images"
            )
        for _ in range(repeats):
            drawn = rng.choice(others, candidates - 1, replace=False)
            # A tie counts against the caption, and NaN: codes that say nothing are not to score.
            rank = int((~(fits[drawn] < fits[caption])).sum())
            found += rank < np.asarray(best)
    return dict(zip(best, (found / (len(own) * repeats)).tolist(), strict=True))


def sentence_similarity(
    sentences: Tensor,  # (M, D)
    codes: Tensor,  # (N, D)
) -> Tensor:
    """Return the cosine (N, M) of every image's code with every sentence (AttnGAN, eq. 13)."""
    with torch.autocast(codes.device.type, enabled=False):  # whose product would be bfloat16
        directions = functional.normalize(codes.float(), dim=1)
        return directions @ functional.normalize(sentences.float(), dim=1).T
