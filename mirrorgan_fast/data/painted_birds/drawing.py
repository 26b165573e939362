"""Drawing a painted bird: a small illustration with a mask of every part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.data.painted_birds.bird import (
    COLORED_PARTS,
    COLORS,
    RGB,
    Bird,
)
from mirrorgan_fast.errors import InputError

Points = NDArray[np.float64]
Plane = NDArray[np.float32]
Shapes = Iterator[tuple[Points, int]]  # outlines in the picture, and indices of their tones


PARTS = (*COLORED_PARTS, "wing_bars", "eye_ring", "bill", "perch", "background")
"""The parts that have masks."""

# A pixel belongs to a part that covers more than this share of it. With exactly a half, a pixel
# could belong to two parts.
_MIN_COVER = 0.51
SMALLEST_SIZE, LARGEST_SIZE = 64, 512


def check_size(size: int) -> None:
    """Raise `InputError` if the size of a picture is out of range."""
    if type(size) is not int or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise InputError(
            f"painted birds are {SMALLEST_SIZE} to {LARGEST_SIZE} pixels wide, not {size!r}"
        )


@dataclass(frozen=True)
class Painting:
    """A picture and the masks of its parts.

    Attributes:
        image: uint8 (S, S, 3), RGB.
        masks: for each of `PARTS`, bool (S, S): the pixels that mostly show this part. Masks do not
            overlap. Eye and legs are in no mask. If the bird lacks a part, its mask is empty.
    """

    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]


# The labels of pixels in the label image. The bird is drawn as flat labels on a finer grid, which
# are then averaged to the size of the picture. This gives antialiased colors and exact masks from
# one drawing.
_LABELS = ("nothing", *COLORED_PARTS, "wing_bars", "eye_ring", "bill", "leg", "eye", "glint")
_LABEL = {name: i for i, name in enumerate(_LABELS)}
_FIXED_COLORS: dict[str, RGB] = {
    "nothing": (0, 0, 0),
    "leg": (92, 70, 62),
    "eye": (18, 15, 17),
    "glint": (250, 250, 250),
}

_LENGTH = {"small": 0.58, "medium": 0.715, "large": 0.85}  # in picture widths, with 2.5 % jitter
_AXIS = {"upright": 60.0, "level": 12.0}  # degrees
# Positions in bird lengths from the middle of the body: the head along and across the body's axis,
# the feet to the right and up.
_HEAD = {"upright": (0.300, 0.045), "level": (0.245, 0.160)}
_FEET = {"upright": (0.085, -0.335), "level": (0.030, -0.335)}
_MIDDLE = {"upright": (0.485, 0.485), "level": (0.495, 0.480)}  # of the body, in picture widths
_HEAD_RADIUS = 0.122


@dataclass(frozen=True)
class _Jitter:
    """All random numbers of a painting.

    They are drawn in the same order for every bird, so that a change of one attribute changes
    nothing else in the picture.
    """

    pose: Points  # (12,) in [-1, 1]
    blobs: Points  # (26, 5) in [0, 1]: background blobs
    perch: Points  # (12, 4) in [-1, 1]
    noise: Plane  # (64, 64), smooth, unit variance: plumage and perch texture

    @staticmethod
    def draw(rng: np.random.Generator) -> _Jitter:
        noise = rng.standard_normal((64, 64)).astype(np.float32)
        noise += np.roll(noise, 1, axis=0)
        noise += np.roll(noise, 1, axis=1)
        return _Jitter(
            pose=rng.uniform(-1, 1, 12),
            blobs=rng.uniform(0, 1, (26, 5)),
            perch=rng.uniform(-1, 1, (12, 4)),
            noise=noise / np.float32(2),
        )


@dataclass(frozen=True)
class Place:
    """Where in the picture a bird is, instead of in its middle.

    Attributes:
        scale: factor of its size.
        shift: of the middle of its body to the right and down, in picture widths.
    """

    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)


MIDDLE = Place()
_BOX_WIDTH = 256  # pixels of the drawing whose bounds are the box
_VARIED_SCALE = 0.55  # small, medium and large birds take about a third to a half of the picture
_EDGE = 0.01  # picture widths that are free around a bird in a varied place


def box_of(bird: Bird, rng: np.random.Generator, place: Place = MIDDLE) -> Box:
    """Return the box of a bird in its picture: the bounds of all that is drawn of it, legs too.

    The arguments are those of ``paint``, with the same state of the generator.
    """
    return _bounds(bird, _Jitter.draw(rng), place)


def varied_place(bird: Bird, rng: np.random.Generator, places: np.random.Generator) -> Place:
    """Return a place anywhere in the picture for a bird of about half its size, which fits there.

    Args:
        bird: the bird.
        rng: see ``paint``; with the same state.
        places: the generator of the place.
    """
    x, y, width, height = _bounds(bird, _Jitter.draw(rng), Place(_VARIED_SCALE))
    left, top = (places.uniform(_EDGE, 1 - side - _EDGE) for side in (width, height))
    return Place(_VARIED_SCALE, (left - x, top - y))


def _bounds(bird: Bird, jitter: _Jitter, place: Place) -> Box:
    labels, _ = _draw_bird(bird, _Anatomy(bird, jitter.pose, place), _BOX_WIDTH)
    bounds = labels.getbbox()
    assert bounds is not None
    left, top, right, bottom = (side / _BOX_WIDTH for side in bounds)
    return left, top, right - left, bottom - top


def paint(bird: Bird, rng: np.random.Generator, size: int, place: Place = MIDDLE) -> Painting:
    """Paint a bird.

    The generator only determines details (tilt, leaves, texture). With the same generator state,
    two birds that differ in one attribute give pictures that differ only in this attribute, and one
    bird at two sizes gives the same picture at two resolutions.

    Args:
        bird: the bird.
        rng: the generator of random numbers.
        size: side length of the picture in pixels, 64 to 512.
        place: where the bird is.

    Raises:
        InputError: the size is out of range.
    """
    check_size(size)
    jitter = _Jitter.draw(rng)
    anatomy = _Anatomy(bird, jitter.pose, place)
    fine = 4 if size <= 128 else 3
    texture = _enlarge(jitter.noise, size)

    picture = _paint_background(bird.background, jitter.blobs, size)
    perch = _draw_perch(bird.perch, jitter.perch, anatomy, size * fine)
    perch_cover = _average(perch.point([0] + [255] * 255), fine)
    picture = _lay_over(
        picture,
        perch_cover,
        _average_colors(perch, [(0, 0, 0), *_PERCH_TONES[bird.perch]], fine),
        _relief(perch_cover, size * 0.05, 0.22) + 0.03 * texture,
        shadow=0.20,
    )

    labels, detail = _draw_bird(bird, anatomy, size * fine)
    cover = _average(labels.point([0] + [255] * 255), fine)
    wing_cover = _average(labels.point(_table("wing", "wing_bars")), fine)
    length = anatomy.length * size
    shade = (
        _relief(cover, length * 0.075, 0.19)
        + _relief(wing_cover, length * 0.03, 0.08)
        + 0.022 * texture
    )
    strokes = (_average(detail, fine) - 128 / 255) * 0.5
    colors = [_FIXED_COLORS.get(name) or COLORS[_color_of(bird, name)] for name in _LABELS]
    picture = _lay_over(
        picture,
        cover,
        _average_colors(labels, colors, fine),
        np.clip(shade, -0.13, 0.12) + strokes,
        shadow=0.5,
    )

    masks = {
        name: _average(labels.point(_table(name)), fine) > _MIN_COVER
        for name in (*COLORED_PARTS, "wing_bars", "eye_ring", "bill")
    }
    masks["perch"] = (perch_cover * (1 - cover)) > _MIN_COVER
    masks["background"] = ((1 - perch_cover) * (1 - cover)) > _MIN_COVER
    return Painting(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8), masks)


def _color_of(bird: Bird, label: str) -> str:
    value: str = getattr(bird, "bill_color" if label == "bill" else label)
    return "black" if value == "none" else value  # a missing part is not drawn, so any color works


class _Anatomy:
    """The pose of a bird: converts points of its body and head to points of the picture.

    The picture is the unit square, with y pointing down.
    """

    def __init__(self, bird: Bird, jitter: Points, place: Place) -> None:
        self.length = place.scale * _LENGTH[bird.size] * (1 + 0.025 * float(jitter[0]))
        self.faces = 1 if bird.direction == "right" else -1
        self.axis = np.radians(_AXIS[bird.pose] + 3.0 * jitter[1])
        self.gaze = np.radians(2.0 + 5.0 * jitter[2])
        middle_x, middle_y = _MIDDLE[bird.pose]
        # A small bird has room to move; a large one would leave the picture.
        room = 0.012 + 0.10 * (0.85 - _LENGTH[bird.size])
        self.middle = (
            0.5 + self.faces * (middle_x - 0.5) + room * jitter[3] + place.shift[0],
            middle_y + room * jitter[4] + place.shift[1],
        )
        along, across = _HEAD[bird.pose]
        self.head = _turn(
            np.array([[along + 0.012 * jitter[5], across + 0.012 * jitter[6]]]), self.axis
        )[0]
        self.plumpness = 1 + 0.06 * jitter[7]
        self.tail_tilt = np.radians((-6.0 if bird.pose == "level" else 8.0) + 5.0 * jitter[8])
        self.feet = np.array(_FEET[bird.pose])

    def body(self, points: Sequence[tuple[float, float]] | Points) -> Points:
        """Convert points of the body to points of the picture.

        Args:
            points: (P, 2), along and across the axis of the body, in bird lengths.
        """
        return self.world(_turn(np.asarray(points, dtype=np.float64), self.axis))

    def of_head(self, points: Sequence[tuple[float, float]] | Points) -> Points:
        """Convert points of the head to points of the picture.

        Args:
            points: (P, 2), forward and up from the middle of the head, in head radii.
        """
        return self.world(
            self.head + _turn(np.asarray(points, dtype=np.float64) * _HEAD_RADIUS, self.gaze)
        )

    def world(self, points: Points) -> Points:
        """Convert horizontal and vertical distances from the body to points of the picture.

        Args:
            points: (P, 2), forward and up from the middle of the body, in bird lengths.
        """
        scale = np.array([self.faces * self.length, -self.length])
        placed: Points = np.asarray(self.middle) + points * scale
        return placed

    def outline(self) -> Points:
        """Return the outline of head, neck and body as a smooth line in the picture, (P, 2)."""
        plump = np.array([1.0, self.plumpness])
        neck = np.arctan2(self.head[1], self.head[0])
        head = self.head + _HEAD_RADIUS * _arc(neck + np.radians(118), neck - np.radians(104), 9)
        upper, lower = self.body(_UPPER_BODY), self.body(_LOWER_BODY * plump)
        return _smooth(np.concatenate([upper, self.world(head), lower]))


def _turn(points: Points, angle: float) -> Points:
    cosine, sine = np.cos(angle), np.sin(angle)
    turned: Points = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


def _arc(start: float, end: float, count: int) -> Points:
    """Return points of the unit circle from one angle to another, (count, 2)."""
    angles = np.linspace(start, end, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _smooth(points: Points, steps: int = 8) -> Points:
    """Return the closed Catmull-Rom curve through points: (P, 2) -> (P * steps, 2)."""
    before, after, next_after = (np.roll(points, k, axis=0)[:, None] for k in (1, -1, -2))
    here = points[:, None]
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (
        2 * here
        + (after - before) * t
        + (2 * before - 5 * here + 4 * after - next_after) * t**2
        + (3 * here - before - 3 * after + next_after) * t**3
    )
    return np.asarray(curve.reshape(-1, 2))


# fmt: off
_WING = np.array([
    (0.195, 0.010), (0.12, 0.075), (-0.04, 0.092), (-0.20, 0.062), (-0.345, -0.005),
    (-0.345, -0.022), (-0.22, -0.058), (-0.07, -0.094), (0.08, -0.100), (0.175, -0.056),
])
_TAIL = np.array([
    (-0.20, 0.060), (-0.36, 0.040), (-0.530, 0.056), (-0.550, 0.045), (-0.535, 0.0),
    (-0.550, -0.045), (-0.530, -0.054), (-0.36, -0.052), (-0.20, -0.090),
])
_TAIL_ROOT = np.array([-0.26, 0.0])
_UPPER_BODY = np.array([(-0.335, 0.015), (-0.26, 0.075), (-0.12, 0.140), (0.03, 0.172)])
_LOWER_BODY = np.array([
    (0.240, -0.112), (0.17, -0.182), (0.05, -0.224), (-0.09, -0.210), (-0.21, -0.150),
    (-0.31, -0.065),
])
# These regions extend beyond the body and are clipped to its outline.
_BREAST = np.array([
    (0.085, 0.10), (0.115, -0.02), (0.085, -0.13), (0.035, -0.30), (0.60, -0.30),
    (0.60, 0.40), (0.10, 0.30),
])
_BACK = np.array([
    (-0.50, -0.02), (-0.33, -0.01), (-0.20, 0.045), (0.0, 0.070), (0.13, 0.060), (0.215, 0.075),
    (0.26, 0.12), (0.26, 0.40), (-0.50, 0.40),
])
_HOOD_EDGE = np.array([  # in head radii, from the nape to the throat
    (-1.35, -0.62), (-0.75, -0.62), (-0.30, -0.72), (0.15, -0.74), (0.60, -0.58),
])
_BILLS = {  # in head radii, from the middle of the head
    "short": [
        (0.80, 0.38), (1.15, 0.30), (1.48, 0.13), (1.68, -0.10), (1.40, -0.24), (0.80, -0.38),
    ],
    "long": [(0.80, 0.24), (1.20, 0.16), (2.48, 0.02), (2.48, -0.04), (1.20, -0.18), (0.80, -0.24)],
    "curved": [
        (0.80, 0.34), (1.25, 0.34), (1.75, 0.10), (2.08, -0.35), (2.20, -0.88),
        (2.08, -0.86), (1.82, -0.44), (1.48, -0.14), (1.15, -0.08), (0.80, -0.18),
    ],
}
_BARS = [  # two slightly bent bands across the wing
    [
        (0.092, 0.074), (0.066, -0.02), (0.072, -0.118),
        (0.114, -0.118), (0.108, -0.02), (0.134, 0.074),
    ],
    [
        (-0.012, 0.092), (-0.040, -0.02), (-0.034, -0.118),
        (0.010, -0.118), (0.004, -0.02), (0.032, 0.092),
    ],
]
_SCALLOP = np.array([(0.0, -0.02), (-0.026, -0.01), (-0.026, 0.012), (0.0, 0.022)])
_QUILLS = [  # start and bend of the lines of the flight feathers, which end at the wing's tip
    [(-0.05, -0.085), (-0.19, -0.030)], [(-0.06, -0.045), (-0.20, -0.008)],
    [(-0.07, 0.0), (-0.20, 0.018)], [(-0.06, 0.045), (-0.19, 0.042)],
]
# fmt: on


def _draw_bird(bird: Bird, at: _Anatomy, width: int) -> tuple[Image.Image, Image.Image]:
    """Draw the bird on a fine grid.

    Returns:
        the labels ("L", 0 is nothing) and the strokes ("L", 128 is no stroke, less is darker).
    """
    labels, detail = Image.new("L", (width, width)), Image.new("L", (width, width), 128)
    pen, stroke = ImageDraw.Draw(labels), ImageDraw.Draw(detail)
    unit = at.length * width

    def fill(points: Points, label: str, target: ImageDraw.ImageDraw = pen) -> None:
        target.polygon(_flat(points, width), fill=_LABEL[label])

    def line(points: Points, tone: int, thickness: float) -> None:
        stroke.line(
            _flat(points, width), fill=tone, width=max(1, round(thickness * unit)), joint="curve"
        )

    def disk(center: Points, radius: float, label: str) -> None:
        x, y = center * width
        reach = radius * unit
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=_LABEL[label])

    for hip, foot in _legs(bird, at):
        knee = hip * 0.4 + foot * 0.6 + np.array([-0.02 * at.faces * at.length, 0.0])
        pen.line(
            _flat(np.stack([hip, knee, foot]), width),
            fill=_LABEL["leg"],
            width=max(1, round(0.018 * unit)),
            joint="curve",
        )
        for reach, drop in ((0.050, 0.012), (0.042, -0.004), (-0.034, 0.010)):
            toe = foot + at.length * np.array([at.faces * reach, drop])
            pen.line(
                _flat(np.stack([foot, toe]), width),
                fill=_LABEL["leg"],
                width=max(1, round(0.015 * unit)),
            )

    def of_tail(points: Points) -> Points:
        return at.body(_TAIL_ROOT + _turn(points - _TAIL_ROOT, at.tail_tilt))

    fill(_smooth(of_tail(_TAIL), 4), "tail")
    for across in (-0.022, 0.004, 0.028):
        line(of_tail(np.array([(-0.30, across * 0.6), (-0.54, across)])), 84, 0.008)

    bill = _smooth(at.of_head(_BILLS[bird.bill]))
    fill(bill, "bill")
    line(np.concatenate([bill, bill[:1]]), 84, 0.010)

    # The regions of the body are drawn larger than the body and then clipped to its outline.
    regions = Image.new("L", labels.size, _LABEL["belly"])
    region = ImageDraw.Draw(regions)
    fill(at.body(_BREAST), "breast", region)
    fill(at.body(_BACK), "back", region)
    top = 1.3 * _arc(np.radians(-20), np.radians(190), 12)
    fill(at.of_head(np.concatenate([top, _HOOD_EDGE])), "crown", region)
    inside = Image.new("L", labels.size)
    ImageDraw.Draw(inside).polygon(_flat(at.outline(), width), fill=255)
    labels.paste(regions, mask=inside)
    detail.paste(128, mask=inside)
    gape = float(np.arcsin(_BILLS[bird.bill][0][1]))
    line(at.of_head(_arc(gape, -gape, 5)), 76, 0.010)

    fill(_smooth(at.body(_WING)), "wing")
    if bird.wing_bars != "none":
        wing = labels.point(_table("wing"))
        bars = Image.new("L", labels.size)
        for bar in _BARS:
            ImageDraw.Draw(bars).polygon(_flat(at.body(bar), width), fill=255)
        labels.paste(_LABEL["wing_bars"], mask=ImageChops.darker(wing, bars))

    wing_edge = _smooth(at.body(_WING))
    line(np.concatenate([wing_edge, wing_edge[:1]]), 74, 0.009)
    for along in (0.135, 0.030):
        for across in (-0.062, -0.016, 0.030):
            line(at.body(_SCALLOP + np.array([along, across])), 98, 0.007)
    for start, bend in _QUILLS:
        line(at.body([start, bend, (-0.335, -0.010)]), 86, 0.008)

    eye = at.of_head([(0.40, 0.16)])[0]
    if bird.eye_ring != "none":
        disk(eye, 0.050, "eye_ring")
    disk(eye, 0.030, "eye")
    disk(eye + at.length * np.array([0.008, -0.010]), 0.0105, "glint")
    return labels, detail


def _legs(bird: Bird, at: _Anatomy) -> Iterator[tuple[Points, Points]]:
    """Yield the hip and the foot of each leg, in the picture."""
    along = -0.03 if bird.pose == "level" else -0.06
    for shift in (-0.035, 0.035):
        hip = at.body([(along + shift, -0.17)])[0]
        foot = at.world(
            at.feet + (np.array([0.0, shift]) if bird.perch == "reed" else np.array([shift, 0.0]))
        )
        yield hip, foot


def _flat(points: Points, width: int) -> list[float]:
    return list((points * width).ravel().tolist())


def _table(*names: str) -> list[int]:
    """Return a lookup table that is 255 for the given labels and 0 for all others."""
    return [255 if i < len(_LABELS) and _LABELS[i] in names else 0 for i in range(256)]


def _average(fine: Image.Image, factor: int) -> Plane:
    """Average a fine "L" image to the size of the picture: float32 (S, S) in [0, 1]."""
    return np.asarray(fine.reduce(factor), dtype=np.float32) / np.float32(255)


def _average_colors(labels: Image.Image, colors: Sequence[RGB], factor: int) -> Plane:
    """Average the colors of a fine label image to the size of the picture: float32 (S, S, 3).

    Label 0 must be black.
    """
    indexed = labels.copy()
    indexed.putpalette([channel for color in colors for channel in color])
    return np.asarray(indexed.convert("RGB").reduce(factor), dtype=np.float32) / np.float32(255)


def _blur(plane: Plane, radius: float) -> Plane:
    image = Image.fromarray((plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _relief(cover: Plane, radius: float, strength: float) -> Plane:
    """Return the shading of a rounded shape that is lit from above, (S, S): its top is lighter.

    Args:
        cover: how much of each pixel the shape covers, (S, S).
        radius: width of the rounding at the edge, in pixels.
        strength: factor of the shading.
    """
    step = max(1, round(radius))
    padded = np.pad(_blur(cover, radius), ((step, step), (0, 0)), mode="edge")
    return np.asarray((padded[2 * step :] - padded[: -2 * step]) * strength)


def _lay_over(below: Plane, cover: Plane, colors: Plane, shade: Plane, shadow: float) -> Plane:
    """Composite a shape over a picture, with a soft dark rim.

    The rim lies outside the shape. So a white bird is visible against a cloud, and the colors
    inside the shape do not change.

    Args:
        below: the picture, (S, S, 3).
        cover: how much of each pixel the shape covers, (S, S).
        colors: colors of the shape, already weighted by the cover, (S, S, 3).
        shade: shading of the shape, (S, S).
        shadow: darkness of the rim.
    """
    rim = 1 - shadow * _blur(cover, below.shape[0] * 0.009)
    # Part of the light is added rather than multiplied; otherwise black feathers would look flat.
    lit = colors + shade[..., None] * (0.75 * colors + 0.26 * cover[..., None])
    return np.asarray(below * (rim * (1 - cover))[..., None] + np.clip(lit, 0, 1))


def _enlarge(noise: Plane, size: int) -> Plane:
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


_PERCH_TONES: dict[str, list[RGB]] = {  # colors of labels 1, 2, ...
    "branch": [(104, 82, 66), (82, 62, 50), (112, 136, 84), (90, 116, 74)],
    "rock": [(134, 130, 126), (112, 108, 106), (152, 148, 142)],
    "ground": [(146, 122, 92), (124, 102, 76), (116, 130, 78), (96, 112, 68)],
    "reed": [(148, 152, 92), (118, 124, 74), (126, 142, 84)],
}


def _draw_perch(perch: str, jitter: Points, at: _Anatomy, width: int) -> Image.Image:
    """Draw the perch as labels ("L"): 0 is nothing, 1, 2, ... are tones of `_PERCH_TONES`."""
    labels = Image.new("L", (width, width))
    pen = ImageDraw.Draw(labels)
    x, y = at.world(at.feet)
    for points, tone in _PERCHES[perch](float(x), float(y), jitter):
        pen.polygon(_flat(points, width), fill=tone)
    return labels


def _branch(x: float, y: float, jitter: Points) -> Shapes:
    slope = 0.05 * jitter[0, 0]
    along = np.linspace(-0.02, 1.02, 14)
    wave = 0.006 * np.sin(9 * along + 3 * jitter[0, 1])
    top = np.stack([along, y + slope * (along - x) + wave], axis=1)
    taper = np.linspace(0.075, 0.045, 14)[:, None] * np.array([0.0, 1.0])
    under_side = (top + taper)[::-1]
    yield np.concatenate([top, under_side]), 1
    yield np.concatenate([top + 0.62 * taper, under_side]), 2
    for i, (place, angle, reach, side) in enumerate(jitter[1:7]):
        root_x = 0.08 + 0.15 * i + 0.03 * place
        root = np.array([root_x, y + slope * (root_x - x) + 0.035])
        up = 1 if side > 0 else -1
        yield (
            _leaf(root, up * np.radians(78 + 42 * angle), 0.10 + 0.025 * reach, 0.30),
            3 if side > 0 else 4,
        )


def _rock(x: float, y: float, jitter: Points) -> Shapes:
    here = np.array([x, y])
    ridge = here + _RIDGE
    ridge[np.abs(_RIDGE[:, 0]) > 0.2, 1] += 0.012 * jitter[[0, 1, 5, 6], 0]
    yield _smooth(np.concatenate([ridge, [(x + 0.50, 1.15), (x - 0.50, 1.15)]])), 1
    foot = [(x - 0.12 + 0.04 * jitter[2, 1], 1.1), (x - 0.50, 1.1)]
    yield _smooth(np.concatenate([here + np.array([(-0.40, 0.12), (-0.24, 0.11)]), foot])), 2
    yield _smooth(here + _SUNLIT), 3


def _ground(x: float, y: float, jitter: Points) -> Shapes:
    across = np.linspace(-0.05, 1.05, 12)
    edge = np.stack([across, y - 0.075 + 0.012 * np.sin(5 * across + 3 * jitter[0, 1])], axis=1)
    yield np.concatenate([edge, [(1.05, 1.05), (-0.05, 1.05)]]), 1
    for i in range(6):
        pebble = np.array([0.5 + 0.5 * jitter[i, 0], y + 0.10 + 0.09 * jitter[i, 1]])
        yield pebble + _arc(0, 2 * np.pi, 20) * [0.09, 0.012], 2
    for i, (place, lean, reach, _) in enumerate(jitter):
        far = i % 2 == 1
        root = np.array([(i + 0.5 + 0.4 * place) / 12, y - 0.045 if far else 1.01])
        for blade in (-0.35, 0.0, 0.35):
            angle = np.radians(90) + blade + 0.25 * lean
            yield _leaf(root, angle, 0.075 + 0.02 * reach, 0.13), 3 if far else 4


def _reed(x: float, y: float, jitter: Points) -> Shapes:
    for place, lean, reach, _ in jitter[1:5]:
        root = np.array([x + 0.22 * place, 1.03])
        yield _leaf(root, np.radians(90) + 0.35 * lean, 0.42 + 0.1 * reach, 0.05), 3
    lean = 0.05 * jitter[0, 0]
    bottom, top = np.array([(x - lean * (1.05 - y), 1.05), (x + lean * (y + 0.05), -0.05)])
    half = np.array([0.017, 0.0])
    right_side = [bottom + half, top + half * 0.7]
    yield np.stack([bottom - half, *right_side, top - half * 0.7]), 1
    yield np.stack([bottom + half * 0.3, *right_side, top + half * 0.2]), 2


_SUNLIT = np.array([(-0.12, 0.025), (0.16, 0.022), (0.24, 0.05), (0.02, 0.06)])
_RIDGE = np.array(  # ridge of the rock, relative to the feet
    [
        (-0.42, 0.09),
        (-0.30, 0.02),
        (-0.14, 0.0),
        (0.0, 0.0),
        (0.14, 0.0),
        (0.29, 0.035),
        (0.40, 0.12),
    ]
)
_PERCHES = {"branch": _branch, "rock": _rock, "ground": _ground, "reed": _reed}


def _leaf(root: Points, angle: float, reach: float, breadth: float) -> Points:
    """Return a leaf that grows from `root` at `angle` (pi / 2 is up), in the picture, (P, 2)."""
    along = np.array([0.0, 0.30, 0.60, 1.0, 0.60, 0.30])
    across = breadth * np.array([0.0, 0.8, 0.75, 0.0, -0.75, -0.8])
    shape = reach * np.stack([along, across], axis=1)
    return _smooth(root + _turn(shape, angle) * [1.0, -1.0], 4)


@dataclass(frozen=True)
class _Scene:
    """An out-of-focus scene: colors from top to bottom, and blobs between `top` and `bottom`."""

    sky: tuple[RGB, ...]
    blobs: tuple[RGB, ...]
    top: float
    bottom: float
    radius: tuple[float, float]
    stretch: tuple[float, float]
    blur: float


_SCENES = {
    "sky": _Scene(
        ((142, 178, 208), (168, 198, 220), (196, 214, 224), (212, 222, 224)),
        ((222, 229, 233), (206, 220, 229), (230, 233, 234)),
        0.05,
        0.85,
        (0.05, 0.11),
        (2.2, 0.7),
        3.0,
    ),
    "forest": _Scene(
        ((112, 134, 110), (92, 116, 94), (80, 102, 82), (70, 88, 70)),
        ((84, 108, 84), (122, 144, 112), (70, 92, 74), (150, 166, 128), (98, 122, 96)),
        -0.05,
        1.0,
        (0.05, 0.12),
        (1.0, 1.0),
        1.7,
    ),
    "meadow": _Scene(
        ((206, 218, 208), (200, 212, 184), (172, 190, 128), (152, 174, 106), (136, 160, 94)),
        ((222, 214, 150), (186, 202, 136), (158, 182, 112), (212, 190, 196), (176, 196, 124)),
        0.45,
        1.05,
        (0.02, 0.06),
        (1.3, 0.8),
        1.3,
    ),
    "sunset": _Scene(
        (
            (138, 126, 166),
            (184, 150, 172),
            (224, 178, 166),
            (230, 194, 164),
            (176, 142, 148),
            (128, 110, 132),
        ),
        ((206, 164, 172), (236, 202, 178), (168, 142, 170), (222, 178, 168)),
        0.05,
        0.62,
        (0.03, 0.07),
        (4.0, 0.45),
        2.0,
    ),
}
_SCENE_WIDTH = 64  # pixels; more are not needed because the scene is blurred


def _paint_background(background: str, jitter: Points, size: int) -> Plane:
    """Paint a background, float32 (S, S, 3) in [0, 1].

    It is muted and out of focus, so that the bird stands out.
    """
    scene, width = _SCENES[background], _SCENE_WIDTH
    stops = np.array(scene.sky, dtype=np.float64)
    heights = np.linspace(0, len(stops) - 1, width)
    column = np.stack(
        [np.interp(heights, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=1
    )
    view = Image.fromarray(np.repeat(column[:, None], width, axis=1).astype(np.uint8))
    pen = ImageDraw.Draw(view)
    for i, (across, down, radius, _, _) in enumerate(jitter):
        reach = scene.radius[0] + (scene.radius[1] - scene.radius[0]) * radius
        x, y = across * 1.1 - 0.05, scene.top + (scene.bottom - scene.top) * down
        dx, dy = reach * scene.stretch[0], reach * scene.stretch[1]
        box = [width * value for value in (x - dx, y - dy, x + dx, y + dy)]
        pen.ellipse(box, fill=scene.blobs[i % len(scene.blobs)])
    view = view.filter(ImageFilter.GaussianBlur(scene.blur)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    return np.asarray(view, dtype=np.float32) / np.float32(255)
