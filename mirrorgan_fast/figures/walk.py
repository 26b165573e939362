"""Walks: an animation of the images between two noise vectors, captions or boxes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file
from mirrorgan_fast.models.config import BOX
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import word_mask
from mirrorgan_fast.models.text_to_image import TextToImage, in_evaluation, warn_of_unknown
from mirrorgan_fast.pictures import to_uint8
from mirrorgan_fast.sampling.sampler import check_psi

MOST_FRAMES = 10_000
"""The most frames of a walk; they are all in memory at once."""
_BATCH_SIZE = 16
_FRAME_MILLISECONDS = 50


def walk(
    model: TextToImage,
    captions: Sequence[str],
    frames: int,
    seed: int = 0,
    psi: float = 1.0,
    boxes: Sequence[Box] = (),
) -> np.ndarray:
    """Return images that interpolate between captions, noise vectors or boxes.

    Noise is interpolated along the great circle, on which all points are equally likely (White,
    2016, "Sampling Generative Networks"). Between captions, the sentence feature is interpolated,
    and so is the output of each F_att of a cascade, because the captions may have different numbers
    of words.

    Args:
        model: its plain layers are used, in evaluation mode, not a renderer.
        captions: one or two. With one, the walk goes from its image of index 0 to its image of
            index 1; with two, it goes between their images of index 0. With one caption and two
            boxes, all images have the noise of index 0.
        frames: 2 to ``MOST_FRAMES``, both ends included.
        seed: 0 or more.
        psi: factor of the noise, 0 to 1.
        boxes: of a system that places what it draws: one, for all images, or two, from which to
            which the walk goes along a straight line. None: all have the box of index 0.

    Returns:
        uint8 (frames, S, S, 3).

    Raises:
        InputError: a caption has no known word, an argument is out of range, the system takes no
            boxes, or a weight is NaN.

    Warns:
        UnknownWordsWarning: a caption has words that the vocabulary lacks.
    """
    if len(captions) not in (1, 2):
        raise InputError(f"a walk needs one or two captions, found {len(captions)}")
    if not 2 <= frames <= MOST_FRAMES:
        raise InputError(f"a walk has 2 to {MOST_FRAMES:,} frames, found {frames}")
    if len(boxes) > 2:
        raise InputError(f"a walk goes between one or two boxes, found {len(boxes)}")
    check_psi(psi)
    model.config.check_text(None)
    model.check_weights(*model.image_parts)
    with torch.no_grad():
        generator, stem = in_evaluation(model.generator), in_evaluation(model.stem)
        encoded = model.encode([*captions, *captions][:2])
        warn_of_unknown(encoded.unknown)
        device = next(model.parameters()).device
        tokens, lengths = encoded.tokens.to(device), encoded.lengths.to(device)
        words, sentence = stem(tokens, lengths)
        ends = _Ends(words, word_mask(lengths, tokens.shape[1]), sentence)
        alone = len(captions) == 1 and len(boxes) < 2  # only the noise changes
        given = [*boxes, *boxes][:2] if boxes else None
        noises = (part.to(sentence) for part in model.noise(seed, [0, int(alone)], psi, given))
        at = dict(zip(model.config.noises, noises, strict=True))
        if BOX in at and not boxes:
            at[BOX] = at[BOX][:1].expand(2, -1)
        images = []
        for t in torch.linspace(0, 1, frames)[:, None].to(sentence).split(_BATCH_SIZE):
            between = [
                torch.lerp(part[:1], part[1:], t) if name == BOX else _great_circle(part, t)
                for name, part in at.items()
            ]
            if isinstance(generator, GLAM):
                frame = _frames_of_cascade(generator, ends, t, *between)
            else:
                s = torch.lerp(sentence[:1], sentence[1:], t)
                frame = generator(*between, words[:1], ends.mask[:1], s).images[-1]
            images.append(to_uint8(frame).cpu())
    return torch.cat(images).numpy()


class _Ends(NamedTuple):
    """What STEM makes of the two captions of a walk."""

    words: Tensor
    """(2, T, D)."""
    mask: Tensor
    """bool (2, T)."""
    sentence: Tensor
    """(2, D)."""


def _frames_of_cascade(
    glam: GLAM,
    ends: _Ends,
    t: Tensor,  # (F, 1)
    noise: Tensor,  # (F, noise)
    condition_noise: Tensor,  # (F, condition)
) -> Tensor:
    """Return the images (F, 3, S, S) at the places ``t`` between the captions."""
    words, mask, sentence = ends
    s_ca, _, _ = glam.augment(torch.lerp(sentence[:1], sentence[1:], t), condition_noise)
    f = glam.F[0](noise, s_ca)
    for F_att_i, F_i in zip(glam.F_att, glam.F[1:], strict=True):
        first, second = (
            F_att_i(f, words[i].expand(len(t), -1, -1), mask[i].expand(len(t), -1), s_ca)
            for i in (0, 1)
        )
        f = F_i(torch.lerp(first, second, t[:, :, None, None]))
    images: Tensor = glam.G[-1](f)
    return images


def write_walk(path: str | os.PathLike[str], images: np.ndarray) -> None:
    """Write images (F, S, S, 3) as an animation that loops back and forth.

    Raises:
        InputError: the name ends neither in .webp nor in .gif, or the file cannot be written.
    """
    check_animation(path)
    first, *others = (Image.fromarray(image) for image in (*images, *images[-2:0:-1]))
    with whole_file(path) as partial:
        first.save(
            partial,
            save_all=True,
            append_images=others,
            duration=_FRAME_MILLISECONDS,
            loop=0,
            quality=90,
        )


def check_animation(path: str | os.PathLike[str]) -> None:
    """Raise InputError if the name ends neither in .webp nor in .gif."""
    if Path(path).suffix not in (".webp", ".gif"):
        raise InputError(f"{path}: a walk is an animation; name the file .webp or .gif")


def _great_circle(ends: Tensor, t: Tensor) -> Tensor:
    """Interpolate between two vectors along a great circle: (2, C) and (F, 1) to (F, C)."""
    first, second = ends
    cosine = torch.dot(first, second) / (first.norm() * second.norm()).clamp_min(1e-12)
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:  # the vectors are equal, or the noise is zero
        return torch.lerp(first, second, t)
    both: Tensor = torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second
    return both / torch.sin(angle)
