"""The image folder and training examples: crops measured on gradients, workers, bad rows."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from mirrorgan_fast.data import image_folder
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.vocabulary import Vocabulary

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


def nested(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


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
        ('{"file_name": "b.png", "captions": ["a bird"], "label": 9223372036854775808}', "64 bits"),
        ('{"file_name": "b.png", "captions": ["a bird"], "label": null}', "64 bits, found None"),
        ('{"file_name": "b.png", "captions": ["a bird"], "label": [[[1, [2]]]]}', "must be an int"),
        ('{"file_name": "b.png", "captions": ["a"], "label": ' + "9" * 100_000 + "}", "digits"),
        ('{"file_name": "b.png", "captions": ["a"], "x": ' + nested(100_000) + "}", "too deeply"),
        ('{"file_name": "b.png", "captions": ' + nested(900) + "}", "must be a list of strings"),
        ('{"file_name": "b.png", "captions": ["a \\ud83d bird"]}', "a lone surrogate: 'a \\ud83d"),
        ('{"file_name": "a\\nb.png", "captions": ["a bird"]}', "no file 'a\\nb.png'"),
        ('{"file_name": "\\ud800.png", "captions": ["a bird"]}', "no file '\\ud800.png'"),
        ('{"file_name": "folder", "captions": ["a bird"]}', "'folder' is no regular file"),
        ('{"file_name": "pipe.png", "captions": ["a bird"]}', "'pipe.png' is no regular file"),
        ('{"file_name": "loop.png", "captions": ["a bird"]}', "'loop.png' is no regular file"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(line: str, fault: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for path in (root / "a.png", root / "b.png", tmp_path / "b.png"):
        gradient(4, 4).save(path)
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "loop.png").symlink_to("loop.png")
    good = GOOD.replace("}", ', "label": 1}') if "label" in line else GOOD
    (root / "metadata.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 3: ") as caught:
        ImageFolder(root)
    assert fault in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_names_that_differ_in_unicode_only_are_shown(tmp_path: Path) -> None:
    """A disk of a Mac composes letters in its own way, and other programs in theirs."""
    composed, decomposed = "caf\u00e9/\u00fc.png", "cafe\u0301/u\u0308.png"
    for there, named in ((composed, decomposed), (decomposed, composed)):
        root = tmp_path / str(len(there))
        write_folder(root, [{"file_name": there, "captions": ["x"]}], [gradient(4, 4)])
        assert len(ImageFolder(root)) == 1
        (root / "metadata.jsonl").write_text(json.dumps({"file_name": named, "captions": ["x"]}))
        with pytest.raises(InputError, match=r"looks the same.*; rename") as caught:
            ImageFolder(root)
        assert f"no file {named!a} but {there!a}" in str(caught.value)
    (root / "metadata.jsonl").write_text('{"file_name": "caf\\u00e9/u.png", "captions": ["x"]}')
    with pytest.raises(InputError, match=r"there is no file 'caf\xe9/u\.png'$"):
        ImageFolder(root)


def test_the_limits_of_a_file_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient(4, 4).save(tmp_path / "a.png")
    metadata = tmp_path / "metadata.jsonl"
    with metadata.open("wb") as file:
        file.truncate(image_folder.LARGEST_METADATA + 1)  # takes no space on the disk
    with pytest.raises(InputError, match="has more than 4,294,967,296 bytes"):
        ImageFolder(tmp_path)
    with metadata.open("wb") as file:
        file.truncate(image_folder.LARGEST_METADATA)
    with pytest.raises(InputError, match="line 1: has more than 16,777,216 bytes"):
        ImageFolder(tmp_path)
    monkeypatch.setattr(image_folder, "_MOST_LINES", 1000)
    metadata.write_text(f"{GOOD}\n" + 998 * "\n")
    assert len(ImageFolder(tmp_path)) == 1
    metadata.write_text(f"{GOOD}\n" + 1000 * "\n")
    with pytest.raises(InputError, match="has more than 1,000 lines"):
        ImageFolder(tmp_path)


def test_rows_take_little_more_memory_than_their_file(tmp_path: Path) -> None:
    gradient(4, 4).save(tmp_path / "0.png")
    row = {"file_name": "0.png", "captions": ["x"], "y": [[]] * 1000}  # parsed, 20 times as much
    with (tmp_path / "metadata.jsonl").open("w") as metadata:
        for number in range(500):
            name = f"{number}.png"
            if number:
                (tmp_path / name).symlink_to("0.png")
            metadata.write(json.dumps(row | {"file_name": name}) + "\n")
    tracemalloc.start()
    images = ImageFolder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.record(499) == row | {"file_name": "499.png"}
    assert peak < 1.5 * (tmp_path / "metadata.jsonl").stat().st_size


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(folder: Path) -> None:
    pixels = 150 * 190
    assert ImageFolder(folder, max_pixels=pixels).image(0).size == (150, 190)
    for images in (
        ImageFolder(folder, max_pixels=pixels - 1),
        open_images(folder, "test", max_pixels=pixels - 1),
    ):
        with pytest.raises(InputError, match=r"line 1: .*more than the 28,499 .* --max-pixels"):
            images.image(0)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "long", "file", "null"])
def test_metadata_that_is_no_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    root, metadata = tmp_path, tmp_path / "metadata.jsonl"
    if kind == "pipe":
        os.mkfifo(metadata)
    elif kind == "folder":
        metadata.mkdir()
    elif kind == "loop":
        metadata.symlink_to(metadata)
    elif kind == "file":
        metadata.write_text(GOOD)
        root = metadata
    else:
        root = tmp_path / ("x" * 300 if kind == "long" else "a\0b\n")
    for read in (ImageFolder, lambda path: open_images(path, "train")):
        with pytest.raises(InputError, match=r"an image folder needs this file, a line") as caught:
            read(root)
        assert str(caught.value).isprintable()


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    gradient(4, 4).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(GOOD.encode() + b'\n{"file_name": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: not a JSON object"):
        ImageFolder(tmp_path)


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl: cannot be read"):
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


WITHOUT_SHARED_MEMORY = """
import sys
from torch.utils.data import DataLoader
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.vocabulary import Vocabulary
words = Vocabulary(["<end>", "bird", "red", "old"])
examples = TrainingExamples(ImageFolder(sys.argv[1]), words, 8, 2, augment=True)
examples.set_epoch(3)
assert len(list(DataLoader(examples, batch_size=2))) == 4
print("done")
"""


def test_examples_need_no_shared_memory_file(folder: Path) -> None:
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o ro tmpfs /dev/shm"
    if subprocess.run([*command, mount], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system, even for itself")
    run = f'{mount} && "$0" -c "$1" "$2"'
    done = subprocess.run(
        [*command, run, sys.executable, WITHOUT_SHARED_MEMORY, folder],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr


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
    with pytest.raises(
        InputError, match="image_size must be a whole number from 1 to 4,096, found 0"
    ):
        TrainingExamples(images, VOCABULARY, 0)
    with pytest.raises(
        InputError, match="caption_length must be a whole number from 1 to 1,024, found -2"
    ):
        TrainingExamples(images, VOCABULARY, 8, caption_length=-2)
    with pytest.raises(InputError, match="seed must be a whole number from 0 "):
        TrainingExamples(images, VOCABULARY, 8, seed=-1)
    examples = TrainingExamples(images, VOCABULARY, 8)
    for epoch in (-1, 2**63):
        with pytest.raises(InputError, match="epoch must be at least 0"):
            examples.set_epoch(epoch)
    for size in (True, 8.0, 10**20):
        with pytest.raises(InputError, match="image_size must be a whole number"):
            TrainingExamples(images, VOCABULARY, size)
    with pytest.raises(InputError, match="seed must be a whole number"):
        TrainingExamples(images, VOCABULARY, 8, seed=2**200)
    for index in (-1, 7):
        with pytest.raises(IndexError, match="of 7"):
            examples[index]
