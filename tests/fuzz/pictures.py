"""Pictures in every format: mutated, forged, and much larger when decoded."""

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import mutated, replace

_READ = {
    "PNG": "1 L LA P RGB RGBA I;16",
    "JPEG": "L RGB CMYK",
    "WEBP": "RGB RGBA",
    "GIF": "L P RGB RGBA",
    "BMP": "1 L P RGB RGBA",
    "TIFF": "1 L LA P PA RGB RGBA CMYK YCbCr LAB I;16 I F",
    "PPM": "1 L RGB RGBA I;16 I F",
    "AVIF": "RGB RGBA",
}
_NOT_READ = ("EPS", "EPS", "EPS", "ICO", "PCX", "TGA", "JPEG2000", "PDF", "IM", "PSD", "SVG")
_TOOLS = ("gs", "djpeg", "cjpeg", "ppmtogif", "ppmquant", "inkscape", "convert", "xdg-open")
_NAMES = ("bird.png", "bird.jpg", "bird", "a\nb.png", "é\x1b[31m.png", os.fsdecode(b"\xff.png"))
_SIZE = (37, 41)  # numbers that are easy to find in a file
# fmt: off
_SIZES = (
    _SIZE, _SIZE, _SIZE, (60_000, 60_000), (1, 2**27), (2**31 - 1, 1), (2**16 - 1, 2**16 - 1),
    (16_000, 16_000), (8_000, 8_000), (1, 10**6), (10**6, 1), (0, 5), (2**32 - 1, 2**32 - 1),
)
_MODES = (1, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (4, 3, 1), (8, 4, 2), (8, 6, 4)
_CHUNKS = (b"tRNS", b"tRNS", b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"gAMA", b"acTL", b"iTXt")
_TAGS = (256, 257, 258, 258, 259, 259, 262, 262, 271, 273, 274, 274, 274, 277, 277, 278, 279, 284)
_TAGS += (306, 317, 320, 322, 323, 324, 325, 338, 339, 513, 34665, 34853)
_ODD_ENTRIES = (0, 1, 2, 3, 4, 5, 6, 8, 9, 16, 32, 64, 32773, 34712, 2**16 - 1, 2**31, 2**32 - 1)
_MAGIC = (
    b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\0\0\0WEBPVP8X", b"GIF89a", b"BM",
    b"II*\0", b"II+\0", b"P6 9 9 255 ", b"P5 99999 99999 255 ", b"P1 8 99999999 ", b"Pf 9 9 -1 ",
    b"\0\0\0\x1cftypavif", b"%!PS-Adobe-3.0 EPSF\n", b"\0\0\1\0", b"8BPS", b"<svg ", b"P7\n",
)
# fmt: on


def prepare(folder: Path) -> Path:
    """Create the model that describes, and programs that create a file when they are started."""
    (folder / "tools").mkdir()
    for name in _TOOLS:
        tool = folder / "tools" / name
        tool.write_text("#!/bin/sh\n: > MARKER\nexit 1\n")
        tool.chmod(0o755)
    os.environ["PATH"] = f"{folder / 'tools'}:{os.environ['PATH']}"
    given.picture(random.Random(0)).save(folder / "good.png")
    return given.model(folder / "model")


def make(randomly: random.Random, model: Path, folder: Path) -> Case:
    """Write a picture that is described or, in some cases, trained on."""
    kind = randomly.choice(_KINDS)
    training = randomly.random() < 0.1
    name = "data/0.png" if training else randomly.choice(_NAMES)
    if training:
        given.data_set(folder / "data", 2)
    (folder / name).write_bytes(kind(randomly))
    if randomly.random() < 0.04:
        replace(folder / name, randomly)

    def check(status: int) -> None:
        assert status != 0 or kind is not _of_another_format, "such a picture is not read"

    if training:
        return Case(given.train("cnn", "data", 1, workers=randomly.randrange(2)), check)
    good = str(model.with_name("good.png"))
    paths = randomly.choice([[name], [name, good], [good, str(folder / name), good]])
    options = ["--model", str(model), "--quiet", *randomly.choice([[], ["--json"]])]
    return Case(["describe", *paths, *options], check)


def _saved(format: str, mode: str, randomly: random.Random, **more: Any) -> bytes:
    picture = given.picture(randomly, _SIZE)
    if between := {"LAB": "RGB", "PA": "LA", "I;16": "I"}.get(mode):
        picture = picture.convert(between)
    if format == "GIF" and randomly.random() < 0.5:
        more |= {"save_all": True, "append_images": [given.picture(randomly, _SIZE)] * 3}
    file = io.BytesIO()
    picture.convert(mode).save(file, format, **more)
    return file.getvalue()


def _of_a_format(randomly: random.Random) -> bytes:
    format = randomly.choice([*_READ])
    return _saved(format, randomly.choice(_READ[format].split()), randomly)


def _mutated(randomly: random.Random) -> bytes:
    return mutated(_of_a_format(randomly), randomly, max_changes=randomly.choice([1, 8, 100]))


def _of_another_format(randomly: random.Random) -> bytes:
    format = randomly.choice(_NOT_READ)
    if format == "PSD":
        return b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(100)
    if format == "SVG":
        return b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>"
    return _saved(format, "RGB", randomly)


def _of_another_size(randomly: random.Random) -> bytes:
    """A file with a wrong size in its header."""
    data = _saved(randomly.choice([*_READ]), "RGB", randomly)
    sizes = randomly.choice(_SIZES)
    for code in (">I", "<I", ">H", "<H"):
        largest = 256 ** struct.calcsize(code) - 1
        for size, other in zip(_SIZE, sizes, strict=True):
            data = data.replace(struct.pack(code, size), struct.pack(code, min(other, largest)))
    return data.replace(b"37 41", b"%d %d" % sizes)  # PPM


def _png(randomly: random.Random) -> bytes:
    """A PNG of any size and mode, with any chunk before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        size, checksum = (
            struct.pack(">I", number) for number in (len(data), zlib.crc32(name + data))
        )
        return size + name + data + checksum

    width, height = randomly.choice(_SIZES)
    depth, color, channels = randomly.choice(_MODES)
    front = b""
    for _ in range(randomly.choice([1, 1, 1, 2, 100])):
        packed = b"a\0\0" + zlib.compress(bytes(randomly.choice([10, 10**7])))
        odd = randomly.randbytes(randomly.choice([0, 1, 2, 3, 6, 256, 768]))
        front += chunk(randomly.choice(_CHUNKS), randomly.choice([odd, odd, packed]))
    whole = (width * channels * depth // 8 + 2) * height
    pixels = bytes(whole if whole < 2**28 else 10**6)
    interlaced = randomly.choice([0, 0, 0, 1])
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + front + chunk(b"IDAT", zlib.compress(pixels, 1)) + chunk(b"IEND", b"")


def _tiff(randomly: random.Random) -> bytes:
    """A TIFF, or EXIF data, with any entries."""
    tags = {256: 37, 257: 41, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 41, 279: 1517}
    tags[256], tags[257] = randomly.choice(_SIZES)
    for tag in randomly.choices(_TAGS, k=3):
        tags[tag] = randomly.choice(_ODD_ENTRIES)
    directory = struct.pack("<H", len(tags))
    for tag in sorted(tags):
        kind = randomly.choice([4] * 20 + [1, 2, 5, 12, 99])
        count = randomly.choice([1] * 20 + [0, 2, 2**30])
        directory += struct.pack("<HHII", tag, kind, count, tags[tag])
    follows = struct.pack("<I", randomly.choice([0, 2000]))  # another directory, or this one
    return struct.pack("<2sHI", b"II", 42, 2000) + randomly.randbytes(1992) + directory + follows


def _exif(randomly: random.Random) -> bytes:
    data = b"Exif\0\0" + _tiff(randomly)
    return _saved(randomly.choice(["JPEG", "PNG", "WEBP"]), "RGB", randomly, exif=data)


def _noise(randomly: random.Random) -> bytes:
    return randomly.choice(_MAGIC) + randomly.randbytes(randomly.choice([0, 10, 1000, 100_000]))


_KINDS: list[Callable[[random.Random], bytes]] = [
    *[_mutated, _mutated, _mutated, _of_a_format, _of_another_format, _of_another_size],
    *[_png, _png, _tiff, _exif, _noise],
]
