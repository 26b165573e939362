"""Untrusted pictures: what is read, what is refused, and how much memory reading may take."""

import io
import os
import random
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.pictures import (
    MAX_PIXELS,
    crop,
    from_image,
    read_picture,
    square,
    to_picture,
    to_signed,
    to_uint8,
)


def saved(path: Path, format: str, mode: str = "RGB", **how: object) -> Path:
    colors = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    Image.fromarray(colors).convert(mode).save(path, format, **how)
    return path


def refusal(path: Path, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(path, "here", max_pixels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_common_formats_are_read(format: str, tmp_path: Path) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF")
    path = saved(tmp_path / "picture", format)  # recognized by its content, not by its name
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    picture = read_picture(path, "here")
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA", "SGI", "PCX", "DDS", "XBM"])
def test_other_formats_are_refused(format: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "bird.png", format, "1" if format == "XBM" else "RGB")
    assert "not a picture that can be read" in refusal(path)


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would pass PostScript to Ghostscript, which here is a program that leaves a file."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/STARTED\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    refusal(saved(tmp_path / "bird.png", "EPS"))
    assert not (tmp_path / "STARTED").exists()


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG with one bit per pixel, and with these dimensions in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 170_000_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (8_001, 8_000), (1, 8_000_001)],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(
    width: int, height: int, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, bytes(1000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"has {width:,} x {height:,} pixels, more than the limit of 64,000,000" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_the_limit_is_the_callers_and_not_pillows(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(20_000, 10_000, bytes(2_501 * 10_000)))  # Pillow refuses 179 megapixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refusal(path)
        picture = read_picture(path, "here", 200_000_000)
        assert picture.size == (20_000, 10_000)
        assert crop(picture, (0, 0, 20_000, 9_999)).size == (20_000, 9_999)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_transparent_pixels_are_put_on_white_whatever_the_size(tmp_path: Path) -> None:
    """Compositing in bands gives the pixels of compositing the whole picture at once."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (1500, 1100, 4), dtype=np.uint8)
    layer = Image.fromarray(pixels, "RGBA")
    layer.save(tmp_path / "a.png", compress_level=1)
    white = Image.new("RGBA", layer.size, "white")
    expected = Image.alpha_composite(white, layer).convert("RGB")
    assert read_picture(tmp_path / "a.png", "here").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("mode", "entry"),
    [("L", (1, 2, 3)), ("RGB", 7), ("P", b"\x00" * 300), ("L", b"abc"), ("1", "x"), ("RGB", None)],
)
def test_a_transparency_that_does_not_fit_is_read_or_refused(mode: str, entry: object) -> None:
    picture = Image.new(mode, (5, 4))
    picture.info["transparency"] = entry
    with suppress(InputError):
        assert to_picture(picture, "here").mode == "RGB"


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.png")
    assert "too long" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in refusal(tmp_path / "loop")
    assert "\\n" in refusal(tmp_path / "two\nlines.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_any_damage_is_refused_or_read_without_a_warning(format: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(tmp_path / "a", format, exif=exif).read_bytes()
    path, rng = tmp_path / "damaged", random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60):
            damaged = bytearray(
                content[: rng.randrange(len(content)) if rng.random() < 0.3 else None]
            )
            for _ in range(rng.randrange(1, 4)):
                if damaged:
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged)
            with suppress(InputError):
                assert read_picture(path, "here").mode == "RGB"


def test_nothing_is_printed_about_a_damaged_picture(tmp_path: Path) -> None:
    """What Pillow logs, e.g. about too many samples, is not printed as an extra line."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "TIFF")
    content = stream.getvalue()
    place = content.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    (tmp_path / "a.tiff").write_bytes(
        content[:place] + struct.pack("<HHII", 277, 4, 1, 2**31) + content[place + 12 :]
    )
    script = (
        "from mirrorgan_fast.pictures import read_picture\n"
        "try: read_picture('a.tiff', 'here')\n"
        "except ValueError: pass\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True
    )
    assert result.stderr == b""


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        5,
        None,
        b"picture",
    ],
    ids=repr,
)
def test_other_types_are_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"^here: found .*, wanted "):
        to_picture(given, "here")  # type: ignore[arg-type]


def test_arrays_paths_and_images_are_the_same_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "PNG")
    with Image.open(path) as opened:
        pixels = np.asarray(opened)
        forms = [path, str(path), pixels, opened]
        for form in forms:
            assert np.array_equal(np.asarray(to_picture(form, "here")), pixels)
    gray = to_picture(pixels[..., 0], "here")
    assert np.array_equal(np.asarray(gray), pixels[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (8_000_000, 1)])
def test_a_square_of_any_picture(size: tuple[int, int]) -> None:
    assert square(Image.new("RGB", size), 16).size == (16, 16)


@pytest.mark.parametrize("size", [(200, 20), (20, 200)])
def test_from_image_cuts_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    levels = np.stack([across, down, np.zeros_like(down)], axis=2).astype(np.uint8)
    left, top, step = (width - 20) / 2, (height - 20) / 2, 20 / 4
    centers = torch.arange(4) * step + step / 2 - 0.5
    found = (from_image(Image.fromarray(levels), 4) + 1) * 127.5
    torch.testing.assert_close(found[0], (left + centers).expand(4, 4), rtol=0, atol=1)
    torch.testing.assert_close(found[1], (top + centers)[:, None].expand(4, 4), rtol=0, atol=1)


def test_from_image_keeps_orientation_and_values() -> None:
    levels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    tensor = from_image(Image.fromarray(levels), 16)
    assert tensor.shape == (3, 16, 16)
    expected = torch.from_numpy(levels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)
    torch.testing.assert_close(tensor, expected)


def test_pictures_survive_a_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    tensor = from_image(Image.fromarray(levels[0].numpy()), 16)[None]
    assert torch.equal(to_uint8(tensor), levels)


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 0.999, 1.0, 7.0])
    gray = to_uint8(values.view(1, 1, 1, 8).expand(1, 3, 1, 8))
    assert gray.dtype == torch.uint8
    assert gray.shape == (1, 1, 8, 3)
    assert gray[0, 0, :, 0].tolist() == [0, 0, 0, 128, 191, 255, 255, 255]


def test_to_signed() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    signed = to_signed(image, torch.device("cpu"))
    assert signed.dtype == torch.float32
    assert signed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(signed, (image.double() / 255 * 2 - 1).float())
    extremes = to_signed(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2), image.device)
    assert extremes.flatten().tolist() == [-1, 1]
