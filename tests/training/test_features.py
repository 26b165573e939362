"""The frozen CNN of a training: it stays as it is, and its features are computed once."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.data.prepared_pictures import PreparedPictures
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.features import ImageFeatures, fixed_crops
from mirrorgan_fast.training.matcher import train_stem
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, curves


@pytest.mark.parametrize("stage", ["stem", "stream"])
def test_a_trained_cnn_that_is_given_stays_frozen(
    tmp_path: Path,
    stage: str,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
    assert_same: Any,
) -> None:
    cnn = SmallImageEncoder()
    options = dataclasses.replace(getattr(settings, stage), steps=2)
    arguments = (
        config,
        dataclasses.replace(settings, **{stage: options}),
        examples,
        len(vocabulary),
        tmp_path,
    )
    frozen = cnn.state_dict()
    trained = (
        train_stem(*arguments, HERE, trained_cnn=frozen)[1].cnn
        if stage == "stem"
        else train_stream(*arguments, HERE, trained_cnn=frozen).cnn
    )
    assert_same(dict(trained.state_dict()), dict(cnn.state_dict()))  # batch statistics too


@pytest.mark.parametrize("stage", ["stem", "stream"])
def test_features_of_a_frozen_cnn_are_computed_once(
    tmp_path: Path,
    stage: str,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    two_hundred: tuple[TrainingExamples, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    picture_of = PreparedPictures.__getitem__
    monkeypatch.setattr(
        PreparedPictures,
        "__getitem__",
        lambda self, index: (read.append(index), picture_of(self, index))[1],
    )
    # Nothing is learned, so that the losses differ by rounding alone
    options = dataclasses.replace(getattr(settings, stage), steps=3, learning_rate=0.0)
    trained_cnn = SmallImageEncoder().state_dict()
    losses = []
    for augment in (True, False):  # the examples themselves are not augmented
        train_stem_or_stream = train_stem if stage == "stem" else train_stream
        read.clear()
        train_stem_or_stream(
            config,
            dataclasses.replace(settings, augment=augment, precision="fp32", **{stage: options}),
            *two_hundred,
            tmp_path / str(augment),
            HERE,
            trained_cnn=trained_cnn,
        )
        point = curves(tmp_path / str(augment))[-1]
        losses.append(point["damsm" if stage == "stem" else "cross_entropy"])
    assert sorted(read) == list(range(200))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("most_in_memory", [2**31, 0])
@pytest.mark.parametrize("workers", [0, 1])
def test_features_of_fixed_crops_are_those_of_the_crops(
    tmp_path: Path,
    birds: CaptionedImages,
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
    most_in_memory: int,
    workers: int,
) -> None:
    monkeypatch.setattr("mirrorgan_fast.training.features._MOST_IN_MEMORY", most_in_memory)
    examples = TrainingExamples(birds, vocabulary, 32, augment=True)
    cnn = SmallImageEncoder().eval().requires_grad_(False)
    cache = tmp_path / "cache"
    features = ImageFeatures(
        cnn, examples, dataclasses.replace(HERE, workers=workers, cache=cache), FP32, crops=3
    )
    assert "image" not in features.examples[0]
    for epoch in (0, 4):
        features.examples.set_epoch(epoch)
        index = torch.tensor([7, 2, 3])
        found = features({"index": index})
        images = [examples.of_crop((epoch + i) % 3)[i]["image"] for i in index.tolist()]
        wanted = cnn(to_signed(torch.stack(images), torch.device("cpu")))
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)
    assert cache.exists() == (most_in_memory == 0)
    assert not cache.exists() or not list(cache.iterdir())  # the file has no name


def test_a_cnn_that_trains_has_no_fixed_crops() -> None:
    cnn = SmallImageEncoder()
    assert fixed_crops("stem", cnn, 0, augment=False) == 0
    with pytest.raises(InputError, match=r"stem\.crops is 4, but the CNN is trained too"):
        fixed_crops("stem", cnn, 4, augment=True)
    cnn.requires_grad_(False)
    assert [fixed_crops("stem", cnn, 4, augment=augment) for augment in (True, False)] == [4, 1]


def test_a_disk_that_is_too_small_for_features_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorgan_fast.training.features._MOST_IN_MEMORY", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    features = ImageFeatures(
        SmallImageEncoder().eval(),
        TrainingExamples(PaintedBirds("train", 2), Vocabulary(["<end>", "bird"]), 32),
        dataclasses.replace(HERE, cache=tmp_path / "cache"),
        FP32,
        crops=1,
    )
    with pytest.raises(InputError, match=r"features of the images take .* GB.*--cache FOLDER"):
        features({"index": torch.tensor([0, 1])})
