"""Opening a data set by its folder; if no row names a split, a message says what is used."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.errors import InputError


def folder(path: Path, *splits: dict[str, str]) -> Path:
    """Write an image folder; each of ``splits`` contains the extra fields of one row."""
    rows = []
    for i, fields in enumerate(splits):
        Image.new("RGB", (8, 8)).save(path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "captions": ["a bird"], **fields})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_without_a_split_are_all_trained_on_with_a_message(tmp_path, caplog):
    root = folder(tmp_path, {}, {"zeroshot_split": "test"})
    assert len(open_images(root, "train")) == 2
    assert "no row names a split: training on all 2 pictures" in caplog.text
    with pytest.raises(InputError, match='no row has the split "test"'):
        open_images(root, "test")


def test_a_split_is_used_without_a_message(tmp_path, caplog):
    root = folder(tmp_path, {"split": "train"}, {"split": "test"}, {})
    assert [open_images(root, split).name(0) for split in ("train", "test")] == ["0", "1"]
    assert not caplog.text
    other = folder(tmp_path, {"fold": "train"}, {"fold": "test"})
    assert len(open_images(other, "train", "fold")) == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_field_that_no_row_has_is_refused(tmp_path, split):
    root = folder(tmp_path, {"zeroshot_split": "train"})
    with pytest.raises(InputError, match="'splt'; there are: file_name, captions, zeroshot"):
        open_images(root, split, "splt")


def test_cub_refuses_a_split_field_and_its_inner_folder(tmp_path):
    (tmp_path / "CUB_200_2011").mkdir()
    (tmp_path / "CUB_200_2011" / "images.txt").write_text("")
    with pytest.raises(InputError, match="no field"):
        open_images(tmp_path, "train", "split")
    with pytest.raises(InputError, match="give the folder that contains it"):
        open_images(tmp_path / "CUB_200_2011", "train")
