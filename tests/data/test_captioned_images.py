"""The image folder and training examples: crops measured on gradients, workers, bad rows."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from mirrorgan_fast.data.captioned_images import ImageFolder, TrainingExamples
from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError

VOCABULARY = Vocabulary(["<end>", "bird", "red", "blue", "looks", "left", "small", "old"])


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column and green the row of each pixel, so that a crop tells where it is from."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0 + 7], axis=2).astype(np.uint8))


def write_folder(root: Path, rows: list[dict[str, Any]], pictures: list[Image.Image]) -> None:
    root.mkdir(exist_ok=True)
    with open(root / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for row, picture in zip(rows, pictures, strict=True):
            (root / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / row["file_name"])
            metadata.write(json.dumps(row) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven gradients of different shapes; three are of the split "test"."""
    rows = [
        {
            "file_name": f"pictures/{number}.png",
            "captions": ["a red bird", "blue bird bird", f"old small bird {number}"],
            "split": "test" if number % 3 == 0 else "train",
            "extra": {"weight": number},
        }
        for number in range(7)
    ]
    write_folder(tmp_path / "set", rows, [gradient(150 + 9 * n, 190 - 8 * n) for n in range(7)])
    return tmp_path / "set"


def test_a_folder_gives_back_what_was_written(folder: Path) -> None:
    images = ImageFolder(folder)
    assert len(images) == 7
    assert [images.name(index) for index in range(7)] == [f"pictures/{n}" for n in range(7)]
    assert [images.label(index) for index in range(7)] == list(range(7))
    assert images.captions(2)[2] == "old small bird 2"
    assert images.record(4)["extra"] == {"weight": 4}
    for index in range(7):
        picture = images.image(index)
        assert picture.mode == "RGB"
        expected = gradient(150 + 9 * index, 190 - 8 * index)
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_split_takes_its_rows_only(folder: Path) -> None:
    assert [ImageFolder(folder, "test").name(i) for i in range(3)] == [
        "pictures/0",
        "pictures/3",
        "pictures/6",
    ]
    assert len(ImageFolder(folder, split="train")) == 4
    with pytest.raises(InputError, match=r'the split "val"; there are: test, train'):
        ImageFolder(folder, split="val")
    with pytest.raises(InputError, match=r'the fold "1"; there are: none at all'):
        ImageFolder(folder, split="1", split_field="fold")


@pytest.mark.parametrize("field", ["label", "class_id"])
def test_labels_come_from_the_rows(field: str, tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.png", "captions": ["x"], field: 40 - n // 2} for n in range(4)]
    write_folder(tmp_path, rows, [gradient(4, 4)] * 4)
    images = ImageFolder(tmp_path)
    assert [images.label(index) for index in range(4)] == [40, 40, 39, 39]


def test_pictures_become_rgb_on_white_and_upright(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 51))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    turned = gradient(5, 3)
    turned.getexif()[0x0112] = 6
    pictures = [clear, palette, Image.new("L", (2, 1), 90), Image.new("CMYK", (2, 1)), turned]
    names = ["clear.png", "palette.png", "gray.png", "print.jpg", "turned.png"]
    write_folder(tmp_path, [{"file_name": name, "captions": ["x"]} for name in names], pictures)
    turned.save(tmp_path / "turned.png", exif=turned.getexif())

    images = ImageFolder(tmp_path)
    found = [np.asarray(images.image(index)) for index in range(5)]
    assert [images.image(index).mode for index in range(5)] == ["RGB"] * 5
    # A fifth of (200, 0, 0) over white: 255 + (200 - 255) / 5 = 244, 255 - 255 / 5 = 204.
    assert found[0].tolist() == [[[255, 255, 255], [244, 204, 204]]]
    assert found[1].tolist() == [[[255, 255, 255]] * 2]
    assert found[2].tolist() == [[[90, 90, 90]] * 2]
    assert found[3].tolist() == [[[255, 255, 255]] * 2]
    assert np.array_equal(found[4], np.rot90(np.asarray(gradient(5, 3)), k=-1))


GOOD = '{"file_name": "a.png", "captions": ["a bird"]}'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"file_name": "b.png", "captions": ["a bi', "not a JSON object"),
        ('["b.png", "a bird"]', "found list"),
        ("[" * 100_000, "not a JSON object"),
        ('{"captions": ["a bird"]}', 'has no "file_name"; it has captions'),
        ('{"file_name": "b.png", "text": "a bird"}', 'has no "captions"; it has file_name, text'),
        ("{}", 'has no "file_name"; it has nothing'),
        ('{"file_name": 3, "captions": ["a bird"]}', '"file_name" must be a path, found 3'),
        ('{"file_name": "", "captions": ["a bird"]}', '"file_name" must be a path'),
        ('{"file_name": "b.png", "captions": "a bird"}', "must be a list of strings"),
        ('{"file_name": "b.png", "captions": ["a bird", 3]}', "must be a list of strings"),
        ('{"file_name": "b.png", "captions": []}', "is empty"),
        ('{"file_name": "../b.png", "captions": ["a bird"]}', "out of the folder"),
        ('{"file_name": "x/../../b.png", "captions": ["a bird"]}', "out of the folder"),
        ('{"file_name": "/b.png", "captions": ["a bird"]}', "out of the folder"),
        ('{"file_name": "none.png", "captions": ["a bird"]}', "no file 'none.png'"),
        ('{"file_name": "a\\u0000.png", "captions": ["a bird"]}', "no file"),
        ('{"file_name": "x/../a.png", "captions": ["a bird"]}', "same picture as line 1"),
        ('{"file_name": "x/../a.jpg", "captions": ["a bird"]}', "its extension, of line 1"),
        ('{"file_name": "' + 5000 * "a" + '", "captions": ["a bird"]}', "there is no file 'aaa"),
        ('{"file_name": "b.png", "captions": ["a bird"], "label": 1.5}', "must be an integer"),
        ('{"file_name": "b.png", "captions": ["a bird"], "label": true}', "must be an integer"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(line: str, fault: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for path in (root / "a.png", root / "b.png", tmp_path / "b.png"):
        gradient(4, 4).save(path)
    good = GOOD.replace("}", ', "label": 1}') if "label" in line else GOOD
    (root / "metadata.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 3: ") as caught:
        ImageFolder(root)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    gradient(4, 4).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(GOOD.encode() + b'\n{"file_name": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: not a JSON object"):
        ImageFolder(tmp_path)


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl: cannot read it"):
        ImageFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no rows"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("kind", ["text", "empty", "png", "jpeg", "sixteen bits"])
def test_a_damaged_picture_is_refused_with_its_line(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    if kind in ("png", "jpeg"):
        whole = io.BytesIO()
        noise.save(whole, kind)
        content = whole.getvalue()[: len(whole.getvalue()) // 2]
    elif kind == "sixteen bits":
        whole = io.BytesIO()
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(whole, "png")
        content = whole.getvalue()
    else:
        content = b"not a picture" if kind == "text" else b""
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "metadata.jsonl").write_text(GOOD)
    images = ImageFolder(tmp_path)
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 1: .*a\.png"):
        images.image(0)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


@pytest.mark.parametrize("augment", [False, True])
def test_an_example_has_the_promised_shapes(augment: bool, folder: Path) -> None:
    example = TrainingExamples(ImageFolder(folder), VOCABULARY, 33, 5, augment=augment)[3]
    assert set(example) == {"image", "tokens", "length", "index", "label"}
    assert example["image"].shape == (3, 33, 33)
    assert example["image"].dtype == torch.uint8
    assert example["image"].is_contiguous()
    assert example["tokens"].shape == (5,)
    assert example["tokens"].dtype == torch.int64
    assert (example["index"], example["label"]) == (3, 3)
    assert (example["tokens"] > 0).sum() == example["length"]


def test_without_augmentation_it_is_the_middle_square(folder: Path) -> None:
    images = ImageFolder(folder)
    examples = TrainingExamples(images, VOCABULARY, 48)
    for index in range(len(images)):
        expected = ImageOps.fit(images.image(index), (48, 48), Image.Resampling.BILINEAR)
        found = examples[index]["image"].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - np.asarray(expected, dtype=int)).max() <= 1


def test_augmentation_crops_76_64_of_the_shorter_side_anywhere_and_flips_half(folder: Path) -> None:
    index, width, height, size = 5, 195, 150, 40
    examples = TrainingExamples(ImageFolder(folder), VOCABULARY, size, augment=True)
    side = height * 64 / 76
    lefts, tops, flips = [], [], []
    for epoch in range(200):
        examples.set_epoch(epoch)
        red, green, blue = examples[index]["image"].numpy().astype(float)
        assert (blue == 7).all()
        slope = (red[:, -3] - red[:, 2]).mean() / (size - 5)
        assert abs(abs(slope) - side / size) < 0.05
        assert abs((green[-3] - green[2]).mean() / (size - 5) - side / size) < 0.05
        flips.append(slope < 0)
        lefts.append(red.mean() + 0.5 - side / 2)
        tops.append(green.mean() + 0.5 - side / 2)
    for found, room in ((lefts, width - side), (tops, height - side)):
        assert min(found) > -1
        assert max(found) < room + 1
        assert min(found) < 0.05 * room + 1
        assert max(found) > 0.95 * room - 1
    assert 70 < sum(flips) < 130


def test_a_picture_is_not_flipped_under_a_caption_that_names_a_side(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "captions": ["looks LEFT, bird", "old bird"]}]
    write_folder(tmp_path, rows, [gradient(90, 90)])
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 20, augment=True)
    flipped = {"looks left bird": 0, "old bird": 0}
    for epoch in range(80):
        examples.set_epoch(epoch)
        example = examples[0]
        flipped[VOCABULARY.decode(example["tokens"])] += int(
            example["image"][0, 0, 0] > example["image"][0, 0, -1]
        )
    assert flipped["looks left bird"] == 0
    assert flipped["old bird"] > 5


def test_captions_and_the_words_of_long_ones_vary_by_epoch(folder: Path) -> None:
    examples = TrainingExamples(ImageFolder(folder), VOCABULARY, 8, caption_length=2)
    seen = set()
    for epoch in range(60):
        examples.set_epoch(epoch)
        seen.add(VOCABULARY.decode(examples[1]["tokens"]))
    assert seen == {
        *("red bird", "blue bird", "bird bird"),
        *("old small", "old bird", "small bird"),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_depend_on_seed_epoch_and_index_only(workers: int, folder: Path) -> None:
    images = ImageFolder(folder)
    loaded = TrainingExamples(images, VOCABULARY, 16, 2, augment=True, seed=5)
    loader = DataLoader(
        loaded, batch_size=3, num_workers=workers, persistent_workers=workers > 0, shuffle=True
    )
    for epoch in (0, 4, 1):
        loaded.set_epoch(epoch)
        fresh = TrainingExamples(images, VOCABULARY, 16, 2, augment=True, seed=5)
        fresh.set_epoch(epoch)
        count = 0
        for batch in loader:
            for row, index in enumerate(batch["index"].tolist()):
                assert same({key: batch[key][row] for key in batch}, dict(fresh[index]))
                count += 1
        assert count == len(images)


def test_examples_without_images_are_the_same_and_read_none(folder: Path) -> None:
    images = ImageFolder(folder)
    examples = TrainingExamples(images, VOCABULARY, 16, caption_length=2, seed=3)
    bare = examples.without_images()
    examples.set_epoch(5)
    expected = [examples[index] for index in range(len(examples))]
    for picture in folder.rglob("*.png"):
        picture.unlink()
    for index, example in enumerate(expected):
        assert bare[index].keys() == example.keys() - {"image"}
        assert torch.equal(bare[index]["tokens"], example["tokens"])
        assert bare[index]["length"] == example["length"]


def test_seeds_and_epochs_differ(folder: Path) -> None:
    images = ImageFolder(folder)
    one = TrainingExamples(images, VOCABULARY, 16, augment=True, seed=1)
    two = TrainingExamples(images, VOCABULARY, 16, augment=True, seed=2)
    assert not same(dict(one[2]), dict(two[2]))
    first = dict(one[2])
    one.set_epoch(1)
    assert not same(first, dict(one[2]))


def test_any_shape_of_picture_works(tmp_path: Path) -> None:
    shapes = [(1, 1), (1, 300), (257, 2), (3, 5)]
    rows = [{"file_name": f"{n}.png", "captions": ["red bird"]} for n in range(len(shapes))]
    write_folder(tmp_path, rows, [Image.new("RGB", shape, (9, 8, 7)) for shape in shapes])
    for augment in (False, True):
        for example in TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 19, augment=augment):
            assert (example["image"] == torch.tensor([9, 8, 7]).view(3, 1, 1)).all()


def test_a_caption_without_a_known_word_is_passed_over(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "captions": ["...", "bird", "zebra"]},
        {"file_name": "b.png", "captions": ["zebra", ""]},
    ]
    write_folder(tmp_path, rows, [gradient(4, 4)] * 2)
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 4)
    for epoch in range(10):
        examples.set_epoch(epoch)
        assert examples[0]["length"] == 1
    with pytest.raises(InputError, match="'b': its captions have no word of the vocabulary"):
        examples[1]


def test_phrases_are_those_that_tell_pictures_apart(tmp_path: Path) -> None:
    captions = [["red bird", "Old, RED bird!"], ["red zebra bird"], ["blue bird"], ["a bird"]]
    rows = [{"file_name": f"{n}.png", "captions": texts} for n, texts in enumerate(captions)]
    write_folder(tmp_path, rows, [gradient(4, 4)] * 4)
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 4)
    # "bird" is in all of them and tells nothing; unknown words ("zebra", "a") are none. What is
    # left: red, red bird; blue, blue bird; old, old red, old red bird.
    expected = [[1, 1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0] * 7]
    found = examples.phrases(100)
    assert found.dtype == torch.bool
    assert sorted(map(tuple, found.T.tolist())) == sorted(zip(*expected, strict=True))
    assert torch.equal(examples.phrases(2), torch.tensor(expected)[:, :2].bool())


def test_captions_that_say_the_same_have_no_phrases(tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.png", "captions": ["red bird"]} for n in range(3)]
    write_folder(tmp_path, rows, [gradient(4, 4)] * 3)
    with pytest.raises(InputError, match="say the same"):
        TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 4).phrases(5)


def test_bad_arguments_are_refused(folder: Path) -> None:
    images = ImageFolder(folder)
    with pytest.raises(InputError, match="image_size must be at least 1, found 0"):
        TrainingExamples(images, VOCABULARY, 0)
    with pytest.raises(InputError, match="caption_length must be at least 1, found -2"):
        TrainingExamples(images, VOCABULARY, 8, caption_length=-2)
    with pytest.raises(InputError, match="seed must be at least 0"):
        TrainingExamples(images, VOCABULARY, 8, seed=-1)
    examples = TrainingExamples(images, VOCABULARY, 8)
    with pytest.raises(InputError, match="epoch must be at least 0"):
        examples.set_epoch(-1)
    for index in (-1, 7):
        with pytest.raises(IndexError, match="of 7"):
            examples[index]
