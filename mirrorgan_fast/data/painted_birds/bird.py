"""The attributes of painted birds and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mirrorgan_fast.errors import InputError

RGB = tuple[int, int, int]


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


# The pairs of crown and belly color of the test split: each color with the third one after it, and
# two more pairs. Each color is the crown of one pair and the belly of another, and all colors occur
# in the training split as both, so only the pairs are new in the test split.
_NAMES = tuple(COLORS)


HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    [(name, _NAMES[(i + 3) % len(_NAMES)]) for i, name in enumerate(_NAMES)]
    + [("red", "brown"), ("purple", "orange")]
)


@dataclass(frozen=True)
class Bird:
    """A bird, with one of the values in `ATTRIBUTES` for each attribute.

    Raises:
        InputError: an attribute has another value.
    """

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
        """Return a random bird of a split ("train" or "test").

        Attributes are independent and uniform, with two exceptions: a third of the birds have a
        main color, and the colors of wing bars and eye rings are chosen from those that stand out
        from the wing and the crown.
        """
        check_split(split)
        if split == "test":
            crown, belly = sorted(HELD_OUT_PAIRS)[int(rng.integers(len(HELD_OUT_PAIRS)))]
        else:
            crown, belly = pick(rng, _NAMES), pick(rng, _NAMES)
            while (crown, belly) in HELD_OUT_PAIRS:
                crown, belly = pick(rng, _NAMES), pick(rng, _NAMES)
        back, breast, wing, tail = (pick(rng, _NAMES) for _ in range(4))
        if rng.random() < 0.3:
            wing = back
            tail = back if rng.random() < 0.7 else tail
        free = {
            name: pick(rng, ATTRIBUTES[name])
            for name in ("bill", "bill_color", "size", "pose", "direction", "perch", "background")
        }
        return Bird(
            crown=crown,
            back=back,
            breast=breast,
            belly=belly,
            wing=wing,
            tail=tail,
            wing_bars=pick(rng, [v for v in ATTRIBUTES["wing_bars"] if stands_out(v, wing)]),
            eye_ring=pick(rng, [v for v in ATTRIBUTES["eye_ring"] if stands_out(v, crown)]),
            **free,
        )


def held_out(bird: Bird) -> bool:
    """Whether the bird's (crown, belly) pair occurs only in the test split."""
    return (bird.crown, bird.belly) in HELD_OUT_PAIRS


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    """Return one of the values, chosen uniformly at random."""
    return values[int(rng.integers(len(values)))]


def stands_out(mark: str, ground: str) -> bool:
    """Whether a thin mark is visible on a ground color.

    Thin shapes are recognized by their lightness, not by their hue.
    """
    return mark == "none" or abs(_lightness(mark) - _lightness(ground)) > 60


def _lightness(color: str) -> float:
    red, green, blue = COLORS[color]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def check_split(split: str) -> None:
    """Raise `InputError` if there is no such split."""
    if split not in SPLITS:
        raise InputError(f"painted birds have no split {split!r}: choose from {', '.join(SPLITS)}")
