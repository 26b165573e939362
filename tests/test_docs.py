"""The commands on the page on training do what they say, in their order, on tiny networks."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.run_settings import RunSettings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SYSTEMS = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

TINY = """
recipe = "birds-painted"
[model]
image_size = 32
stages = 2
generator_channels = 4
discriminator_channels = 4
embedding_size = 16
word_embedding_size = 8
stream_hidden_size = 8
[training]
cnn = {steps = 1, batch_size = 4}
stem = {steps = 1, batch_size = 4}
stream = {steps = 1, batch_size = 4}
gan = {batch_size = 4, last_stage_from = 0}
"""
SMALLER = {
    "paint": ["--train=24", "--test=12", "--size=64", "--quiet"],
    "train": [
        *(f"--set={stage}.steps=1" for stage in ("cnn", "stem", "stream", "gan")),
        "--set=gan.last_stage_from=0",
        *("--workers=0", "--quiet"),
    ],
    "sample": ["--quiet"],
    "evaluate": ["--quiet"],
}
FURTHER = [
    *(f"--set={stage}.batch_size=4" for stage in ("stem", "stream", "gan")),
    "--set=gan.generator_from=0",
    "--no-validation",
]


def commands(text: str) -> list[str]:
    """Return the lines of all blocks of commands."""
    return [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]


def test_the_commands_on_training_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    for line in commands(PAGE):
        program, *arguments = shlex.split(line, comments=True)
        if program == "mkdir":
            subprocess.run(["sh", "-c", line], check=True)
        if program != "mirrorgan-fast":  # tensorboard; torchrun, which has a test of its own
            continue
        if "CUB/" in arguments:
            assert main(arguments) == 2
            assert "CUB" in capsys.readouterr().err  # it is not here
            continue
        if "--settings" not in arguments:
            arguments += SMALLER[arguments[0]]
            if "--init-from" in arguments:  # of 128 pixels
                shutil.copytree("birds", "mine")
                arguments += FURTHER
            elif arguments[0] == "train" and "--config" not in arguments:
                arguments += ["--config", "tiny.toml"]
        assert main(arguments) == 0, line
    for folder in ("birds", "small", "again", "ablation", "mine", "short"):
        assert Path("runs", folder, "model.safetensors").exists()


def test_the_commands_on_gawwn_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    smaller = [
        *("--set=image_size=32", "--set=generator_channels=4", "--set=discriminator_channels=4"),
        *(f"--set={stage}.steps=1" for stage in ("cnn", "stem", "gan")),
        *(f"--set={stage}.batch_size=4" for stage in ("cnn", "stem", "gan")),
        *("--workers=0", "--quiet"),
    ]
    section = SYSTEMS.partition("## Where as well as what: GAWWN\n")[2].partition("\n## ")[0]
    for line in commands(section):
        _, *arguments = shlex.split(line)
        assert main(arguments + {**SMALLER, "train": smaller}[arguments[0]]) == 0, line
    assert len(list(Path("out").glob("*.png"))) == 1
    assert Path("walk.webp").exists()


def test_a_file_of_settings_on_the_page_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own.toml").write_text(text)
    settings = RunSettings.load(tmp_path / "own.toml")
    assert (settings.config.image_size, settings.training.gan.batch_size) == (64, 16)


def test_the_readme_trains_as_the_page_does() -> None:
    def without_comments(lines: Iterable[str]) -> set[str]:
        return {shlex.join(shlex.split(line, comments=True)) for line in lines}

    section = README.partition("## Train\n")[2].partition("\n## ")[0]
    assert without_comments(commands(section)) <= without_comments(commands(PAGE))
