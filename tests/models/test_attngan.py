"""AttnGAN: its networks, saving and loading, and the commands that accept it."""

import dataclasses
from pathlib import Path

import pytest
import torch

import mirrorgan_fast
from mirrorgan_fast import AttnGAN, MirrorGAN
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import AttnGANConfig
from mirrorgan_fast.models.systems import config_class, name_of, names
from mirrorgan_fast.recipes import RECIPES, find_recipe
from mirrorgan_fast.vocabulary import END, Vocabulary
from tests.small import SMALL, WORDS, small_model

SHARED = {field.name for field in dataclasses.fields(AttnGANConfig)}
CONFIG = AttnGANConfig(**{n: v for n, v in dataclasses.asdict(SMALL).items() if n in SHARED})


@pytest.fixture
def model() -> AttnGAN:
    torch.manual_seed(1)
    return AttnGAN(CONFIG, Vocabulary([END, *WORDS])).eval()


def test_it_has_neither_sentence_attention_nor_a_captioner(model: AttnGAN) -> None:
    assert all(F_att.V is None for F_att in model.glam.F_att)
    assert set(dict(model.named_children())) == {"stem", "glam", "image_encoder"}
    for name in ("attngan-cub", "attngan-coco", "attngan-birds-painted"):
        assert isinstance(find_recipe(name).config, AttnGANConfig)


def test_the_birds_generator_has_as_many_parameters_as_the_authors() -> None:
    """7,084,592 were counted in the authors' code, without the text encoder."""
    with torch.device("meta"):
        model = AttnGAN(find_recipe("attngan-cub").config, Vocabulary([END, *WORDS]))
    assert sum(p.numel() for p in model.glam.parameters()) == 7_084_592


def test_a_folder_says_which_system_it_holds(model: AttnGAN, tmp_path: Path) -> None:
    captions = ["a red bird", "a blue bird"]
    for kind, saved in ((AttnGAN, model), (MirrorGAN, small_model())):
        saved.save_pretrained(tmp_path / kind.SYSTEM)
        loaded = mirrorgan_fast.load(tmp_path / kind.SYSTEM)
        assert type(loaded) is kind
        assert loaded.config == saved.config
        assert loaded.sample(captions) == saved.sample(captions)
        assert fuse(loaded).sample(captions) == fuse(saved).sample(captions)
    with pytest.raises(InputError, match=r"attngan.*mirrorgan_fast\.load"):
        MirrorGAN.from_pretrained(tmp_path / "attngan")
    with pytest.raises(InputError, match=r"mirrorgan.*mirrorgan_fast\.load"):
        AttnGAN.from_pretrained(tmp_path / "mirrorgan")


def test_each_recipe_belongs_to_one_system() -> None:
    for recipe in RECIPES.values():
        systems = [name for name in names() if config_class(name) is type(recipe.config)]
        assert systems == [name_of(recipe.config)]
