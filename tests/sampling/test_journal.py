"""The files of an output folder that a later run reads: nothing in them is trusted."""

import errno
import json
import os
import random
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.journal import SHEET, read_manifest
from mirrorgan_fast.sampling.run import SamplingSettings, Summary, sample_to_folder
from mirrorgan_fast.sampling.sampler import Result, Sampler
from mirrorgan_fast.sampling.sinks import Row, Sink
from tests.small import files, small_model

# Three shards of three lines, with two images per line; two of the lines give no images.
CAPTIONS = ["a red bird", "qqq", "a bird", "a blue bird", " ", "a bill", "a wings", "red", "green"]
FORMATS = ("png", "tar", "npy")
SETTINGS = {"seed": 3, "per_caption": 2, "shard_size": 6}
ADVICE = re.compile("another -o|remove it|move it|remove this|and nothing else|goes on")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(small_model(), batch_size=5)


@pytest.fixture(scope="module")
def undisturbed(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of an undisturbed run. Each run is made once."""
    made: dict[str, Path] = {}

    def folder(**settings: Any) -> Path:
        name = repr(sorted(settings.items()))
        if name not in made:
            made[name] = tmp_path_factory.mktemp("undisturbed") / "out"
            sample(sampler, made[name], **settings)
            # Like a folder from elsewhere: a refusal must not even leave a lock there.
            (made[name] / ".progress" / "lock-0").unlink()
        return made[name]

    return folder


def sample(
    sampler: Sampler,
    folder: Path,
    overwrite: bool = False,
    sink: Sink | None = None,
    captions: Sequence[str] = CAPTIONS,
    **settings: Any,
) -> Summary:
    with Captions.of(captions) as read:
        return sample_to_folder(
            sampler,
            read,
            folder,
            SamplingSettings(**{**SETTINGS, **settings}),
            sink=sink,
            overwrite=overwrite,
        )


def everything(folder: Path) -> dict[str, Any]:
    """Return all that is in a folder: contents of files, targets of links, types of the rest."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = str(path.relative_to(folder)), path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[name] = path.read_bytes()
        else:
            found[name] = os.readlink(path) if stat.S_ISLNK(mode) else stat.S_IFMT(mode)
    return found


def refused(sampler: Sampler, folder: Path, **how: Any) -> str:
    """Assert that a run is refused with one line of advice and changes nothing; return the line."""
    before = everything(folder.parent)
    with pytest.raises(InputError) as caught:
        sample(sampler, folder, **how)
    message = str(caught.value)
    assert "\n" not in message
    assert ADVICE.search(message), message
    assert everything(folder.parent) == before
    return message


def refused_or_made_again(sampler: Sampler, folder: Path, expected: Path, **how: Any) -> bool:
    """Assert that a run is refused or gives the files of an undisturbed run; return whether it is.

    A refused run must change nothing.
    """
    before = everything(folder.parent)
    try:
        sample(sampler, folder, **how)
    except InputError:
        # A changed caption is noticed when it is read, after the folder is locked.
        (folder / ".progress" / "lock-0").unlink(missing_ok=True)
        assert everything(folder.parent) == before
        return True
    assert files(folder) == files(expected)
    return False


def seal(shard: int, rows: Sequence[bytes]) -> bytes:
    """Return a journal of these rows with valid checksums."""
    checksum, lines = zlib.crc32(str(shard).encode()), b""
    for row in rows:
        checksum = zlib.crc32(row + b"\n", checksum)
        lines += f"{checksum:08x} ".encode() + row + b"\n"
    return lines


def rows_of(journal: Path) -> list[bytes]:
    return [line[9:] for line in journal.read_bytes().splitlines()]


# --- what is written ------------------------------------------------------------------------------


def test_the_journal_has_the_rows_of_the_manifest_with_checksums(
    undisturbed: Callable[..., Path],
) -> None:
    folder = undisturbed(format="png")
    images, errors = [], []
    for shard in range(3):
        journal = folder / ".progress" / f"{shard:05d}.jsonl"
        rows = rows_of(journal)
        assert journal.read_bytes() == seal(shard, rows)
        for row in rows:
            (errors if "error" in json.loads(row) else images).append(row)
    assert (folder / "manifest.jsonl").read_bytes().splitlines() == images
    assert (folder / "errors.jsonl").read_bytes().splitlines() == errors
    assert [json.loads(row)["line"] for row in errors] == [2, 5]


@pytest.mark.parametrize("format", FORMATS)
def test_reading_the_manifest_verifies_the_journal(
    format: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert read_manifest(folder, 5) == rows[:5]
    assert read_manifest(folder, 99) == rows
    assert read_manifest(tmp_path / "none", 5) == []
    journal = folder / ".progress" / "00000.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"red", b"rad"))
    with pytest.raises(InputError, match=r"00000.jsonl, line 1: is damaged"):
        read_manifest(folder, 5)


# --- damage ---------------------------------------------------------------------------------------

Damage = Callable[[bytes, random.Random], bytes]


def flip_a_bit(data: bytes, randomly: random.Random) -> bytes:
    changed = bytearray(data)
    changed[randomly.randrange(len(data))] ^= 1 << randomly.randrange(8)
    return bytes(changed)


def cut(data: bytes, randomly: random.Random) -> bytes:
    return data[: randomly.randrange(len(data))]


def cut_and_fill(data: bytes, randomly: random.Random) -> bytes:
    kept = cut(data, randomly)
    return kept + bytes(len(data) - len(kept) + randomly.choice((0, 4096)))


def leave_a_hole(data: bytes, randomly: random.Random) -> bytes:
    begin, end = sorted(randomly.randrange(len(data)) for _ in range(2))
    return data[:begin] + bytes(end - begin) + data[end:]


def insert_garbage(data: bytes, randomly: random.Random) -> bytes:
    place = randomly.choice((0, len(data), randomly.randrange(len(data))))
    garbage = (b"\n", b"\r", b"\xff\xfe", b"{}\n", b"null\n", randomly.randbytes(20), b"[" * 99_999)
    return data[:place] + randomly.choice(garbage) + data[place:]


def of_lines(change: Callable[[list[bytes], random.Random], object]) -> Damage:
    def damage(data: bytes, randomly: random.Random) -> bytes:
        lines = data.splitlines(keepends=True)
        change(lines, randomly)
        return b"".join(lines)

    return damage


def duplicate(lines: list[bytes], randomly: random.Random) -> None:
    lines.insert(randomly.randrange(len(lines)), randomly.choice(lines))


def lose(lines: list[bytes], randomly: random.Random) -> None:
    del lines[randomly.randrange(len(lines))]


DAMAGES = [
    flip_a_bit,
    cut,
    cut_and_fill,
    leave_a_hole,
    insert_garbage,
    of_lines(duplicate),
    of_lines(lose),
    of_lines(lambda lines, randomly: randomly.shuffle(lines)),
]


MODES: list[dict[str, Any]] = [{}, {"overwrite": True}, {"overwrite": True, "seed": 4}]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(2 * len(DAMAGES)))
def test_a_damaged_journal_is_refused_or_made_again(
    seed: int, format: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    randomly = random.Random(f"{seed} {format}")
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    journal = folder / ".progress" / f"{randomly.randrange(3):05d}.jsonl"
    damage = DAMAGES[seed % len(DAMAGES)]
    journal.write_bytes(damage(journal.read_bytes(), randomly))
    how = randomly.choice(MODES)
    expected = undisturbed(format=format, seed=how.get("seed", 3))
    is_refused = refused_or_made_again(sampler, folder, expected, format=format, **how)
    # A crash can leave the beginning of a file with zeros after it; such a journal is repaired.
    assert not (is_refused and damage in (cut, cut_and_fill, leave_a_hole))


@pytest.mark.parametrize("damage", DAMAGES[-3:])
def test_rows_that_are_doubled_lost_or_moved_are_noticed(
    damage: Damage, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    journal = folder / ".progress" / "00001.jsonl"
    journal.write_bytes(damage(journal.read_bytes(), random.Random(2)))
    assert "00001.jsonl, line " in refused(sampler, folder)


def test_the_journal_of_another_shard_is_noticed(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="npy"), tmp_path / "out")
    shutil.copy(folder / ".progress" / "00002.jsonl", folder / ".progress" / "00001.jsonl")
    assert "00001.jsonl, line 1: is damaged" in refused(sampler, folder, format="npy")


def test_a_damaged_journal_that_is_removed_is_made_again(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """The message about a damaged journal advises to remove it."""
    for format in FORMATS:
        folder = shutil.copytree(undisturbed(format=format), tmp_path / format)
        (folder / ".progress" / "00001.jsonl").unlink()
        assert sample(sampler, folder, format=format).made == 4
        assert files(folder) == files(undisturbed(format=format))


def test_the_journal_of_an_older_version_is_refused(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    for journal in (folder / ".progress").glob("*.jsonl"):
        journal.write_bytes(b"".join(row + b"\n" for row in rows_of(journal)))
    for overwrite in (False, True):
        message = refused(sampler, folder, overwrite=overwrite)
        assert "has no checksum, as an older version wrote it" in message


# --- forgery: changed rows with valid checksums ---------------------------------------------------

NASTY: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    17.0,
    1e300,
    float("nan"),
    2**70,
    10**4000,
    "",
    ".",
    "..",
    "/etc/passwd",
    "../precious.png",
    "00000/../../precious.png",
    "00000",
    "00000.tar",
    "00001/00000004.png",
    "0004.png",
    ".progress/run.json",
    "a\0b",
    "a\nb",
    "x" * 300,
    "\ud800",
    "\udcff",
    [],
    [1],
    {},
    [[[[]]]],
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(24))
def test_a_forged_row_is_refused_or_has_no_effect(
    seed: int, format: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """A forger could only change why a caption is refused and which words are unknown."""
    randomly = random.Random(f"{seed} {format}")
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    (tmp_path / "precious.png").write_bytes(b"precious")
    shard = randomly.randrange(3)
    journal = folder / ".progress" / f"{shard:05d}.jsonl"
    rows = [json.loads(row) for row in rows_of(journal)]
    for row in randomly.sample(rows, randomly.choice((1, 1, 2))):
        name = randomly.choice([*row, *row, "file", "error", "line", "other"])
        value = randomly.choice(NASTY)
        if name == "error" and isinstance(value, str):
            value = None
        if randomly.random() < 0.1:
            row.pop(name, None)
        else:
            row[name] = value
    if randomly.random() < 0.2:
        randomly.shuffle(rows)
    written = [json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass") for row in rows]
    journal.write_bytes(seal(shard, written))
    how = randomly.choice(MODES)
    expected = undisturbed(format=format, seed=how.get("seed", 3))
    refused_or_made_again(sampler, folder, expected, format=format, **how)


@pytest.mark.parametrize(
    "row",
    [
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"caption": ' * 20_000,
        b'{"line": 1}',
        b'{"line": 1' + b"0" * 5000 + b"}",
        b'{"error": 5, "line": 1, "text": "a"}',
        b'{"error": "", "line": 1, "text": "a"}',
        b'{"error": "a", "line": 4, "text": "a"}',
        b'{"error": "a", "line": 1, "text": "\\ud800"}',
        b'{"error": "a", "line": 1, "text": "a", "file": "../precious.png"}',
        b'{"error": "a",  "line": 1, "text": "a"}',
        b'{"line": 1, "error": "a", "text": "a"}',
        b"\xff\xfe",
    ],
)
def test_invalid_rows_are_refused(
    row: bytes, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    (folder / ".progress" / "00000.jsonl").write_bytes(seal(0, [row]))
    for how in MODES:
        assert "00000.jsonl, line 1: " in refused(sampler, folder, **how)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        "../precious.png",
        "{tmp}/precious.png",
        "00000/../../precious.png",
        "link/precious.png",
        "00000",
        "00001",
        "00000/00000001.png",
        "00000/00000000.jpg",
        "00000/0.png",
        "0000.png",
        "00001.tar",
        "00001.npy",
        "00000.tar/",
        "./00000.npy",
        ".progress/run.json",
        "manifest.jsonl",
    ],
)
def test_a_row_that_names_another_file_is_refused(
    name: str,
    format: str,
    sampler: Sampler,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    (tmp_path / "precious.png").write_bytes(b"precious")
    (folder / "link").symlink_to(tmp_path)
    journal = folder / ".progress" / "00000.jsonl"
    first, *others = rows_of(journal)
    row = {**json.loads(first), "file": name.format(tmp=tmp_path)}
    journal.write_bytes(seal(0, [json.dumps(row).encode(), *others]))
    for how in MODES:
        message = refused(sampler, folder, format=format, **how)
        assert '00000.jsonl, line 1: has the "file" ' in message
    with pytest.raises(InputError, match='line 1: has the "file" '):
        read_manifest(folder, 1)


# --- run.json and the other files in .progress ----------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(100),
        b"{",
        b"{}",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"[" * 60_000,
        b'{"model": 1}',
        b"\xff\xfe{}",
        b" " * 2**20,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_damaged_run_json_is_refused(
    content: bytes, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    (folder / ".progress" / "run.json").write_bytes(content)
    for how in MODES:
        assert "run.json: " in refused(sampler, folder, **how)


@pytest.mark.parametrize("seed", range(30))
def test_a_changed_run_json_is_refused_or_replaced(
    seed: int, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    randomly = random.Random(seed)
    format = randomly.choice(FORMATS)
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    path = folder / ".progress" / "run.json"
    run = json.loads(path.read_text())
    run[randomly.choice([*run, "quality", "other"])] = randomly.choice([*NASTY, "jpeg", 3, 0.5])
    if randomly.random() < 0.1:
        del run[randomly.choice([*run])]
    path.write_text(json.dumps(run))
    how = randomly.choice(MODES)
    expected = undisturbed(format=format, seed=how.get("seed", 3))
    refused_or_made_again(sampler, folder, expected, format=format, **how)


def test_rows_without_run_json_are_not_removed(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    (folder / ".progress" / "run.json").unlink()
    for how in MODES:
        assert "run.json: is missing" in refused(sampler, folder, **how)
    with pytest.raises(InputError, match=r"run.json: is missing"):
        read_manifest(folder, 1)


@pytest.mark.parametrize(
    "name",
    ["0x.jsonl", "1.jsonl", "000001.jsonl", "9" * 20 + ".jsonl", "٣٣٣٣٣.jsonl", "lock-x", "a\nb"],
)
def test_unknown_files_in_progress_are_refused(
    name: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    (folder / ".progress" / name).write_bytes(b"{}\n")
    for how in MODES:
        assert f"{name}: does not belong to this program".replace("\n", "\\n") in refused(
            sampler, folder, **how
        )


@pytest.mark.parametrize("name", ["00001.jsonl", "run.json", ".run.json", "lock-0", "lock-1"])
@pytest.mark.parametrize("kind", ["folder", "link", "broken link", "hard link", "pipe", "socket"])
def test_links_and_special_files_in_progress_are_refused(
    kind: str, name: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    path, precious = folder / ".progress" / name, tmp_path / "precious"
    precious.write_bytes(path.read_bytes() if path.exists() else b"precious")
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "hard link":
        path.hardlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    else:
        path.symlink_to(precious if kind == "link" else tmp_path / "new")
    for how in MODES:
        assert f"{name}: " in refused(sampler, folder, **how)


# --- links and other things in the place of output ------------------------------------------------


@pytest.mark.parametrize("name", [".progress", "00000", "00001", "sheet"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_links_to_folders_are_not_followed(
    name: str,
    overwrite: bool,
    sampler: Sampler,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    if (folder / name).is_dir():
        (folder / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (elsewhere / "sheet.png").write_bytes(b"precious")
    (elsewhere / "00000009.png").write_bytes(b"precious")
    (folder / name).symlink_to(elsewhere)
    for seed in (3, 4):
        message = refused(sampler, folder, overwrite=overwrite, seed=seed)
        assert f"{name}: is a symbolic link" in message


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("png", "manifest.jsonl"),
        ("png", ".manifest.jsonl"),
        ("png", "errors.jsonl"),
        ("png", "00000/00000000.png"),
        ("png", "00000/.00000000.png"),
        ("tar", "00001.tar"),
        ("tar", ".00001.tar"),
        ("npy", "00001.npy"),
        ("npy", ".00001.npy"),
    ],
)
def test_links_to_files_are_replaced(
    name: str,
    format: str,
    seed: int,
    sampler: Sampler,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """They are replaced even if the linked file has the right content."""
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    whole = folder / name.replace("/.", "/").removeprefix(".")
    precious = whole.rename(tmp_path / "precious")
    before = precious.read_bytes()
    (folder / name).symlink_to(precious)
    sample(sampler, folder, overwrite=True, seed=seed, format=format)
    assert precious.read_bytes() == before
    assert not whole.is_symlink()
    assert files(folder) == files(undisturbed(format=format, seed=seed))


def test_an_output_folder_may_be_a_link(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to(folder)
    assert sample(sampler, tmp_path / "out").made == 0
    sample(sampler, tmp_path / "out", overwrite=True, seed=4)
    assert files(folder) == files(undisturbed(format="png", seed=4))


@pytest.mark.parametrize("kind", ["empty", "link", "pipe", "folder"])
@pytest.mark.parametrize("format", FORMATS)
def test_anything_but_an_image_is_made_again(
    kind: str, format: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    name = "00001/00000006.png" if format == "png" else f"00001.{format}"
    path = folder / name
    path.rename(tmp_path / "image")
    if kind == "empty":
        path.touch()
    elif kind == "link":
        path.symlink_to(tmp_path / "image")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        with pytest.raises(InputError, match=re.escape(name)):
            sample(sampler, folder, format=format)
        path.rmdir()
    sample(sampler, folder, format=format)
    assert files(folder) == files(undisturbed(format=format))


def test_headers_of_tars_and_arrays_are_not_trusted(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """Files with a false header are made again."""
    array = (undisturbed(format="npy") / "00002.npy").read_bytes()
    tar = (undisturbed(format="tar") / "00002.tar").read_bytes()
    size = np.load(undisturbed(format="npy") / "00002.npy").shape[1]

    def header(shape: str) -> bytes:
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00\x76\x00" + text.encode().ljust(117) + b"\n"

    def member(change: Callable[[bytearray], object]) -> bytes:
        block = bytearray(tar[:512])
        change(block)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block) + tar[512:]

    def large(block: bytearray) -> None:
        block[124:136] = b"\x80\0\0\0" + (10**12).to_bytes(8, "big")

    def extended(block: bytearray) -> None:
        block[156:157] = b"x"
        block[124:136] = b"77777777777\0"

    assert array[:128] == header(f"(6, {size}, {size}, 3)")  # else nothing below is tested
    of_another_size = header("(6, 1, 1, 3)") + array[128:]
    damaged = {
        "npy": [
            header(f"({2**60}, {size}, {size}, 3)") + array[128:-1],
            header(f"(6, {2**60}, {2**60}, 3)") + array[128:],
            of_another_size,
            of_another_size[: 128 + 6 * 3],
            header("(6, 0, 0, 3)") + array[128:],
            header(f"(-6, {size}, {size}, 3)") + array[128:],
            header("()") + array[128:],
            header("(" * 50) + array[128:],
            b"\x93NUMPY\x01\x00\xff\xff" + array[10:],
            b"\x93NUMPY\x03\x00\xff\xff\xff\xff" + array[10:],
        ],
        "tar": [
            member(large),
            member(extended),
            member(lambda block: block.__setitem__(slice(124, 136), b"-0000000001\0")),
            member(lambda block: block.__setitem__(slice(0, 100), b"9" * 100)),
            member(lambda block: block.__setitem__(slice(156, 157), b"2")),
            member(lambda block: block.__setitem__(slice(345, 350), b"a/b/c")),
        ],
    }
    for format, contents in damaged.items():
        folder = shutil.copytree(undisturbed(format=format), tmp_path / format)
        final, partial = (folder / f"{start}00002.{format}" for start in ("", "."))
        for content in contents:
            final.unlink()
            partial.write_bytes(content)
            sample(sampler, folder, format=format)
            assert files(folder) == files(undisturbed(format=format))


@pytest.mark.parametrize("format", ["tar", "npy"])
def test_tars_and_arrays_damaged_by_a_power_cut_are_made_again(
    format: str, sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """Both unfinished files and files that were complete."""
    folder = shutil.copytree(undisturbed(format=format), tmp_path / "out")
    final, partial = (folder / f"{start}00002.{format}" for start in ("", "."))
    data = final.read_bytes()
    for length in (0, 100, 512, len(data) // 2, len(data) - 1024, len(data) - 1):
        for path in (final, partial):
            for content in (data[:length], data[:length].ljust(len(data), b"\0")):
                if format == "npy" and len(content) == len(data) and length >= 128:
                    continue  # zeros are valid pixels
                final.unlink()
                path.write_bytes(content)
                sample(sampler, folder, format=format)
                assert files(folder) == files(undisturbed(format=format))


def test_nothing_is_appended_to_a_damaged_tar(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    sample(sampler, folder, format="tar", captions=CAPTIONS[:-1])
    path = folder / "00002.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"00000014.txt")] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"00002.tar: is damaged: 2 of 4 images are complete"):
        sample(sampler, folder, format="tar")
    sample(sampler, folder, format="tar")
    assert files(folder) == files(undisturbed(format="tar"))


def test_a_file_with_another_hard_link_is_not_written_in_place(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    sample(sampler, folder, format="tar", captions=CAPTIONS[:-1])
    (tmp_path / "backup.tar").hardlink_to(folder / "00002.tar")
    before = (tmp_path / "backup.tar").read_bytes()
    with pytest.raises(InputError, match=r"00002.tar: is not a regular file, or has other"):
        sample(sampler, folder, format="tar")
    assert (tmp_path / "backup.tar").read_bytes() == before


@pytest.mark.parametrize("where", ["x" * 300, "file/out", "loop", "a\0b", "\ud800", "a\n" * 200])
def test_an_impossible_folder_is_refused_in_one_line(
    where: str, sampler: Sampler, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = everything(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"cannot be (read|written)") as caught:
            sample(sampler, tmp_path / where, overwrite=overwrite)
        assert str(caught.value).isprintable()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["scandir", "open", "lstat", "replace", "unlink"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
def test_errors_of_the_operating_system_are_one_line(
    name: str,
    code: int,
    sampler: Sampler,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(undisturbed(format="tar"), tmp_path / "out")
    (folder / "00002.tar").unlink()
    does = getattr(os, name)

    def refuses(path: Any, *arguments: Any, **how: Any) -> Any:
        if str(path).startswith(str(folder)):
            raise OSError(code, os.strerror(code), str(path))
        return does(path, *arguments, **how)

    for how in MODES[:2] if name != "unlink" else MODES[2:]:
        with monkeypatch.context() as patched:
            patched.setattr(os, name, refuses)
            with pytest.raises(InputError, match=f"{folder}.*{os.strerror(code)}"):
                sample(sampler, folder, format="tar", **how)
    sample(sampler, folder, format="tar", overwrite=True)
    assert files(folder) == files(undisturbed(format="tar"))


# --- what is removed ------------------------------------------------------------------------------


def test_only_what_a_run_has_made_is_removed(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed(format="png"), tmp_path / "out")
    mine = [
        "sheet.png",
        "sheet/mine.png",
        "00000/mine.png",
        "00000/00000000.jpg",
        "00000/99999999.png",
        "00001/00000000.png",
        "00007/00000042.png",
        "00001.tar",
        "0004.png",
    ]
    of_the_run = [SHEET, "00000/00000002.png", "00000/.00000003.png"]
    for name in [*mine, *of_the_run]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"mine" if name in mine else b"of the run")
    sample(sampler, folder, overwrite=True, seed=4, format="npy")
    expected = dict.fromkeys(mine, b"mine")
    assert files(folder) == {**files(undisturbed(format="npy", seed=4)), **expected}


class Named:
    """A user's sink, which writes what ``place`` returns into its rows."""

    def __init__(self, folder: Path, place: Callable[[int], Any]) -> None:
        self._folder, self._place, self._count = folder, place, 0

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        return len(rows)

    def encode(self, shard: int, result: Result) -> int:
        return result.request.number

    def begin(self, shard: int, count: int) -> None:
        pass

    def write(self, result: Result, encoded: int) -> Any:
        place = self._place(encoded)
        if isinstance(place, dict) and "file" in place:
            (self._folder / place["file"]).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / place["file"]).write_bytes(b"image")
        return place

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_users_sink_may_name_files_in_the_folder(
    sampler: Sampler, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    names = [
        "birds/{}.png",
        "00000/{:08d}.png",
        "{:04d}.jpg",
        "é\n{}",
        ".progress.{}",
        "{:05d}.npy",
    ]
    sink = Named(folder, lambda number: {"file": names[number % 6].format(number), "more": [1.5]})
    sample(sampler, folder, sink=sink)
    written = files(folder)
    assert sample(sampler, folder, sink=sink).made == 0
    sample(sampler, folder, overwrite=True, format="npy")
    left = {name: data for name, data in written.items() if name[0] in "bé."}
    assert len(left) == 7
    assert files(folder) == {**left, **files(undisturbed(format="npy"))}


@pytest.mark.parametrize(
    "place",
    [
        {"file": "../precious.png"},
        {"file": "link/precious.png"},
        {"file": "a/../b.png"},
        {"file": 5},
        {"file": "a\0b"},
        {"file": "\ud800"},
        {"file": ""},
        {"file": "."},
    ],
)
def test_rows_of_a_users_sink_may_not_name_other_files(
    place: dict[str, Any], sampler: Sampler, tmp_path: Path
) -> None:
    """A journal with such a row is refused."""
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "precious.png").write_bytes(b"precious")
    (folder / "link").symlink_to(tmp_path)
    sink = Named(folder, lambda number: {"place": number})
    sample(sampler, folder, sink=sink)
    journal = folder / ".progress" / "00000.jsonl"
    first, *others = rows_of(journal)
    forged = json.dumps({**json.loads(first), **place}).encode()
    journal.write_bytes(seal(0, [forged, *others]))
    for overwrite in (False, True):
        message = refused(sampler, folder, overwrite=overwrite, sink=sink)
        assert "00000.jsonl, line 1: names the file" in message
        assert "00000.jsonl, line 1: " in refused(sampler, folder, overwrite=True, format="npy")


@pytest.mark.parametrize(
    "place",
    [
        {"file": "/precious.png"},
        {"line": 5},
        {"error": "none"},
        {"array": np.int64(5)},
        {"name": "\ud800"},
        {"much": "x" * 2**22},
        None,
        5,
    ],
)
def test_what_cannot_be_in_a_row_is_refused_when_it_is_written(
    place: Any, sampler: Sampler, tmp_path: Path
) -> None:
    class Quiet(Named):
        def write(self, result: Result, encoded: int) -> Any:
            return place

    with pytest.raises(InputError, match="the sink Quiet: what it returned cannot be in a row"):
        sample(sampler, tmp_path / "out", sink=Quiet(tmp_path / "out", lambda number: None))
    assert rows_of(tmp_path / "out" / ".progress" / "00000.jsonl") == []
