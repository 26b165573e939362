"""Damaged output folders of translations, in which they are resumed or started again."""

import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import damage, replace

_MINE = "mine.txt"  # a user's file in the output folder
_PICTURES = ("a.png", "b.png", "in/a.png", "in/c.png")
_LINKS = (
    *("a.png", ".a.png", "in", "in/c.png", "in/.c.png", "manifest.jsonl", ".manifest.jsonl"),
    *("errors.jsonl", ".translation", ".translation/run.json", ".translation/.run.json"),
    *(".translation/done-0.jsonl", ".translation/done-1.jsonl", ".translation/lock-0"),
)
_TARGETS = ("canary", "canary/in", "canary/precious.png", "canary/new", f"out/{_MINE}")


class _Given(NamedTuple):
    model: Path
    pictures: Path
    outputs: Path


def prepare(folder: Path) -> _Given:
    """Translate a few pictures to both domains, without damage."""
    torch.manual_seed(0)
    there = _Given(folder / "model", folder / "pictures", folder / "outputs")
    sizes = {"image_size": 32, "generator_channels": 2, "residual_blocks": 1}
    CycleGAN(CycleGANConfig(**sizes)).save_pretrained(there.model)
    for number, name in enumerate(_PICTURES):
        path = there.pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20 + number, 16), 60).convert("RGB").save(path)
    for to in "AB":
        output = there.outputs / to
        output.mkdir(parents=True)
        given.made(_command(to, there), output)
    return there


def make(randomly: random.Random, there: _Given, folder: Path) -> Case:
    """Write a damaged output folder, next to a folder that must not change."""
    to = randomly.choice("AB")
    begun = to if randomly.random() < 0.7 else "AB".replace(to, "")
    out = given.copy(there.outputs / begun / "out", folder / "out")
    wanted = _tree(there.outputs / to / "out")
    (out / _MINE).write_text("keep")
    given.copy(out, folder / "canary")
    (folder / "canary" / "precious.png").write_text("keep")
    damages = randomly.choice([0, 1, 1, 2])
    for _ in range(damages):
        _damage(out, randomly)
    overwrite = randomly.random() < 0.5
    before = _tree(out)

    def check(status: int) -> None:
        after = _tree(out)
        refused = begun != to and not overwrite
        assert damages or refused == (status == 2), "nothing is damaged"
        assert after.get(_MINE) == before.get(_MINE), "it changed a user's file"
        if status == 2:
            right = {path: (before[path], wanted.get(path)) for path in before}
            lost = sorted(path for path in right if after.get(path) not in right[path])
            assert not lost, f"{', '.join(lost)} changed"
            return
        other = sorted(path for path in wanted if after.get(path) != wanted[path])
        assert not other, f"{', '.join(other)} differs from an undisturbed run"
        more = sorted(after.keys() - wanted.keys() - before.keys())
        assert not more, f"{', '.join(more)} should not exist"

    return Case([*_command(to, there), *["--overwrite"] * overwrite], check)


def _command(to: str, there: _Given) -> list[str]:
    return [
        *("translate", str(there.pictures), "--model", str(there.model)),
        *("--to", to, "-o", "out", "--quiet"),
    ]


def _tree(folder: Path) -> dict[str, bytes | str]:
    """Return the content of all files except the record, and the targets of links."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        place = str(path.relative_to(folder))
        if path.is_symlink():
            found[place] = os.readlink(path)
        elif path.is_file():
            with path.open("rb") as file:  # it may have any size
                found[place] = file.read(2**20)
    return {place: data for place, data in found.items() if not place.startswith(".translation")}


def _damage(out: Path, randomly: random.Random) -> None:
    hidden = sorted(path for path in out.glob(".translation/*") if path.is_file())
    written = [out / name for name in _PICTURES if (out / name).is_file()]
    match randomly.randrange(5):
        case 0 | 1 if hidden:
            path = randomly.choice(hidden)
            try:
                damage(path, randomly)
            except ValueError:  # it is damaged already
                replace(path, randomly)
        case 2 if written:
            path = randomly.choice(written)
            if not path.is_symlink():
                replace(path, randomly)
                if path.is_file() and not path.is_symlink():
                    os.truncate(path, 0)  # results are not read again, whatever is in them
        case 3 | 4:
            path = out / randomly.choice(_LINKS)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            if path.parent.is_dir():
                path.unlink(missing_ok=True)
                up = "../" * len(path.relative_to(out).parts)
                path.symlink_to(up + randomly.choice(_TARGETS))
