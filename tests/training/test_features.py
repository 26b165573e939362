"""The frozen CNN of a training: it stays as it is, and its features are computed once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.training.captioner import train_stream
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
    image_of = TrainingExamples._image
    monkeypatch.setattr(
        TrainingExamples,
        "_image",
        lambda self, index, *rest: (read.append(index), image_of(self, index, *rest))[1],
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
