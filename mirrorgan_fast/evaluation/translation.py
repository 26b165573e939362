"""How well a CycleGAN of painted birds changes the background, against the true pictures.

The truth is the same bird, painted from the same random state, in front of the other background.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.data.painted_birds.drawing import SMALLEST_SIZE
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.translator import Translator
from mirrorgan_fast.metrics.attributes import attribute_accuracy
from mirrorgan_fast.metrics.ssim import ssim
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.pictures import square

_BACKGROUND = "background"


def evaluate_translation(
    model: CycleGAN,
    classifier: AttributeClassifier,
    *,
    count: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure the translations of held-out painted birds, in both directions.

    Args:
        model: whose domains are backgrounds of painted birds.
        classifier: reads the attributes of painted birds; it was not part of the training.
        count: of birds in each direction.
        seed: of the birds.
        quiet: no progress bars.

    Returns:
        "count", "image_size", and by direction, such as "sky to sunset", the figures of
        "translated", of "untranslated" (the picture as it was) and of "true" pictures: "l1", the
        mean distance to the true picture in gray levels; "ssim" with it; "background", the share
        whose background is seen to be the wanted one; "kept", the share of the other attributes
        that are seen to be the bird's. Shares are in [0, 1].

    Raises:
        InputError: a domain is not a background of painted birds, or ``count`` is below 1.
    """
    config = model.config
    for name in (config.x, config.y):
        if name not in ATTRIBUTES[_BACKGROUND]:
            raise InputError(
                f"the domain {name!r} is no background of painted birds, so there are no true "
                f"pictures to compare with"
            )
    if count < 1:
        raise InputError(f"count is {count}, expected 1 or more")
    figures: dict[str, Any] = {"count": count, "image_size": config.image_size}
    for source, wanted in ((config.x, config.y), (config.y, config.x)):
        title = f"{source} to {wanted}"
        figures[title] = _one_way(
            Translator(model, wanted), classifier, source, wanted, count, seed, title, quiet
        )
    return figures


def _one_way(
    translator: Translator,
    classifier: AttributeClassifier,
    source: str,
    wanted: str,
    count: int,
    seed: int,
    title: str,
    quiet: bool,
) -> dict[str, dict[str, float]]:
    size = translator.image_size
    birds = PaintedBirds("test", count, max(size, SMALLEST_SIZE), seed)
    before, after, true = [], [], []
    for index in tqdm(range(count), desc=title, unit="image", disable=quiet):
        painted, truth_of_it = (
            np.asarray(square(Image.fromarray(birds.painting(index, background).image), size))
            for background in (source, wanted)
        )
        before.append(painted)
        after.append(translator.translate([painted])[0])
        true.append(truth_of_it)
    named = [vars(replace(birds.bird(index), background=wanted)) for index in range(count)]
    truth = _as_tensor(true)
    return {
        name: dict(_figures(_as_tensor(pictures), truth, classifier, named))
        for name, pictures in (("translated", after), ("untranslated", before), ("true", true))
    }


def _as_tensor(images: list[np.ndarray]) -> Tensor:
    """Return uint8 (N, 3, S, S)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _figures(
    pictures: Tensor,
    truth: Tensor,
    classifier: AttributeClassifier,
    named: list[dict[str, str]],
) -> Iterator[tuple[str, float]]:
    yield "l1", float((pictures.float() - truth.float()).abs().mean())
    yield "ssim", float(ssim(pictures, truth).mean())
    accuracy = attribute_accuracy(classifier.read(pictures), named)
    shares = accuracy.by_attribute
    yield _BACKGROUND, shares.pop(_BACKGROUND)
    yield "kept", sum(shares.values()) / len(shares)


_LINES = (
    ("  distance to the true picture (L1), gray levels", "l1", "{:.2f}"),
    ("  similarity with the true picture (SSIM)", "ssim", "{:.3f}"),
    ("  the background is seen to be the wanted one", _BACKGROUND, "{:.2%}"),
    ("  other attributes are seen to be the bird's", "kept", "{:.2%}"),
)


def translation_table(figures: Mapping[str, Any]) -> str:
    """Format the result of ``evaluate_translation`` as a table."""
    sides = ("translated", "untranslated", "true")
    rows: list[tuple[str, ...]] = [
        (f"{figures['count']} birds, {figures['image_size']} px", *sides)
    ]
    for title, measured in figures.items():
        if not isinstance(measured, Mapping):
            continue
        rows.append((title, "", "", ""))
        rows += [
            (label, *(form.format(measured[side][name]) for side in sides))
            for label, name, form in _LINES
        ]
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{row[0]:{width}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows
    )
