"""The pairs of a class and a color that only the test split shows."""

import hashlib
from collections import Counter
from collections.abc import Collection

Pair = tuple[str, str]
"""A class and a color, such as ("dress", "red")."""

_SHARE = 0.1  # of all pictures
_MOST_OF_ONE = 0.4  # share of a class or a color that may be held out
_LEAST_PICTURES = 5  # of a pair; a color that was measured wrongly is often alone in its class


def held_out_pairs(pictures: Collection[frozenset[Pair]]) -> frozenset[Pair]:
    """Choose pairs for the test split, so that about a tenth of the pictures show one of them.

    The choice depends on the pictures, but not on their order. Each class and each color keeps at
    least 60 % of its pictures for training, so it never vanishes there.

    Args:
        pictures: the pairs that each picture shows; none for a picture that names no color.
    """
    of_pair = Counter(pair for pairs in pictures for pair in pairs)
    of_word = Counter(word for pairs in pictures for word in _words(pairs))
    held: set[Pair] = set()
    held_of_word: Counter[tuple[int, str]] = Counter()
    count = 0
    for pair in sorted(of_pair, key=_shuffled):
        added = [pairs for pairs in pictures if pair in pairs and not pairs & held]
        of_added = Counter(word for pairs in added for word in _words(pairs))
        if of_pair[pair] < _LEAST_PICTURES or count + len(added) > _SHARE * len(pictures):
            continue
        if all(
            held_of_word[word] + n <= _MOST_OF_ONE * of_word[word] for word, n in of_added.items()
        ):
            held.add(pair)
            held_of_word += of_added
            count += len(added)
    return frozenset(held)


def _words(pairs: frozenset[Pair]) -> set[tuple[int, str]]:
    """Return the classes and colors in pairs, each with its position there."""
    return {(position, word) for pair in pairs for position, word in enumerate(pair)}


def _shuffled(pair: Pair) -> bytes:
    """Return a key that sorts pairs in an order without meaning."""
    return hashlib.sha256("|".join(pair).encode()).digest()
