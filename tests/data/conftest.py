"""A folder of pictures with gradients, from which crops can be measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirrorgan_fast.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["<end>", "bird", "red", "blue", "looks", "left", "small", "old"])


def gradient(width: int, height: int) -> Image.Image:
    """Return a picture whose red is the column and green the row, which shows where a crop is."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0 + 7], axis=2).astype(np.uint8))


def write_folder(root: Path, rows: list[dict[str, Any]], pictures: list[Image.Image]) -> None:
    root.mkdir(exist_ok=True)
    with open(root / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for row, picture in zip(rows, pictures, strict=True):
            (root / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / row["file_name"])
            metadata.write(json.dumps(row) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven gradients of different shapes; three are in the split "test"."""
    rows = [
        {
            "file_name": f"pictures/{number}.png",
            "captions": ["a red bird", "blue bird bird", f"old small bird {number}"],
            "split": "test" if number % 3 == 0 else "train",
            "extra": {"weight": number},
        }
        for number in range(7)
    ]
    write_folder(tmp_path / "set", rows, [gradient(150 + 9 * n, 190 - 8 * n) for n in range(7)])
    return tmp_path / "set"
