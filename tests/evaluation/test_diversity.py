"""Two images of a caption, and two pictures that it fits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import true_attributes
from mirrorgan_fast.evaluation.diversity import differences, other_pictures
from mirrorgan_fast.evaluation.features import FeatureReader


class Corners(FeatureReader):
    """Reads the first pixel of each image."""

    def __init__(self) -> None:
        pass

    def read(self, images: Tensor, title: str = "", *, quiet: bool = True) -> Tensor:
        return images[:, :, 0, 0].float()


def test_another_picture_has_all_that_the_caption_names() -> None:
    pictures = [
        {"garment": "hat", "color": "red"},
        {"garment": "hat", "color": "blue"},
        {"garment": "hat", "color": "red", "background": "white"},
        {"garment": "shoes"},
    ]
    named = [{"garment": "hat"}, {"garment": "hat", "color": "red"}, {"garment": "shoes"}, {}]
    drawn: list[set[int]] = [set(), set()]
    for seed in range(40):
        others = other_pictures(named, [0, 0, 3, 1], pictures, np.random.default_rng(seed))
        assert list(others) == [0, 1]
        for caption, picture in others.items():
            drawn[caption].add(picture)
    assert drawn == [{1, 2}, {2}]


def test_birds_are_compared_with_birds_of_the_same_words(birds: Path) -> None:
    folder = ImageFolder(birds, "test")
    attributes = true_attributes(folder, range(len(folder)))
    named = [{"background": each["background"], "perch": each["perch"]} for each in attributes]
    rng = np.random.default_rng(0)
    others = other_pictures(named, range(len(folder)), attributes, rng)
    assert others
    for caption, other in others.items():
        assert other != caption
        assert named[other] == named[caption]
    alone = [caption for caption in range(len(folder)) if named.count(named[caption]) == 1]
    assert set(others) == set(range(len(folder))) - set(alone)
    assert set(named[0]) < set(ATTRIBUTES)


def test_differences_are_means_over_pairs() -> None:
    torch.manual_seed(0)
    first, second = torch.randint(0, 256, (2, 5, 3, 4, 4), dtype=torch.uint8)
    found = differences(first, second, Corners())
    assert found["pairs"] == 5
    apart = np.abs(first.numpy().astype(float) - second.numpy().astype(float))
    assert found["gray_levels"] == pytest.approx(apart.mean())
    corners = np.sqrt((apart[:, :, 0, 0] ** 2).sum(axis=1)).mean()
    assert found["features"] == pytest.approx(corners, rel=1e-6)
    assert set(differences(first, second, None)) == {"pairs", "gray_levels"}
