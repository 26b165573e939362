"""Painted birds: a captioned bird data set that ships as code and needs no download.

Every bird is a value for each attribute in `ATTRIBUTES`; `paint` draws it as a small illustration
with the mask of every part, and `describe` says it in the phrasing people used for the CUB birds.
Pictures are functions of a seed, so a data set is three numbers (seed, split, index), and what a
generated picture should show is known exactly. The test split consists of the pairs of crown and
belly color that the training split never shows, which tells composing words from remembering
pictures.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

from mirrorgan_fast.data.folders import check_free
from mirrorgan_fast.data.processes import in_processes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import open_lock, parse_json, read_file, reason, whole_file
from mirrorgan_fast.pictures import read_picture

Points = NDArray[np.float64]
Plane = NDArray[np.float32]
RGB = tuple[int, int, int]
Shapes = Iterator[tuple[Points, int]]  # outlines in the picture, and their tones

COLORS: dict[str, RGB] = {
    "red": (208, 30, 40),
    "orange": (246, 132, 22),
    "yellow": (250, 220, 44),
    "green": (48, 152, 62),
    "blue": (38, 92, 210),
    "purple": (144, 62, 176),
    "brown": (118, 72, 38),
    "black": (32, 32, 37),
    "white": (240, 240, 236),
    "gray": (142, 146, 152),
}
COLORED_PARTS = ("crown", "back", "breast", "belly", "wing", "tail")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **{part: tuple(COLORS) for part in COLORED_PARTS},
    "wing_bars": ("none", "white", "black", "yellow"),
    "eye_ring": ("none", "white", "yellow"),
    "bill": ("short", "long", "curved"),
    "bill_color": ("black", "gray", "orange", "yellow"),
    "size": ("small", "medium", "large"),
    "pose": ("upright", "level"),
    "direction": ("left", "right"),
    "perch": ("branch", "rock", "ground", "reed"),
    "background": ("sky", "forest", "meadow", "sunset"),
}

SPLITS = ("train", "test")

# Every color is the crown of a held-out pair and the belly of one, so that neither word is new in
# the test split: each color with the third after it, and two pairs more.
_NAMES = tuple(COLORS)
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    [(name, _NAMES[(i + 3) % len(_NAMES)]) for i, name in enumerate(_NAMES)]
    + [("red", "brown"), ("purple", "orange")]
)

PARTS = (*COLORED_PARTS, "wing_bars", "eye_ring", "bill", "perch", "background")
"""What a painting has masks of."""

_MOSTLY = 0.51  # of a pixel; at exactly a half, two parts would both have it
SMALLEST_SIZE, LARGEST_SIZE = 64, 512
MOST_BIRDS = 500_000
"""Of a split: their `metadata.jsonl`, 2 kB a bird, can still be read."""
_SEEDS = 2**128
_MOST_WORKERS = 1024


# --- the bird -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bird:
    """One value of `ATTRIBUTES` for each attribute; any other value raises `InputError`."""

    crown: str
    back: str
    breast: str
    belly: str
    wing: str
    tail: str
    wing_bars: str
    eye_ring: str
    bill: str
    bill_color: str
    size: str
    pose: str
    direction: str
    perch: str
    background: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in ATTRIBUTES[field.name]:
                choices = ", ".join(ATTRIBUTES[field.name])
                raise InputError(
                    f"a bird's {field.name} cannot be {value!r}: choose from {choices}"
                )

    @staticmethod
    def random(rng: np.random.Generator, split: str) -> Bird:
        """A bird of the split ("train" or "test").

        Attributes are independent and uniform, but a third of the birds have a main color, and bars
        and rings are drawn among the colors that stand out from the wing and the crown.
        """
        _check_split(split)
        if split == "test":
            crown, belly = sorted(HELD_OUT_PAIRS)[int(rng.integers(len(HELD_OUT_PAIRS)))]
        else:
            crown, belly = _pick(rng, _NAMES), _pick(rng, _NAMES)
            while (crown, belly) in HELD_OUT_PAIRS:
                crown, belly = _pick(rng, _NAMES), _pick(rng, _NAMES)
        back, breast, wing, tail = (_pick(rng, _NAMES) for _ in range(4))
        if rng.random() < 0.3:
            wing = back
            tail = back if rng.random() < 0.7 else tail
        free = {
            name: _pick(rng, ATTRIBUTES[name])
            for name in ("bill", "bill_color", "size", "pose", "direction", "perch", "background")
        }
        return Bird(
            crown=crown,
            back=back,
            breast=breast,
            belly=belly,
            wing=wing,
            tail=tail,
            wing_bars=_pick(rng, [v for v in ATTRIBUTES["wing_bars"] if _stands_out(v, wing)]),
            eye_ring=_pick(rng, [v for v in ATTRIBUTES["eye_ring"] if _stands_out(v, crown)]),
            **free,
        )


def held_out(bird: Bird) -> bool:
    """Whether the bird's (crown, belly) pair is one that only the test split shows."""
    return (bird.crown, bird.belly) in HELD_OUT_PAIRS


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _stands_out(mark: str, ground: str) -> bool:
    """Whether a thin mark is seen on the ground: thin things are read by lightness, not by hue."""
    return mark == "none" or abs(_lightness(mark) - _lightness(ground)) > 60


def _lightness(color: str) -> float:
    red, green, blue = COLORS[color]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"painted birds have no split {split!r}: choose from {', '.join(SPLITS)}")


def _check_size(size: int) -> None:
    if not _is_within(size, SMALLEST_SIZE, LARGEST_SIZE):
        raise InputError(
            f"painted birds are {SMALLEST_SIZE} to {LARGEST_SIZE} pixels wide, not {size!r}"
        )


def _is_within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


# --- the picture ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Painting:
    """A picture and where its parts are.

    image: uint8 (S, S, 3), RGB.
    masks: for each of `PARTS`, bool (S, S): the pixels that show mostly this part. Masks do not
        overlap; eye and legs are in none. A part the bird lacks has an empty mask.
    """

    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]


# What a pixel of the label image shows. The bird is drawn as flat labels on a finer grid and
# averaged down, which gives antialiased colors and exact masks from one drawing.
_LABELS = ("nothing", *COLORED_PARTS, "wing_bars", "eye_ring", "bill", "leg", "eye", "glint")
_LABEL = {name: i for i, name in enumerate(_LABELS)}
_FIXED_COLORS: dict[str, RGB] = {
    "nothing": (0, 0, 0),
    "leg": (92, 70, 62),
    "eye": (18, 15, 17),
    "glint": (250, 250, 250),
}

_LENGTH = {"small": 0.58, "medium": 0.715, "large": 0.85}  # picture widths; jitter: 2.5 %
_AXIS = {"upright": 60.0, "level": 12.0}  # degrees
# In bird lengths, from the middle of the body: the head along and across the body's axis, the feet
# right and up.
_HEAD = {"upright": (0.300, 0.045), "level": (0.245, 0.160)}
_FEET = {"upright": (0.085, -0.335), "level": (0.030, -0.335)}
_MIDDLE = {"upright": (0.485, 0.485), "level": (0.495, 0.480)}  # of the body, in picture widths
_HEAD_RADIUS = 0.122


@dataclass(frozen=True)
class _Jitter:
    """All the chance in a painting.

    It is drawn in one order whatever the bird is, so that changing one attribute changes only it.
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


def paint(bird: Bird, rng: np.random.Generator, size: int) -> Painting:
    """Paint the bird, `size` pixels square (64 to 512); other sizes raise `InputError`.

    The generator only places things (tilt, leaves, texture): with the same state, two birds that
    differ in one attribute give pictures that differ only there, and one bird at two sizes is the
    same picture at two resolutions.
    """
    _check_size(size)
    jitter = _Jitter.draw(rng)
    anatomy = _Anatomy(bird, jitter.pose)
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
        name: _average(labels.point(_table(name)), fine) > _MOSTLY
        for name in (*COLORED_PARTS, "wing_bars", "eye_ring", "bill")
    }
    masks["perch"] = (perch_cover * (1 - cover)) > _MOSTLY
    masks["background"] = ((1 - perch_cover) * (1 - cover)) > _MOSTLY
    return Painting(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8), masks)


def _color_of(bird: Bird, label: str) -> str:
    value: str = getattr(bird, "bill_color" if label == "bill" else label)
    return "black" if value == "none" else value  # what the bird lacks is not drawn: any color does


class _Anatomy:
    """Where things are: turns points of the body and the head into points of the picture.

    The picture is the unit square, y down.
    """

    def __init__(self, bird: Bird, jitter: Points) -> None:
        self.length = _LENGTH[bird.size] * (1 + 0.025 * float(jitter[0]))
        self.faces = 1 if bird.direction == "right" else -1
        self.axis = np.radians(_AXIS[bird.pose] + 3.0 * jitter[1])
        self.gaze = np.radians(2.0 + 5.0 * jitter[2])
        middle_x, middle_y = _MIDDLE[bird.pose]
        # A small bird has room to wander, a large one would leave the picture.
        room = 0.012 + 0.10 * (0.85 - _LENGTH[bird.size])
        self.middle = (
            0.5 + self.faces * (middle_x - 0.5) + room * jitter[3],
            middle_y + room * jitter[4],
        )
        along, across = _HEAD[bird.pose]
        self.head = _turn(
            np.array([[along + 0.012 * jitter[5], across + 0.012 * jitter[6]]]), self.axis
        )[0]
        self.plumpness = 1 + 0.06 * jitter[7]
        self.tail_tilt = np.radians((-6.0 if bird.pose == "level" else 8.0) + 5.0 * jitter[8])
        self.feet = np.array(_FEET[bird.pose])

    def body(self, points: Sequence[tuple[float, float]] | Points) -> Points:
        """(P, 2) along and across the body's axis, in bird lengths -> (P, 2) in the picture."""
        return self.world(_turn(np.asarray(points, dtype=np.float64), self.axis))

    def of_head(self, points: Sequence[tuple[float, float]] | Points) -> Points:
        """(P, 2) forward and up from the head's middle, in head radii -> (P, 2) in the picture."""
        return self.world(
            self.head + _turn(np.asarray(points, dtype=np.float64) * _HEAD_RADIUS, self.gaze)
        )

    def world(self, points: Points) -> Points:
        """(P, 2) forward and up from the body's middle, in bird lengths -> (P, 2) there."""
        scale = np.array([self.faces * self.length, -self.length])
        placed: Points = np.asarray(self.middle) + points * scale
        return placed

    def outline(self) -> Points:
        """(P, 2): head, neck and body in one smooth line, in the picture."""
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
    """(count, 2): points of the unit circle, from one angle to another."""
    angles = np.linspace(start, end, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _smooth(points: Points, steps: int = 8) -> Points:
    """(P, 2) -> (P * steps, 2): the closed Catmull-Rom curve through the points."""
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
# The regions reach beyond the body: its outline cuts them out.
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
_BARS = [  # two bands across the wing, bent a little
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
_QUILLS = [  # where the lines of the flight feathers start and bend; all end at the wing's tip
    [(-0.05, -0.085), (-0.19, -0.030)], [(-0.06, -0.045), (-0.20, -0.008)],
    [(-0.07, 0.0), (-0.20, 0.018)], [(-0.06, 0.045), (-0.19, 0.042)],
]
# fmt: on


def _draw_bird(bird: Bird, at: _Anatomy, width: int) -> tuple[Image.Image, Image.Image]:
    """The bird on a fine grid: labels ("L", 0: none), strokes ("L", 128: none, less: dark)."""
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

    # The regions of the body, larger than the body; then cut out along its outline.
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
    """Hip and foot of both legs, in the picture."""
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
    """The lookup table that is 255 at the labels named and 0 elsewhere."""
    return [255 if i < len(_LABELS) and _LABELS[i] in names else 0 for i in range(256)]


# --- light, perch and background ------------------------------------------------------------------


def _average(fine: Image.Image, factor: int) -> Plane:
    """A fine "L" image -> float32 (S, S) in [0, 1]."""
    return np.asarray(fine.reduce(factor), dtype=np.float32) / np.float32(255)


def _average_colors(labels: Image.Image, colors: Sequence[RGB], factor: int) -> Plane:
    """A fine label image -> float32 (S, S, 3): its colors, averaged down; label 0 is black."""
    indexed = labels.copy()
    indexed.putpalette([channel for color in colors for channel in color])
    return np.asarray(indexed.convert("RGB").reduce(factor), dtype=np.float32) / np.float32(255)


def _blur(plane: Plane, radius: float) -> Plane:
    image = Image.fromarray((plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _relief(cover: Plane, radius: float, strength: float) -> Plane:
    """(S, S): light from above on a shape that swells over `radius` pixels: the top is lighter."""
    step = max(1, round(radius))
    padded = np.pad(_blur(cover, radius), ((step, step), (0, 0)), mode="edge")
    return np.asarray((padded[2 * step :] - padded[: -2 * step]) * strength)


def _lay_over(below: Plane, cover: Plane, colors: Plane, shade: Plane, shadow: float) -> Plane:
    """Composite a shape over a picture (S, S, 3), with a soft dark rim.

    The shape has a cover (S, S), colors (S, S, 3) already weighted by it, and a shade (S, S).

    The rim lies outside the shape: a white bird stays visible against a cloud and the colors inside
    stay what they are.
    """
    rim = 1 - shadow * _blur(cover, below.shape[0] * 0.009)
    # Part of the light is added, not multiplied, or black feathers would have no form.
    lit = colors + shade[..., None] * (0.75 * colors + 0.26 * cover[..., None])
    return np.asarray(below * (rim * (1 - cover))[..., None] + np.clip(lit, 0, 1))


def _enlarge(noise: Plane, size: int) -> Plane:
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


_PERCH_TONES: dict[str, list[RGB]] = {  # of labels 1, 2, ...
    "branch": [(104, 82, 66), (82, 62, 50), (112, 136, 84), (90, 116, 74)],
    "rock": [(134, 130, 126), (112, 108, 106), (152, 148, 142)],
    "ground": [(146, 122, 92), (124, 102, 76), (116, 130, 78), (96, 112, 68)],
    "reed": [(148, 152, 92), (118, 124, 74), (126, 142, 84)],
}


def _draw_perch(perch: str, jitter: Points, at: _Anatomy, width: int) -> Image.Image:
    """What the bird stands on, as labels ("L"; 0 is nothing, then the tones of `_PERCH_TONES`)."""
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
_RIDGE = np.array(  # of the rock, from the feet
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
    """(P, 2): a leaf that grows from `root` at `angle` (up is pi / 2), in the picture."""
    along = np.array([0.0, 0.30, 0.60, 1.0, 0.60, 0.30])
    across = breadth * np.array([0.0, 0.8, 0.75, 0.0, -0.75, -0.8])
    shape = reach * np.stack([along, across], axis=1)
    return _smooth(root + _turn(shape, angle) * [1.0, -1.0], 4)


@dataclass(frozen=True)
class _Scene:
    """A view out of focus: colors from top to bottom, and blobs between `top` and `bottom`."""

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
_SCENE_WIDTH = 64  # blurred anyway


def _paint_background(background: str, jitter: Points, size: int) -> Plane:
    """float32 (S, S, 3) in [0, 1]: muted and out of focus, so that the bird is what one sees."""
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


# --- the words ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BirdCaption:
    """A caption and the attributes it asserts, no more and no fewer."""

    text: str
    named: dict[str, str]


LONGEST_CAPTION = 18  # words

_COLOR_WORDS = {"gray": ("gray", "grey"), "purple": ("purple", "violet")}
_PART_WORDS = {  # a synonym belongs to one part; "head" is the crown, because the crown covers it
    "crown": ("crown", "head", "cap"),
    "back": ("back", "nape"),
    "breast": ("breast", "chest"),
    "belly": ("belly", "abdomen", "underside"),
    "wing": ("wings", "wing feathers"),
    "tail": ("tail", "tail feathers"),
}
_PLURAL = ("wings", "wing feathers", "tail feathers")
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "bill": {
        "short": ("short", "stubby"),
        "long": ("long", "long thin"),
        "curved": ("curved", "downward curved"),
    },
    "size": {
        "small": ("small", "little", "tiny"),
        "medium": ("medium sized",),
        "large": ("large", "big"),
    },
    "pose": {
        "upright": ("sitting upright", "in an upright pose"),
        "level": ("holding its body level", "in a level pose"),
    },
    "direction": {
        "left": ("facing left", "looking to the left"),
        "right": ("facing right", "looking to the right"),
    },
    "perch": {
        "branch": ("on a branch", "on a twig"),
        "rock": ("on a rock", "on a stone"),
        "ground": ("on the ground",),
        "reed": ("on a reed", "on a stem"),
    },
    "background": {
        "sky": ("against the sky", "in front of the sky"),
        "forest": ("in the forest", "in the woods"),
        "meadow": ("in a meadow", "in a field"),
        "sunset": ("at sunset", "at dusk"),
    },
}
# How often an attribute is said, relative to the others; "body" is the color of back and wings
# where they share one.
_WEIGHTS = {
    "crown": 10.0, "back": 8.0, "breast": 9.0, "belly": 10.0, "wing": 9.0, "tail": 8.0,
    "body": 12.0, "wing_bars": 6.0, "eye_ring": 5.0, "bill": 7.0, "bill_color": 6.0, "size": 8.0,
    "pose": 4.0, "direction": 4.0, "perch": 4.5, "background": 4.5,
}  # fmt: skip
# How many topics a caption has. People say about three things of a bird; captions that say two fit
# many birds, so that matching them teaches little.
_TOPIC_SHARES = {2: 0.10, 3: 0.25, 4: 0.35, 5: 0.22, 6: 0.08}
_ABSENT = 0.8  # the weight of bars or a ring that are not there: few people say "no wing bars"


def describe(bird: Bird, rng: np.random.Generator, count: int = 10) -> list[BirdCaption]:
    """`count` captions of the bird: 2 to 7 attributes and at most 18 lower-case words each.

    Attributes that earlier captions of this bird named are named less, so that the captions
    complement each other.
    """
    said = dict.fromkeys(_WEIGHTS, 0)
    captions = []
    for _ in range(count):
        topics = _choose_topics(bird, said, rng)
        for topic in topics:
            said[topic] += 1
        captions.append(_phrase(bird, topics, rng))
    return captions


def _choose_topics(bird: Bird, said: dict[str, int], rng: np.random.Generator) -> list[str]:
    """Keys of `_WEIGHTS` that one caption speaks of; the first is the color of a large part."""
    weights = {topic: weight / (1 + said[topic]) for topic, weight in _WEIGHTS.items()}
    if bird.back != bird.wing:
        del weights["body"]
    for part in ("wing_bars", "eye_ring"):
        if getattr(bird, part) == "none":
            weights[part] *= _ABSENT / _WEIGHTS[part]
    count = int(rng.choice(list(_TOPIC_SHARES), p=list(_TOPIC_SHARES.values())))
    topics: list[str] = []
    while len(topics) < count:
        pool = [t for t in weights if topics or t == "body" or t in COLORED_PARTS]
        share = np.array([weights[t] for t in pool])
        topic = pool[int(rng.choice(len(pool), p=share / share.sum()))]
        topics.append(topic)
        for gone in (
            topic,
            *{"body": ("back", "wing"), "back": ("body",), "wing": ("body",)}.get(topic, ()),
        ):
            weights.pop(gone, None)
    return topics


def _phrase(bird: Bird, topics: Sequence[str], rng: np.random.Generator) -> BirdCaption:
    """The topics as one sentence; the last topics are left out while it is too long."""

    def word(attribute: str) -> str:
        value: str = getattr(bird, attribute)
        return _pick(rng, _WORDS[attribute][value])

    adjectives = [word("size")] if "size" in topics else []
    if "body" in topics:
        adjectives.append(_color_word(bird.back, rng))
    subject = " ".join([*adjectives, "bird"])
    features = _features(bird, topics, rng)
    setting = [word(t) for t in ("pose", "perch", "direction", "background") if t in topics]
    if "perch" in topics and "pose" not in topics:
        setting.insert(
            0,
            _pick(
                rng, ["sitting", "standing"] if bird.perch == "ground" else ["sitting", "perched"]
            ),
        )
    article = "an" if subject[0] in "aeiou" else "a"
    listed = " and ".join([", ".join(features[:-1]), features[-1]] if features[1:] else features)
    if not features:
        text = " ".join([_pick(rng, [f"this is {article}", article, "the"]), subject, *setting])
    else:
        opening = _pick(
            rng,
            [
                f"this {subject} has",
                f"the {subject} has",
                f"this is {article} {subject} with",
                f"{article} {subject} with",
                f"{subject} with",
            ],
        )
        joint = ["and is"] if setting and opening.endswith("has") else []
        text = " ".join([opening, listed, *joint, *setting])
    if len(text.split()) > LONGEST_CAPTION:
        return _phrase(bird, topics[:-1], rng)
    names = [
        name for topic in topics for name in (("back", "wing") if topic == "body" else (topic,))
    ]
    return BirdCaption(text, {name: getattr(bird, name) for name in ATTRIBUTES if name in names})


def _features(bird: Bird, topics: Sequence[str], rng: np.random.Generator) -> list[str]:
    """What the bird "has": "a red crown and tail", "black wings", "a short yellow bill" ..."""
    features: list[str] = []
    parts = [topic for topic in topics if topic in COLORED_PARTS]
    while parts:
        same = [part for part in parts if getattr(bird, part) == getattr(bird, parts[0])]
        group = same if rng.random() < 0.7 else parts[:1]  # "a white breast and belly"
        nouns = [_pick(rng, _PART_WORDS[part]) for part in group]
        color = _color_word(getattr(bird, group[0]), rng)
        features.append(_with_article(f"{color} {' and '.join(nouns)}", plural=nouns[0] in _PLURAL))
        parts = [part for part in parts if part not in group]
    if "bill" in topics or "bill_color" in topics:
        shape = [_pick(rng, _WORDS["bill"][bird.bill])] if "bill" in topics else []
        color_word = [_color_word(bird.bill_color, rng)] if "bill_color" in topics else []
        noun = _pick(rng, ["bill", "beak"])
        features.append(_with_article(" ".join([*shape, *color_word, noun]), plural=False))
    if "wing_bars" in topics:
        noun = _pick(rng, ["wing bars", "wingbars"])
        features.append(f"{_mark_word(bird.wing_bars, rng)} {noun}")
    if "eye_ring" in topics:
        ring = _pick(rng, ["eye ring", "eyering"])
        absent = bird.eye_ring == "none"
        features.append(
            f"no {ring}" if absent else _with_article(f"{bird.eye_ring} {ring}", plural=False)
        )
    return features


def _with_article(noun: str, plural: bool) -> str:
    if plural:
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _color_word(color: str, rng: np.random.Generator) -> str:
    return _pick(rng, _COLOR_WORDS.get(color, (color,)))


def _mark_word(color: str, rng: np.random.Generator) -> str:
    return "no" if color == "none" else _color_word(color, rng)


# --- the data set ---------------------------------------------------------------------------------


class PaintedBirds:
    """`count` painted birds of a split, painted when asked for; a `CaptionedImages`.

    Picture i is a function of (seed, split, i) only: a longer data set begins with the shorter one,
    and another size shows the same birds. An unknown split, a count below 1 or above `MOST_BIRDS`,
    a size out of range or a seed below 0 or from 2**128 on raises `InputError`; an index out of
    range `IndexError`.
    """

    def __init__(self, split: str, count: int, size: int = 128, seed: int = 0) -> None:
        _check_split(split)
        _check_size(size)
        if not _is_within(count, 1, MOST_BIRDS):
            raise InputError(
                f"painted birds: count must be at least 1, not {count!r}, at most {MOST_BIRDS:,}"
            )
        if not _is_within(seed, 0, _SEEDS - 1):
            raise InputError(
                f"painted birds: seed must not be negative, and below 2**128; it is {seed!r}"
            )
        self.split, self.count, self.size, self.seed = split, count, size, seed

    def __len__(self) -> int:
        return self.count

    def bird(self, index: int) -> Bird:
        """What bird it is."""
        return Bird.random(self._rng(index, 0), self.split)

    def painting(self, index: int) -> Painting:
        """The picture and the masks of its parts."""
        return paint(self.bird(index), self._rng(index, 1), self.size)

    def bird_captions(self, index: int) -> list[BirdCaption]:
        """Ten captions with the attributes each one asserts."""
        return describe(self.bird(index), self._rng(index, 2))

    def image(self, index: int) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(self.painting(index).image)

    def captions(self, index: int) -> list[str]:
        """Ten captions."""
        return [caption.text for caption in self.bird_captions(index)]

    def name(self, index: int) -> str:
        """Like "train/00012"."""
        return f"{self.split}/{self._checked(index):05d}"

    def label(self, index: int) -> int:
        """Every bird is a class of its own."""
        return self._checked(index)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"painted birds: index {index} is not in 0 ... {self.count - 1}")
        return index

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(
            [self.seed, SPLITS.index(self.split), self._checked(index), purpose]
        )


# Raised when a picture, a caption or a row becomes another one: a painting that an older version
# has begun cannot go on.
_DRAWING = 1
_BEGUN = ".paint.json"


def export_image_folder(
    root: str | Path,
    train: int,
    test: int,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    masks: bool = False,
) -> None:
    """Write painted birds as an image folder: `images/<split>/<number>.png`, then `metadata.jsonl`.

    Stopped at any time, even killed, the same call goes on from there. Until it is done, a file
    `.paint.json` in the folder has the arguments.

    train, test: number of birds of each split, at most `MOST_BIRDS` (0 leaves it out). workers:
    processes, at most 1,024 (default: one a core); the files do not depend on it. masks: also write
    `masks/<split>/<number>.png`, indexed: 0 is nothing, i is the i-th name of the "parts" of the
    row. Every row has file_name, captions, split, attributes, and `named`: what each caption
    asserts.

    A folder that has other files in it or cannot be written, a bad size or count raises
    `InputError`.
    """
    root = Path(root)
    if workers is None:
        workers = os.cpu_count() or 1
    if not _is_within(workers, 1, _MOST_WORKERS):
        raise InputError(f"workers must be 1 to {_MOST_WORKERS:,}, not {workers!r}")
    if (train, test) == (0, 0):
        raise InputError("cannot export 0 train and 0 test birds: ask for at least one")
    sets = [
        PaintedBirds(split, count, size, seed)
        for split, count in zip(SPLITS, (train, test), strict=True)
        if count != 0
    ]
    total = sum(map(len, sets))
    asked = {"train": train, "test": test, "size": size, "seed": seed, "masks": masks}
    with _begun(root, asked | {"drawing": _DRAWING}):
        for kind in ("images", "masks") if masks else ("images",):
            for folder in (root / kind, *(root / kind / birds.split for birds in sets)):
                _make_folder(folder)
        rows = in_processes(
            _Export(root, masks).write,
            ((birds, index) for birds in sets for index in range(len(birds))),
            min(workers, total),
        )
        with (
            closing(rows),
            whole_file(root / "metadata.jsonl", of_process=False) as unfinished,
            unfinished.open("w", encoding="utf-8") as metadata,
            tqdm(total=total, desc="painting birds", unit="image", disable=not progress) as bar,
        ):
            for row in rows:
                metadata.write(json.dumps(row) + "\n")
                bar.update()


@contextmanager
def _begun(root: Path, asked: dict[str, int]) -> Iterator[None]:
    """Make a folder and note in it what is painted there, until the block ends without an error.

    If something was begun there, it must be the same. Raises `InputError` if it is not, if the
    folder has anything else in it, or if another process paints there.
    """
    begun = root / _BEGUN
    if not os.path.lexists(begun):
        check_free(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{root}: cannot be written ({reason(error)})") from error
        with whole_file(begun, of_process=False) as partial:
            partial.write_text(json.dumps(asked))
    with _lock(begun):
        try:
            found = parse_json(read_file(begun, 4096))
            if not isinstance(found, dict) or not {*map(type, found.values())} <= {int, bool}:
                raise ValueError("it has other contents")
        except ValueError as error:
            raise InputError(f"{begun}: is damaged ({error}); remove the folder") from error
        if found != asked:
            others = ", ".join(f"{name} {value}" for name, value in found.items())
            raise InputError(
                f"{root}: another painting was begun there ({others}); go on with its arguments, "
                "choose a new folder, or remove this one"
            )
        yield
        begun.unlink()


def _lock(begun: Path) -> io.FileIO:
    """Lock it; the processes of a painter that was killed end a moment later than it."""
    refusal = f"{begun.parent}: another process is painting there; wait for it"
    for _ in range(50):
        try:
            return open_lock(begun, refusal)
        except InputError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            time.sleep(0.1)
    return open_lock(begun, refusal)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({reason(error)})") from error
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, which leads out of the folder; remove it")


@dataclass(frozen=True)
class _Export:
    """Where pictures are written, and what of them."""

    root: Path
    masks: bool

    def write(self, job: tuple[PaintedBirds, int]) -> dict[str, Any]:
        """Write a picture, unless it is there, and return its row of `metadata.jsonl`."""
        birds, index = job
        name = f"{birds.name(index)}.png"
        picture, mask = self.root / "images" / name, self.root / "masks" / name
        wanted = [picture, mask] if self.masks else [picture]
        if not all(_is_whole(path, birds.size) for path in wanted):
            painting = birds.painting(index)
            _save(painting.image, picture)
            if self.masks:
                indexed = np.zeros(painting.image.shape[:2], np.uint8)
                for i, part in enumerate(PARTS, start=1):
                    indexed[painting.masks[part]] = i
                _save(indexed, mask)
        captions = birds.bird_captions(index)
        row: dict[str, Any] = {
            "file_name": f"images/{name}",
            "captions": [caption.text for caption in captions],
            "split": birds.split,
            "attributes": asdict(birds.bird(index)),
            "named": [caption.named for caption in captions],
        }
        if self.masks:
            row |= {"mask": f"masks/{name}", "parts": list(PARTS)}
        return row


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    with whole_file(path, of_process=False) as partial:
        Image.fromarray(pixels).save(partial)


def _is_whole(path: Path, size: int) -> bool:
    """Whether a picture is there already; one that was written as the power failed is damaged."""
    if path.is_symlink() or not path.exists():
        return False
    try:
        return read_picture(path, str(path)).size == (size, size)
    except InputError:
        return False
