"""Edits: one color word of a caption is changed, and the image has to change there and only there.

Both images have the same noise. Whether the part took the new color is the attribute classifier's
to say. No mask tells where a generated part is, so the rest is measured in two ways: by the
attributes that the word does not speak of, which the classifier has to read as before, and by how
many pixels changed and how much. What these figures are when nothing else changes is known from
painted pairs: the same bird painted twice, with the old color and with the new one.
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
from mirrorgan_fast.metrics.attributes import AttributeAccuracy
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.pictures import square

VISIBLE_CHANGE = 16  # grey levels, of any channel
REST = 0.9  # of an image's pixels; back and wing, the most a word asks to change, take 8 % at most


@dataclass(frozen=True)
class Edit:
    """A caption, the same with another color word, and the parts that this word speaks of."""

    caption: str
    edited: str
    parts: tuple[str, ...]
    color: str


def edit_color_word(
    caption: str, attributes: Mapping[str, str], rng: np.random.Generator
) -> Edit | None:
    """Change one color word of a part of the bird, chosen at random, to another color.

    The article before it is changed with it where English asks for that. "a red bird" speaks of the
    back and the wings, "a red crown and tail" of both.

    Args:
        caption: of a painted bird.
        attributes: of that bird. Its wings and crown do not get a color on which their bars or
            ring would not be seen, which no painted bird has.
        rng: chooses.

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
    """What changing one color word did, over all edits."""

    right: float
    """Share of edits after which every part that the word speaks of has the new color."""
    others_kept: float
    """Share of the attributes that the word does not speak of which are read as before."""
    changed_area: float
    """Share of the pixels in which a channel changed by more than 16 grey levels."""
    mean_change: float
    """Mean absolute difference of all pixels, in grey levels."""
    rest_change: float
    """The same of the 90 % of each image's pixels that changed least."""
    parts: AttributeAccuracy
    """For each part, how often it has the new color."""


def measure_edits(
    classifier: AttributeClassifier,
    edits: Sequence[Edit],
    before: Tensor,  # (N, 3, S, S)
    after: Tensor,  # (N, 3, S, S)
) -> EditFigures:
    """Compare the images of the captions with those of the edited ones.

    Args:
        classifier: reads the attributes.
        edits: N edits.
        before: uint8 images of their captions.
        after: uint8 images of their edited captions, of the same noise.
    """
    read_before, read_after = classifier.read(before), classifier.read(after)
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
    by_pixel = changes.float().mean(dim=1).flatten(1).sort(dim=1).values  # (N, S * S)
    rest = by_pixel[:, : int(by_pixel.shape[1] * REST)]
    return EditFigures(
        right=float(np.mean(right)),
        others_kept=float(np.mean(kept)),
        changed_area=float((changes.amax(dim=1) > VISIBLE_CHANGE).float().mean()),
        mean_change=float(by_pixel.mean()),
        rest_change=float(rest.mean()),
        parts=parts,
    )


def painted_pairs(
    edits: Sequence[Edit],
    attributes: Sequence[Mapping[str, str]],
    size: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Paint each edit's bird as it was and with the new color, and nothing else changed.

    Args:
        edits: N edits.
        attributes: of the birds of their captions.
        size: S, of the pictures. Smaller ones than birds are painted in are scaled down.
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
