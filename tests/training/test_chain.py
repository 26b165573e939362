"""The chain of all stages, from pictures to a model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.efficientnet_lite import LITE0_DIGEST
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.training.chain import stages_of, train
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings, Stage

from .runs import HERE, TINY

STAGES = stages_of(TINY)


def test_the_model_has_the_trained_cnn_twice(tmp_path: Path, run: Callable[..., None]) -> None:
    run(*STAGES)
    model = MirrorGAN.from_pretrained(tmp_path)
    trained = load_checkpoint(tmp_path / "cnn")["model"]
    for cnn in (model.image_encoder.cnn, model.stream.cnn):
        for name, tensor in cnn.state_dict().items():
            assert torch.equal(tensor, trained[f"cnn.{name}"]), name


def test_a_model_that_sees_with_efficientnet_has_no_copy_of_it(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
) -> None:
    names = dict.fromkeys(("image_encoder", "stream_encoder"), "efficientnet_lite0")
    sees: Any = dataclasses.replace(config, **names)
    with pytest.raises(InputError, match="no small CNN"):
        train(("cnn",), sees, settings, birds, tmp_path, HERE)
    weights: Any = {"stem": Path("lite0.pth")}
    with pytest.raises(InputError, match=r"lite0\.pth: .* does not start from a file"):
        train(("stem",), sees, settings, birds, tmp_path, HERE, backbone_weights=weights)
    train(stages_of(sees), sees, settings, birds, tmp_path, HERE)
    assert not (tmp_path / "cnn").exists()
    model = MirrorGAN.from_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if ".cnn." in name]
    image = birds.image(0)
    assert all(model.describe([image, image.resize((200, 200))]))
    assert model.image_encoder(torch.rand(1, 3, 32, 32))[0].shape == (1, 64, config.embedding_size)

    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(LITE0_DIGEST, "0" * 64))
    with pytest.raises(InputError, match=r"config\.json: .* another EfficientNet-Lite0"):
        MirrorGAN.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: .* another EfficientNet-Lite0"):
        train(("gan",), sees, settings, birds, tmp_path, HERE)


def test_a_stage_that_is_missing_is_named(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
) -> None:
    for stage, needed in (("stem", "cnn"), ("stream", "cnn"), ("gan", "stem")):
        with pytest.raises(InputError, match=rf"{needed}.*train that part first"):
            train((stage,), config, settings, birds, tmp_path, HERE)
    assert not list(tmp_path.iterdir()), "what is refused must not claim the folder"
    large = dataclasses.replace(config, image_encoder="inception_v3", stream_encoder="resnet152")
    with pytest.raises(InputError, match="no small CNN"):
        train(("cnn",), large, settings, birds, tmp_path, HERE)


class Changed(CaptionedImages):
    """Birds with another order, other captions or other classes."""

    def __init__(self, birds: CaptionedImages, **changes: Any) -> None:
        self._birds = birds
        self._changes = changes

    def __len__(self) -> int:
        return len(self._birds)

    def image(self, index: int) -> Image.Image:
        return self._birds.image(index)

    def name(self, index: int) -> str:
        return self._birds.name(index)

    def captions(self, index: int) -> list[str]:
        change = self._changes.get("captions", lambda index: index)
        changed = change(index)
        return self._birds.captions(changed) if isinstance(changed, int) else changed

    def label(self, index: int) -> int:
        return self._changes.get("label", index)

    def stamp(self, index: int) -> str | None:
        return self._birds.stamp(index)


def test_a_stage_on_top_of_another_network_is_refused(
    tmp_path: Path, settings: MirrorGANTrainingSettings, run: Callable[..., None]
) -> None:
    """A STEM or CNN that was trained on after the stages that use it."""

    def longer(stage: Stage) -> dict[str, Any]:
        return {stage: dataclasses.replace(getattr(settings, stage), steps=8)}

    run(*STAGES)
    run("gan", **longer("gan"))
    run("stem", **longer("stem"))
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"gan/checkpoint\.pt: was made with weights of stem"):
        run("gan", **longer("gan"))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    run("cnn", **longer("cnn"))
    for stage in ("stem", "stream"):
        with pytest.raises(InputError, match=rf"{stage}/checkpoint\.pt: .* weights of cnn"):
            run(stage)


def test_other_data_of_the_same_words_is_refused(
    birds: CaptionedImages, run: Callable[..., None]
) -> None:
    run("cnn")
    with pytest.raises(InputError, match=r"cnn/checkpoint\.pt: was made with data"):
        run("cnn", images=Changed(birds, captions=lambda index: (index + 1) % len(birds)))


def test_what_a_later_stage_would_refuse_is_refused_at_once(
    tmp_path: Path,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
    run: Callable[..., None],
) -> None:
    late = dataclasses.replace(settings.gan, last_stage_from=6)
    large = dataclasses.replace(settings.stream, batch_size=13)
    for changed, fault in (
        ({"gan": late}, "last stage would never be trained"),
        ({"stream": large}, r"fewer than a batch of 13.*--set stream\.batch_size=12"),
        ({"images": Changed(birds, label=7)}, "all 12 pictures are of class 7"),
        (
            {"backbone_weights": {"stem": Path("a.pth")}},
            "a.pth: the CNN of this model's stem is small, which does not start from a file",
        ),
    ):
        with pytest.raises(InputError, match=fault):
            run(*STAGES, **changed)
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused_before_pictures_are_read(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
    run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("cnn")
    monkeypatch.setattr("mirrorgan_fast.training.chain.check_pictures", None)
    other = dataclasses.replace(config, generator_channels=5)
    with pytest.raises(InputError, match="holds a run with generator_channels 4, now it is 5"):
        train(("cnn",), other, settings, birds, tmp_path, HERE)


def test_a_picture_that_cannot_be_trained_on_is_left_out(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
    run: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = Changed(birds, captions=lambda index: ["!!!"] if index == 3 else index)
    strict = dataclasses.replace(HERE, strict=True)
    with pytest.raises(InputError, match=r"'train/00003' cannot be trained on: .* have no word"):
        train(("cnn",), config, settings, silent, tmp_path, strict)
    assert not list(tmp_path.iterdir())
    large = dataclasses.replace(settings.cnn, batch_size=12)
    with pytest.raises(InputError, match="11 training images are fewer than a batch of 12"):
        run("cnn", images=silent, cnn=large)
    assert "left out 1 of 12 pictures" in caplog.text
    run("cnn", images=silent)


def test_a_training_does_not_depend_on_the_cache(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
    assert_same: Any,
) -> None:
    models = []
    for cache in (None, tmp_path / "cache"):
        train(
            ("cnn",),
            config,
            settings,
            birds,
            tmp_path / str(cache is None),
            dataclasses.replace(HERE, cache=cache),
        )
        models.append(load_checkpoint(tmp_path / str(cache is None) / "cnn")["model"])
    assert_same(*models)
    (tmp_path / "cache").rename(tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").glob("pictures-32-augmented-*/*")] != []


def test_a_training_that_diverges_stops(
    tmp_path: Path, settings: MirrorGANTrainingSettings, run: Callable[..., None]
) -> None:
    wild = dataclasses.replace(settings.cnn, learning_rate=1e30)
    with pytest.raises(
        InputError, match=r"cnn: the gradients of the CNN .* 5 steps up to step 6: .* diverged"
    ):
        run(*STAGES, cnn=wild)
    assert not (tmp_path / "stem").exists()
    assert not (tmp_path / "model.safetensors").exists()
