"""Judges: what reads the attributes that captions name in images, and has not trained a model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import is_painted
from mirrorgan_fast.data.prepare.clothing import Clothing
from mirrorgan_fast.data.prepare.colors import measure_colors
from mirrorgan_fast.data.prepare.watercolors import Watercolors
from mirrorgan_fast.data.prepare.writer import Repository
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier

_REPOSITORIES: dict[str, type[Repository]] = {each.NAME: each for each in (Clothing, Watercolors)}


class Judge(Protocol):
    """Reads attributes of images, such as the garment that is shown and its color."""

    @property
    def names(self) -> Sequence[str]:
        """The attributes that are read."""

    def read(self, images: Tensor) -> list[dict[str, str]]:
        """Return the attributes of uint8 images (N, 3, S, S); one that is not clear is missing."""


class ColorJudge:
    """Measures colors as those of a prepared repository were measured, and has the rest read.

    Args:
        repository: whose pictures were prepared (``mirrorgan-fast data prepare``).
        classifier: reads what the picture is of; None: colors alone are judged.
    """

    def __init__(self, repository: Repository, classifier: AttributeClassifier | None) -> None:
        self.repository, self.classifier = repository, classifier

    @property
    def names(self) -> Sequence[str]:
        """The attributes that are read."""
        read = [] if self.classifier is None else [self.repository.CLASS]
        return [*read, *self.repository.COLORS]

    def read(self, images: Tensor) -> list[dict[str, str]]:
        """Return the attributes of uint8 images (N, 3, S, S); one that is not clear is missing."""
        kinds: list[dict[str, str]] = [{}] * len(images)
        if self.classifier is not None:
            kinds = self.classifier.read(images)
        readings = []
        for image, read in zip(images, kinds, strict=True):
            kind = read.get(self.repository.CLASS, "")
            colors = measure_colors(image.permute(1, 2, 0).numpy())
            found = {self.repository.CLASS: kind, **self.repository.measured(colors, kind)}
            readings.append({name: text for name, text in found.items() if isinstance(text, str)})
        return readings


def judge_of(
    images: CaptionedImages, name_or_path: str | None, device: torch.device
) -> Judge | None:
    """Return what judges images that are generated of a data set's captions, if anything does.

    Args:
        images: the held-out split.
        name_or_path: of the classifier; None: of painted birds the one of the package, and of other
            pictures none.
        device: of the classifier.

    Raises:
        InputError: the classifier cannot be loaded, does not read what captions name, or captions
            do not say what they name.
    """
    record = images.record(0) if isinstance(images, ImageFolder) else {}
    if is_painted(record):
        name = "birds-painted" if name_or_path is None else name_or_path
        return AttributeClassifier.from_pretrained(name, reads=ATTRIBUTES).to(device)
    repository = _REPOSITORIES.get(str(record.get("source")))
    reads = () if repository is None else (repository.CLASS,)
    classifier = None
    if name_or_path is not None:
        if "named" not in record:
            raise InputError(
                f"{name_or_path}: there is nothing to judge, because the pictures have no list "
                f'"named" of what each caption names in metadata.jsonl; leave --judge out'
            )
        classifier = AttributeClassifier.from_pretrained(name_or_path, reads=reads).to(device)
    return classifier if repository is None else ColorJudge(repository(), classifier)
