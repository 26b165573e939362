"""The captions of painted birds: generating and parsing the sentences of a small grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mirrorgan_fast.data.captioned_images import Caption
from mirrorgan_fast.data.painted_birds.bird import (
    ATTRIBUTES,
    COLORED_PARTS,
    COLORS,
    Bird,
    pick,
)

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


# How often each attribute is mentioned, relative to the others. "body" is the color of back and
# wings if they have the same color.
_WEIGHTS = {
    "crown": 10.0, "back": 8.0, "breast": 9.0, "belly": 10.0, "wing": 9.0, "tail": 8.0,
    "body": 12.0, "wing_bars": 6.0, "eye_ring": 5.0, "bill": 7.0, "bill_color": 6.0, "size": 8.0,
    "pose": 4.0, "direction": 4.0, "perch": 4.5, "background": 4.5,
}  # fmt: skip


# The share of captions with each number of topics. People mention about three attributes of a bird.
# Captions with two attributes fit many birds, so matching them teaches little.
_TOPIC_SHARES = {2: 0.10, 3: 0.25, 4: 0.35, 5: 0.22, 6: 0.08}


_ABSENT_WEIGHT = 0.8  # of missing wing bars or a missing eye ring: few people say "no wing bars"


def describe(bird: Bird, rng: np.random.Generator, count: int = 10) -> list[Caption]:
    """Return `count` captions of a bird, with 2 to 7 attributes and at most 18 words each.

    They are in lower case. An attribute that earlier captions of the bird mention is less likely in
    later ones, so that the captions complement each other.
    """
    mentions = dict.fromkeys(_WEIGHTS, 0)
    captions = []
    for _ in range(count):
        topics = _choose_topics(bird, mentions, rng)
        for topic in topics:
            mentions[topic] += 1
        captions.append(_phrase(bird, topics, rng))
    return captions


def _choose_topics(bird: Bird, mentions: dict[str, int], rng: np.random.Generator) -> list[str]:
    """Return a caption's topics, keys of `_WEIGHTS`; the first is the color of a large part."""
    weights = {topic: weight / (1 + mentions[topic]) for topic, weight in _WEIGHTS.items()}
    if bird.back != bird.wing:
        del weights["body"]
    for part in ("wing_bars", "eye_ring"):
        if getattr(bird, part) == "none":
            weights[part] *= _ABSENT_WEIGHT / _WEIGHTS[part]
    count = int(rng.choice(list(_TOPIC_SHARES), p=list(_TOPIC_SHARES.values())))
    topics: list[str] = []
    while len(topics) < count:
        pool = [t for t in weights if topics or t == "body" or t in COLORED_PARTS]
        share = np.array([weights[t] for t in pool])
        topic = pool[int(rng.choice(len(pool), p=share / share.sum()))]
        topics.append(topic)
        for excluded in (
            topic,
            *{"body": ("back", "wing"), "back": ("body",), "wing": ("body",)}.get(topic, ()),
        ):
            weights.pop(excluded, None)
    return topics


def _phrase(bird: Bird, topics: Sequence[str], rng: np.random.Generator) -> Caption:
    """Return the topics as one sentence. If it is too long, the last topics are omitted."""

    def word(attribute: str) -> str:
        value: str = getattr(bird, attribute)
        return pick(rng, _WORDS[attribute][value])

    adjectives = [word("size")] if "size" in topics else []
    if "body" in topics:
        adjectives.append(_color_word(bird.back, rng))
    subject = " ".join([*adjectives, "bird"])
    features = _features(bird, topics, rng)
    setting = [word(t) for t in ("pose", "perch", "direction", "background") if t in topics]
    if "perch" in topics and "pose" not in topics:
        setting.insert(
            0,
            pick(
                rng, ["sitting", "standing"] if bird.perch == "ground" else ["sitting", "perched"]
            ),
        )
    article = "an" if subject[0] in "aeiou" else "a"
    listed = " and ".join([", ".join(features[:-1]), features[-1]] if features[1:] else features)
    if not features:
        text = " ".join([pick(rng, [f"this is {article}", article, "the"]), subject, *setting])
    else:
        opening = pick(
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
    return Caption(text, {name: getattr(bird, name) for name in ATTRIBUTES if name in names})


def _features(bird: Bird, topics: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Return what the bird "has": "a red crown and tail", "black wings", "a short yellow bill"."""
    features: list[str] = []
    parts = [topic for topic in topics if topic in COLORED_PARTS]
    while parts:
        same = [part for part in parts if getattr(bird, part) == getattr(bird, parts[0])]
        group = same if rng.random() < 0.7 else parts[:1]  # "a white breast and belly"
        nouns = [pick(rng, _PART_WORDS[part]) for part in group]
        color = _color_word(getattr(bird, group[0]), rng)
        features.append(_with_article(f"{color} {' and '.join(nouns)}", plural=nouns[0] in _PLURAL))
        parts = [part for part in parts if part not in group]
    if "bill" in topics or "bill_color" in topics:
        shape = [pick(rng, _WORDS["bill"][bird.bill])] if "bill" in topics else []
        color_word = [_color_word(bird.bill_color, rng)] if "bill_color" in topics else []
        noun = pick(rng, ["bill", "beak"])
        features.append(_with_article(" ".join([*shape, *color_word, noun]), plural=False))
    if "wing_bars" in topics:
        noun = pick(rng, ["wing bars", "wingbars"])
        features.append(f"{_mark_word(bird.wing_bars, rng)} {noun}")
    if "eye_ring" in topics:
        ring = pick(rng, ["eye ring", "eyering"])
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
    return pick(rng, _COLOR_WORDS.get(color, (color,)))


def _mark_word(color: str, rng: np.random.Generator) -> str:
    return "no" if color == "none" else _color_word(color, rng)


class Statement(NamedTuple):
    """A statement that an attribute has a value, with the index of the word that says so."""

    attribute: str
    value: str
    word: int


def _phrases() -> dict[tuple[str, ...], tuple[str, str]]:
    """Return the meaning of each phrase of the grammar.

    A meaning is ("color" | "part" | "mark", its name), ("bird" | "bill noun", ""), or an attribute
    with its value.
    """
    meanings = {
        ("no",): ("color", "none"),
        ("bird",): ("bird", ""),
        ("bill",): ("bill noun", ""),
        ("beak",): ("bill noun", ""),
        ("wing", "bars"): ("mark", "wing_bars"),
        ("wingbars",): ("mark", "wing_bars"),
        ("eye", "ring"): ("mark", "eye_ring"),
        ("eyering",): ("mark", "eye_ring"),
    }
    for color in COLORS:
        for word in _COLOR_WORDS.get(color, (color,)):
            meanings[word,] = ("color", color)
    for part, phrases in _PART_WORDS.items():
        for phrase in phrases:
            meanings[tuple(phrase.split())] = ("part", part)
    for attribute, values in _WORDS.items():
        for value, phrases in values.items():
            for phrase in phrases:
                meanings[tuple(phrase.split())] = (attribute, value)
    return meanings


_MEANINGS = _phrases()
_LONGEST = max(map(len, _MEANINGS))
WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def read_statements(text: str) -> list[Statement]:
    """Return the statements of a description in order. A word may state the color of several parts.

    A part or mark without a color, and words that are not in the grammar, give no statement. Values
    are not checked: "green wing bars" is a statement, although no painted bird has them.
    """
    words = split_words(text)
    statements: list[Statement] = []
    color: tuple[str, int] | None = None
    shape: tuple[str, int] | None = None  # shape of the bill
    position = 0
    while position < len(words):
        length, (kind, name) = _meaning(words, position)
        attributes: tuple[str, ...] = ()  # the attributes to which the color applies
        ends = True  # whether the color ends here; "crown and tail" share a color
        if kind == "color":
            color, ends = (name, position), False
        elif kind == "bill":
            shape, ends = (name, position), False
        elif kind == "part":
            attributes, ends = (name,), False
        elif kind == "mark":
            attributes = (name,)
        elif kind == "bird":
            attributes = ("back", "wing")
        elif kind == "bill noun":
            attributes = ("bill_color",)
            if shape:
                statements.append(Statement("bill", *shape))
        elif kind == "and":
            ends = False
        elif kind:
            statements.append(Statement(kind, name, position))
        if color:
            statements += [Statement(attribute, *color) for attribute in attributes]
        if ends:
            color = shape = None
        position += length
    return statements


def read_attributes(text: str) -> dict[str, str]:
    """Return the value of each attribute in a description; of contradicting values, the last."""
    return {statement.attribute: statement.value for statement in read_statements(text)}


def _meaning(words: Sequence[str], position: int) -> tuple[int, tuple[str, str]]:
    """Return the length and the meaning of the longest phrase that begins at a position."""
    for length in range(_LONGEST, 0, -1):
        phrase = tuple(words[position : position + length])
        if phrase in _MEANINGS:
            return len(phrase), _MEANINGS[phrase]
    return 1, ("and" if words[position] == "and" else "", "")
