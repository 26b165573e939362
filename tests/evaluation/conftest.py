"""Shared by the evaluation's tests: a few exported birds, and a judge that knows the answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 13 test birds of 64 pixels: 130 test captions."""
    root = tmp_path_factory.mktemp("birds") / "exported"
    export_image_folder(root, train=16, test=13, size=64, seed=3, workers=1, progress=False)
    return root


class Oracle(AttributeClassifier):
    """A judge that knows some images' attributes, and reads the first values in all others."""

    def __init__(self) -> None:
        super().__init__(ATTRIBUTES)
        self.known: dict[bytes, dict[str, str]] = {}

    def tell(self, image: Tensor, attributes: dict[str, str]) -> None:
        self.known[image.numpy().tobytes()] = attributes

    def read(self, images: Tensor, batch_size: int = 64) -> list[dict[str, str]]:
        unknown = {name: values[0] for name, values in ATTRIBUTES.items()}
        return [self.known.get(image.numpy().tobytes(), unknown) for image in images]


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


def pixels(folder: ImageFolder, index: int) -> Tensor:
    """Return a picture as uint8 (3, S, S)."""
    return torch.from_numpy(np.asarray(folder.image(index)).transpose(2, 0, 1).copy())
