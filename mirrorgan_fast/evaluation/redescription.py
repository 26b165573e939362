"""Redescription: the statements in STREAM's description of a painted bird, and which are right.

`painted_birds.describe` writes captions with a small grammar, and `read_statements` parses them. It
also parses what STREAM writes in that grammar; anything else that STREAM writes is not a statement.
"""

from collections.abc import Mapping, Sequence

from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

from mirrorgan_fast.data.painted_birds.words import read_statements, split_words
from mirrorgan_fast.metrics.attributes import AttributeAccuracy


def redescription_accuracy(
    descriptions: Sequence[str], known: Sequence[Mapping[str, str]]
) -> AttributeAccuracy:
    """Count the right statements of descriptions.

    Args:
        descriptions: of N images.
        known: the true attributes of each image; statements about other attributes do not count.
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
            # Changes only a count of 0 matches, for which NLTK would print a long warning
            smoothing_function=SmoothingFunction().method1,
        )
    )
