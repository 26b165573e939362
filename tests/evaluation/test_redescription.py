"""Reading attributes from descriptions: the inverse of `describe`, and texts of other forms."""

import dataclasses

import numpy as np
import pytest

from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES, COLORS, Bird
from mirrorgan_fast.data.painted_birds.words import (
    Statement,
    describe,
    read_attributes,
    read_statements,
)
from mirrorgan_fast.evaluation.redescription import bleu_4, redescription_accuracy


def test_reads_back_what_captions_assert() -> None:
    rng = np.random.default_rng(0)
    values: set[tuple[str, str]] = set()
    for _ in range(300):
        for caption in describe(Bird.random(rng, "train"), rng):
            assert read_attributes(caption.text) == caption.named, caption.text
            values |= set(caption.named.items())
    everything = {(name, value) for name, of_it in ATTRIBUTES.items() for value in of_it}
    assert values == everything


def test_reads_captions_of_birds_of_one_color() -> None:
    # "a red crown and tail" and "the red bird has a red belly" are only said of equal colors.
    rng = np.random.default_rng(1)
    parts = ("crown", "back", "breast", "belly", "wing", "tail")
    for color in COLORS:
        plain = dict.fromkeys(parts, color) | {"wing_bars": "none", "eye_ring": "none"}
        for _ in range(10):
            bird = dataclasses.replace(Bird.random(rng, "train"), **plain)
            for caption in describe(bird, rng):
                assert read_attributes(caption.text) == caption.named, caption.text


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        ("a bird", []),
        ("a very fine portrait of it", []),
        ("A GREY bird, with no eye ring.", ["back gray 1", "wing gray 1", "eye_ring none 4"]),
        ("a bird with a red", []),
        ("a bird with a crown", []),
        ("a red beak and a tail", ["bill_color red 1"]),  # "red" has no effect after "a"
        ("violet wings and nape", ["wing purple 0", "back purple 0"]),
        ("green wing bars", ["wing_bars green 0"]),
        ("red wing feathers and blue wings", ["wing red 0", "wing blue 4"]),
        ("red crown with tail", ["crown red 0"]),
        ("a long thin gray bill", ["bill long 1", "bill_color gray 3"]),
        ("a long tail", []),
        ("bird on the ground in the woods", ["perch ground 1", "background forest 4"]),
        ("bird on a", []),
    ],
)
def test_reads_other_texts(text: str, statements: list[str]) -> None:
    said = [Statement(name, value, int(word)) for name, value, word in map(str.split, statements)]
    assert read_statements(text) == said


def test_the_last_of_two_contradicting_statements_wins() -> None:
    assert read_attributes("a red crown and a blue head") == {"crown": "blue"}


def test_every_statement_counts() -> None:
    descriptions = ["a red crown and a blue head and a long bill", "a small blue bird", "nothing"]
    known = [
        {"crown": "red", "bill": "short", "size": "small"},
        {"size": "small", "back": "blue"},
        {"size": "small"},
    ]
    accuracy = redescription_accuracy(descriptions, known)
    assert accuracy.claims == {"crown": 2, "bill": 1, "size": 1, "back": 1}
    assert accuracy.right == {"crown": 1, "bill": 0, "size": 1, "back": 1}
    assert accuracy.overall == 3 / 5


def test_bleu_is_one_for_a_reference_and_less_for_another() -> None:
    references = [
        ["the red bird has a white tail", "a red bird at dusk"],
        ["a tiny bird on a reed"],
    ]
    same = ["the red bird has a white tail", "a tiny bird on a reed"]
    assert bleu_4(same, references) == pytest.approx(1)
    # One word is wrong: 12 of 13 words, 9 of 11 pairs, 7 of 9 trigrams and 5 of 7 4-grams match.
    near = ["the red bird has a black tail", "a tiny bird on a reed"]
    expected = (12 / 13 * 9 / 11 * 7 / 9 * 5 / 7) ** 0.25
    assert bleu_4(near, references) == pytest.approx(expected)
