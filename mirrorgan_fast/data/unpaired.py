"""Two sets of pictures without pairs, X and Y, for CycleGAN."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mirrorgan_fast.data.captioned_images import CaptionedImages, Subset
from mirrorgan_fast.data.examples import Epoch, choose_view, cut
from mirrorgan_fast.data.image_folder import METADATA, ImageFolder
from mirrorgan_fast.data.picture_folder import PictureFolder
from mirrorgan_fast.data.preparation import Preparation
from mirrorgan_fast.data.prepared_pictures import PreparedPictures
from mirrorgan_fast.errors import InputError, listed
from mirrorgan_fast.files import StrPath
from mirrorgan_fast.pictures import MAX_PIXELS


class Unpaired(NamedTuple):
    """The pictures of two domains."""

    x: CaptionedImages
    y: CaptionedImages
    names: tuple[str, str]
    """Of the domains."""


def open_unpaired(
    root: StrPath,
    other: StrPath | None = None,
    domains: str | None = None,
    split: str = "train",
    split_field: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Unpaired:
    """Open a split of the pictures of two domains, in one of three layouts.

    - CycleGAN's own: ``root`` has the folders ``trainA``, ``trainB``, ``testA`` and ``testB``.
    - Two folders, ``root`` for X and ``other`` for Y. Each is an image folder with metadata.jsonl,
      or just has pictures; then all of them are of the split "train".
    - An image folder with a field that tells the domains apart: ``domains`` is
      "FIELD=VALUE,VALUE", such as "attributes.background=sky,sunset". A dot leads into an object.

    Args:
        root: a folder.
        other: the folder of Y, if there are two.
        domains: the field and its values.
        split: "train" or "test".
        split_field: the field of an image folder's rows that names the split (default: "split").
        max_pixels: a larger picture is refused before it is decoded.

    Raises:
        InputError: the folders have another layout, or no pictures of a domain.
    """
    if other is not None:
        if domains is not None:
            raise InputError("two folders of pictures need no field that tells them apart")
        names = tuple(os.path.basename(os.path.abspath(each)) for each in (root, other))
        x, y = (_one(each, split, split_field, max_pixels) for each in (root, other))
        return Unpaired(x, y, ("A", "B") if names[0] == names[1] else (names[0], names[1]))
    if domains is not None:
        return _by_field(root, domains, split, split_field, max_pixels)
    if not os.path.isdir(Path(root) / f"{split}A"):
        raise InputError(
            f"{root}: has no folder {split}A; give a folder with trainA and trainB, two folders of "
            f"pictures, or an image folder with --domains FIELD=VALUE,VALUE"
        )
    x, y = (PictureFolder(Path(root) / f"{split}{domain}", max_pixels) for domain in "AB")
    return Unpaired(x, y, ("A", "B"))


def _one(root: StrPath, split: str, split_field: str | None, max_pixels: int) -> CaptionedImages:
    """Open the pictures of a domain in a folder of its own."""
    if os.path.lexists(Path(root) / METADATA):
        folder = ImageFolder(root, max_pixels=max_pixels)
        field = split_field or "split"
        if field in folder.fields or split_field is not None:
            return ImageFolder(root, split, field, max_pixels)
        if split == "train":
            return folder
    elif split == "train":
        return PictureFolder(root, max_pixels)
    raise InputError(f"{root}: has no split {split!r:.80}")


def _by_field(
    root: StrPath, domains: str, split: str, split_field: str | None, max_pixels: int
) -> Unpaired:
    """Open an image folder whose rows have a field that tells the domains apart."""
    field, _, values = domains.partition("=")
    names = tuple(values.split(","))
    if not field or len(names) != 2 or not all(names) or names[0] == names[1]:
        raise InputError(f"--domains {domains}: expected FIELD=VALUE,VALUE with two values")
    folder = ImageFolder(root, max_pixels=max_pixels)
    if split_field is not None or "split" in folder.fields:
        folder = ImageFolder(root, split, split_field or "split", max_pixels)
    found = [_value(folder.record(index), field) for index in range(len(folder))]
    parts = [[i for i, value in enumerate(found) if value == name] for name in names]
    for name, part in zip(names, parts, strict=True):
        if not part:
            there = listed(sorted({value for value in found if value is not None})) or "none at all"
            raise InputError(f"{root}: no picture has the {field} {name!r}; there are: {there}")
    x, y = (Subset(folder, part) for part in parts)
    return Unpaired(x, y, (names[0], names[1]))


def _value(record: dict[str, Any], field: str) -> str | None:
    """Return the text or number in a field of a row, which may be inside an object, as text."""
    value: Any = record
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return str(value) if isinstance(value, str | int) else None


class UnpairedExample(TypedDict):
    """A picture of each domain.

    Attributes:
        x: uint8 (3, S, S), RGB in [0, 255], of X.
        y: the same, of Y.
    """

    x: Tensor
    y: Tensor


class UnpairedExamples(Dataset[UnpairedExample]):
    """Pictures of two domains as tensors, without pairs.

    There are as many examples as the larger domain has pictures. The picture of X is that of the
    example's number, or what is left of it beyond X's last; that of Y is drawn at random. All
    random choices depend only on (seed, epoch, index).

    Args:
        unpaired: the pictures.
        prepared: the prepared pictures of X and of Y, of one size.
        seed: at least 0.
    """

    def __init__(
        self, unpaired: Unpaired, prepared: tuple[PreparedPictures, PreparedPictures], seed: int = 0
    ) -> None:
        self._unpaired, self._prepared, self._seed = unpaired, prepared, seed
        self._preparation: Preparation = prepared[0].preparation
        self._epoch = Epoch()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, at least 0."""
        self._epoch.number = epoch

    def __len__(self) -> int:
        return max(map(len, self._prepared))

    def __getitem__(self, index: int) -> UnpairedExample:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        rng = np.random.default_rng((self._seed, self._epoch.number, index, 2))
        x, y = self._prepared
        drawn = int(rng.integers(len(y)))
        return UnpairedExample(x=self._cut(x[index % len(x)], rng), y=self._cut(y[drawn], rng))

    def _cut(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        view = choose_view(pixels.shape[:2], self._preparation, rng)
        return cut(pixels, self._preparation.image_size, view)

    def described(self) -> str:
        """Return how many pictures there are."""
        x, y = self._unpaired.names
        return f"{len(self._prepared[0]):,} pictures of {x}, {len(self._prepared[1]):,} of {y}"

    def digest(self) -> str:
        """Return a hash of the names of all pictures and of the domains, in order."""
        images = (self._unpaired.x, self._unpaired.y)
        names = [[part.name(i) for i in range(len(part))] for part in images]
        return hashlib.sha256(json.dumps([self._unpaired.names, *names]).encode()).hexdigest()[:16]


def first_of(examples: UnpairedExamples, count: int) -> tuple[Tensor, Tensor]:
    """Return the first pictures of each domain as they are in the first epoch, uint8.

    Args:
        examples: the pictures.
        count: how many, if there are as many.

    Returns:
        of X and of Y, each (N, 3, S, S).
    """
    examples.set_epoch(0)
    chosen = [examples[i] for i in range(min(count, len(examples)))]
    return torch.stack([each["x"] for each in chosen]), torch.stack([each["y"] for each in chosen])
