"""Training of AttnGAN: the chain without STREAM."""

import dataclasses
from pathlib import Path

import pytest

import mirrorgan_fast
from mirrorgan_fast import AttnGAN, MirrorGAN
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation.report import as_table, evaluate
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.config import AttnGANConfig, MirrorGANConfig
from mirrorgan_fast.training.chain import stages_of, train
from mirrorgan_fast.training.settings import (
    AttnGANSettings,
    AttnGANTrainingSettings,
    MirrorGANTrainingSettings,
)

from .runs import HERE

SHARED = {field.name for field in dataclasses.fields(AttnGANConfig)}


def attngan_config(config: MirrorGANConfig, **changed: int) -> AttnGANConfig:
    """Return what a MirrorGAN's sizes are without what AttnGAN lacks."""
    sizes = {name: v for name, v in dataclasses.asdict(config).items() if name in SHARED}
    return AttnGANConfig(**(sizes | changed))


def test_the_chain_needs_no_captioner(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
) -> None:
    attngan = attngan_config(config)
    chain = AttnGANTrainingSettings(
        cnn=settings.cnn,
        stem=settings.stem,
        gan=AttnGANSettings(steps=2, batch_size=5),
        precision="fp32",
    )
    assert stages_of(attngan) == ("cnn", "stem", "gan")
    with pytest.raises(InputError, match="train stream: this system has no such part"):
        train(("stream",), attngan, chain, birds, tmp_path, HERE)
    train(stages_of(attngan), attngan, chain, birds, tmp_path, HERE)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "cnn", "gan", "stem",
    ]  # fmt: skip
    model = mirrorgan_fast.load(tmp_path)
    assert type(model) is AttnGAN
    assert model.config == attngan
    with pytest.raises(InputError, match="holds a run of the system 'attngan', now it is"):
        train(("cnn",), config, settings, birds, tmp_path, HERE)


def test_an_evaluation_has_no_redescription(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    export_image_folder(folder, train=0, test=110, size=64, progress=False)
    full = MirrorGAN.from_pretrained()
    model = AttnGAN(attngan_config(full.config, image_size=32, stages=2), full.vocabulary)
    judge = AttributeClassifier.from_pretrained()
    figures = evaluate(model, ImageFolder(folder, "test"), judge=judge, quiet=True)
    assert "redescription" not in figures
    assert 0 <= figures["attributes"]["generated"]["overall"] <= 1
    assert "R-precision" in as_table(figures)
    assert "redescription" not in as_table(figures)
