"""Tiny networks and pictures: a step of training takes a fraction of a second on one core."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.training.chain import train
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import (
    CNNSettings,
    MirrorGANSettings,
    MirrorGANTrainingSettings,
    Stage,
    STEMSettings,
    STREAMSettings,
)
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, TINY


class KeptBirds(PaintedBirds):
    """Painted birds that are painted once."""

    @cached_property
    def _images(self) -> list[Image.Image]:
        return [PaintedBirds.image(self, index) for index in range(len(self))]

    def image(self, index: int) -> Image.Image:
        return self._images[index]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def config() -> MirrorGANConfig:
    return TINY


@pytest.fixture
def settings() -> MirrorGANTrainingSettings:
    return MirrorGANTrainingSettings(
        cnn=CNNSettings(steps=6, batch_size=5, phrases=20),
        stem=STEMSettings(steps=6, batch_size=5),
        stream=STREAMSettings(steps=6, batch_size=5),
        gan=MirrorGANSettings(steps=6, batch_size=5, form="authors", damsm_weight=1.0),
        precision="fp32",
    )


@pytest.fixture(scope="session")
def birds() -> KeptBirds:
    return KeptBirds("train", 12, size=64)


@pytest.fixture(scope="session")
def vocabulary(birds: KeptBirds) -> Vocabulary:
    return Vocabulary.build(text for index in range(len(birds)) for text in birds.captions(index))


@pytest.fixture
def run(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: KeptBirds,
) -> Callable[..., None]:
    """Train stages in ``tmp_path``.

    Other images and what ``train`` takes by name may be given, and settings by their names.
    """
    names = {field.name for field in dataclasses.fields(settings)}

    def train_stages(*stages: Stage, images: CaptionedImages = birds, **given: Any) -> None:
        changed = {name: given.pop(name) for name in names & given.keys()}
        settings_of_run = dataclasses.replace(settings, **changed)
        train(stages, config, settings_of_run, images, tmp_path, HERE, **given)

    return train_stages


@pytest.fixture
def examples(birds: KeptBirds, vocabulary: Vocabulary, config: MirrorGANConfig) -> TrainingExamples:
    """Twelve: two batches of five an epoch, and two left over."""
    return TrainingExamples(
        birds, vocabulary, config.image_size, config.caption_length, augment=True
    )


@pytest.fixture(scope="session")
def two_hundred() -> tuple[TrainingExamples, int]:
    """Enough to learn from, and the number of words."""
    birds = KeptBirds("train", 200, size=64)
    words = Vocabulary.build(text for index in range(200) for text in birds.captions(index))
    return TrainingExamples(birds, words, image_size=64, caption_length=18), len(words)


def _assert_same(actual: Any, expected: Any, place: str) -> None:
    assert type(actual) is type(expected), place
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), place
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), place
        for key in expected:
            _assert_same(actual[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), place
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            _assert_same(one, other, f"{place}/{index}")
    else:
        assert actual == expected, place


@pytest.fixture
def assert_same() -> Any:
    """Assert that two states (of nested dicts, lists and tensors) are the same, bit for bit."""
    return lambda actual, expected: _assert_same(actual, expected, "state")


@pytest.fixture
def write_every(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have every run log and save every so many steps, whatever its settings say."""

    def change(log_every: int, save_every: int) -> None:
        begin = Run.__init__

        def begin_so(self: Run, *arguments: Any, **how: Any) -> None:
            begin(self, *arguments, **{**how, "log_every": log_every, "save_every": save_every})

        monkeypatch.setattr(Run, "__init__", begin_so)

    return change
