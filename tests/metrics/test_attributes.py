"""Attribute accuracy."""

from mirrorgan_fast.metrics.attributes import AttributeAccuracy, attribute_accuracy


def test_counts_what_captions_name() -> None:
    readings = [{"crown": "red", "tail": "blue"}, {"crown": "green", "tail": "blue"}]
    accuracy = attribute_accuracy(readings, [{"crown": "red", "tail": "red"}, {"crown": "red"}])
    assert accuracy.overall == 1 / 3
    assert accuracy.by_attribute == {"crown": 0.5, "tail": 0.0}
    assert AttributeAccuracy.count([]).overall == 0
