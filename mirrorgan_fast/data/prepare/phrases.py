"""Building blocks of captions: articles, and ten different sentences about a picture."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from mirrorgan_fast.data.captioned_images import Caption

CAPTIONS = 10
"""Captions of each picture."""

_MOST_TRIES = 1000
_Sentence = Callable[[np.random.Generator], Caption]


def rng_of(name: str, content: bytes) -> np.random.Generator:
    """Return a generator of random numbers that depends on a picture's name and content alone."""
    digest = hashlib.sha256(name.encode() + b"\0" + content).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Return one of the words, all of which are equally likely."""
    return words[int(rng.integers(len(words)))]


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun in the singular, by its first letter."""
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"


def different(sentence: _Sentence, rng: np.random.Generator) -> list[Caption]:
    """Return ``CAPTIONS`` captions, no two of which have the same text.

    Args:
        sentence: returns one of at least ``CAPTIONS`` captions, at random.
        rng: what is drawn from.
    """
    found: dict[str, Caption] = {}
    for _ in range(_MOST_TRIES):
        caption = sentence(rng)
        found[caption.text] = caption
        if len(found) == CAPTIONS:
            return list(found.values())
    raise AssertionError(f"only {len(found)} captions: {list(found)}")
