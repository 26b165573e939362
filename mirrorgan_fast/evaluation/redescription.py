"""Redescription: what a description of a painted bird says, and how much of it is right.

`painted_birds.describe` writes captions by a small grammar; `read_statements` reads them back, and
with them whatever STREAM says in that grammar. What it says otherwise states nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

from mirrorgan_fast.data.painted_birds import _COLOR_WORDS, _PART_WORDS, _WORDS, COLORS
from mirrorgan_fast.evaluation.attributes import AttributeAccuracy


class Statement(NamedTuple):
    """That an attribute has a value, said by the word at this place of the text."""

    attribute: str
    value: str
    word: int


# What a phrase is: ("color" | "part" | "mark", its name), ("bird" | "bill noun", ""), or an
# attribute and its value.
_MEANINGS: dict[tuple[str, ...], tuple[str, str]] = {
    ("no",): ("color", "none"),
    ("bird",): ("bird", ""),
    ("bill",): ("bill noun", ""),
    ("beak",): ("bill noun", ""),
    ("wing", "bars"): ("mark", "wing_bars"),
    ("wingbars",): ("mark", "wing_bars"),
    ("eye", "ring"): ("mark", "eye_ring"),
    ("eyering",): ("mark", "eye_ring"),
}
for _color in COLORS:
    for _phrase in _COLOR_WORDS.get(_color, (_color,)):
        _MEANINGS[_phrase,] = ("color", _color)
for _part, _phrases in _PART_WORDS.items():
    for _phrase in _phrases:
        _MEANINGS[tuple(_phrase.split())] = ("part", _part)
for _attribute, _values in _WORDS.items():
    for _value, _phrases in _values.items():
        for _phrase in _phrases:
            _MEANINGS[tuple(_phrase.split())] = (_attribute, _value)
_LONGEST = max(map(len, _MEANINGS))

WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def read_statements(text: str) -> list[Statement]:
    """Return what a description says, in its order; a word may say it of several parts.

    A part or mark without a color, and words that are not of the grammar, state nothing. Values are
    as said: a bird with "green wing bars" has them, though no painted bird does.
    """
    words = split_words(text)
    statements: list[Statement] = []
    color: tuple[str, int] | None = None
    shape: tuple[str, int] | None = None  # of a bill
    place = 0
    while place < len(words):
        length, (kind, name) = _meaning(words, place)
        spoken_of: tuple[str, ...] = ()
        ends = True  # "crown and tail" share a color, anything else ends its reach
        if kind == "color":
            color, ends = (name, place), False
        elif kind == "bill":
            shape, ends = (name, place), False
        elif kind == "part":
            spoken_of, ends = (name,), False
        elif kind == "mark":
            spoken_of = (name,)
        elif kind == "bird":
            spoken_of = ("back", "wing")
        elif kind == "bill noun":
            spoken_of = ("bill_color",)
            if shape:
                statements.append(Statement("bill", *shape))
        elif kind == "and":
            ends = False
        elif kind:
            statements.append(Statement(kind, name, place))
        if color:
            statements += [Statement(attribute, *color) for attribute in spoken_of]
        if ends:
            color = shape = None
        place += length
    return statements


def read_attributes(text: str) -> dict[str, str]:
    """Return what a description says of each attribute; of two contradicting values, the last."""
    return {statement.attribute: statement.value for statement in read_statements(text)}


def _meaning(words: Sequence[str], place: int) -> tuple[int, tuple[str, str]]:
    """Return the length and the meaning of the longest phrase that begins at a place."""
    for length in range(_LONGEST, 0, -1):
        phrase = tuple(words[place : place + length])
        if phrase in _MEANINGS:
            return len(phrase), _MEANINGS[phrase]
    return 1, ("and" if words[place] == "and" else "", "")


def redescription_accuracy(
    descriptions: Sequence[str], known: Sequence[Mapping[str, str]]
) -> AttributeAccuracy:
    """Count the statements of descriptions that are right.

    Args:
        descriptions: of N images.
        known: what is known of each image; statements about other attributes are not counted.
    """
    return AttributeAccuracy.count(
        (statement.attribute, truth[statement.attribute] == statement.value)
        for description, truth in zip(descriptions, known, strict=True)
        for statement in read_statements(description)
        if statement.attribute in truth
    )


def bleu_4(descriptions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the corpus BLEU-4, in [0, 1], of each description against its image's captions."""
    return float(
        corpus_bleu(
            [[split_words(caption) for caption in captions] for captions in references],
            [split_words(description) for description in descriptions],
            # changes nothing but a count of 0 matches, of which NLTK would warn at length
            smoothing_function=SmoothingFunction().method1,
        )
    )
