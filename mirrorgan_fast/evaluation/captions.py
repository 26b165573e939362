"""The captions of a held-out split that a model is measured on."""

from collections.abc import Collection

import torch

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.r_precision import CaptionPool
from mirrorgan_fast.models.text_to_image import TextToImage, in_evaluation

_BATCH = 512


@torch.no_grad()
def caption_pool(
    model: TextToImage, images: CaptionedImages
) -> tuple[CaptionPool, list[list[tuple[int, int]]], int]:
    """Collect all captions of the split that have a known word.

    Returns:
        the pool of these captions; for each image, the positions of these captions among its own
        captions and in the pool; and how many captions of the split are skipped.
    """
    texts: list[str] = []
    labels: list[int] = []
    known: list[list[tuple[int, int]]] = []
    tokens, lengths = [], []
    passed_over = 0
    for i in range(len(images)):
        captions = images.captions(i)
        encoded = model.vocabulary.encode(captions, model.config.caption_length)
        kept = encoded.lengths.nonzero()[:, 0]
        known.append([(of_image, len(texts) + n) for n, of_image in enumerate(kept.tolist())])
        texts += [captions[of_image] for of_image in kept.tolist()]
        labels += [images.label(i)] * len(kept)
        tokens.append(encoded.tokens[kept])
        lengths.append(encoded.lengths[kept])
        passed_over += len(captions) - len(kept)
    if not texts:
        raise InputError(
            "the model knows no word of any caption of the split; use a model that was trained on "
            "such captions"
        )
    device = next(model.parameters()).device
    batches = (torch.cat(part).split(_BATCH) for part in (tokens, lengths))
    stem = in_evaluation(model.stem)
    sentences = [
        stem(some.to(device), of_some.to(device))[1] for some, of_some in zip(*batches, strict=True)
    ]
    return CaptionPool(texts, labels, torch.cat(sentences)), known, passed_over


def asserted_attributes(
    images: ImageFolder, index: int, names: Collection[str]
) -> list[dict[str, str]]:
    """Return what each caption of a picture asserts of some attributes, from its row.

    Args:
        images: the data set.
        index: of the picture.
        names: of the attributes, in the order of the result.

    Raises:
        InputError: the row does not have them.
    """
    named = images.record(index).get("named")
    if (
        not isinstance(named, list)
        or len(named) != len(images.captions(index))
        or not all(isinstance(each, dict) for each in named)
    ):
        raise InputError(
            f'picture {images.name(index)!r} has no list "named" of the attributes that each '
            f"caption names in metadata.jsonl; make such a folder with mirrorgan-fast paint or "
            f"data prepare"
        )
    return [{name: each[name] for name in names if name in each} for each in named]
