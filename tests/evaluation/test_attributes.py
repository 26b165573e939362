"""The attribute classifier learns, is saved and loaded, and reads images; attribute accuracy."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import true_attributes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.attributes import AttributeAccuracy, attribute_accuracy
from mirrorgan_fast.models.attribute_classifier import FILE_NAME, AttributeClassifier
from mirrorgan_fast.training.attributes import train_attribute_classifier

from .conftest import pixels

CPU = torch.device("cpu")


def train(birds: Path, folder: Path, steps: int) -> AttributeClassifier:
    return train_attribute_classifier(
        ImageFolder(birds, "train"),
        folder,
        steps=steps,
        batch_size=16,
        device=CPU,
        workers=0,
        quiet=True,
    )


@pytest.fixture(scope="module")
def trained(
    birds: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AttributeClassifier, Path]:
    folder = tmp_path_factory.mktemp("classifier")
    return train(birds, folder, steps=60), folder


def test_learns_what_it_is_shown(birds: Path, trained: tuple[AttributeClassifier, Path]) -> None:
    folder = ImageFolder(birds, "train")
    images = torch.stack([pixels(folder, i) for i in range(len(folder))])
    truth = true_attributes(folder, range(len(folder)))
    readings = trained[0].read(images)
    chance = sum(1 / len(values) for values in ATTRIBUTES.values()) / len(ATTRIBUTES)
    assert attribute_accuracy(readings, truth).overall > 0.8 > 2 * chance
    shifted = truth[1:] + truth[:1]  # and it is not right about other birds
    assert attribute_accuracy(readings, shifted).overall < 0.5


def test_is_the_same_when_loaded(birds: Path, trained: tuple[AttributeClassifier, Path]) -> None:
    classifier, folder = trained
    loaded = AttributeClassifier.from_pretrained(ATTRIBUTES, folder)
    assert not loaded.training
    assert (folder / FILE_NAME).stat().st_size < 1_500_000
    images = torch.rand(3, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        expected, actual = classifier(images), loaded(images)
    for name in ATTRIBUTES:
        assert actual[name].shape == (3, len(ATTRIBUTES[name]))
        assert (actual[name] - expected[name]).abs().max() < 0.01 * expected[name].abs().max()


def test_a_finished_training_is_not_done_again(birds: Path, tmp_path: Path) -> None:
    train(birds, tmp_path / "whole", steps=2)
    finished = AttributeClassifier.from_pretrained(ATTRIBUTES, tmp_path / "whole")
    (tmp_path / "whole" / FILE_NAME).unlink()
    again = train(birds, tmp_path / "whole", steps=2)  # from its checkpoint
    for name, tensor in finished.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_other_attributes_are_other_data(birds: Path, tmp_path: Path) -> None:
    """Also where the names and the captions of the pictures are the same."""
    shutil.copytree(birds, tmp_path / "birds")
    train(tmp_path / "birds", tmp_path / "run", steps=1)
    metadata = tmp_path / "birds" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    attributes = next(row["attributes"] for row in rows if row["split"] == "train")
    attributes["size"] = "large" if attributes["size"] == "small" else "small"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="was made with attributes"):
        train(tmp_path / "birds", tmp_path / "run", steps=2)


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


def test_counts_what_captions_name() -> None:
    readings = [{"crown": "red", "tail": "blue"}, {"crown": "green", "tail": "blue"}]
    accuracy = attribute_accuracy(readings, [{"crown": "red", "tail": "red"}, {"crown": "red"}])
    assert accuracy.overall == 1 / 3
    assert accuracy.by_attribute == {"crown": 0.5, "tail": 0.0}
    assert AttributeAccuracy.count([]).overall == 0


def test_damaged_or_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"attributes\.safetensors: there is no such .* train it"):
        AttributeClassifier.from_pretrained(ATTRIBUTES, tmp_path)
    AttributeClassifier(ATTRIBUTES).save_pretrained(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(content[:1000])
    with pytest.raises(InputError, match=r"attributes\.safetensors: cannot be read as weights"):
        AttributeClassifier.from_pretrained(ATTRIBUTES, tmp_path)


def test_rows_without_attributes(birds: Path, tmp_path: Path) -> None:
    shutil.copytree(birds, tmp_path / "birds")
    metadata = tmp_path / "birds" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[2]["attributes"]["crown"] = "pink"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="picture 'images/train/00002' has no attributes"):
        train(tmp_path / "birds", tmp_path / "run", steps=1)
