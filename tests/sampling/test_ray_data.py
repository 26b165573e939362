"""Images for the rows of a Ray dataset, made by actors on this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.sampling.ray_data import SampleRows, sample_dataset

CAPTIONS = ["a red bird", "zebra", "a blue bird with green wings"]
ROWS = [{"caption": CAPTIONS[i % 3], "index": 5 * i} for i in range(12)]


def expected(model: MirrorGAN, row: dict[str, Any], seed: int) -> np.ndarray:
    if row["caption"] == "zebra":
        return np.zeros((32, 32, 3), np.uint8)
    return np.asarray(fuse(model).sample([row["caption"]], seed, [row["index"]])[0])


def test_rows_may_have_seeds(model: MirrorGAN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    columns = {
        "caption": np.array(CAPTIONS),
        "index": np.array([4, 5, 6]),
        "seed": np.array([1, 2, 3]),
        "other": np.arange(3),
    }
    made = SampleRows(str(tmp_path), device="cpu")(columns)
    assert made["other"].tolist() == [0, 1, 2]
    assert [bool(error) for error in made["error"]] == [False, True, False]
    for i, seed in enumerate((1, 2, 3)):
        row = {"caption": CAPTIONS[i], "index": 4 + i}
        assert np.array_equal(made["image"][i], expected(model, row, seed))


def test_bad_rows_have_an_error_and_stop_nothing(model: MirrorGAN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    rows = SampleRows(str(tmp_path), device="cpu")
    captions = np.array(["a red bird", None, " ", "a red bird"], dtype=object)
    made = rows({"caption": captions, "index": np.array([0, 1, 2, -3])})
    assert np.array_equal(made["image"][0], expected(model, ROWS[0], 0))
    assert not made["image"][1:].any()
    assert made["error"].tolist() == [
        "",
        'has no "caption" that is text',
        "is empty",
        '"index" is not a whole number from 0 to 2^128 - 1',
    ]
    none = rows({"caption": captions[:0], "index": np.arange(0)})
    assert none["image"].shape == (0, 32, 32, 3)
    assert none["error"].shape == (0,)


def test_rows_without_a_column_are_refused(model: MirrorGAN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no column 'index', only caption, size"):
        SampleRows(str(tmp_path), device="cpu")({"caption": np.array(["a"]), "size": np.ones(1)})


def test_actors_give_bit_identical_images(model: MirrorGAN, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    model.save_pretrained(tmp_path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(ROWS, override_num_blocks=3)
        images = sample_dataset(dataset, str(tmp_path), actors=2, rows=4, seed=7, device="cpu")
        made = images.take_all()
    finally:
        ray.shutdown()
    assert sorted(row["index"] for row in made) == [row["index"] for row in ROWS]
    for row in made:
        assert np.array_equal(row["image"], expected(model, row, 7))
        assert ("zebra" in row["error"]) == (row["caption"] == "zebra")
