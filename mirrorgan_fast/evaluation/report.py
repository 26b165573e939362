"""The report: every metric for images of held-out captions, and for the real held-out pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.image_folder import ImageFolder, text_attributes
from mirrorgan_fast.data.painted_birds.data_set import is_painted, true_attributes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation.captions import asserted_attributes, caption_pool
from mirrorgan_fast.evaluation.diversity import differences, other_pictures
from mirrorgan_fast.evaluation.edits import (
    Edit,
    EditFigures,
    edit_color_word,
    measure_edits,
    painted_pairs,
)
from mirrorgan_fast.evaluation.features import FeatureReader
from mirrorgan_fast.evaluation.images import generate, look, real_picture
from mirrorgan_fast.evaluation.judges import Judge
from mirrorgan_fast.evaluation.redescription import bleu_4, redescription_accuracy
from mirrorgan_fast.metrics.attributes import AttributeAccuracy, attribute_accuracy
from mirrorgan_fast.metrics.kernel_distance import kernel_distance
from mirrorgan_fast.metrics.r_precision import r_precision
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.text_to_image import SEEDS, TextToImage
from mirrorgan_fast.sampling.sampler import Sampler

_PAIRS = 250  # captions of which two images are compared


@torch.no_grad()
def evaluate(
    model: TextToImage,
    images: CaptionedImages,
    *,
    judge: Judge | None = None,
    features: FeatureReader | None = None,
    count: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a model on held-out captions, and measure the real pictures for comparison.

    One image is generated for each of the first ``count`` pictures, from one of its captions,
    chosen at random; if there are fewer pictures, for a second caption of each, and so on. As in
    training, captions without a known word are skipped, and so are pictures that have only such
    captions. The model may be in training or in evaluation mode.

    Args:
        model: to be measured.
        images: the test split.
        judge: reads the attributes that captions name (``judge_of``). ``images`` must then be an
            image folder whose rows say what captions name. Without it, metrics of attributes are
            left out.
        features: reads the features that the kernel distance compares. Without it, that is left
            out.
        count: of captions (default: 1000, or one of each picture if there are fewer).
        seed: of the choice of captions, edits and competitors, and of the images.
        quiet: no progress bars.

    Returns:
        the settings ("count", "seed", "image_size", and "captions_passed_over", the number of
        skipped captions of the split), then the figures of "generated" and of "real" for each of:
        "r_precision"; "redescription", if the system has a captioner; with ``features``
        "kernel_distance", of generated images to the real ones, and of one half of the real ones to
        the other; "diversity", the differences of two images of a caption and, with a judge, of two
        real pictures that it fits (then of such captions alone); with a judge "judge", its readings
        of real pictures against their own attributes, and "attributes", against those that captions
        name; and of painted birds "edits". Shares are in [0, 1]. The real edits are painted pairs
        (see ``painted_pairs``).

    Raises:
        InputError: the seed is out of range; the model reads text vectors; a weight is NaN; there
            are fewer than ``count`` captions, or too few for R-precision; or, with a judge, rows
            do not say what captions name.
    """
    if not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(f"seed is {seed!r:.60}, expected a whole number from 0 to 2^128 - 1")
    model.config.check_text(None)
    model.check_weights(*dict(model.named_children()))
    size = model.config.image_size
    rng = np.random.default_rng(seed)
    pool, known, passed_over = caption_pool(model, images)
    usable = sum(map(bool, known))
    count = min(1000, usable) if count is None else count
    if not 1 <= count <= len(pool.texts):
        raise InputError(
            f"cannot evaluate on {count} captions: the split has {len(pool.texts)} with a word "
            f"that the model knows"
        )
    chosen = _choose(known, count, rng)
    own = [caption.place for caption in chosen]
    captions = [pool.texts[place] for place in own]
    judged = None if judge is None else _judged(judge, images, captions, chosen, rng, seed)
    sampler = Sampler(model)
    generated = generate(sampler, captions, range(count), seed, title="captions", quiet=quiet)
    real = torch.cat([real_picture(images, i, size) for i, *_ in chosen])

    figures: dict[str, Any] = {
        "count": count,
        "seed": seed,
        "image_size": size,
        "captions_passed_over": passed_over,
        "r_precision": {},
    }
    if isinstance(model, MirrorGAN):
        figures["redescription"] = {"generated": {}, "real": {}}
    shown: dict[str, list[dict[str, str]]] = {}
    if judge is not None and judged is not None:
        shown = {"generated": judge.read(generated), "real": judged.truth}
        read_real = judge.read(real)
        figures |= {
            "judge": {"real": _shares(attribute_accuracy(read_real, judged.truth), judge.names)},
            "attributes": {
                "generated": _shares(
                    attribute_accuracy(shown["generated"], judged.named), judge.names
                ),
                "real": _shares(attribute_accuracy(read_real, judged.named), judge.names),
            },
        }
    if judge is not None and judged is not None and judged.edits:
        edited_captions = [edit.edited for edit in judged.edits]
        edited = generate(
            sampler, edited_captions, judged.editable, seed, title="edits", quiet=quiet
        )
        pair = generated[judged.editable], edited
        truth = [judged.truth[i] for i in judged.editable]
        painted = painted_pairs(judged.edits, truth, size, seed)
        figures["edits"] = {
            "generated": _edit_shares(measure_edits(judge, judged.edits, *pair), judge.names),
            "real": _edit_shares(measure_edits(judge, judged.edits, *painted), judge.names),
        }
    if features is not None:
        different = real[: min(count, usable)]
        codes_of_real = features.read(different, "real features", quiet=quiet)
        codes_of_generated = features.read(generated, "features", quiet=quiet)
        figures["kernel_distance"] = {
            "generated": kernel_distance(codes_of_real, codes_of_generated, seed=seed)._asdict(),
            "real": kernel_distance(codes_of_real[::2], codes_of_real[1::2], seed=seed)._asdict(),
        }
    compared = list(range(count) if judged is None else judged.others)[:_PAIRS]
    if compared:
        again, noises = [captions[n] for n in compared], [count + n for n in compared]
        second = generate(sampler, again, noises, seed, title="second images", quiet=quiet)
        pairs = {"generated": (generated[compared], second)}
        if judged is not None:
            fitting = [real_picture(images, judged.others[n], size) for n in compared]
            pairs["real"] = real[compared], torch.cat(fitting)
        figures["diversity"] = {
            side: differences(*pair, features, quiet=quiet) for side, pair in pairs.items()
        }
    for side, pictures in (("generated", generated), ("real", real)):
        codes, descriptions = look(model, pictures)
        precision = r_precision(codes, own, pool, np.random.default_rng(seed))
        figures["r_precision"][side] = {f"top_{k}": share for k, share in precision.items()}
        if descriptions is None:
            continue
        if (
            judge is not None and judged is not None and judged.edits
        ):  # captions of painted birds have a known grammar
            of_image = redescription_accuracy(descriptions, shown[side])
            figures["redescription"][side] = {
                "statements_per_image": sum(of_image.claims.values()) / count,
                "of_caption": redescription_accuracy(descriptions, judged.named).overall,
                **_shares(of_image, judge.names),
            }
        if side == "real":  # a generated picture has only one reference caption, not ten
            references = [images.captions(caption.image) for caption in chosen]
            figures["redescription"][side]["bleu_4"] = bleu_4(descriptions, references)
    return figures


class _Chosen(NamedTuple):
    """The caption that an image is generated from."""

    image: int
    of_image: int
    """The caption's position among the image's captions."""
    place: int
    """The caption's position in the pool."""


def _choose(
    known: list[list[tuple[int, int]]], count: int, rng: np.random.Generator
) -> list[_Chosen]:
    """Choose a caption of each picture in order; if more are wanted, another of each, and so on.

    Args:
        known: for each picture, where its captions are among its own ones and in the pool.
        count: of the captions, at most as many as there are.
        rng: makes the random choices.
    """
    left = [[*places] for places in known]
    chosen: list[_Chosen] = []
    while len(chosen) < count:
        for image, places in enumerate(left):
            if places and len(chosen) < count:
                chosen.append(_Chosen(image, *places.pop(int(rng.integers(len(places))))))
    return chosen


class _Judged(NamedTuple):
    """The attributes of N pictures that a judge reads, and of the caption chosen for each."""

    truth: list[dict[str, str]]
    """The true attributes."""
    named: list[dict[str, str]]
    """The attributes that the captions name."""
    editable: list[int]
    """Of painted birds, those whose captions name the color of a part."""
    edits: list[Edit]
    """Edits of the captions of ``editable``."""
    others: dict[int, int]
    """By the positions of captions, another picture of the split that they fit."""


def _judged(
    judge: Judge,
    images: CaptionedImages,
    captions: list[str],
    chosen: list[_Chosen],
    rng: np.random.Generator,
    seed: int,
) -> _Judged:
    if not isinstance(images, ImageFolder):
        raise InputError(
            "what captions name is known only in an image folder whose rows say it; make one with "
            "mirrorgan-fast paint or data prepare"
        )
    named = [
        asserted_attributes(images, caption.image, judge.names)[caption.of_image]
        for caption in chosen
    ]
    indices = [caption.image for caption in chosen]
    painted = is_painted(images.record(indices[0]))
    everywhere = range(len(images))
    if painted:
        attributes = true_attributes(images, everywhere)
    else:
        attributes = [_attributes(images, i, judge.names) for i in everywhere]
    truth = [attributes[i] for i in indices]
    others = other_pictures(named, indices, attributes, np.random.default_rng(seed))
    if not painted:
        return _Judged(truth, named, [], [], others)
    edit_of = [
        edit_color_word(caption, shown, rng) for caption, shown in zip(captions, truth, strict=True)
    ]
    edits = [edit for edit in edit_of if edit is not None]
    if not edits:
        raise InputError("no caption names the color of a part of the bird, so none can be edited")
    editable = [i for i, edit in enumerate(edit_of) if edit is not None]
    return _Judged(truth, named, editable, edits, others)


def _attributes(images: ImageFolder, index: int, names: Sequence[str]) -> dict[str, str]:
    """Return those attributes of a picture that are known, by name."""
    known = text_attributes(images, index)
    return {name: known[name] for name in names if name in known}


def _shares(accuracy: AttributeAccuracy, names: Sequence[str]) -> dict[str, Any]:
    return {"overall": accuracy.overall, "by_attribute": _in_order(accuracy, names)}


def _edit_shares(figures: EditFigures, names: Sequence[str]) -> dict[str, Any]:
    return asdict(figures) | {"parts": _in_order(figures.parts, names)}


def _in_order(accuracy: AttributeAccuracy, names: Sequence[str]) -> dict[str, float]:
    shares = accuracy.by_attribute
    return {name: shares[name] for name in names if name in shares}


_SHARE, _NUMBER, _SMALL = "{:.2%}", "{:.2f}", "{:.4f}"
# Label, section, name of the figure, and its format. The name None stands for a line per attribute.
_LINES: tuple[tuple[str, str, str | None, str], ...] = (
    ("all attributes, read by the judge", "judge", "overall", _SHARE),
    ("attributes the caption names, seen in the image", "attributes", "overall", _SHARE),
    ("", "attributes", None, _SHARE),
    ("color word changed: its parts have the new color", "edits", "right", _SHARE),
    ("  other attributes as before", "edits", "others_kept", _SHARE),
    ("  pixels changed by more than 16 gray levels", "edits", "changed_area", _SHARE),
    ("  mean change, gray levels", "edits", "mean_change", _NUMBER),
    ("  of the 90 % of pixels changed least", "edits", "rest_change", _NUMBER),
    ("kernel distance to real pictures", "kernel_distance", "mean", _SMALL),
    ("difference of two images of a caption, gray levels", "diversity", "gray_levels", _NUMBER),
    ("  of their features", "diversity", "features", _NUMBER),
    ("R-precision (1 of 100), top 1", "r_precision", "top_1", _SHARE),
    ("  top 2", "r_precision", "top_2", _SHARE),
    ("  top 3", "r_precision", "top_3", _SHARE),
    ("attributes the redescription names, right", "redescription", "overall", _SHARE),
    ("  of those that the caption names too", "redescription", "of_caption", _SHARE),
    ("  attributes named per image", "redescription", "statements_per_image", _NUMBER),
    ("  BLEU-4", "redescription", "bleu_4", _NUMBER),
)


def as_table(figures: Mapping[str, Any]) -> str:
    """Format the result of ``evaluate`` as a table, generated and real side by side."""
    rows = [
        (f"{figures['count']} captions, {figures['image_size']} px", "generated", "real"),
    ]
    if figures["captions_passed_over"]:
        skipped = f"{figures['captions_passed_over']} captions without a known word skipped"
        rows.append((skipped, "", ""))
    for label, section, name, form in _LINES:
        measured = [figures.get(section, {}).get(side, {}) for side in ("generated", "real")]
        if not any((name or "by_attribute") in side for side in measured):
            continue
        sides = measured if name else [side["by_attribute"] for side in measured]
        for key in [name] if name else figures["judge"]["real"]["by_attribute"]:
            cells = [form.format(side[key]) if key in side else "-" for side in sides]
            rows.append((label or f"  {key}", cells[0], cells[1]))
    width = max(len(label) for label, _, _ in rows)
    return "\n".join(f"{label:{width}}{left:>12}{right:>12}" for label, left, right in rows)
