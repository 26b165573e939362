"""The chain of all stages, from pictures to a model."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.training.chain import train
from mirrorgan_fast.training.run import load_checkpoint
from mirrorgan_fast.training.settings import STAGES, TrainingSettings


def test_makes_a_model_that_sees_with_the_cnn(
    tmp_path: Path,
    config: ModelConfig,
    settings: TrainingSettings,
    birds: CaptionedImages,
    device: torch.device,
) -> None:
    train(STAGES, config, settings, birds, tmp_path, device=device, workers=0, quiet=True)
    model = MirrorGAN.from_pretrained(tmp_path)
    trained = load_checkpoint(tmp_path / "cnn")["model"]
    for cnn in (model.image_encoder.cnn, model.stream.cnn):
        for name, tensor in cnn.state_dict().items():
            assert torch.equal(tensor, trained[f"cnn.{name}"]), name


def test_a_stage_that_is_missing_is_named(
    tmp_path: Path,
    config: ModelConfig,
    settings: TrainingSettings,
    birds: CaptionedImages,
    device: torch.device,
) -> None:
    for stage, needed in (("stem", "cnn"), ("stream", "cnn"), ("gan", "stem")):
        with pytest.raises(InputError, match=rf"{needed}.*train that part first"):
            train((stage,), config, settings, birds, tmp_path, device=device, quiet=True)
    assert not list(tmp_path.iterdir()), "what is refused must not claim the folder"
    large = dataclasses.replace(config, image_encoder="inception_v3", stream_encoder="resnet152")
    with pytest.raises(InputError, match="no small CNN"):
        train(("cnn",), large, settings, birds, tmp_path, device=device, quiet=True)
