"""Contact sheets: many images in one picture, to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mirrorgan_fast.files import whole_file


def write_sheet(path: Path, images: Sequence[np.ndarray], columns: int, gap: int = 2) -> None:
    """Write images, each uint8 (H, W, 3), as one picture of rows from left to right.

    Raises:
        InputError: the file cannot be written.
    """
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(
            Image.fromarray(image), (i % columns * (width + gap), i // columns * (height + gap))
        )
    with whole_file(path) as partial:
        sheet.save(partial)
