"""The clothing dataset of Alexey Grigorev: photographs of single garments."""

import os
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from mirrorgan_fast.data.captioned_images import Caption
from mirrorgan_fast.data.checks import shown
from mirrorgan_fast.data.prepare.colors import Colors
from mirrorgan_fast.data.prepare.held_out import Pair
from mirrorgan_fast.data.prepare.phrases import different, pick, with_article
from mirrorgan_fast.data.prepare.squares import garment_square
from mirrorgan_fast.data.prepare.writer import Attributes, Found, Source, read_table

GARMENTS = {
    "Blazer": ("blazer", "blazer", "suit jacket"),
    "Blouse": ("blouse", "blouse"),
    "Body": ("bodysuit", "bodysuit", "onesie"),
    "Dress": ("dress", "dress"),
    "Hat": ("hat", "hat"),
    "Hoodie": ("hoodie", "hoodie", "hooded sweatshirt"),
    "Longsleeve": ("long-sleeved top", "long-sleeved top", "long-sleeved shirt"),
    "Outwear": ("jacket", "jacket", "coat"),
    "Pants": ("pants", "pants", "trousers"),
    "Polo": ("polo shirt", "polo shirt", "polo"),
    "Shirt": ("shirt", "shirt"),
    "Shoes": ("shoes", "shoes"),
    "Shorts": ("shorts", "shorts"),
    "Skirt": ("skirt", "skirt"),
    "T-Shirt": ("t-shirt", "t-shirt", "tee"),
    "Top": ("top", "top"),
    "Undershirt": ("tank top", "tank top", "sleeveless top"),
}
"""For each label that is used, the garment's name, and the words for it in captions."""
UNUSED_LABELS = ("Not sure", "Other", "Skip")

_PLURAL = ("pants", "trousers", "shoes", "shorts")
_WANTED = (
    "wanted the clothing dataset, a folder with images.csv and images/; get it with git clone "
    "https://github.com/alexeygrigorev/clothing-dataset"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_WORDS_OF = {name: words for name, *words in GARMENTS.values()}


class Clothing:
    """Photographs of garments; a `Repository`."""

    NAME: ClassVar[str] = "clothing"
    CLASS: ClassVar[str] = "garment"
    COLORS: ClassVar[tuple[str, ...]] = ("color", "background")

    def find(self, root: Path) -> Found:
        """Return the pictures whose label is one of `GARMENTS`.

        Raises:
            InputError: the folder is not a copy of the repository, or its table is damaged.
        """
        found = Found()
        names: set[str] = set()
        rows = read_table(root / "images.csv", ("image", "label", "kids"), _WANTED)
        for number, (name, label, kids) in enumerate(rows, start=1):
            place = f"images.csv, row {number}"
            if not _NAME.fullmatch(name):
                found.faults.append(f"{place}: {shown(name)} is not the name of a picture")
            elif name in names:
                found.faults.append(f"{place}: picture {name} has a row already")
            elif label in UNUSED_LABELS:
                found.unused[f'rows with the label "{label}"'] += 1
            elif label not in GARMENTS or kids not in ("True", "False"):
                found.faults.append(
                    f"{place}: found the label {shown(label)} and kids {shown(kids)}, wanted a "
                    f"garment and True or False"
                )
            else:
                facts: Attributes = {"garment": GARMENTS[label][0], "child": kids == "True"}
                table = {"label": label, "kids": kids}
                path = root / "images" / f"{name}.jpg"
                found.sources.append(Source(name, path, facts, table))
            names.add(name)
        there = _files(root / "images")
        found.unused["pictures without a row"] = len(there - {f"{name}.jpg" for name in names})
        return found

    def square(self, picture: Image.Image) -> Image.Image:
        """Crop a picture to a square around the garment."""
        return garment_square(picture)

    def measured(self, colors: Colors, kind: str) -> Attributes:
        """Return color, second_color, several_colors and background."""
        return {
            "color": colors.main,
            "second_color": colors.second,
            "several_colors": colors.several,
            "background": colors.background,
        }

    def pairs(self, attributes: Attributes) -> frozenset[Pair]:
        """Return the garment with each of its colors."""
        garment = str(attributes["garment"])
        colors = (attributes["color"], attributes["second_color"])
        return frozenset((garment, str(color)) for color in colors if color is not None)

    def captions(self, attributes: Attributes, rng: np.random.Generator) -> list[Caption]:
        """Return ten captions."""
        return different(lambda rng: _caption(attributes, rng), rng)


def _files(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


_OPENINGS = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a photograph of {}",
    "an image of {}",
    "the picture shows {}",
    "the photo shows {}",
)
_OPENINGS_OF_ONE = (*_OPENINGS, "this is {}", "here is {}", "there is {} in the picture")
_OPENINGS_OF_SEVERAL = (*_OPENINGS, "these are {}", "here are {}", "there are {} in the picture")


def _caption(attributes: Attributes, rng: np.random.Generator) -> Caption:
    """Return a caption. Of two colors none is asserted: which is the main one is not said."""
    background = attributes["background"] if rng.random() < 0.5 else None
    one_color = attributes["color"] if attributes["second_color"] is None else None
    named = {"garment": attributes["garment"], "color": one_color, "background": background}
    asserted = {name: str(value) for name, value in named.items() if value is not None}
    return Caption(_text(attributes, background, rng), asserted)


def _text(attributes: Attributes, background: str | bool | None, rng: np.random.Generator) -> str:
    noun = pick(rng, _WORDS_OF[str(attributes["garment"])])
    color = _color(attributes, rng)
    child = bool(attributes["child"])
    if rng.random() < 0.25 and color:
        end = f" and the background is {background}" if background else ""
        return _statement(noun, color, child, rng) + end
    pair = noun in _PLURAL and rng.random() < 0.4
    if attributes["color"] is not None and rng.random() < 0.15:
        thing = f"{_thing(noun, pair, child, rng)} in {color}"
    else:
        thing = _thing(f"{color} {noun}".strip(), pair, child, rng)
    several = noun in _PLURAL and not pair
    sentence = pick(rng, _OPENINGS_OF_SEVERAL if several else _OPENINGS_OF_ONE).format(thing)
    if not background:
        return sentence
    return f"{sentence} {pick(rng, ('on', 'against'))} {with_article(f'{background} background')}"


def _color(attributes: Attributes, rng: np.random.Generator) -> str:
    """Return what a caption says of a garment's colors, which may be nothing if none is known."""
    first, second = attributes["color"], attributes["second_color"]
    if first is None:
        words = ("patterned", "multicolored", "colorful", "")
        return pick(rng, words) if attributes["several_colors"] else ""
    if second is None:
        return str(first)
    return pick(rng, (f"{first} and {second}", f"{second} and {first}"))


def _thing(noun: str, pair: bool, child: bool, rng: np.random.Generator) -> str:
    """Return a garment with its article: "a child's red hat", "a pair of red pants"."""
    if noun.endswith(_PLURAL):
        noun = f"children's {noun}" if child else noun
        return f"a pair of {noun}" if pair else noun
    if not child:
        return with_article(noun)
    return f"{with_article(noun)} for a child" if rng.random() < 0.3 else f"a child's {noun}"


def _statement(noun: str, color: str, child: bool, rng: np.random.Generator) -> str:
    """Return a sentence with a verb: "this hat is red", "the children's pants are blue"."""
    plural = noun in _PLURAL
    whose = ("children's " if plural else "child's ") if child else ""
    which = pick(rng, ("the", "these" if plural else "this"))
    verb = "are" if plural else "is"
    return f"{which} {whose}{noun} {verb} {color}"
