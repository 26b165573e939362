"""What each system can do: the table on the page, and the commands that do it or refuse."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.models.systems import SYSTEMS, names
from mirrorgan_fast.recipes import RECIPES
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.training.fine_tuning import starting_model

from .small import small_model_of

PAGE = (Path(__file__).parent.parent / "docs" / "systems.md").read_text(encoding="utf-8")
ALL = {"sample", "attention maps", "describe", "walk", "export", "fine-tune"}
"""All that a text-to-image system can do."""
CAN = {
    "mirrorgan": ALL,
    "attngan": ALL - {"describe"},
    "stackgan-v2": ALL - {"describe", "attention maps"},
    "stackgan": ALL - {"describe", "attention maps"},
    "gan-int-cls": ALL - {"describe", "attention maps"},
    "cyclegan": {"export", "translate", "fine-tune"},
    "gawwn": ALL - {"describe", "attention maps"},
}
NAMES = {
    "MirrorGAN": "mirrorgan",
    "AttnGAN": "attngan",
    "StackGAN++": "stackgan-v2",
    "StackGAN": "stackgan",
    "GAN-INT-CLS": "gan-int-cls",
    "CycleGAN": "cyclegan",
    "GAWWN": "gawwn",
}


def test_the_table_on_the_page_is_true() -> None:
    section = PAGE.partition("## What each can do\n")[2].partition("\n## ")[0]
    heading, _, *rows = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    things = [cell.strip() for cell in heading.split("|")][1:]
    assert set(things) == {*ALL, "translate"}
    shown = {}
    for row in rows:
        name, *cells = (cell.strip() for cell in row.split("|"))
        shown[NAMES[name]] = {
            thing for thing, cell in zip(things, cells, strict=True) if cell == "yes"
        }
    assert shown == CAN
    assert set(CAN) == {*names()}


def test_the_page_lists_the_recipes_of_its_systems() -> None:
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE)
    prefixes = ("stackgan", "gan-int-cls", "gawwn", "cyclegan")
    assert sorted(listed) == sorted(name for name in RECIPES if name.startswith(prefixes))


def commands_of(model: str, folder: Path) -> dict[str, list[str]]:
    """Return a command for each thing, which write into a folder."""
    sample, picture = ["sample", "a red bird", "--model", model], str(folder / "out" / "0000.png")
    return {
        "sample": [*sample, "-o", str(folder / "out")],
        "walk": [*sample, "--walk", "2", "-o", str(folder / "walk.webp")],
        "describe": ["describe", picture, "--model", model],
        "export": ["export", "--format", "onnx", "-o", str(folder / "m.onnx"), "--model", model],
        "translate": ["translate", picture, "--model", model, "-o", str(folder / "translated")],
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_commands_do_it_or_refuse_in_one_line(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = small_model_of(system), str(tmp_path / "model")
    model.save_pretrained(folder)
    for thing, command in commands_of(folder, tmp_path).items():
        status = main(command)
        said = capsys.readouterr().err
        if thing in CAN[system]:
            assert status == 0, (thing, said)
        else:
            assert status == 2
            assert re.fullmatch(rf"mirrorgan-fast: {thing}: .* {system} model.*\n", said), said


def test_a_cyclegan_translates_and_refuses_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "model")
    sizes = {"image_size": 32, "generator_channels": 2, "residual_blocks": 1}
    CycleGAN(CycleGANConfig(**sizes)).save_pretrained(folder)
    (tmp_path / "out").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "out" / "0000.png")
    for thing, command in commands_of(folder, tmp_path).items():
        status = main(command)
        said = capsys.readouterr().err
        if thing in CAN["cyclegan"]:
            assert status == 0, (thing, said)
        else:
            assert status == 2
            assert re.fullmatch(r"mirrorgan-fast: .*a cyclegan model translates .*\n", said), said
    assert main(["info", "--model", folder]) == 0
    assert "domains: A, B" in capsys.readouterr().out
    assert main(["info", "--model", folder, "--words"]) == 2


def test_the_commands_for_cyclegan_on_the_page_work(tmp_path: Path) -> None:
    section = PAGE.partition("## CycleGAN\n")[2]
    block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    smaller = {
        "paint": ["--train=60", "--test=1", "--size=64", "--quiet"],
        "train": [
            *("--set=image_size=32", "--set=generator_channels=2", "--set=residual_blocks=1"),
            *("--set=discriminator_channels=2", "--set=gan.steps=1", "--quiet"),
        ],
        "translate": [],
        "evaluate": ["--count=2", "--quiet"],
    }
    seen = []
    for line in block.splitlines():
        name, *words = shlex.split(line)[1:]
        words = [
            str(tmp_path / "birds/images/train") if word == "PICTURES" else word for word in words
        ]
        words = [str(tmp_path / word) if word.endswith("/") else word for word in words]
        assert main([name, *words, *smaller[name]]) == 0, line
        seen.append(name)
    assert seen == list(smaller)
    assert len(list((tmp_path / "out").glob("*.png"))) == 60
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    code = code.replace("bird.png", str(tmp_path / "birds/images/train/00000.png"))
    exec(code.replace('"sunset.png"', repr(str(tmp_path / "sunset.png"))), {})
    assert (tmp_path / "sunset.png").exists()


@pytest.mark.parametrize("system", SYSTEMS)
def test_attention_maps_are_there_or_refused(system: str) -> None:
    sampler = Sampler(small_model_of(system))
    if "attention maps" in CAN[system]:
        assert next(sampler(["a red bird"], attention=True)).attention
        return
    with pytest.raises(InputError, match=f"a {system} model has no word attention"):
        next(sampler(["a red bird"], attention=True))


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_can_be_trained_further(system: str) -> None:
    """With new words; what it draws of captions with known ones stays the same."""
    model = small_model_of(system)
    grown = starting_model(model, model.config, ["a scarlet bird"])
    assert "fine-tune" in CAN[system]
    assert grown.vocabulary.words == (*model.vocabulary.words, "scarlet")
    assert grown.sample(["a red bird"]) == model.sample(["a red bird"])


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_is_evaluated(system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_image_folder(tmp_path / "birds", train=0, test=104, size=64, progress=False)
    small_model_of(system).save_pretrained(tmp_path / "model")
    command = ["evaluate", "--data", str(tmp_path / "birds"), "--count", "8", "--quiet"]
    assert main([*command, "--model", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    assert "R-precision" in shown
    assert ("redescription" in shown) == ("describe" in CAN[system])
