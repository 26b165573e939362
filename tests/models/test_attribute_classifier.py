"""The attribute classifier reads images, and its files are checked."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.attribute_classifier import FILE_NAME, AttributeClassifier


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (256, 256)])
def test_reads_every_size_and_type(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier(ATTRIBUTES).eval()
    bytes_ = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8)
    readings = classifier.read(bytes_, batch_size=2)
    assert readings == classifier.read(bytes_.float() / 127.5 - 1)
    assert len(readings) == 5
    for reading in readings:
        assert all(reading[name] in values for name, values in ATTRIBUTES.items())
        assert list(reading) == list(ATTRIBUTES)


def test_it_says_what_it_reads(tmp_path: Path) -> None:
    """Also attributes whose names are those of a module's methods."""
    attributes = {"type": ["hat", "shoes"], "items.per": ["one", "two", "many"], "keys": ["a", "b"]}
    torch.manual_seed(0)
    classifier = AttributeClassifier(attributes).eval()
    classifier.save_pretrained(tmp_path)
    loaded = AttributeClassifier.from_pretrained(tmp_path, reads=["keys", "type"])
    assert loaded.names == [*attributes]
    assert loaded.attributes == {name: tuple(values) for name, values in attributes.items()}
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    assert loaded.read(images) == classifier.half().float().read(images)
    with pytest.raises(InputError, match=r"reads type, items.per, keys, but not color, shape"):
        AttributeClassifier.from_pretrained(tmp_path, reads=["color", "type", "shape"])


@pytest.mark.parametrize(
    "names",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"a": "bc"}',
        '{"a": ["b"]}',
        '{"a": ["b", "b"]}',
        '{"a": ["b", 3]}',
        '{"a": ["b", ["c"]]}',
        f'{{"a": ["b", "{"c" * 81}"]}}',
        json.dumps({"a": [str(i) for i in range(1001)]}),
        json.dumps({str(i): ["a", "b"] for i in range(65)}),
    ],
)
def test_a_file_that_does_not_say_what_it_reads(names: str | None, tmp_path: Path) -> None:
    about = {} if names is None else {"attributes": names}
    save_file({"a": torch.zeros(1)}, tmp_path / FILE_NAME, about)
    with pytest.raises(InputError, match=r"does not name the attributes that it reads.*again"):
        AttributeClassifier.from_pretrained(tmp_path)


def test_damaged_or_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"attributes\.safetensors: there is no such .* train it"):
        AttributeClassifier.from_pretrained(tmp_path)
    AttributeClassifier(ATTRIBUTES).save_pretrained(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(content[:1000])
    with pytest.raises(InputError, match=r"attributes\.safetensors: cannot be read as weights"):
        AttributeClassifier.from_pretrained(tmp_path)
