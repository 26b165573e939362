"""Opening a data set by its folder, whichever layout it has."""

import logging
import os
from pathlib import Path

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.cub import PUBLISHED, CubFolder
from mirrorgan_fast.data.image_folder import METADATA, ImageFolder
from mirrorgan_fast.errors import InputError, listed, printable
from mirrorgan_fast.files import StrPath
from mirrorgan_fast.pictures import MAX_PIXELS

_LOG = logging.getLogger("mirrorgan_fast")


def open_images(
    root: StrPath, split: str, split_field: str | None = None, max_pixels: int = MAX_PIXELS
) -> CaptionedImages:
    """Open the split of a data set: CUB's own layout, or an image folder with metadata.jsonl.

    An image folder whose rows have no "split" is a training set as a whole, which is logged.

    Args:
        root: of the data set.
        split: "train" or "test".
        split_field: the field of an image folder's rows that names the split (default: "split").
        max_pixels: a picture of more is refused before it is decoded.

    Raises:
        InputError: the folder has neither layout, has no such split or field, or is damaged.
    """
    # of os.path and not of Path, which raises OSError for names that are too long
    if os.path.isdir(Path(root) / PUBLISHED):
        if split_field is not None:
            raise InputError(f"{root}: the layout of CUB has splits and no field of them")
        return CubFolder(root, split, max_pixels)
    if os.path.isfile(Path(root) / "images.txt") and not os.path.lexists(Path(root) / METADATA):
        raise InputError(f"{root}: is a part of CUB-200-2011; give the folder that it lies in")
    folder = ImageFolder(root, max_pixels=max_pixels)
    field = split_field or "split"
    if field in folder.fields or (split_field is None and split != "train"):
        return ImageFolder(root, split, field, max_pixels)
    if split_field is not None:
        there = listed([name[:80] for name in folder.fields])
        raise InputError(f"{root}: no row has a field {split_field!r}; there are: {there}")
    _LOG.warning(
        "%s: no row names a split: training on all %d pictures", printable(str(root)), len(folder)
    )
    return folder
