"""The model configuration: its presets, the sizes that follow from it, and invalid values."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.efficientnet_lite import LITE0_FILE
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.recipes import RECIPES, find_recipe
from mirrorgan_fast.training.settings import MirrorGANSettings


def test_cub_paper_is_the_configuration_of_the_paper() -> None:
    config = find_recipe("cub-paper").config
    assert config == MirrorGANConfig()
    assert config.stage_sizes == (64, 128, 256)
    assert (config.generator_channels, config.discriminator_channels) == (32, 64)
    assert (config.noise_size, config.condition_size, config.embedding_size) == (100, 100, 256)
    assert (config.residual_blocks, config.caption_length) == (2, 18)
    assert config.sentence_attention == "paper"


@pytest.mark.parametrize("data", ["cub", "coco"])
def test_cub_and_coco_follow_the_authors_code_and_their_paper_variants_the_paper(
    data: str,
) -> None:
    authors, paper = find_recipe(data), find_recipe(f"{data}-paper")
    assert authors.config == dataclasses.replace(paper.config, sentence_attention="authors")
    for recipe, form, weight in ((authors, "authors", 10.0), (paper, "paper", 20.0)):
        gan = recipe.settings.gan
        assert isinstance(gan, MirrorGANSettings)
        assert (gan.form, gan.stream_weight, gan.damsm_weight) == (form, weight, 0.0)
    same = {"form": "paper", "stream_weight": 20.0}
    gan = dataclasses.replace(authors.settings.gan, **same)
    assert dataclasses.replace(authors.settings, gan=gan) == paper.settings


def test_coco_is_wider_and_deeper() -> None:
    config = find_recipe("coco-paper").config
    assert config.stage_sizes == (64, 128, 256)
    assert (config.generator_channels, config.discriminator_channels) == (48, 96)
    assert (config.residual_blocks, config.caption_length) == (3, 12)


def test_painted_birds_need_no_large_network() -> None:
    config = find_recipe("birds-painted").config
    assert config.stage_sizes == (32, 64, 128)
    assert (config.image_encoder, config.stream_encoder) == ("small", "small")


def test_the_error_for_an_unknown_preset_lists_all_presets() -> None:
    with pytest.raises(InputError, match="'birds'") as error:
        find_recipe("birds")
    for name in RECIPES:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("image_size", "stages", "stage_sizes"),
    [
        (8, 1, (8,)),
        (64, 1, (64,)),
        (32, 3, (8, 16, 32)),
        (128, 2, (64, 128)),
        (1024, 5, (64, 128, 256, 512, 1024)),
    ],
)
def test_each_stage_doubles_the_size(
    image_size: int, stages: int, stage_sizes: tuple[int, ...]
) -> None:
    config = MirrorGANConfig(image_size=image_size, stages=stages)
    assert config.stage_sizes == stage_sizes
    assert config.first_size == stage_sizes[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_survives_json(name: str) -> None:
    config = find_recipe(name).config
    values = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(values) == config


@pytest.mark.parametrize("entry", ["image_encoder", "stream_encoder"])
def test_a_model_records_the_weights_of_efficientnet_and_is_refused_with_others(entry: str) -> None:
    config = MirrorGANConfig.from_dict({entry: "efficientnet_lite0"})
    values = json.loads(json.dumps(config.to_dict()))
    assert values["eyes"] == hashlib.sha256(LITE0_FILE.read_bytes()).hexdigest()
    assert MirrorGANConfig.from_dict(values) == config
    for other in ("0" * 64, None, [1]):
        with pytest.raises(InputError, match="another EfficientNet-Lite0") as error:
            MirrorGANConfig.from_dict(values | {"eyes": other}, "m/config.json")
        assert str(error.value).startswith("m/config.json: ")
    assert "eyes" not in MirrorGANConfig().to_dict()


def test_a_config_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MirrorGANConfig().image_size = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("image_size", 0),
        ("image_size", -256),
        ("image_size", 100),
        ("image_size", 16),  # leaves 4 pixels for the first of three stages
        ("image_size", 256.0),
        ("image_size", "256"),
        ("stages", 0),
        ("stages", 10),
        ("generator_channels", 0),
        ("discriminator_channels", None),
        ("residual_blocks", -1),
        ("noise_size", 0),
        ("condition_size", 1.5),
        ("embedding_size", 255),  # odd
        ("word_embedding_size", [300]),
        ("caption_length", 0),
        ("stream_hidden_size", 0),
        ("text_dropout", -0.1),
        ("text_dropout", 1.5),
        ("text_dropout", "0.5"),
        ("text_dropout", float("nan")),
        ("sentence_attention", "global"),
        ("sentence_attention", None),
        ("image_encoder", "resnet152"),
        ("stream_encoder", ["small"]),
    ],
)
def test_an_impossible_value_is_refused_by_name(entry: str, value: Any) -> None:
    with pytest.raises(InputError, match=entry) as error:
        MirrorGANConfig.from_dict({entry: value})
    assert "\n" not in str(error.value)
    if isinstance(value, int | str):
        assert str(value) in str(error.value)


@pytest.mark.parametrize("entry", ["sentence_attention", "image_encoder", "stream_encoder"])
def test_the_error_for_an_unknown_choice_lists_the_choices(entry: str) -> None:
    default = getattr(MirrorGANConfig(), entry)
    with pytest.raises(InputError, match=str(default)):
        MirrorGANConfig.from_dict({entry: "other"})


def test_unknown_entries_are_all_named() -> None:
    with pytest.raises(InputError, match="GF_DIM, branch_num"):
        MirrorGANConfig.from_dict({"branch_num": 3, "image_size": 64, "GF_DIM": 32})
