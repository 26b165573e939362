"""settings.toml: what it remembers, what it refuses, and what may change while a run trains."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.recipes import DEFAULT_RECIPE, RECIPES
from mirrorgan_fast.run_settings import RunSettings, check_changes
from mirrorgan_fast.training.checkpoint import CHECKPOINT
from mirrorgan_fast.training.fine_tuning import for_fine_tuning
from mirrorgan_fast.training.settings import GAN_STAGES, SETTINGS

from .small import SMALL, small_model


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_of_every_recipe_is_remembered(tmp_path: Path, recipe: str) -> None:
    settings = dataclasses.replace(
        RunSettings.of_recipe(recipe),
        data=tmp_path / 'birds with "quotes"',
        split_field="part",
        max_pixels=12,
        weights={"stem": "random", "stream": tmp_path / "resnet152.pth"},
    )
    settings.save(tmp_path)
    assert RunSettings.load(tmp_path / SETTINGS) == settings
    values = tomllib.loads((tmp_path / SETTINGS).read_text())
    assert len(values["model"]) == len(dataclasses.fields(settings.config))
    stages = [stage for stage in GAN_STAGES if stage in values["training"]]
    for stage in stages:  # tuples are lists in TOML
        betas = getattr(RECIPES[recipe].settings, stage).betas
        assert values["training"][stage]["betas"] == list(betas)
    assert stages


def test_defaults_that_change_later_do_not_change_a_run(tmp_path: Path) -> None:
    """What is remembered is every value, not only those that differ from the defaults."""
    RunSettings.of_recipe("cub").save(tmp_path)
    values = tomllib.loads((tmp_path / SETTINGS).read_text())
    assert values["training"]["gan"]["steps"] == 265_000
    assert values["model"]["image_size"] == 256


def test_a_file_by_hand_needs_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'recipe = "attngan-birds-painted"\n[model]\nimage_size = 64\n'
        "[training]\nseed = 3\n[training.gan]\nlearning_rate = 1\nbetas = [0, 0.99]\n"
    )
    expected = RunSettings.of_recipe("attngan-birds-painted")
    for name, value in (("image_size", "64"), ("seed", "3"), ("gan.learning_rate", "1")):
        expected = expected.changed(name, value)
    expected = expected.changed("gan.betas", "0,0.99")
    assert RunSettings.load(path) == expected


def test_words_are_a_list_in_a_file_and_have_commas_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text('[training.gan]\nedit_words = ["red", "dark-blue"]\n')
    written = RunSettings.load(tmp_path / SETTINGS)
    assert RunSettings.of_recipe("birds-painted").changed("gan.edit_words", "red,dark-blue") == (
        written
    )
    assert written.changed("gan.edit_words", "") == RunSettings.of_recipe("birds-painted")
    written.save(tmp_path)
    assert RunSettings.load(tmp_path / SETTINGS) == written
    for bad in ("red,,blue", "dark blue,red", ","):
        with pytest.raises(InputError, match=r"edit_words is .*, expected words with commas"):
            written.changed("gan.edit_words", bad)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("steps = ", "cannot be read as TOML"),
        ("\xff", "cannot be read as TOML"),
        ("a = " + "[" * 100_000, "cannot be read as TOML"),
        ("speed = 3", "there is no entry speed"),
        ("model = 3", "model is 3"),
        ("data = 3", "data is 3"),
        ("max_pixels = true", "max_pixels is True"),
        ('recipe = "bats"', "no recipe 'bats'"),
        ('system = "bats"', "system is 'bats', expected mirrorgan or attngan or stackgan"),
        ('system = "attngan"\nrecipe = "cub"', "the recipe cub is not of the system attngan"),
        ("[model]\nspeed = 3", "there is no setting model.speed"),
        ("[model]\nimage_size = 100", "power of two"),
        ("[model]\nimage_size = [64]", "image_size is (64,), expected a whole number"),
        ("[training.gan]\nspeed = 3", "there is no setting training.gan.speed"),
        ("[training]\ngan = 3", "training.gan is 3"),
        ("[training.gan]\nsteps = {a = 3}", "training.gan.steps is {'a': 3}"),
        ("[training.gan]\nbetas = [0.5]", "betas is (0.5,), expected two numbers"),
        ("[training.gan]\nlearning_rate = nan", "learning_rate is nan"),
        ("[training]\nprecision = 16", "precision is 16, expected one of auto, bf16, fp16, fp32"),
        ("[weights]\ngan = 3", "weights.gan is 3"),
        ('[weights]\nwings = "a"', "weights.wings"),
    ],
)
def test_what_a_file_may_not_have(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as refusal:
        RunSettings.load(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert fault in str(refusal.value)


def test_a_file_without_a_recipe_starts_from_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[training]\nseed = 3\n")
    default = RunSettings.of_recipe(DEFAULT_RECIPE)
    assert RunSettings.load(tmp_path / "mine.toml") == default.changed("seed", "3")


def test_the_file_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("#" * (2**20 + 1))
    with pytest.raises(InputError, match="too large"):
        RunSettings.load(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("gan.steps", "7", None),
        ("save_every", "7", None),
        ("log_every", "7", None),
        ("stream.learning_rate", "0.5", None),  # has not begun
        ("gan.learning_rate", "0.5", "--change gan.learning_rate=0.5 changes it from now on"),
        ("gan.stream_weight", "5", "--change gan.stream_weight=5.0"),
        ("gan.batch_size", "7", "--change gan.batch_size=7"),
        ("gan.average_decay", "0.5", "begin another run"),
        ("seed", "7", "begin another run"),
        ("precision", "fp32", "begin another run"),
    ],
)
def test_what_may_change_while_a_stage_is_trained(
    tmp_path: Path, name: str, value: str, advice: str | None
) -> None:
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / CHECKPOINT).touch()
    before = RunSettings.of_recipe("birds-painted")
    now = before.changed(name, value)
    if advice is None:
        check_changes(before, now, tmp_path, frozenset())
        return
    with pytest.raises(InputError, match=rf"was begun with {name}.*{advice}"):
        check_changes(before, now, tmp_path, frozenset())
    if "--change" in advice:
        check_changes(before, now, tmp_path, frozenset({name}))
    else:
        with pytest.raises(InputError, match="this cannot change while a stage is trained"):
            check_changes(before, now, tmp_path, frozenset({name}))


def test_all_changes_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / CHECKPOINT).touch()
    before = RunSettings.of_recipe("birds-painted")
    now = before.changed("gan.learning_rate", "0.5").changed("gan.batch_size", "7")
    both = "--change gan.batch_size=7 --change gan.learning_rate=0.5 changes it from now on"
    with pytest.raises(InputError, match=both):
        check_changes(before, now, tmp_path, frozenset())
    # --change would lead nowhere if something else differs too, as with another recipe
    other = dataclasses.replace(now, training=RunSettings.of_recipe("cub").training)
    with pytest.raises(InputError, match=r"was begun with .*; begin another run"):
        check_changes(before, other, tmp_path, frozenset())


def test_a_model_is_trained_further_as_it_was_trained(tmp_path: Path) -> None:
    shipped = RunSettings.of_model("birds-painted")
    assert shipped.init_from == "birds-painted"
    assert shipped.config == RECIPES["birds-painted"].config
    assert shipped.training == for_fine_tuning(RECIPES["birds-painted"].settings)

    model = tmp_path / "model"
    small_model().save_pretrained(model)
    own = RunSettings.of_model(str(model))  # its sizes are of no recipe
    assert (own.config, own.init_from) == (SMALL, str(model))
    assert own.training == for_fine_tuning(RECIPES["cub-paper"].settings)
    dataclasses.replace(own).changed("gan.learning_rate", "0.5").save(model)
    again = RunSettings.of_model(str(model))
    assert again.training == own.changed("gan.learning_rate", "0.5").training  # not once more
    dataclasses.replace(own, init_from=None).save(model)
    assert RunSettings.of_model(str(model)).training == for_fine_tuning(own.training)
    again.save(tmp_path)
    assert RunSettings.load(tmp_path / SETTINGS) == again
    RunSettings.of_recipe("attngan-cub").save(model)
    with pytest.raises(InputError, match=r"settings\.toml: is of the system attngan"):
        RunSettings.of_model(str(model))
    with pytest.raises(InputError, match="no model there"):
        RunSettings.of_model(str(tmp_path / "none"))


def test_what_a_run_starts_from_cannot_change(tmp_path: Path) -> None:
    before = RunSettings.of_recipe("birds-painted")
    now = dataclasses.replace(before, init_from="birds-painted")
    for first, second, fault in (
        (before, now, "was begun from nothing, now it is from the model birds-painted"),
        (now, before, "was begun from the model birds-painted, now it is from nothing"),
    ):
        with pytest.raises(InputError, match=fault):
            check_changes(first, second, tmp_path, frozenset())


def test_nothing_has_begun_in_a_new_run(tmp_path: Path) -> None:
    before = RunSettings.of_recipe("birds-painted")
    changes: dict[str, Any] = {"seed": "7", "gan.average_decay": "0.5", "cnn.batch_size": "8"}
    for name, value in changes.items():
        check_changes(before, before.changed(name, value), tmp_path, frozenset())
