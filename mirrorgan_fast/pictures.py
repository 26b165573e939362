"""Pictures: safe reading of untrusted files, conversion to tensors and back, contact sheets."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, open_file, whole_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""The only formats that Pillow may decode here. Some other formats start programs (PostScript is
passed to Ghostscript), and most are rarely tested against malicious files."""
MAX_PIXELS = 64_000_000
"""The default limit for a picture: reading 64 megapixels takes up to 0.8 GB of memory."""

Taken = TypeVar("Taken")
Picture = Image.Image | StrPath | np.ndarray
"""A picture in the Python API: a Pillow image, a path, or an array of gray levels, uint8 (H, W),
(H, W, 3) or (H, W, 4)."""

# Pillow keeps 8 to 12 bytes per row in addition to the pixels, so narrow pictures take more memory
_MIN_COUNTED_WIDTH = 8
_LINE_HEIGHT = 12  # pixels
_BAND_PIXELS = 2**20  # pixels that are composited on white at a time
_pillow_settings_lock = threading.Lock()
# Our error has what Pillow logs about a damaged file; this keeps the log off standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_picture(path: StrPath, place: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as mode "RGB": rotated as its EXIF data says, transparent pixels on white.

    Args:
        path: of the file.
        place: the picture's name in error messages, such as "metadata.jsonl, line 3".
        max_pixels: a picture with more pixels is refused before it is decoded.

    Raises:
        InputError: the file cannot be read, is not a picture in one of ``FORMATS``, is damaged, has
            too many pixels, or is grayscale with more than 8 bits per channel, for which no values
            of black and white are agreed.
    """
    return _read(path, place, max_pixels, _on_white)


def size_of_picture(path: StrPath, place: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the width and height of a picture as ``read_picture`` returns it.

    Only the beginning of the file is read, unless the picture has to be rotated. The arguments are
    those of ``read_picture``.

    Raises:
        InputError: see ``read_picture``.
    """
    return _read(path, place, max_pixels, lambda opened: opened.size)


def _read(
    path: StrPath, place: str, max_pixels: int, take: Callable[[Image.Image], Taken]
) -> Taken:
    """Return what a function takes of a picture that is open and upright."""
    with open_file(path) as file, _pillow_alone():
        # Pillow raises nearly any exception on a damaged file: OSError, SyntaxError, struct.error
        try:
            with Image.open(file, formats=FORMATS) as opened:
                _check_pixels(opened.size, max_pixels)
                ImageOps.exif_transpose(opened, in_place=True)
                return take(opened)
        except InputError as error:
            raise InputError(f"{place}: {path} {error}") from error
        except MemoryError:
            raise
        except Exception as error:
            unknown = isinstance(error, UnidentifiedImageError)
            why = "its format is not supported" if unknown else str(error)
            raise InputError(
                f"{place}: {path} is not a picture that can be read ({why}); give "
                f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            ) from error


def to_picture(given: Picture, place: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Convert a ``Picture`` to the form that ``read_picture`` returns.

    Args:
        given: a Pillow image, a path or an array.
        place: the picture's name in error messages.
        max_pixels: the limit for a file.

    Raises:
        InputError: it is none of these, or as for ``read_picture``.
    """
    if isinstance(given, str | os.PathLike):
        return read_picture(Path(given), place, max_pixels)
    if isinstance(given, np.ndarray):
        channels = given.shape[2:] in ((), (3,), (4,))
        if given.dtype != np.uint8 or given.ndim not in (2, 3) or not channels or not given.size:
            raise InputError(
                f"{place}: found an array of {given.dtype} of shape {given.shape}, wanted uint8 "
                f"(H, W), (H, W, 3) or (H, W, 4)"
            )
        given = Image.fromarray(given)
    if not isinstance(given, Image.Image):
        raise InputError(
            f"{place}: found {type(given).__name__}, wanted a Pillow image, a path or an array"
        )
    try:
        return _on_white(ImageOps.exif_transpose(given))
    except InputError as error:
        raise InputError(f"{place} {error}") from error
    except Exception as error:  # Pillow reads an opened file only now
        raise InputError(f"{place} cannot be read ({error})") from error


def square(picture: Image.Image, size: int) -> Image.Image:
    """Crop the central square of a picture, and scale it bilinearly to ``size`` pixels per side."""
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)


def crop(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Crop a picture of any size to a box (left, top, right, bottom)."""
    with _pillow_alone():
        return picture.crop(box)


@contextmanager
def _pillow_alone() -> Iterator[None]:
    """Keep Pillow from refusing large pictures, and from warning about size or metadata.

    Our own limit is ``max_pixels``. Both Pillow settings apply to the whole process, so only one
    thread at a time may change them.
    """
    with _pillow_settings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if max(width, _MIN_COUNTED_WIDTH) * height > max_pixels:
        raise InputError(
            f"has {width:,} x {height:,} pixels, more than the limit of {max_pixels:,}; "
            f"scale it down, or raise --max-pixels"
        )


def _on_white(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to "RGB", with transparent pixels on white."""
    if picture.mode.startswith(("I", "F")):
        raise InputError(f"has pixels of type {picture.mode}; make them 8 bits")
    if not picture.has_transparency_data:
        result = picture.convert("RGB")
        result.info = {}  # the metadata has been applied, and may be damaged
        return result
    # In bands, so that there are never three copies of a large picture in memory.
    width, height = picture.size
    result = Image.new("RGB", picture.size)
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result


def to_uint8(images: Tensor) -> Tensor:
    """Convert images (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3)."""
    gray_levels = images.float().clamp(-1, 1).add(1).mul(127.5).round()
    return gray_levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_image(image: Picture, size: int, place: str = "an image") -> Tensor:
    """Crop the central square of an image; return it as a tensor (3, size, size) in [-1, 1].

    As in training, it is rotated as its EXIF data says, transparent pixels are on white, and it is
    scaled bilinearly.

    Args:
        image: a Pillow image, a path or an array (see ``pictures.Picture``).
        size: side length in pixels.
        place: the image's name in error messages.

    Raises:
        InputError: see ``pictures.to_picture``.
    """
    pixels = np.asarray(square(to_picture(image, place), size)).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def to_signed(image: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 images (N, 3, H, W) to numbers in [-1, 1] on ``device``, channels last."""
    signed = image.to(device, non_blocking=True).to(torch.get_default_dtype()).div(127.5).sub(1)
    return signed.contiguous(memory_format=torch.channels_last)


def outlined(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Draw the outline of a box, white with a black edge, on a copy of an image.

    Args:
        image: uint8 (H, W, 3).
        box: see ``boxes``.
    """
    picture = Image.fromarray(image)
    x, y, width, height = box
    columns, rows = picture.width - 1, picture.height - 1
    left, top = round(x * columns), round(y * rows)
    right, bottom = round((x + width) * columns), round((y + height) * rows)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black")
    draw.rectangle((left, top, right, bottom), outline="white")
    return np.asarray(picture)


def write_sheet(
    path: Path,
    images: Sequence[np.ndarray],
    columns: int,
    gap: int = 2,
    captions: Sequence[str] = (),
) -> None:
    """Write images, each uint8 (H, W, 3), as one picture, row by row from left to right.

    Args:
        path: of the file.
        images: all of one size.
        columns: images in a row.
        gap: pixels between two images.
        captions: one for each column, written below it; none: there is no text.

    Raises:
        InputError: the file cannot be written.
    """
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    texts = [_broken(caption, width) for caption in captions]
    below = max((len(text.splitlines()) for text in texts), default=0) * _LINE_HEIGHT
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap + below)
    sheet = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        sheet.paste(
            Image.fromarray(image), (i % columns * (width + gap), i // columns * (height + gap))
        )
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(texts):
        for line, words in enumerate(text.splitlines()):
            place = (i * (width + gap), rows * (height + gap) - gap + line * _LINE_HEIGHT)
            draw.text(place, words, "black", _font())
    with whole_file(path) as partial:
        sheet.save(partial)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_LINE_HEIGHT - 2)


def _broken(text: str, width: int) -> str:
    """Break a text into lines of at most ``width`` pixels, where a single word fits in a line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1:] = [longer]
    return "\n".join(lines)
