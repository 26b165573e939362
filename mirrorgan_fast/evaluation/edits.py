"""Edits: one color word of a caption changes, and only that part of the image should change.

Both images are generated from the same noise. The attribute classifier decides whether the part has
the new color. There is no mask of a generated part, so the rest of the image is measured in two
ways: by the attributes that the word does not describe, which the classifier should read as before,
and by how many pixels changed and by how much. Painted pairs give these figures for the case in
which nothing else changes: the same bird is painted twice, with the old color and with the new one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mirrorgan_fast.data.painted_birds.bird import COLORED_PARTS, COLORS, Bird, stands_out
from mirrorgan_fast.data.painted_birds.drawing import SMALLEST_SIZE, paint
from mirrorgan_fast.data.painted_birds.words import WORD, Statement, read_statements
from mirrorgan_fast.evaluation.judges import Judge
from mirrorgan_fast.metrics.attributes import AttributeAccuracy
from mirrorgan_fast.metrics.unchanged import rest_change
from mirrorgan_fast.pictures import square

VISIBLE_CHANGE = 16  # gray levels, in any channel


@dataclass(frozen=True)
class Edit:
    """A caption, its copy with another color word, and the parts that this word describes."""

    caption: str
    edited: str
    parts: tuple[str, ...]
    color: str


def edit_color_word(
    caption: str, attributes: Mapping[str, str], rng: np.random.Generator
) -> Edit | None:
    """Change the color word of a part of the bird, chosen at random, to another color.

    The article before it changes too where English requires it. In "a red bird" the word describes
    the back and the wings, in "a red crown and tail" both of these parts.

    Args:
        caption: of a painted bird.
        attributes: of that bird. Its wings and crown never get a color on which the wing bars or
            the eye ring would be invisible; no painted bird has such colors.
        rng: chooses the word and the color.

    Returns:
        the edit, or None if the caption has no such word.
    """
    by_word: dict[int, list[Statement]] = {}
    for statement in read_statements(caption):
        if statement.attribute in COLORED_PARTS:
            by_word.setdefault(statement.word, []).append(statement)
    if not by_word:
        return None
    place = int(rng.choice(list(by_word)))
    parts = tuple(statement.attribute for statement in by_word[place])
    color = str(
        rng.choice(
            [
                color
                for color in COLORS
                if color != by_word[place][0].value
                and ("wing" not in parts or stands_out(attributes["wing_bars"], color))
                and ("crown" not in parts or stands_out(attributes["eye_ring"], color))
            ]
        )
    )
    words = list(WORD.finditer(caption))
    edited = caption[: words[place].start()] + color + caption[words[place].end() :]
    before = words[place - 1] if place else None
    if before and before[0] in ("a", "an"):
        article = "an" if color[0] in "aeiou" else "a"
        edited = caption[: before.start()] + article + edited[before.end() :]
    return Edit(caption, edited, parts, color)


@dataclass(frozen=True)
class EditFigures:
    """The effect of changing one color word, over all edits."""

    right: float
    """Share of edits after which every part that the word describes has the new color."""
    others_kept: float
    """Among the attributes that the word does not describe, the share that is read as before."""
    changed_area: float
    """Share of the pixels in which a channel changed by more than 16 gray levels."""
    mean_change: float
    """Mean absolute difference of all pixels, in gray levels."""
    rest_change: float
    """The same, for the 90 % of each image's pixels that changed least."""
    parts: AttributeAccuracy
    """For each part, how often it has the new color."""


def measure_edits(
    judge: Judge,
    edits: Sequence[Edit],
    before: Tensor,  # (N, 3, S, S)
    after: Tensor,  # (N, 3, S, S)
) -> EditFigures:
    """Compare the images of the captions with the images of the edited captions.

    Args:
        judge: reads the attributes.
        edits: N edits.
        before: uint8 images of their captions.
        after: uint8 images of their edited captions, from the same noise.
    """
    read_before, read_after = judge.read(before), judge.read(after)
    parts = AttributeAccuracy.count(
        (part, read[part] == edit.color)
        for edit, read in zip(edits, read_after, strict=True)
        for part in edit.parts
    )
    right = [
        all(read[part] == edit.color for part in edit.parts)
        for edit, read in zip(edits, read_after, strict=True)
    ]
    kept = [
        old[name] == new[name]
        for edit, old, new in zip(edits, read_before, read_after, strict=True)
        for name in old
        if name not in edit.parts
    ]
    changes = (after.to(torch.int16) - before.to(torch.int16)).abs()  # (N, 3, S, S)
    return EditFigures(
        right=float(np.mean(right)),
        others_kept=float(np.mean(kept)),
        changed_area=float((changes.amax(dim=1) > VISIBLE_CHANGE).float().mean()),
        mean_change=float(changes.float().mean()),
        rest_change=float(rest_change(before.float(), after.float()).mean()),
        parts=parts,
    )


def painted_pairs(
    edits: Sequence[Edit],
    attributes: Sequence[Mapping[str, str]],
    size: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Paint each edit's bird twice, with the old and the new color, and change nothing else.

    Args:
        edits: N edits.
        attributes: of the birds of their captions.
        size: S, the side of the pictures. Below the smallest size that birds are painted in,
            pictures are painted in that size and scaled down.
        seed: of the paintings.

    Returns:
        uint8 images before and after, each (N, 3, S, S).
    """
    pairs = []
    for index, (edit, attributes_of) in enumerate(zip(edits, attributes, strict=True)):
        bird = Bird(**attributes_of)
        edited = replace(bird, **dict.fromkeys(edit.parts, edit.color))
        pair = []
        for painted in (bird, edited):
            rng = np.random.default_rng([seed, index])
            image = Image.fromarray(paint(painted, rng, max(size, SMALLEST_SIZE)).image)
            pair.append(np.asarray(square(image, size) if size < SMALLEST_SIZE else image))
        pairs.append(pair)
    images = torch.from_numpy(np.array(pairs)).permute(1, 0, 4, 2, 3)
    return images[0], images[1]
