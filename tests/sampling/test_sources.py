"""Files and pipes: their content is read as UTF-8 or refused in one line."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import signal
import socket
import sqlite3
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.sampling import sources
from mirrorgan_fast.sampling.sources import DamageError, Memory, open_source, text_of

TEXT = "a red bird\r\nein roter Vogel, 鸟 🐦\n\n" * 3


class Dribbling(Memory):
    """A source that gives a few bytes at a time."""

    def __init__(self, data: bytes, path: str, randomly: random.Random) -> None:
        super().__init__("captions", data, path)
        self._randomly = randomly

    def chunks(self) -> Iterator[bytes]:
        rest = io.BytesIO(b"".join(super().chunks()))
        most = self._randomly.choice([1, 2, 9])
        while chunk := rest.read(self._randomly.randint(1, most)):
            yield chunk


def text(data: bytes, path: str = "", randomly: random.Random | None = None) -> str:
    source = Dribbling(data, path, randomly) if randomly else Memory("captions", data, path)
    return b"".join(text_of(source)).decode("utf-8", "surrogatepass")


# --- encodings and gzip ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_are_recognized_by_their_marks(encoding: str, packed: bool) -> None:
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    for written in (TEXT, "", "a", "\n", "\r", "\u0a0d\u0d0a\u0a00", "\ufeff", "é"):
        if written == "\ufeff" and encoding == "utf-8":
            continue
        data = (mark + written).encode(encoding)
        data = gzip.compress(data) if packed else data
        for randomly in (None, *map(random.Random, range(4))):
            assert text(data, "", randomly) == written


def test_half_surrogate_pairs_of_utf_16_stay_in_their_lines() -> None:
    written = "a\ud83d\nb\udc26\n\ud83dc 🐦\n"
    for seed in range(5):
        data = ("\ufeff" + written).encode("utf-16-le", "surrogatepass")
        assert text(data, "", random.Random(seed)) == written
    with pytest.raises(DamageError, match="is UTF-16 that is cut off"):
        text(data[:-1])


@pytest.mark.parametrize("name", ["captions", "captions.txt", "captions.txt.gz", "CAPTIONS.GZ"])
def test_gzip_is_recognized_by_its_first_bytes(name: str) -> None:
    data = gzip.compress(TEXT.encode()[:40]) + gzip.compress(TEXT.encode()[40:], mtime=7)
    for end in (b"", b"\0" * 700):
        for randomly in (None, random.Random(1)):
            assert text(data + end, name, randomly) == TEXT
    if name.lower().endswith(".gz"):
        for data in (b"", b"a bird\n"):
            with pytest.raises(InputError, match="is not packed with gzip, as its name says"):
                text(data, name)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data[:-8] + b"\1" * 8, "incorrect data check"),
        (lambda data: data[:5000] + b"\xff" * 3000 + data[8000:], "is gzip that is"),
        (lambda data: data + b"xx", "damaged"),
    ],
)
def test_text_before_the_damage_is_read(damage: Callable[[bytes], bytes], reason: str) -> None:
    whole = random.Random(0).randbytes(20_000).hex().encode()
    chunks = iter(text_of(Memory("captions", damage(gzip.compress(whole)))))
    read = next(chunks)
    assert len(read) > 4000
    assert whole.startswith(read)
    with pytest.raises(DamageError, match=reason):
        list(chunks)


def test_gzip_without_anything_readable_is_refused() -> None:
    for data in (b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xff\xff", gzip.compress(b"a")[:10]):
        with pytest.raises(InputError, match=r"captions: is gzip that is (damaged|cut off)"):
            text(data)


def test_a_large_unpacked_text_is_not_kept_in_memory() -> None:
    member = gzip.compress(b"a" * 2**24)
    tracemalloc.start()
    size = sum(map(len, text_of(Memory("captions", member * 3))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 3 * 2**24
    assert peak < 2**20


# --- other formats --------------------------------------------------------------------------------


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def archive(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("captions.txt"))


def zipped(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as inside:
        inside.writestr("xl/workbook.xml", "a bird")


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "captions") as connection:
        connection.execute("CREATE TABLE captions (caption TEXT)")
    return (folder / "captions").read_bytes()


PICTURE = Image.new("RGB", (300, 20), "red")
WORDS = ["a red bird", "a blue bird"]
OTHERS: dict[str, tuple[bytes, str]] = {
    **{
        format: (saved(lambda file, format=format: PICTURE.save(file, format)), "a picture")
        for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    },
    **{
        f"pickle {protocol}": (pickle.dumps(WORDS, protocol), "a pickle")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "PDF": (saved(lambda file: PICTURE.save(file, "PDF")), "PDF"),
    "EPS": (saved(lambda file: PICTURE.save(file, "EPS")), "PostScript"),
    "zip": (saved(zipped), "a ZIP archive or an Office document"),
    "no zip": (saved(lambda file: zipfile.ZipFile(file, "w").close()), "a ZIP archive"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "an old Office document"),
    "tar": (saved(archive), "a tar archive"),
    "tar.gz": (gzip.compress(saved(archive)), "a tar archive"),
    "gz.gz": (gzip.compress(gzip.compress(b"a bird")), "packed with gzip twice"),
    "bz2": (bz2.compress(b"a bird\n" * 50), "packed with bzip2"),
    "xz": (lzma.compress(b"a bird\n"), "packed with xz"),
    "zst": (b"\x28\xb5\x2f\xfd\x04\x00\x39\x00\x00", "packed with Zstandard"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
    "npy": (saved(lambda file: np.save(file, np.array(WORDS))), "NumPy"),
    "npz": (saved(lambda file: np.savez(file, np.array(WORDS))), "a ZIP archive"),
    "pt": (saved(lambda file: torch.save(WORDS, file)), "a ZIP archive"),
    "parquet": (b"PAR1\x15\x04\x15\x30", "Parquet"),
    "arrow": (b"ARROW1\0\0\xff\xff", "Arrow"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0", "HDF5"),
    "RTF": (rb"{\rtf1\ansi a red bird}", "RTF"),
    "HTML": (b"\n <!DOCTYPE html>\n<p>a red bird", "HTML or XML"),
    "html": ("\ufeff<HTML>a red bird".encode("utf-16-le"), "HTML or XML"),
    "XML": (b"\xef\xbb\xbf<?xml version='1.0'?><a/>", "HTML or XML"),
    "YAML": (b"%YAML 1.2\n- a bird", "YAML"),
    "UTF-32": ("a bird".encode("utf-32"), "UTF-32"),
    "UTF-32-BE": ("\ufeffa bird".encode("utf-32-be"), "UTF-32"),
    "UTF-16-LE": ("a bird\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "UTF-16-BE": ("a bird\r\n".encode("utf-16-be"), "UTF-16 without a byte order mark"),
    "Chinese LE": ("一只红鸟\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "Chinese BE": ("一只红鸟\n".encode("utf-16-be"), "UTF-16 without a byte order mark"),
    "numbers": (np.arange(1, 9, dtype=np.int64).tobytes(), "binary data"),
    "zeros": (b"\0", "binary data"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_recognized_by_their_first_bytes(kind: str) -> None:
    data, what = OTHERS[kind]
    for given in (data, gzip.compress(data)) if "gz" not in kind else (data,):
        for randomly in (None, random.Random(5)):
            with pytest.raises(InputError, match=f"captions: is .*{what}.*; give text, JSON"):
                text(given, "", randomly)


def test_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is SQLite; give text"):
        text(database(tmp_path))


NAMES = (
    "c.zip c.XLSX c.xls c.docx c.odt c.pdf c.parquet c.arrow c.png c.jpg c.txt.bz2 c.xz c.csv.zst"
    " c.7z c.tar c.tgz c.npy c.pkl c.sqlite c.h5 c.rtf c.html c.xml c.yaml c.yml c.tar.gz c.xml.gz"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_other_formats_are_recognized_by_their_names(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"a red bird\n")
    with pytest.raises(InputError, match=f"{name}: is .* by its name; give text, JSON lines"):
        open_source(path)


@pytest.mark.parametrize("line", ["a\0bird", "a\0\0bird", "é\0bird" * 80, "BZ", "P", "RIFF", "II"])
def test_a_few_odd_letters_are_still_text(line: str) -> None:
    for randomly in (None, random.Random(5)):
        assert text(f"{line}\na bird".encode(), "", randomly) == f"{line}\na bird"


# --- files ----------------------------------------------------------------------------------------


def test_paths_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "nowhere", "No such file"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / "socket", "No such device"),
        (tmp_path / ("a" * 300), "File name too long"),
        (tmp_path / "a\0b", "embedded null"),
        ("/dev/zero", "is a device; give a file or a pipe"),
        ("/dev/urandom", "is a device; give a file or a pipe"),
    ):
        with pytest.raises(InputError, match=reason) as told:
            open_source(path)
        assert str(told.value).isprintable()
    source = open_source(os.devnull)
    assert b"".join(source.chunks()) == b""
    source.close()


def test_a_file_is_read_from_its_position_and_more_than_once(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(b"\n".join(b"%d" % i for i in range(9000)))
    whole = path.read_bytes()
    with path.open("rb", buffering=0) as file:
        file.seek(6)
        for _ in range(2):
            source = sources.File("captions", io.FileIO(os.dup(file.fileno())), "captions.csv")
            assert source.size == len(whole) - 6
            # like two processes
            one, other = source.chunks(), source.chunks()
            first = next(one)
            assert b"".join(other) == first + b"".join(one) == whole[6:]
            assert source.position == source.size
            source.close()
        assert file.tell() == 6


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "captions"
    path.write_bytes(b"a bird")
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        source = open_source("-")
        assert (source.name, source.suffix, source.repeatable) == ("standard input", "", True)
        assert b"".join(source.chunks()) == b"a bird"
        source.close()
        assert file.read() == "a bird"  # it is still open
    for closed in (None, io.StringIO("a bird"), file):
        monkeypatch.setattr("sys.stdin", closed)
        with pytest.raises(InputError, match=r"standard input: (is closed|cannot be read)"):
            open_source("-")


# --- pipes ----------------------------------------------------------------------------------------


def test_a_pipe_waits_for_its_writer_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tmp_path / "pi\npe"
    os.mkfifo(pipe)
    monkeypatch.setattr(sources, "PATIENCE", 0.2)
    monkeypatch.setattr(sources, "_WAIT", 50)

    def write() -> None:
        while not caplog.records:
            time.sleep(0.01)
        with pipe.open("wb", buffering=0) as file:
            for letter in b"a red bird\n":
                file.write(bytes([letter]))
                time.sleep(0.03)

    writer = threading.Thread(target=write)
    writer.start()
    source = open_source(pipe)
    assert (source.repeatable, source.size) == (False, None)
    assert b"".join(source.chunks()) == b"a red bird\n"
    writer.join()
    source.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/pi\\npe: waiting for captions"
    ]


@pytest.mark.parametrize("after", [b"", b"a bird\n"])
def test_waiting_for_a_pipe_can_be_interrupted(after: bytes, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    source = open_source(pipe)
    writer = os.open(pipe, os.O_WRONLY) if after else None
    if writer is not None:
        os.write(writer, after)
    chunks = source.chunks()
    assert not after or next(chunks) == after
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(chunks)
    timer.join()
    source.close()
    if writer is not None:
        os.close(writer)


def test_a_socket_as_standard_input_is_read_like_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some programs start others with a socket as standard input."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr("sys.stdin", ours)
        theirs.sendall(b"a bird\n")
        theirs.close()
        assert b"".join(open_source("-").chunks()) == b"a bird\n"


def test_a_terminal_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, terminal = os.openpty()
    with open(terminal) as file:
        monkeypatch.setattr("sys.stdin", file)
        chunks = open_source("-").chunks()
        os.write(keyboard, b"a red bird\n")
        assert next(chunks) == b"a red bird\n"
        os.write(keyboard, b"\4")  # Ctrl-D
        assert list(chunks) == []
    os.close(keyboard)


def test_only_the_first_line_is_waited_for() -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("read on")
        yield b""

    for first in (b"a bird\n", b"\xef\xbb\xbfa bird\r", "\ufeffa\n".encode("utf-16-le")):

        class Typed(Memory):
            def chunks(self) -> Iterator[bytes]:
                return chain([self._data], never())

        assert next(iter(text_of(Typed("captions", first)))).strip().endswith((b"a", b"bird"))


def test_only_the_beginning_of_an_endless_line_is_read() -> None:
    peekable = sources.Peekable(repeat(b"a" * 4096))
    assert sum(map(len, peekable.peek())) == sources.PEEKED
    assert peekable.beginning() == b"a" * 512
