"""Pretraining of the small CNN, STEM and STREAM: it learns, and resumes to the same bits."""

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.inception_v3 import InceptionV3
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.cnn import train_cnn
from mirrorgan_fast.training.matcher import train_stem
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import (
    CNNSettings,
    MirrorGANTrainingSettings,
    STEMSettings,
    STREAMSettings,
)
from mirrorgan_fast.vocabulary import Vocabulary

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
    device: torch.device,
) -> Train:
    """Train the stage in a folder, with other settings of the stage where they are given."""
    function = {
        "cnn": lambda config, settings, examples, _, folder, **how: train_cnn(
            config, settings, examples, folder, **how
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
            device=device,
            workers=0,
            quiet=True,
        )
        return list(trained) if isinstance(trained, tuple) else [trained]

    return run


def stop(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], Any]) -> None:
    """Make every run stop in ``step``."""
    log = Run.log

    def log_and_stop(self: Run, at: int, figures: dict[str, Any]) -> None:
        log(self, at, figures)
        if at == step:
            how()

    monkeypatch.setattr(Run, "log", log_and_stop)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def kill() -> None:
    raise RuntimeError("killed")


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


# --- does it learn? -------------------------------------------------------------------------------

LEARNING = MirrorGANConfig(
    image_size=64,
    stages=2,
    embedding_size=64,
    word_embedding_size=64,
    text_dropout=0.0,
    image_encoder="small",
    stream_encoder="small",
    stream_hidden_size=128,
)


def curves(folder: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (folder / "curves.jsonl").read_text().splitlines()]


def test_the_cnn_learns_to_see_phrases_and_stem_which_caption_is_whose(
    tmp_path: Path, two_hundred: tuple[TrainingExamples, int], device: torch.device
) -> None:
    settings = MirrorGANTrainingSettings(
        cnn=CNNSettings(steps=100, batch_size=16, phrases=200),
        stem=STEMSettings(steps=150, batch_size=16, gradient_clip=1.0),
        precision="fp32",
        augment=False,
    )
    how: dict[str, Any] = {"device": device, "workers": 0, "quiet": True}
    cnn = train_cnn(LEARNING, settings, two_hundred[0], tmp_path / "cnn", **how)
    first, *_, last = curves(tmp_path / "cnn")
    assert last["cross_entropy"] < first["cross_entropy"] - 2
    train_stem(
        LEARNING, settings, *two_hundred, tmp_path / "stem", small_cnn=cnn.state_dict(), **how
    )
    first, *_, last = curves(tmp_path / "stem")
    assert last["damsm"] < first["damsm"] - 1
    assert last["retrieval"] > 3 / 16  # three times what chance gives


@pytest.mark.parametrize("stage", ["stem", "stream"])
def test_a_small_cnn_that_is_given_stays_frozen(
    tmp_path: Path,
    stage: str,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
    device: torch.device,
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
    how = {"device": device, "small_cnn": cnn.state_dict(), "workers": 0, "quiet": True}
    trained = (
        train_stem(*arguments, **how)[1].cnn
        if stage == "stem"
        else train_stream(*arguments, **how).cnn
    )
    assert_same(dict(trained.state_dict()), dict(cnn.state_dict()))  # batch statistics too


@pytest.mark.parametrize("stage", ["stem", "stream"])
def test_features_of_a_frozen_cnn_are_computed_once(
    tmp_path: Path,
    stage: str,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    two_hundred: tuple[TrainingExamples, int],
    device: torch.device,
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
    small_cnn = SmallImageEncoder().state_dict()
    losses = []
    for augment in (True, False):  # the examples themselves are not augmented
        train_stem_or_stream = train_stem if stage == "stem" else train_stream
        read.clear()
        train_stem_or_stream(
            config,
            dataclasses.replace(settings, augment=augment, precision="fp32", **{stage: options}),
            *two_hundred,
            tmp_path / str(augment),
            device=device,
            small_cnn=small_cnn,
            workers=0,
            quiet=True,
        )
        point = curves(tmp_path / str(augment))[-1]
        losses.append(point["damsm" if stage == "stem" else "cross_entropy"])
    assert sorted(read) == list(range(200))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_stream_learns_to_describe(
    tmp_path: Path, two_hundred: tuple[TrainingExamples, int], device: torch.device
) -> None:
    options = STREAMSettings(steps=200, batch_size=16)
    settings = MirrorGANTrainingSettings(stream=options, precision="fp32", augment=False)
    train_stream(LEARNING, settings, *two_hundred, tmp_path, device=device, workers=0, quiet=True)
    first, *_, last = curves(tmp_path)
    assert last["cross_entropy"] < first["cross_entropy"] - 1


def test_a_large_network_remembers_the_weights_that_it_began_with(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
    device: torch.device,
) -> None:
    large = dataclasses.replace(config, image_encoder="inception_v3")
    torch.manual_seed(3)
    state = InceptionV3(classifier=True).state_dict()
    save_file(state, tmp_path / "imagenet.safetensors")

    def train(folder: str, steps: int, weights: Path | str | None) -> DAMSMImageEncoder:
        options = dataclasses.replace(settings.stem, steps=steps, batch_size=2)
        _, encoder = train_stem(
            large,
            dataclasses.replace(settings, stem=options),
            examples,
            len(vocabulary),
            tmp_path / folder,
            device=device,
            backbone_weights=weights,  # type: ignore[arg-type]
            workers=0,
            quiet=True,
        )
        return encoder

    with pytest.raises(InputError, match=r"inception_v3 has no weights to begin with.*random"):
        train("run", 1, None)
    assert not (tmp_path / "run").exists()
    train("run", 1, tmp_path / "imagenet.safetensors")
    resumed = train("run", 2, None)
    for name, parameter in resumed.cnn.named_parameters():
        assert torch.equal(parameter, state[name]), name
    with pytest.raises(InputError, match=r"was made with weights .*, now it is 'random'"):
        train("run", 3, "random")
    trained = train("other", 1, "random")
    assert all(parameter.requires_grad for parameter in trained.cnn.parameters())
    with pytest.raises(InputError, match=r"was made with weights .* 'random', now it is "):
        train("other", 2, tmp_path / "imagenet.safetensors")
