"""Opening a data set from its folder, in any supported layout."""

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
    """Open a split of a data set in CUB's own layout or an image folder with metadata.jsonl.

    An image folder whose rows have no "split" is used as a training set as a whole. This is logged.

    Args:
        root: the folder of the data set.
        split: "train" or "test".
        split_field: the field of an image folder's rows that names the split (default: "split").
        max_pixels: maximum number of pixels. A larger picture is refused before it is decoded.

    Returns:
        the pictures and captions of the split.

    Raises:
        InputError: the folder has neither layout, has no such split or field, or is damaged.
    """
    # os.path, because Path.is_dir raises OSError for names that are too long
    if os.path.isdir(Path(root) / PUBLISHED):
        if split_field is not None:
            raise InputError(f"{root}: the layout of CUB has splits, but no field for them")
        return CubFolder(root, split, max_pixels)
    if os.path.isfile(Path(root) / "images.txt") and not os.path.lexists(Path(root) / METADATA):
        raise InputError(f"{root}: is a part of CUB-200-2011; give the folder that contains it")
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
