"""Opening a data set by its folder, whichever layout it has."""

import os
from pathlib import Path

from mirrorgan_fast.data.captioned_images import CaptionedImages, ImageFolder
from mirrorgan_fast.data.cub import CubFolder


def open_images(
    root: str | os.PathLike[str], split: str, split_field: str = "split"
) -> CaptionedImages:
    """Open the split of a data set: CUB's own layout, or an image folder with metadata.jsonl.

    An image folder whose rows name no split at all is a training set as a whole.

    Raises:
        InputError: the folder has neither layout, has no such split, or is damaged.
    """
    if (Path(root) / "CUB_200_2011").is_dir():
        return CubFolder(root, split)
    folder = ImageFolder(root)
    names_splits = any(split_field in folder.record(i) for i in range(len(folder)))
    if split == "train" and not names_splits:
        return folder
    return ImageFolder(root, split, split_field)
