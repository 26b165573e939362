"""Accuracy of claims about attributes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class AttributeAccuracy:
    """How many claims about attributes there are, and how many of them are right."""

    claims: dict[str, int]
    right: dict[str, int]

    @classmethod
    def count(cls, judged: Iterable[tuple[str, bool]]) -> Self:
        """Count claims: the attribute each is about, and whether it is right."""
        claims: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for name, is_right in judged:
            claims[name] += 1
            right[name] += is_right
        return cls(dict(claims), dict(right))

    @property
    def overall(self) -> float:
        """Share of all claims that are right; 0 if there are no claims."""
        return sum(self.right.values()) / max(1, sum(self.claims.values()))

    @property
    def by_attribute(self) -> dict[str, float]:
        """Share of each attribute's claims that are right."""
        return {name: self.right[name] / claims for name, claims in self.claims.items()}


def attribute_accuracy(
    readings: Sequence[Mapping[str, str]], named: Sequence[Mapping[str, str]]
) -> AttributeAccuracy:
    """Count how many of the attributes that N captions name are seen in their images.

    Args:
        readings: the attributes that a judge reads in each image; one that is missing is not right.
        named: the attributes that each caption names.
    """
    return AttributeAccuracy.count(
        (name, reading.get(name) == value)
        for reading, claims in zip(readings, named, strict=True)
        for name, value in claims.items()
    )
