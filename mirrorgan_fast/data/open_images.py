"""Opening a data set by its folder, whichever layout it has."""

import logging
import os
from pathlib import Path

from mirrorgan_fast.data.captioned_images import CaptionedImages, ImageFolder
from mirrorgan_fast.data.cub import CubFolder
from mirrorgan_fast.errors import InputError

_LOG = logging.getLogger("mirrorgan_fast")


def open_images(
    root: str | os.PathLike[str], split: str, split_field: str | None = None
) -> CaptionedImages:
    """Open the split of a data set: CUB's own layout, or an image folder with metadata.jsonl.

    An image folder whose rows have no "split" is a training set as a whole, which is logged.

    Args:
        root: of the data set.
        split: "train" or "test".
        split_field: the field of an image folder's rows that names the split (default: "split").

    Raises:
        InputError: the folder has neither layout, has no such split or field, or is damaged.
    """
    if (Path(root) / "CUB_200_2011").is_dir():
        if split_field is not None:
            raise InputError(f"{root}: the layout of CUB has splits and no field of them")
        return CubFolder(root, split)
    if (Path(root) / "images.txt").is_file() and not (Path(root) / "metadata.jsonl").exists():
        raise InputError(f"{root}: is a part of CUB-200-2011; give the folder that it lies in")
    folder = ImageFolder(root)
    fields = list(dict.fromkeys(name for i in range(len(folder)) for name in folder.record(i)))
    if (split_field or "split") in fields:
        return ImageFolder(root, split, split_field or "split")
    if split_field is not None:
        raise InputError(
            f"{root}: no row has a field {split_field!r}; there are: {', '.join(fields)}"
        )
    if split != "train":
        return ImageFolder(root, split)
    _LOG.warning("%s: no row names a split: training on all %d pictures", root, len(folder))
    return folder
