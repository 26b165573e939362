"""Training of STEM with DAMSM: which caption belongs to which image?"""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.inception_v3 import InceptionV3
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.training.cnn import train_cnn
from mirrorgan_fast.training.matcher import train_stem
from mirrorgan_fast.training.settings import CNNSettings, MirrorGANTrainingSettings, STEMSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, LEARNING, curves


def test_the_cnn_learns_to_see_phrases_and_stem_which_caption_is_whose(
    tmp_path: Path, two_hundred: tuple[TrainingExamples, int]
) -> None:
    settings = MirrorGANTrainingSettings(
        cnn=CNNSettings(steps=100, batch_size=16, phrases=200),
        stem=STEMSettings(steps=150, batch_size=16, gradient_clip=1.0),
        precision="fp32",
        augment=False,
    )
    cnn = train_cnn(LEARNING, settings, two_hundred[0], tmp_path / "cnn", HERE)
    first, *_, last = curves(tmp_path / "cnn")
    assert last["cross_entropy"] < first["cross_entropy"] - 2
    train_stem(
        LEARNING, settings, *two_hundred, tmp_path / "stem", HERE, trained_cnn=cnn.state_dict()
    )
    first, *_, last = curves(tmp_path / "stem")
    assert last["damsm"] < first["damsm"] - 1
    assert last["retrieval"] > 3 / 16  # three times what chance gives


def test_a_large_network_remembers_the_weights_that_it_began_with(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
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
            HERE,
            backbone_weights=weights,  # type: ignore[arg-type]
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
