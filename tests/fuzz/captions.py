"""Caption files in every supported format, damaged ones, and files in other formats."""

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import mutated, odd_json

_KEYS = ("caption", "captions", "text", "prompt")
# fmt: off
_MAGIC = (b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"\x1f\x8b\x08", b"\xff\xfe\0\0")
# Characters that only some readers take for line ends, letters whose UTF-16 bytes are those of line
# ends, and other odd characters
_ODD = (
    "\0", "\r", "\n", "\x0b", "\x0c", "\x1b[31m", "\x1c", "\x85", "\u2028", "\ufeff", "\u0a0d",
    "\u0d0a", "\ud83d", "\udc26", "é", "鸟", "طائر", "🐦", "\U0010ffff", ",", ";", "\t", '"', "{}",
)
# fmt: on
_BLOCK = gzip.compress(b"a red bird " * 2**20)  # of 11 MB


class _File(NamedTuple):
    name: str
    data: bytes
    captions: list[str] | None
    """The captions of its records; None if the file is damaged or its format is not supported."""


def prepare(folder: Path) -> Path:
    """Create the model that generates images."""
    return given.model(folder / "model")


def make(randomly: random.Random, model: Path, folder: Path) -> Case:
    """Write a caption file."""
    captions = [_caption(randomly) for _ in range(randomly.choice([1, 3, 10, 30]))]
    file = randomly.choice([_text, _text, _json_lines, _json_array, _table])(captions, randomly)
    if randomly.random() < 0.4:
        file = randomly.choice([_mutated, _mutated, _packed, _noise, _odd_rows])(file, randomly)
    elif randomly.random() < 0.15:
        file = file._replace(name=f"{file.name}.gz", data=gzip.compress(file.data))
    (folder / file.name).write_bytes(file.data)
    piped = file.name.endswith((".txt", ".jsonl")) and randomly.random() < 0.15
    images = randomly.choice([1, 1, 1, 2])
    settings = [f"-n{images}", "--format", randomly.choice(["npy", "png", "tar", "jpeg"])]
    settings += ["--shard-size", randomly.choice(["2", "7", "1000"]), "--model", str(model)]
    source = "-" if piped else file.name

    def check(status: int) -> None:
        _check(folder / "out", status, images, file.captions)

    return Case(
        ["sample", "--captions", source, "-o", "out", *settings, "--quiet"],
        check,
        piped=file.name if piped else None,
        captions=len(captions),
    )


def _check(out: Path, status: int, images: int, captions: list[str] | None) -> None:
    """Assert that each record is counted exactly once, and that its caption is unchanged."""
    if status == 2:
        assert captions is None, "this format is supported"
        assert not (out / "manifest.jsonl").exists(), "there is a manifest"
        return
    made, refused = (
        [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        for path in (out / "manifest.jsonl", out / "errors.jsonl")
    )
    assert (status == 3) == bool(refused), f"{len(refused)} records were refused"
    lines = [row["line"] for row in made] + [row["line"] for row in refused] * images
    records = len(set(lines)) if captions is None else len(captions)
    wanted = [line for line in range(1, records + 1) for _ in range(images)]
    assert sorted(lines) == wanted, f"{records} records became {len(lines) / images}"
    for row in made if captions is not None else []:
        caption = captions[row["line"] - 1].strip()
        assert row["caption"] == caption, f"{caption!r} became {row['caption']!r}"


def _caption(randomly: random.Random) -> str:
    text = given.caption(randomly)
    match randomly.randrange(12):
        case 0:
            return randomly.choice(["", " ", "\t"])
        case 1:
            return "qqq zzz"
        case 2 | 3 | 4:
            for _ in range(randomly.randint(1, 5)):
                place = randomly.randint(0, len(text))
                text = text[:place] + randomly.choice(_ODD) + text[place:]
        case 5:
            end = randomly.choice([256, 0x110000])
            text += "".join(chr(randomly.randrange(end)) for _ in range(20))
        case 6 if randomly.random() < 0.2:
            text += " qq" * randomly.choice([1000, 21_800, 40_000])
    return json.loads(json.dumps(text))  # joins the two halves of a surrogate pair


def _text(captions: list[str], randomly: random.Random) -> _File:
    """Text with one caption per line."""
    captions = [_without(caption, "\r\n\0") for caption in captions]
    if not captions[0][:1].isalpha():
        captions[0] = f"a{captions[0]}"
    end = randomly.choice(["\n", "\n", "\r\n", "\r"])
    text = end.join(captions) + (randomly.choice(["", end]) if captions[-1] else end)
    return _File("captions.txt", _encoded(text, randomly), captions)


def _json_lines(captions: list[str], randomly: random.Random) -> _File:
    end = randomly.choice(["\n", "\r\n"])
    text = end.join(_dumped(row, randomly) for row in _rows(captions, randomly))
    name = randomly.choice(["captions.jsonl", "captions.ndjson", "captions.txt"])
    return _File(name, _encoded(text + randomly.choice(["", end]), randomly), captions)


def _json_array(captions: list[str], randomly: random.Random) -> _File:
    text = _dumped(_rows(captions, randomly), randomly, indent=randomly.choice([None, 1]))
    return _File("captions.json", _encoded(text, randomly), captions)


def _table(captions: list[str], randomly: random.Random) -> _File:
    """CSV or TSV, with a header."""
    captions = [_without(caption, "\0") for caption in captions]
    mark, suffix = randomly.choice([(",", "csv"), ("\t", "tsv")])
    quoting, end = randomly.choice([(csv.QUOTE_ALL, "\n"), (csv.QUOTE_MINIMAL, "\r\n")])
    text = io.StringIO()
    writer = csv.writer(text, delimiter=mark, quoting=quoting, lineterminator=end)
    order = randomly.sample(range(3), 3)
    rows = [("file_name", "split", randomly.choice(_KEYS))]
    rows += [(f"{number}.png", "train", caption) for number, caption in enumerate(captions)]
    writer.writerows([row[column] for column in order] for row in rows)
    return _File(f"captions.{suffix}", _encoded(text.getvalue(), randomly), captions)


def _rows(captions: list[str], randomly: random.Random) -> list[dict[str, object]]:
    """Return objects that each have a caption or a list of captions."""
    key, rows, rest = randomly.choice(_KEYS), [], captions
    together = randomly.randint(1, 3) if key == "captions" else 0
    while rest:
        value = rest[:together] if together else rest[0]
        row = {"id": 5, key: value, "seed": randomly.randrange(9)}
        rows.append({name: row[name] for name in randomly.sample([*row], len(row))})
        rest = rest[together or 1 :]
    return rows


def _dumped(value: object, randomly: random.Random, indent: int | None = None) -> str:
    """Return JSON in ASCII, or with unescaped letters if they can be encoded."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if randomly.random() < 0.5 or any("\ud800" <= letter <= "\udfff" for letter in text):
        return json.dumps(value, indent=indent)
    return text


def _encoded(text: str, randomly: random.Random) -> bytes:
    encoding = randomly.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
    return (f"\ufeff{text}" if encoding == "utf-16-be" else text).encode(encoding)


def _without(text: str, letters: str) -> str:
    """Remove letters, and single halves of surrogate pairs, which only JSON can contain."""
    return "".join(c for c in text if c not in letters and not "\ud800" <= c <= "\udfff")


def _mutated(file: _File, randomly: random.Random) -> _File:
    names = [file.name, "captions", "captions.txt", "captions.csv", "captions.json"]
    return _File(randomly.choice(names), mutated(file.data, randomly), None)


def _packed(file: _File, randomly: random.Random) -> _File:
    """Damaged gzip, gzip in gzip, and files that are much larger when unpacked."""
    data = gzip.compress(file.data)
    match randomly.randrange(4):
        case 0:
            data = mutated(data, randomly)
        case 1:
            data = gzip.compress(data)
        case 2:
            data = data[: -randomly.randint(1, 12)]
        case 3:
            data = gzip.compress(randomly.choice([b"", b'["', b"caption,a\n"])) + _BLOCK * 20
    return _File(f"{file.name}.gz", data, None)


def _noise(file: _File, randomly: random.Random) -> _File:
    data = randomly.choice(_MAGIC) + randomly.randbytes(randomly.choice([0, 1, 100, 70_000]))
    return _File(randomly.choice([file.name, "captions", "captions.xlsx"]), data, None)


def _odd_rows(file: _File, randomly: random.Random) -> _File:
    """JSON with odd values in any place."""
    rows = _rows(["a red bird", "a bird"], randomly)
    if randomly.random() < 0.5:
        return _File("captions.json", odd_json(rows, randomly), None)
    return _File("captions.jsonl", b"\n".join(odd_json(row, randomly) for row in rows), None)
