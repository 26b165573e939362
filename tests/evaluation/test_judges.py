"""What judges images, and what of: classifiers read attributes, and colors are measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.prepare.clothing import Clothing
from mirrorgan_fast.data.prepare.watercolors import Watercolors
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation.captions import asserted_attributes
from mirrorgan_fast.evaluation.judges import ColorJudge, judge_of
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier

CPU = torch.device("cpu")


def square(color: tuple[int, int, int], ground: tuple[int, int, int]) -> torch.Tensor:
    pixels = np.full((96, 96, 3), ground, np.float64)
    pixels[24:72, 24:72] = color
    noisy = pixels + np.random.default_rng(0).normal(0, 3, pixels.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def folder_with(root: Path, **row: Any) -> ImageFolder:
    root.mkdir()
    Image.new("RGB", (64, 64)).save(root / "a.png")
    whole = {"file_name": "a.png", "captions": ["a red hat", "a hat"], **row}
    (root / "metadata.jsonl").write_text(json.dumps(whole) + "\n")
    return ImageFolder(root)


def test_colors_are_measured_and_the_rest_is_read() -> None:
    class Hats(AttributeClassifier):
        def read(self, images: torch.Tensor, batch_size: int = 64) -> list[dict[str, str]]:
            return [{"garment": f"hat {i}"} for i in range(len(images))]

    images = torch.stack(
        [square((200, 32, 40), (192, 154, 108)), square((32, 48, 92), (240, 240, 242))]
    )
    expected = [
        {"color": "red", "background": "light brown"},
        {"color": "dark blue", "background": "white"},
    ]
    judge = ColorJudge(Clothing(), None)
    assert judge.names == ["color", "background"]
    assert [{name: each[name] for name in judge.names} for each in judge.read(images)] == expected
    judge = ColorJudge(Clothing(), Hats({"garment": ["a", "b"]}))
    assert judge.names == ["garment", "color", "background"]
    assert judge.read(images) == [
        {"garment": f"hat {i}", **colors} for i, colors in enumerate(expected)
    ]


def test_leaves_are_not_the_skin_of_a_berry() -> None:
    class Fruit(AttributeClassifier):
        def read(self, images: torch.Tensor, batch_size: int = 64) -> list[dict[str, str]]:
            return [{"fruit": "cherry"}, {"fruit": "pear"}]

    green = square((70, 150, 80), (250, 243, 225))
    judge = ColorJudge(Watercolors(), Fruit({"fruit": ["cherry", "pear"]}))
    readings = judge.read(torch.stack([green, green]))
    assert readings == [{"fruit": "cherry"}, {"fruit": "pear", "skin": "green"}]


def test_the_judge_is_that_of_the_pictures(birds: Path, tmp_path: Path) -> None:
    judge = judge_of(ImageFolder(birds, "test"), None, CPU)
    assert isinstance(judge, AttributeClassifier)
    assert judge.names == [*ATTRIBUTES]

    plain = folder_with(tmp_path / "plain")
    assert judge_of(plain, None, CPU) is None
    AttributeClassifier({"kind": ["a", "b"]}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r'there is nothing to judge.*"named"'):
        judge_of(plain, str(tmp_path), CPU)
    own = folder_with(tmp_path / "own", named=[{"kind": "a"}, {}])
    judge = judge_of(own, str(tmp_path), CPU)
    assert isinstance(judge, AttributeClassifier)
    assert judge.names == ["kind"]

    prepared = folder_with(tmp_path / "prepared", named=[{}, {}], source="clothing")
    judge = judge_of(prepared, None, CPU)
    assert isinstance(judge, ColorJudge)
    assert judge.classifier is None
    with pytest.raises(InputError, match="reads kind, but not garment"):
        judge_of(prepared, str(tmp_path), CPU)
    AttributeClassifier({"garment": ["a", "b"]}).save_pretrained(tmp_path)
    judge = judge_of(prepared, str(tmp_path), CPU)
    assert judge is not None
    assert judge.names == ["garment", "color", "background"]


def test_what_captions_assert_of_what_is_judged(tmp_path: Path) -> None:
    named = [{"garment": "hat", "child": "no", "color": "red"}, {"garment": "hat"}]
    folder = folder_with(tmp_path / "a", named=named)
    found = asserted_attributes(folder, 0, ["color", "garment"])
    assert [list(each.items()) for each in found] == [
        [("color", "red"), ("garment", "hat")],
        [("garment", "hat")],
    ]


@pytest.mark.parametrize("named", [None, [], [{}], [{}, []], {"a": "b"}])
def test_rows_that_do_not_say_what_captions_assert(named: Any, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", named=named)
    with pytest.raises(InputError, match="picture 'a' has no list \"named\""):
        asserted_attributes(folder, 0, ["color"])
