"""Pretraining of the small CNN, STEM and STREAM: it learns, and resumes to the same bits."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.cnn import train_cnn
from mirrorgan_fast.training.matcher import train_stem
from mirrorgan_fast.training.settings import (
    MirrorGANTrainingSettings,
)
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, interrupt, kill, stop

Train = Callable[..., list[nn.Module]]


@pytest.fixture(params=["cnn", "stem", "stream"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def train(
    stage: str,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
) -> Train:
    """Train the stage in a folder, with other settings of the stage where they are given."""
    function = {
        "cnn": lambda config, settings, examples, _, *rest: train_cnn(
            config, settings, examples, *rest
        ),
        "stem": train_stem,
        "stream": train_stream,
    }[stage]

    def run(folder: Path, seed: int = 0, **changed: Any) -> list[nn.Module]:
        options = dataclasses.replace(getattr(settings, stage), **changed)
        trained = function(
            config,
            dataclasses.replace(settings, seed=seed, **{stage: options}),
            examples,
            len(vocabulary),
            folder,
            HERE,
        )
        return list(trained) if isinstance(trained, tuple) else [trained]

    return run


def test_ctrl_c_and_resume_end_as_without(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, assert_same: Any
) -> None:
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop(patch, 2, interrupt)  # in the second epoch
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "resumed")
    assert load_checkpoint(tmp_path / "resumed")["step"] == 3
    resumed = train(tmp_path / "resumed")
    assert_same(load_checkpoint(tmp_path / "resumed"), load_checkpoint(tmp_path / "whole"))
    for network, expected in zip(resumed, whole, strict=True):
        assert_same(network.state_dict(), expected.state_dict())
        assert not network.training


def test_a_killed_run_goes_on_from_its_checkpoint(
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    write_every: Callable[[int, int], None],
    assert_same: Any,
) -> None:
    write_every(1, 2)
    train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop(patch, 4, kill)  # after the checkpoint of 4 steps and the points of 5
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "killed")
    assert load_checkpoint(tmp_path / "killed")["step"] == 4
    train(tmp_path / "killed")
    assert_same(load_checkpoint(tmp_path / "killed"), load_checkpoint(tmp_path / "whole"))
    whole, killed = ((tmp_path / run / "curves.jsonl").read_text() for run in ("whole", "killed"))
    assert killed == whole
    assert [json.loads(row)["step"] for row in whole.splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_run_can_be_made_longer(
    tmp_path: Path, stage: str, train: Train, assert_same: Any
) -> None:
    train(tmp_path / "longer", steps=3)
    longer = train(tmp_path / "longer")
    assert load_checkpoint(tmp_path / "longer")["step"] == 6
    whole = train(tmp_path / "whole")
    if stage == "stem":  # the others' learning rate falls to zero at the end of the steps asked for
        for network, expected in zip(longer, whole, strict=True):
            assert_same(network.state_dict(), expected.state_dict())


def test_a_finished_run_is_only_read(tmp_path: Path, train: Train, assert_same: Any) -> None:
    first = train(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    again = train(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    for network, expected in zip(again, first, strict=True):
        assert_same(network.state_dict(), expected.state_dict())


def test_the_seed_decides(tmp_path: Path, train: Train, assert_same: Any) -> None:
    first, same = (train(tmp_path / name, steps=2) for name in ("first", "same"))
    other = train(tmp_path / "other", steps=2, seed=1)
    for network, expected, different in zip(first, same, other, strict=True):
        assert_same(network.state_dict(), expected.state_dict())
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                assert not torch.equal(parameter, different.state_dict()[name]), name


def test_all_of_the_networks_are_trained(tmp_path: Path, train: Train) -> None:
    for before, after in zip(
        train(tmp_path / "a", steps=1, learning_rate=0.0), train(tmp_path / "b"), strict=True
    ):
        for name, parameter in after.named_parameters():
            assert parameter.isfinite().all(), name
            assert not torch.equal(parameter, before.state_dict()[name]), name


@pytest.mark.parametrize("changed", [{"learning_rate": 0.125}, {"batch_size": 3}, {"seed": 7}])
def test_other_settings_are_refused(tmp_path: Path, train: Train, changed: dict[str, Any]) -> None:
    train(tmp_path, steps=1)
    ((name, value),) = changed.items()
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        train(tmp_path, **changed)


def test_too_few_images_are_refused(tmp_path: Path, train: Train) -> None:
    with pytest.raises(InputError, match="12 training images"):
        train(tmp_path, batch_size=13)
