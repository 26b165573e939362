"""Damaged output folders of sampling, in which it is resumed or started again."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from mirrorgan_fast.files import parse_json
from mirrorgan_fast.sampling.journal import Journal
from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import ODD_VALUES, damage, odd_json, replace

_FORMATS = ("png", "jpeg", "npy", "tar", "flat")
_MINE = "mine.txt"  # a user's file in the output folder
# fmt: off
_FILE_NAMES = (
    "{}/precious.png", "{}/00000/precious.png", "{}/", "../canary/precious.png", "../canary/new",
    "00000/../../canary/precious.png", _MINE, ".", "", "00000", "manifest.jsonl",
    ".progress/run.json",
)
_LINKS = (
    "00000", "00001", "00000.npy", ".00000.npy", ".00001.tar", "0000.png", ".0001.png", "sheet",
    "manifest.jsonl", ".manifest.jsonl", "errors.jsonl", ".progress", ".progress/00000.jsonl",
    ".progress/00003.jsonl", ".progress/run.json", ".progress/.run.json", ".progress/lock-0",
)
_TARGETS = ("canary", "canary/00000", "canary/precious.png", "canary/new", f"out/{_MINE}")
_PLANTED = ("0x.jsonl", "99999.jsonl", "9" * 200 + ".jsonl", "-1.jsonl", "٣.jsonl", "lock-7")
_ROWS = (b"null\n", b"\n", b"5\n", b"[" * 10**5 + b"\n", b'{"error": "x"}\n', b"{}\n", b"\0" * 5000)
# fmt: on


class _Given(NamedTuple):
    model: Path
    outputs: Path


def prepare(folder: Path) -> _Given:
    """Sample in every format with two seeds, without damage."""
    there = _Given(given.model(folder / "model"), folder / "outputs")
    for format in _FORMATS:
        for seed in range(2):
            output = there.outputs / f"{format}{seed}"
            output.mkdir(parents=True)
            given.made(_command(format, seed, there.model, output), output)
    return there


def make(randomly: random.Random, there: _Given, folder: Path) -> Case:
    """Write a damaged output folder, next to a folder that must not change."""
    format, seed = randomly.choice(_FORMATS), randomly.randrange(2)
    arguments = _command(format, seed, there.model, folder)
    begun = seed if randomly.random() < 0.7 else 1 - seed
    out = given.copy(there.outputs / f"{format}{begun}" / "out", folder / "out")
    wanted = _tree(there.outputs / f"{format}{seed}" / "out")
    (out / _MINE).write_text("keep")
    given.copy(out, folder / "canary")
    for place in ("", "00000", ".progress"):
        (folder / "canary" / place).mkdir(exist_ok=True)
        (folder / "canary" / place / "precious.png").write_text("keep")
    damages = randomly.choice([0, 1, 1, 2])
    for _ in range(damages):
        _damage(out, randomly)
    overwrite = randomly.random() < 0.5
    before = _tree(out)

    def check(status: int) -> None:
        after = _tree(out)
        refused = begun != seed and not overwrite
        assert damages or refused == (status == 2), "nothing is damaged"
        if status == 2:  # mostly at once; late if a folder has the name of an image
            replaced = wanted if begun != seed and overwrite else {}
            right = {path: (before[path], wanted.get(path)) for path in before.keys() - replaced}
            lost = sorted(path for path in right if after.get(path) not in right[path])
            assert not lost, f"{', '.join(lost)} changed"
            return
        other = sorted(path for path in wanted if after.get(path) != wanted[path])
        assert not other, f"{', '.join(other)} differs from an undisturbed run"
        more = sorted(after.keys() - wanted.keys() - before.keys())
        assert not more, f"{', '.join(more)} should not exist"
        assert after.get(_MINE) == before.get(_MINE), "it changed a user's file"

    return Case([*arguments, *["--overwrite"] * overwrite], check)


def _command(format: str, seed: int, model: Path, folder: Path) -> list[str]:
    settings = ["-o", "out", f"--seed={seed}", "--model", str(model), "--quiet"]
    randomly = random.Random(0)
    captions = [given.caption(randomly) for _ in range(9)]
    if format == "flat":
        return ["sample", *captions, *settings]
    captions[3:3], captions[7:7] = ["qqq"], [""]
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return ["sample", "--captions=captions.txt", f"--format={format}", "--shard-size=4", *settings]


def _tree(folder: Path) -> dict[str, bytes | str]:
    """Return the content of all files in a folder except its journal, and the targets of links."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        place = str(path.relative_to(folder))
        if path.is_symlink():
            found[place] = os.readlink(path)
        elif path.is_file():
            with path.open("rb") as file:  # it may have any size
                found[place] = file.read(2**20)
        elif not path.is_dir() or not any(path.iterdir()):
            found[place] = "no file"
    return {place: data for place, data in found.items() if not place.startswith(".progress")}


def _files(folder: Path, pattern: str = "**/*") -> list[Path]:
    found = sorted(folder.glob(pattern))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _damage(out: Path, randomly: random.Random) -> None:
    journals = _files(out, ".progress/00*.jsonl")
    match randomly.randrange(10):
        case 0 | 1 | 2 if journals:
            _change_rows(out, randomly.choice(journals), randomly)
        case 3:
            damage(randomly.choice(_files(out, ".progress/*") + _files(out, "*.jsonl")), randomly)
        case 4 if journals:  # as a killed run leaves it
            for path in _files(out, "*.jsonl"):
                path.unlink()
            last = randomly.randrange(len(journals))
            for path in journals[last + 1 :]:
                path.unlink()
            os.truncate(journals[last], randomly.randint(0, journals[last].stat().st_size))
        case 5 | 6:
            _replace(randomly.choice(_files(out)), randomly)
        case 7 | 8:
            _link_out(out, randomly)
        case 9 if (out / ".progress").is_dir():
            path = out / ".progress" / randomly.choice(_PLANTED)
            path.write_bytes(
                randomly.choice([*_ROWS, b"", b'{"file": "../canary/precious.png"}\n'])
            )


def _change_rows(out: Path, path: Path, randomly: random.Random) -> None:
    """Change file names, other entries or the order, mostly with matching checksums."""
    lines = path.read_bytes().splitlines(keepends=True) or [b" {}\n"]
    rows = [line.partition(b" ")[2] for line in lines]
    place = randomly.randrange(len(rows))
    try:
        row = dict(json.loads(rows[place]))
    except (ValueError, TypeError):
        row = {}
    match randomly.randrange(8):
        case 0 | 1:
            row["file"] = randomly.choice(_FILE_NAMES).format(out.with_name("canary"))
            rows[place] = json.dumps(row).encode() + b"\n"
        case 2:
            changed = odd_json(row, randomly) + b"\n"
            if not _differs_in_reason_only(row, changed):
                rows[place] = changed
        case 3 if row:
            row[randomly.choice([*row])] = randomly.choice(ODD_VALUES[:27])
            rows[place] = json.dumps(row).encode() + b"\n"
        case 4:
            del rows[place]
        case 5:
            rows.insert(place, randomly.choice(rows))
        case 6:
            randomly.shuffle(rows)
        case 7:
            rows.insert(place, randomly.choice(_ROWS))
    data = b"".join(rows)
    if randomly.random() < 0.8:
        journal = Journal(out)
        journal.keep(int(path.stem), 0)
        data = journal.seal(int(path.stem), rows)
    path.write_bytes(data)


def _differs_in_reason_only(row: dict[str, Any], changed: bytes) -> bool:
    """Return whether only the reason of a refused caption was changed.

    With a matching checksum, nothing shows this.
    """
    try:
        other = parse_json(changed)
    except ValueError:
        return False
    if not isinstance(other, dict) or not (isinstance(other.get("error"), str) and other["error"]):
        return False
    return {**other, "error": ""} == {**row, "error": ""}


def _replace(path: Path, randomly: random.Random) -> None:
    """Replace a file. If it has images, the new file is shorter.

    Images are not read again, so a file of the same size may have any content.
    """
    size = path.stat().st_size
    replace(path, randomly)
    if path.suffix != ".jsonl" and path.is_file() and not path.is_symlink():
        cut = size - randomly.randint(1, 2000) if path.suffix in (".npy", ".tar") else 0
        os.truncate(path, max(0, cut))


def _link_out(out: Path, randomly: random.Random) -> None:
    """Put a link to another place where a file or folder is or will be."""
    path = out / randomly.choice(_LINKS)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        up = "../" * len(path.relative_to(out).parts)
        path.symlink_to(up + randomly.choice(_TARGETS))
