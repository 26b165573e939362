"""Cropping pictures to squares that show the whole subject, because training uses squares."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirrorgan_fast.data.prepare.lab import to_lab
from mirrorgan_fast.data.prepare.subject import GRID, subject_probability

_LEAST_IN_LINE = 0.06  # share of a row or column that a garment must fill to count there
_GARMENT_MARGIN = 1.12  # side of the square to length of the garment


def scaled(picture: Image.Image, shorter: int) -> Image.Image:
    """Scale a picture down so that its shorter side has at most ``shorter`` pixels."""
    factor = shorter / min(picture.size)
    if factor >= 1:
        return picture
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS)


def garment_square(picture: Image.Image) -> Image.Image:
    """Crop a picture to a square around the garment in it.

    The side of the square is the picture's shorter side, or more if the garment is longer. What is
    then missing beside the garment is mirrored from the picture, but only as much as there is free
    beside it.

    Args:
        picture: of mode "RGB".
    """
    pixels = np.asarray(picture)
    shown = subject_probability(pixels) > 0.5
    upright = picture.height >= picture.width
    if not upright:
        pixels, shown = pixels.swapaxes(0, 1), shown.T
    longer, shorter, _ = pixels.shape
    start, end = _extent(shown.mean(axis=1))
    left, right = _extent(shown.mean(axis=0))
    free = int(min(left, 1 - right) * shorter)  # more would mirror the garment, too
    length = round((end - start) * longer * _GARMENT_MARGIN)
    side = min(max(length, shorter), longer, shorter + 2 * free)
    top = round((start + end) / 2 * longer - side / 2)
    top = min(max(top, 0), longer - side)
    missing = side - shorter
    beside = (missing // 2, missing - missing // 2)
    square = np.pad(pixels[top : top + side], ((0, 0), beside, (0, 0)), mode="symmetric")
    return Image.fromarray(np.ascontiguousarray(square if upright else square.swapaxes(0, 1)))


def _extent(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Return where a garment begins and ends, from 0 to 1, given its share of each line."""
    lines = np.flatnonzero(shares > _LEAST_IN_LINE)
    if not lines.size:
        return 0.0, 1.0
    return lines[0] / GRID, (lines[-1] + 1) / GRID


_COLUMNS = 64  # cells across a page
_UNLIKE_PAPER = 20.0  # distance in CIELAB
_LIGHTNESS_WEIGHT = 0.7
_LEAST_FILLED = 0.35  # share of its box that a fruit fills, at least
_LEAST_ASPECT = 0.4  # shorter to longer side of its box
_LEAST_CELLS = 45  # of a fruit, about 1 % of a page
_SECOND = 0.4  # cells of the second fruit to those of the largest, at least
_NECK = 0.6  # width between two fruits that touch to their own width, at most
_FRUIT_MARGIN = 1.3  # side of the square to the longer side of the fruit
_LEAST_SIDE = 0.5  # side of the square to the width of the page


class _Part(NamedTuple):
    """A painted part of a page, in cells."""

    left: int
    top: int
    right: int
    bottom: int
    cells: int


def fruit_square(picture: Image.Image) -> Image.Image | None:
    """Crop a page to a square around the upper of the large fruits that are painted on it.

    What the square needs beyond the page is filled with the color of the paper.

    Args:
        picture: of mode "RGB", a painting on light paper.

    Returns:
        the square; None: no part of the page is painted that is large enough and not cut off.
    """
    rows = max(1, round(_COLUMNS * picture.height / picture.width))
    if rows > 4 * _COLUMNS:
        return None
    small = picture.resize((_COLUMNS, rows), Image.Resampling.BOX)
    lab = to_lab(np.asarray(small))
    middle = lab[rows // 10 : rows - rows // 10, _COLUMNS // 8 : -_COLUMNS // 8].reshape(-1, 3)
    paper = np.median(middle[middle[:, 0] >= np.median(middle[:, 0])], axis=0)
    away = (lab - paper) * [_LIGHTNESS_WEIGHT, 1, 1]
    painted = np.hypot(np.hypot(away[..., 0], away[..., 1]), away[..., 2]) > _UNLIKE_PAPER
    part = _upper_fruit(painted)
    if part is None:
        return None
    sides = part.right - part.left, part.bottom - part.top
    is_branch = min(sides) < _LEAST_ASPECT * max(sides)
    if is_branch or part.cells < _LEAST_FILLED * sides[0] * sides[1]:
        return None
    cell = picture.width / _COLUMNS
    side = max(sides) * cell * _FRUIT_MARGIN
    side = round(max(side, _LEAST_SIDE * picture.width))
    left = round((part.left + part.right) / 2 * cell - side / 2)
    top = round((part.top + part.bottom) / 2 * cell - side / 2)
    near = np.abs(lab - paper).max(axis=-1) < 6
    color = np.asarray(small)[near].mean(axis=0) if near.any() else np.full(3, 255.0)
    square = Image.new("RGB", (side, side), tuple(int(level) for level in color.round()))
    inner = _inside_of_edge(lab, paper, picture.size)
    box = (
        max(left, inner[0]),
        max(top, inner[1]),
        min(left + side, inner[2]),
        min(top + side, inner[3]),
    )
    square.paste(picture.crop(box), (box[0] - left, box[1] - top))
    return square


def _upper_fruit(painted: NDArray[np.bool_]) -> _Part | None:
    """Return the upper of the two largest parts, or the largest if the other is much smaller."""
    parts = sorted(_parts(painted), key=lambda part: (-part.cells, part.top, part.left))
    if not parts:
        return None
    large = [part for part in parts[:2] if part.cells >= _SECOND * parts[0].cells]
    return _above_neck(painted, min(large, key=lambda part: (part.top, part.left)))


def _parts(painted: NDArray[np.bool_]) -> list[_Part]:
    """Return the connected parts that are large enough and do not reach the edge of the page."""
    height, width = painted.shape
    numbers = np.arange(1, height * width + 1).reshape(height, width) * painted
    while True:  # each part takes the largest number in it
        padded = np.pad(numbers, 1)
        around = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
        spread = np.maximum.reduce([numbers, *around]) * painted
        if np.array_equal(spread, numbers):
            break
        numbers = spread
    found = []
    for number, cells in zip(*np.unique(numbers[painted], return_counts=True), strict=True):
        if cells < _LEAST_CELLS:
            continue
        y, x = np.nonzero(numbers == number)
        part = _Part(x.min(), y.min(), x.max() + 1, y.max() + 1, int(cells))
        if part.left > 0 and part.top > 0 and part.right < width and part.bottom < height:
            found.append(part)
    return found


def _above_neck(painted: NDArray[np.bool_], part: _Part) -> _Part:
    """Return the upper half of a part that is two fruits which touch; otherwise the part."""
    widths = painted[part.top : part.bottom, part.left : part.right].sum(axis=1)
    count = len(widths)
    if count < 1.4 * (part.right - part.left):
        return part
    neck = int(count * 0.35 + np.argmin(widths[int(count * 0.35) : int(count * 0.65) + 1]))
    if widths[neck] > _NECK * min(widths[:neck].max(), widths[neck:].max()):
        return part
    return part._replace(bottom=part.top + neck, cells=int(widths[:neck].sum()))


def _inside_of_edge(
    lab: NDArray[np.float64], paper: NDArray[np.float64], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the part of a page without the dark edge of its photograph, in pixels."""
    dark = lab[..., 0] < paper[0] - 30
    limits = []
    for lines, length in ((dark.mean(axis=0), size[0]), (dark.mean(axis=1), size[1])):
        cell = length / len(lines)
        light = np.flatnonzero(lines <= 0.5)
        first, last = (light[0], light[-1]) if light.size else (0, len(lines) - 1)
        after_first = round((first + 1) * cell) if first else 0
        limits.append((after_first, round(last * cell) if last < len(lines) - 1 else length))
    (left, right), (top, bottom) = limits
    return left, top, right, bottom
