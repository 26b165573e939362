"""The attribute classifier reads images, and its files are checked."""

from pathlib import Path

import pytest
import torch

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


def test_damaged_or_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"attributes\.safetensors: there is no such .* train it"):
        AttributeClassifier.from_pretrained(ATTRIBUTES, tmp_path)
    AttributeClassifier(ATTRIBUTES).save_pretrained(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(content[:1000])
    with pytest.raises(InputError, match=r"attributes\.safetensors: cannot be read as weights"):
        AttributeClassifier.from_pretrained(ATTRIBUTES, tmp_path)
