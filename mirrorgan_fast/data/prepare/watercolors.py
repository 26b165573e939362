"""The Pomological Watercolors of the U.S. Department of Agriculture: paintings of fruit."""

import re
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from mirrorgan_fast.data.captioned_images import Caption
from mirrorgan_fast.data.prepare.colors import COLORS, Colors
from mirrorgan_fast.data.prepare.held_out import Pair
from mirrorgan_fast.data.prepare.phrases import different, pick, with_article
from mirrorgan_fast.data.prepare.squares import fruit_square
from mirrorgan_fast.data.prepare.writer import Attributes, Found, Source, read_table

FRUITS = {
    "apples": "apple",
    "avocados": "avocado",
    "cherries": "cherry",
    "grapefruits": "grapefruit",
    "grapes": "grapes",
    "lemons": "lemon",
    "mangoes": "mango",
    "oranges": "orange",
    "peaches": "peach",
    "pears": "pear",
    "persimmons": "persimmon",
    "plums": "plum",
    "strawberries": "strawberry",
}
"""The subjects that are used, with the words for them. Each has 80 pictures or more, and the next,
crab apples, has 32."""
SKIN_COLORS = tuple(color for color in COLORS if color not in ("gray", "white", "beige"))
"""The colors that captions name. Of paper and of flesh are the others: then there is no whole fruit
in the picture, or it is painted in part."""
LEAST_OF_VARIETY = 8
"""A variety is named if at least this many pictures show it. A word that occurs in fewer pictures
cannot be learned."""

_WANTED = (
    "wanted the USDA pomological watercolors, a folder with data/usda_pomological_watercolors.csv "
    "and data/images/; get it with git clone https://github.com/jwilber/USDA_Pomological_Watercolors"
)
_TABLE = Path("data", "usda_pomological_watercolors.csv")
_WITHOUT_SKIN = ("cherry", "strawberry", "grapes")  # nobody says "a cherry with red skin"
_BERRIES = ("cherry", "strawberry")  # what is green beside them is leaves
_VARIETY = re.compile(r"[A-Z][a-z]{2,}( [A-Z][a-z]{2,})*")
# Words that say something else in a caption than the name of a variety.
_OTHER_WORDS = {
    *(word for color in COLORS for word in color.split()),
    *FRUITS.values(),
    *("golden", "russet", "banana", "pineapple", "raspberry"),
}


class Watercolors:
    """Paintings of fruit; a `Repository`."""

    NAME: ClassVar[str] = "watercolors"
    CLASS: ClassVar[str] = "fruit"
    COLORS: ClassVar[tuple[str, ...]] = ("skin",)

    def find(self, root: Path) -> Found:
        """Return the pictures whose subject is one of `FRUITS`.

        Row n of the table, from 0, belongs to the picture `image-<n>.jpg`.

        Raises:
            InputError: the folder is not a copy of the repository, or its table is damaged.
        """
        found = Found()
        rows = list(read_table(root / _TABLE, ("fruit", "subjects"), _WANTED))
        kinds = [FRUITS.get(subjects.rpartition(",")[2].strip()) for _, subjects in rows]
        varieties = [_variety(fruit) for fruit, _ in rows]
        pictures = Counter(zip(kinds, varieties, strict=True))
        for number, (fruit, subjects) in enumerate(rows):
            kind, variety = kinds[number], varieties[number]
            if kind is None:
                found.unused["rows with another or a rare subject"] += 1
                continue
            is_named = pictures[kind, variety] >= LEAST_OF_VARIETY
            name = f"image-{number}"
            path = root / _TABLE.parent / "images" / f"{name}.jpg"
            facts: Attributes = {"fruit": kind, "variety": variety if is_named else None}
            table = {"fruit": fruit[:200], "subjects": subjects[:200]}
            found.sources.append(Source(name, path, facts, table))
        return found

    def square(self, picture: Image.Image) -> Image.Image | None:
        """Crop a page to a square around the upper fruit."""
        return fruit_square(picture)

    def measured(self, colors: Colors, kind: str) -> Attributes:
        """Return skin and second_skin."""
        leaves = ("green", "dark green") if kind in _BERRIES else ()
        skins = [
            color
            for color in (colors.main, colors.second)
            if color in SKIN_COLORS and color not in leaves
        ]
        first, second, *_ = *skins, None, None
        return {"skin": first, "second_skin": second}

    def pairs(self, attributes: Attributes) -> frozenset[Pair]:
        """Return the fruit with each color of its skin."""
        skins = (attributes["skin"], attributes["second_skin"])
        return frozenset((str(attributes["fruit"]), str(skin)) for skin in skins if skin)

    def captions(self, attributes: Attributes, rng: np.random.Generator) -> list[Caption]:
        """Return ten captions."""
        return different(lambda rng: _caption(attributes, rng), rng)


def _variety(fruit: str) -> str | None:
    """Return the variety in "Malus domestica: Jonathan", if it can be a word of a caption."""
    variety = fruit.partition(": ")[2]
    if not _VARIETY.fullmatch(variety):
        return None
    return None if _OTHER_WORDS & set(variety.lower().split()) else variety


_OPENINGS = (
    "{}",
    "{}",
    "a painting of {}",
    "a watercolor of {}",
    "a watercolor painting of {}",
    "an old painting of {}",
    "an illustration of {}",
    "a picture of {}",
    "the painting shows {}",
    "the picture shows {}",
    "{} on paper",
    "{} painted in watercolor",
    "{} on a light background",
)


def _caption(attributes: Attributes, rng: np.random.Generator) -> Caption:
    """Return a caption. Of two colors none is asserted: which is the main one is not said.

    Nor is the variety, of which no painting but a label says what it is.
    """
    one_color = attributes["skin"] if attributes["second_skin"] is None else None
    named = {"fruit": attributes["fruit"], "skin": one_color}
    asserted = {name: str(value) for name, value in named.items() if value is not None}
    return Caption(_text(attributes, rng), asserted)


def _text(attributes: Attributes, rng: np.random.Generator) -> str:
    fruit, variety = str(attributes["fruit"]), attributes["variety"]
    first, second = attributes["skin"], attributes["second_skin"]
    color = str(first or "")
    if second:
        color = pick(rng, (f"{first} and {second}", f"{second} and {first}"))
    noun = f"{variety} {fruit}" if variety and rng.random() < 0.5 else fruit
    of_skin = rng.random() < 0.2 and color and fruit not in _WITHOUT_SKIN
    if color and rng.random() < 0.2:
        plural = fruit == "grapes"
        which = pick(rng, ("the", "these" if plural else "this"))
        if of_skin:
            return f"{which} {noun} has {color} skin"
        return f"{which} {noun} {'are' if plural else 'is'} {color}"
    if of_skin:
        thing = f"{with_article(noun)} with {color} skin"
    else:
        thing = _thing(f"{color} {noun}".strip(), rng)
    return pick(rng, _OPENINGS).format(thing)


def _thing(noun: str, rng: np.random.Generator) -> str:
    if noun.endswith("grapes"):
        return pick(rng, (f"a bunch of {noun}", noun))
    return with_article(noun)
