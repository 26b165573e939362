"""What each system can do: the table on the page, and the commands that do it or refuse."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.systems import SYSTEMS
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.recipes import RECIPES
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.training.fine_tuning import starting_model
from mirrorgan_fast.vocabulary import END, Vocabulary

from .small import SMALL, WORDS

PAGE = (Path(__file__).parent.parent / "docs" / "systems.md").read_text(encoding="utf-8")
ALL = {"sample", "attention maps", "describe", "walk", "export", "fine-tune"}
CAN = {
    "mirrorgan": ALL,
    "attngan": ALL - {"describe"},
    "stackgan-v2": ALL - {"describe", "attention maps"},
    "stackgan": ALL - {"describe", "attention maps"},
    "gan-int-cls": ALL - {"describe", "attention maps"},
    "gawwn": ALL - {"describe", "attention maps"},
}
NAMES = {
    "MirrorGAN": "mirrorgan",
    "AttnGAN": "attngan",
    "StackGAN++": "stackgan-v2",
    "StackGAN": "stackgan",
    "GAN-INT-CLS": "gan-int-cls",
    "GAWWN": "gawwn",
}


def small(system: str) -> TextToImage:
    """Return an untrained model of a system, of 32 pixels."""
    kind = SYSTEMS[system]
    fields = {field.name for field in dataclasses.fields(kind.CONFIG)}
    sizes: dict[str, Any] = {k: v for k, v in dataclasses.asdict(SMALL).items() if k in fields}
    if "first_size" in fields:
        sizes |= {"first_size": 16, "generator_channels": 8}
    torch.manual_seed(0)
    return kind(kind.CONFIG(**sizes), Vocabulary([END, *WORDS])).eval()


def test_the_table_on_the_page_is_true() -> None:
    section = PAGE.partition("## What each can do\n")[2].partition("\n## ")[0]
    heading, _, *rows = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    things = [cell.strip() for cell in heading.split("|")][1:]
    assert set(things) == ALL
    shown = {}
    for row in rows:
        name, *cells = (cell.strip() for cell in row.split("|"))
        shown[NAMES[name]] = {
            thing for thing, cell in zip(things, cells, strict=True) if cell == "yes"
        }
    assert shown == CAN
    assert set(CAN) == set(SYSTEMS)


def test_the_page_lists_the_recipes_of_its_systems() -> None:
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE)
    prefixes = ("stackgan", "gan-int-cls", "gawwn")
    assert sorted(listed) == sorted(name for name in RECIPES if name.startswith(prefixes))


@pytest.mark.parametrize("system", SYSTEMS)
def test_commands_do_it_or_refuse_in_one_line(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = small(system), str(tmp_path / "model")
    model.save_pretrained(folder)
    sample = ["sample", "a red bird", "--model", folder]
    commands = {
        "sample": [*sample, "-o", str(tmp_path / "out")],
        "walk": [*sample, "--walk", "2", "-o", str(tmp_path / "walk.webp")],
        "describe": ["describe", str(tmp_path / "out" / "0000.png"), "--model", folder],
        "export": ["export", "--format", "onnx", "-o", str(tmp_path / "m.onnx"), "--model", folder],
    }
    for thing, command in commands.items():
        status = main(command)
        said = capsys.readouterr().err
        if thing in CAN[system]:
            assert status == 0, (thing, said)
        else:
            assert status == 2
            assert re.fullmatch(rf"mirrorgan-fast: {thing}: .* {system} model.*\n", said), said


@pytest.mark.parametrize("system", SYSTEMS)
def test_attention_maps_are_there_or_refused(system: str) -> None:
    sampler = Sampler(small(system))
    if "attention maps" in CAN[system]:
        assert next(sampler(["a red bird"], attention=True)).attention
        return
    with pytest.raises(InputError, match=f"a {system} model has no word attention"):
        next(sampler(["a red bird"], attention=True))


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_can_be_trained_further(system: str) -> None:
    """With new words; what it draws of captions with known ones stays the same."""
    model = small(system)
    grown = starting_model(model, model.config, ["a scarlet bird"])
    assert "fine-tune" in CAN[system]
    assert grown.vocabulary.words == (*model.vocabulary.words, "scarlet")
    assert grown.sample(["a red bird"]) == model.sample(["a red bird"])


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_is_evaluated(system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_image_folder(tmp_path / "birds", train=0, test=104, size=64, progress=False)
    small(system).save_pretrained(tmp_path / "model")
    command = ["evaluate", "--data", str(tmp_path / "birds"), "--count", "8", "--quiet"]
    assert main([*command, "--model", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    assert "R-precision" in shown
    assert ("redescription" in shown) == ("describe" in CAN[system])
