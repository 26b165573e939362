"""The colors of the subject of a picture and of its background, by their everyday names."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirrorgan_fast.data.prepare.lab import shrunk, to_lab
from mirrorgan_fast.data.prepare.subject import CERTAIN, GRID, subject_probability
from mirrorgan_fast.errors import InputError

COLORS = {
    "black": "0c0c0d 1e1d20 2b2a2d 2f2b2a 353537 3c3c3d",
    "gray": "52524f 606164 6c6862 74757a 88898c 8f8a86 9c9da0",
    "white": "ffffff f0f0f2 e2e3e8 e6e0d2 d8cfc0 d6d8e0 cad0dc c8c9cd c4c4d4 c0bfbf b0b0c0 b8b8b4",
    "beige": "e4d0b0 dcc8a4 d8c0a8 cdb490 c4ae92 b8a48c",
    "light brown": "d0a878 c09a6c b08858 a88a6c a89078",
    "brown": "94745a 8a6040 74604c 6b4630 5a4638 4e3426",
    "red": "e03038 d84438 d8503c c8202c c04a30 b8483c b02430",
    "dark red": "8a3038 7c1c28 6e2430 5c1822 481820",
    "pink": "f4b8c4 f0ccd0 e88aa4 e0488c e02878 d8a09c c87084 c898a0 b07888 e8d4d4 d4a0c0 "
    "a06464 c8b0b4 e4d0e0 b49088",
    "orange": "f0a050 f08028 e88058 e86c30 dc9c74 d08c70 d09048 e45a30",
    "yellow": "f4ecb0 f0d838 ece088 e8c850 d8b428 c89840",
    "green": "c0d4a0 a4b89c 9fa868 9c9848 98c898 8cbc50 80a078 6a9050 68b458 3c9848 2c7850 b4ccbc",
    "dark green": "707050 606044 4c4e38 3a4830 344a34 24482e 1c4038",
    "turquoise": "a8d8d4 80d4cc 58c0b0 30b8b8 20a0c0 208080 1c8c98",
    "light blue": "bcd0e8 a8cce8 9cb4c8 98a6b6 94b0d0 90a8b0 8cb4dc 88a4c0 8a98a4 ccd4ec",
    "blue": "728498 6c8cb4 647488 5c7ca8 4868a0 3c80d0 2c4c90 2860c0 1c38b0 6a7884",
    "dark blue": "485468 3c4860 303a4c 2c3450 283858 20305c 1a2440 181c3c",
    "purple": "b494cc b0a0cc a03c90 9c84ac 8e88b0 8c58a8 7c5c80 6a2c80 68586e 5c3c58 4a2850",
}
"""Names of colors, each with samples, as sRGB. A color has the name of the nearest sample."""

_SIDE = 4 * GRID  # pixels; a picture is measured at this size
_NAMES = np.array([name for name, samples in COLORS.items() for _ in samples.split()])
_SAMPLES = to_lab(
    [list(bytes.fromhex(code)) for samples in COLORS.values() for code in samples.split()]
)
_OF_NAME = np.array([0.8, 1.0, 1.0])  # weights of L*, a* and b* in the distance to a sample
_OF_SHADE = np.array([0.5, 1.0, 1.0])  # and between pixels of one cloth, in light and in shade
_SAME = 14.0  # distance up to which pixels are of one color
_LEAST_CELLS = 30  # of a subject
_PLAIN = 0.25  # share of other colors, at most, in a subject of one color
_UNLIKE = 22.0  # distance between two colors of a subject, at least
_LEAST_SECOND = 0.25  # share of the second color, at least
_UNIFORM = 0.6  # share of each of two colors that must be near its median
_LEAST_CHROMA = 12.0  # of a color that has a hue
_SAME_HUE = 30.0  # degrees between a color in light and in shade, at most
_UNCLEAR = 2.5  # difference between the distances to gray or white and to another color
_MAIN = 0.5  # share of the main color of a subject of several colors, at least
_CLEAR = 0.7  # share of a background that must be of one color
_ROUNDS = 12


class Colors(NamedTuple):
    """The colors in a picture, each a name of ``COLORS``; None: there is no clear one.

    Attributes:
        main: of the subject; None: it has several colors, none of which covers half of it, or one
            between gray or white and another color.
        second: the other color of a subject of two colors.
        background: of its surroundings.
        several: whether the subject has several colors.
    """

    main: str | None
    second: str | None
    background: str | None
    several: bool


def nearest_color(lab: NDArray[np.float64]) -> str:
    """Return the name of a color in CIELAB (3,)."""
    return str(_names(lab[None])[0])


def _clear_color(lab: NDArray[np.float64]) -> str | None:
    """Return the name of a color (3,); None: it is between gray or white and another."""
    distances: dict[str, float] = {}
    for name, distance in zip(
        _NAMES, np.sqrt((((lab - _SAMPLES) * _OF_NAME) ** 2).sum(axis=1)), strict=True
    ):
        distances[str(name)] = min(distance, distances.get(str(name), distance))
    nearest, other = sorted(distances, key=distances.__getitem__)[:2]
    is_unclear = distances[other] - distances[nearest] < _UNCLEAR
    return None if is_unclear and {"gray", "white"} & {nearest, other} else nearest


def measure_colors(image: NDArray[np.uint8]) -> Colors:
    """Measure the colors of the thing in the middle of a picture, and of what is around it.

    The picture is scaled to 128 x 128 pixels first, so its size hardly matters. Each color is the
    median of pixels in CIELAB, whose name is that of the nearest sample in ``COLORS``.

    Args:
        image: of any size, uint8 (H, W, 3).

    Raises:
        InputError: the array is something else.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"image: found {image.dtype} {image.shape}, wanted uint8 (H, W, 3)")
    probability = subject_probability(image)
    certain = np.sort(probability, axis=None)[-_LEAST_CELLS]  # of the likeliest cells
    shown = _enlarged(probability >= min(CERTAIN, certain))
    lab = to_lab(shrunk(image, _SIDE))
    around = lab[_enlarged(probability < 1 - CERTAIN)]
    surroundings = np.median(around, axis=0)
    clear = _near(around, surroundings).mean() >= _CLEAR
    background = nearest_color(surroundings) if clear else None
    pixels = lab[shown]
    median = np.median(pixels, axis=0)
    if _near(pixels, median).mean() >= 1 - _PLAIN:
        return Colors(_clear_color(median), None, background, False)
    main, second = _several_colors(pixels, surroundings)
    return Colors(main, second, background, main is None or second is not None)


def _several_colors(
    pixels: NDArray[np.float64], surroundings: NDArray[np.float64]
) -> tuple[str | None, str | None]:
    """Return the main and the second color of a subject that is not plain (N, 3)."""
    first = _two_groups(pixels)
    medians = np.median(pixels[first], axis=0), np.median(pixels[~first], axis=0)
    names = nearest_color(medians[0]), nearest_color(medians[1])
    if _near(medians[1], surroundings):  # what shows between two legs or shoes
        return names[0], None
    if (
        1 - first.mean() >= _LEAST_SECOND
        and _distance(*medians) >= _UNLIKE
        and _hue(names[0]) != _hue(names[1])
        and not _is_shade(*medians)
        and _near(pixels[first], medians[0]).mean() >= _UNIFORM
        and _near(pixels[~first], medians[1]).mean() >= _UNIFORM
    ):
        return names
    of_pixels = Counter(map(str, _names(pixels)))
    of_hues: Counter[str] = Counter()
    for name, count in of_pixels.items():
        of_hues[_hue(name)] += count
    hue, count = max(of_hues.items(), key=lambda item: (item[1], item[0]))
    if count < _MAIN * len(pixels):
        return None, None
    shades = {name: number for name, number in of_pixels.items() if _hue(name) == hue}
    return max(shades, key=lambda name: (shades[name], name)), None


def _names(lab: NDArray[np.float64]) -> NDArray[np.str_]:
    """Return the name of each color (N, 3)."""
    away = ((lab[:, None] - _SAMPLES) * _OF_NAME) ** 2
    return np.asarray(_NAMES[away.sum(axis=-1).argmin(axis=1)])


def _hue(name: str) -> str:
    """Return a color's name without "light" or "dark"."""
    return name.split()[-1]


def _distance(lab: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances between colors (..., 3), which light and shade change little."""
    return np.asarray(np.sqrt((((lab - other) * _OF_SHADE) ** 2).sum(axis=-1)))


def _near(lab: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    return _distance(lab, other) < _SAME


def _is_shade(lab: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two colors (3,) are of one hue, as those of one cloth in light and in shade."""
    if min(np.hypot(*lab[1:]), np.hypot(*other[1:])) < _LEAST_CHROMA:
        return False
    turn = np.degrees(np.arctan2(lab[2], lab[1]) - np.arctan2(other[2], other[1]))
    return bool(abs((turn + 180) % 360 - 180) < _SAME_HUE)


def _enlarged(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return cells (GRID, GRID) as pixels (_SIDE, _SIDE)."""
    return cells.repeat(_SIDE // GRID, axis=0).repeat(_SIDE // GRID, axis=1)


def _two_groups(lab: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which colors (N, 3) belong to the larger of two groups (k-means).

    They must not all be equal.
    """
    from_mean = _distance(lab, lab.mean(axis=0))
    center = lab[from_mean.argmax()]
    other = lab[_distance(lab, center).argmax()]
    for _ in range(_ROUNDS):
        nearer = _distance(lab, center) < _distance(lab, other)
        center, other = lab[nearer].mean(axis=0), lab[~nearer].mean(axis=0)
    return nearer if nearer.mean() >= 0.5 else ~nearer
