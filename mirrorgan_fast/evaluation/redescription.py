"""Redescription: what a description of a painted bird says, and how much of it is right.

`painted_birds.describe` writes captions by a small grammar; `read_statements` reads them back, and
with them whatever STREAM says in that grammar. What it says otherwise states nothing.
"""

from collections.abc import Mapping, Sequence

from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

from mirrorgan_fast.data.painted_birds.words import read_statements, split_words
from mirrorgan_fast.metrics.attributes import AttributeAccuracy


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
