"""Diversity: how different two images of a caption are, beside two pictures that it fits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mirrorgan_fast.evaluation.features import FeatureReader
from mirrorgan_fast.metrics.diversity import diversity


def other_pictures(
    named: Sequence[Mapping[str, str]],
    own: Sequence[int],
    attributes: Sequence[Mapping[str, str]],
    rng: np.random.Generator,
) -> dict[int, int]:
    """Choose, for each of N captions, another picture that it fits.

    Args:
        named: the attributes that each caption names.
        own: the picture of each caption.
        attributes: of all pictures.
        rng: makes the choice.

    Returns:
        by the positions of captions, a picture that has all attributes that the caption names.
        Captions are left out that name nothing, or fit their own picture alone.
    """
    having: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for picture, of_picture in enumerate(attributes):
        for claim in of_picture.items():
            having[claim].add(picture)
    chosen = {}
    for caption, (claims, picture) in enumerate(zip(named, own, strict=True)):
        each = [having[claim] for claim in claims.items()]
        others = sorted(set.intersection(*each) - {picture}) if each else []
        if others:
            chosen[caption] = int(rng.choice(others))
    return chosen


def differences(
    first: Tensor, second: Tensor, features: FeatureReader | None, *, quiet: bool = True
) -> dict[str, float]:
    """Return how different the two images of each pair are, in the mean.

    Args:
        first: uint8 images (N, 3, S, S).
        second: the others of each pair, likewise.
        features: reads their features, if these are compared too.
        quiet: no progress bar.

    Returns:
        "pairs", N; "gray_levels", the mean absolute difference of their pixels; with ``features``
        "features", the mean distance of their features.
    """
    found = {"pairs": len(first), "gray_levels": diversity(torch.stack([first, second], dim=1))}
    if features is not None:
        codes = features.read(torch.cat([first, second]), "features of pairs", quiet=quiet)
        one, other = codes.chunk(2)
        found["features"] = float(torch.linalg.vector_norm(one - other, dim=1).mean())
    return found
