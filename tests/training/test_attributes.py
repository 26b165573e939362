"""Training of the attribute classifier: it learns, resumes, and is saved."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder, true_attributes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.attributes import attribute_accuracy
from mirrorgan_fast.models.attribute_classifier import FILE_NAME, AttributeClassifier
from mirrorgan_fast.training.attributes import AttributesTraining, train_attribute_classifier
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 16 birds."""
    root = tmp_path_factory.mktemp("birds") / "exported"
    export_image_folder(root, train=16, test=0, size=64, seed=3, workers=1, progress=False)
    return root


def train(
    birds: Path,
    folder: Path,
    steps: int,
    how: Execution = HERE,
    batch_size: int = 16,
    attributes: Sequence[str] = (),
) -> AttributeClassifier:
    images = ImageFolder(birds, "train")
    return train_attribute_classifier(
        images, folder, how, attributes=attributes, steps=steps, batch_size=batch_size
    )


@pytest.fixture(scope="module")
def trained(
    birds: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AttributeClassifier, Path]:
    folder = tmp_path_factory.mktemp("classifier")
    return train(birds, folder, steps=60), folder


def test_learns_what_it_is_shown(birds: Path, trained: tuple[AttributeClassifier, Path]) -> None:
    folder = ImageFolder(birds, "train")
    images = torch.from_numpy(np.stack([folder.image(i) for i in range(len(folder))]))
    truth = true_attributes(folder, range(len(folder)))
    readings = trained[0].read(images.permute(0, 3, 1, 2))
    chance = sum(1 / len(values) for values in ATTRIBUTES.values()) / len(ATTRIBUTES)
    assert attribute_accuracy(readings, truth).overall > 0.8 > 2 * chance
    shifted = truth[1:] + truth[:1]  # and it is not right about other birds
    assert attribute_accuracy(readings, shifted).overall < 0.5


def test_is_the_same_when_loaded(birds: Path, trained: tuple[AttributeClassifier, Path]) -> None:
    classifier, folder = trained
    loaded = AttributeClassifier.from_pretrained(folder)
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
    finished = AttributeClassifier.from_pretrained(tmp_path / "whole")
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


def test_rows_without_attributes(birds: Path, tmp_path: Path) -> None:
    shutil.copytree(birds, tmp_path / "birds")
    metadata = tmp_path / "birds" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[2]["attributes"]["crown"] = "pink"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="picture 'images/train/00002' has no attributes"):
        train(tmp_path / "birds", tmp_path / "run", steps=1)


def garments(root: Path, **attributes: object) -> Path:
    """An image folder of 40 squares and stripes in red, green and blue, not all colors known."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(40):
        kind, color = ("square", "stripe")[number % 2], number % 3
        pixels = rng.integers(0, 60, (72, 72, 3))
        height = 40 if kind == "square" else 10
        pixels[20 : 20 + height, 16:56, color] = 220
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"images/{number}.png")
        known = number % 4 != 1
        about = {"keys": ("red", "green", "blue")[color] if known else None, "kind": kind}
        rows.append(
            {
                "file_name": f"images/{number}.png",
                "captions": [f"a {kind}"],
                "split": "train",
                "attributes": {**about, "number": number, **attributes},
            }
        )
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_it_learns_the_attributes_of_any_pictures(tmp_path: Path) -> None:
    """Those that are texts; of a picture whose color is not known, the kind alone."""
    folder = garments(tmp_path / "garments")
    classifier = train(folder, tmp_path / "run", steps=80)
    assert classifier.attributes == {"keys": ("blue", "green", "red"), "kind": ("square", "stripe")}
    loaded = AttributeClassifier.from_pretrained(tmp_path / "run", reads=["kind"])
    images = ImageFolder(folder, "train")
    pictures = np.stack([np.asarray(images.image(i)) for i in range(len(images))])
    truth = [
        {n: v for n, v in images.record(i)["attributes"].items() if isinstance(v, str)}
        for i in range(len(images))
    ]
    assert sum(map(len, truth)) == 70
    readings = loaded.read(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    assert attribute_accuracy(readings, truth).overall > 0.9
    only = train(folder, tmp_path / "only", 1, attributes=["kind"])
    assert only.names == ["kind"]


def test_nothing_is_learned_of_what_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is the mean over what is known, and an attribute that nobody knows has none."""
    torch.manual_seed(0)
    values = {"a": ["x", "y"], "b": ["x", "y", "z"], "c": ["x", "y"]}
    numbers = torch.tensor([[0, -1, -1], [1, 2, -1], [-1, 0, -1]])
    task = AttributesTraining(values, numbers, 10, 1e-3, Computation(torch.device("cpu")))
    seen: list[Tensor] = []
    lower = task.learner.lower

    def kept(loss: Tensor, pace: float) -> bool:
        seen.append(loss)
        return lower(loss, pace)

    monkeypatch.setattr(task.learner, "lower", kept)
    batch: Any = {
        "image": torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8),
        "index": torch.arange(3),
    }
    logits: list[dict[str, Tensor]] = []
    task.classifier.register_forward_hook(lambda _, __, found: logits.append(found))
    figures = task.step(0, 0, batch)
    chances = {name: each.detach().double().softmax(1) for name, each in logits[0].items()}
    expected = -(chances["a"][0, 0].log() + chances["a"][1, 1].log()) / 2
    expected = expected - (chances["b"][1, 2].log() + chances["b"][2, 0].log()) / 2
    assert seen[0].item() == pytest.approx(expected.item(), rel=1e-5)
    found = {name: each.argmax(1).tolist() for name, each in chances.items()}
    right = (
        (found["a"][0] == 0) + (found["a"][1] == 1) + (found["b"][1] == 2) + (found["b"][2] == 0)
    )
    assert figures["right"].item() == pytest.approx(right / 4)


@pytest.mark.parametrize(
    ("attributes", "wanted", "message"),
    [
        ({}, ["color"], "attribute 'color': has 0 values.*there are: keys, kind"),
        ({"sort": "one"}, ["sort"], "attribute 'sort': has 1 values, expected 2 to 1,000"),
        ({"sort": "one"}, [], "attribute 'sort': has 1 values"),
        ({"kind": "x" * 100}, ["kind"], "attribute 'kind'"),
        ({"keys": 1, "kind": None}, [], "there are 0 attributes to learn"),
    ],
)
def test_attributes_that_cannot_be_learned(
    attributes: dict[str, Any], wanted: list[str], message: str, tmp_path: Path
) -> None:
    folder = garments(tmp_path / "garments", **attributes)
    with pytest.raises(InputError, match=message):
        train(folder, tmp_path / "run", 1, attributes=wanted)
    assert not (tmp_path / "run").exists()


def test_a_picture_that_cannot_be_read(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out with its attributes, or it stops the training."""
    shutil.copytree(birds, tmp_path / "birds")
    whole = ImageFolder(tmp_path / "birds", "train")
    (tmp_path / "birds" / f"{whole.name(3)}.png").write_bytes(b"no picture")
    how = dataclasses.replace(HERE, cache=tmp_path / "cache")
    strict = dataclasses.replace(how, strict=True)
    with pytest.raises(InputError, match=f"picture '{whole.name(3)}' cannot be trained on"):
        train(tmp_path / "birds", tmp_path / "run", 1, strict, batch_size=15)
    learned: list[tuple[Tensor, Tensor]] = []
    step = AttributesTraining.step

    def kept(self: AttributesTraining, step_number: int, epoch: int, batch: Batch) -> Any:
        learned.append((batch["image"], self.attributes[batch["index"]]))
        return step(self, step_number, epoch, batch)

    monkeypatch.setattr(AttributesTraining, "step", kept)
    train(tmp_path / "birds", tmp_path / "run", 1, how, batch_size=15)
    (cache,) = (tmp_path / "cache").glob("pictures-128-*")
    assert (cache / "pixels.uint8").stat().st_size == 15 * 3 * 128**2
    expected = {}
    examples = TrainingExamples(ImageFolder(birds, "train"), Vocabulary.build(["a bird"]), 128)
    values = true_attributes(whole, range(16))
    for index in sorted({*range(16)} - {3}):
        numbers = [options.index(values[index][name]) for name, options in ATTRIBUTES.items()]
        expected[examples[index]["image"].numpy().tobytes()] = numbers
    images, attributes = learned[0]
    found = {
        image.numpy().tobytes(): numbers.tolist()
        for image, numbers in zip(images, attributes, strict=True)
    }
    assert found == expected
