"""Training examples: crops measured on gradients, captions, and what they depend on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.vocabulary import Vocabulary
from tests.data.conftest import VOCABULARY, gradient, write_folder


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


@pytest.mark.parametrize("augment", [False, True])
def test_an_example_has_the_documented_shapes(augment: bool, folder: Path) -> None:
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


def test_augmentation_crops_64_76ths_of_the_shorter_side_anywhere_and_flips_half(
    folder: Path,
) -> None:
    index, width, height, size = 5, 195, 150, 40
    examples = TrainingExamples(ImageFolder(folder), VOCABULARY, size, augment=True)
    side = height * size / round(size * 76 / 64)
    lefts, tops, flips = [], [], []
    for epoch in range(200):
        examples.set_epoch(epoch)
        red, green, blue = examples[index]["image"].numpy().astype(float)
        assert (blue == 7).all()
        slope = (red[:, -3] - red[:, 2]).mean() / (size - 5)
        assert abs(abs(slope) - side / size) < 0.03
        assert abs((green[-3] - green[2]).mean() / (size - 5) - side / size) < 0.03
        flips.append(slope < 0)
        lefts.append(red.mean() + 0.5 - side / 2)
        tops.append(green.mean() + 0.5 - side / 2)
    for found, room in ((lefts, width - side), (tops, height - side)):
        assert min(found) > -1
        assert max(found) < room + 1
        assert min(found) < 0.05 * room + 1
        assert max(found) > 0.95 * room - 1
    assert 70 < sum(flips) < 130


def test_a_picture_is_not_flipped_if_its_caption_names_a_side(tmp_path: Path) -> None:
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


def test_fixed_crops_are_the_same_in_every_epoch(tmp_path: Path) -> None:
    rows = [
        {"file_name": "one.png", "captions": ["bird", "looks left bird"]},
        {"file_name": "two.png", "captions": ["old bird", "bird"]},
    ]
    write_folder(tmp_path, rows, [gradient(90, 70)] * 2)
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 32, augment=True)
    crops = [examples.of_crop(number) for number in range(40)]
    first = [[crop[index]["image"] for crop in crops] for index in (0, 1)]
    examples.set_epoch(3)
    for index in (0, 1):
        for number, crop in enumerate(crops):
            assert torch.equal(crop[index]["image"], first[index][number])
        assert len({tuple(image.flatten().tolist()) for image in first[index]}) > 20
    flipped = [sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in each) for each in first]
    assert flipped[0] == 0  # a caption of it says left
    assert 5 < flipped[1] < 35
    assert not any(torch.equal(examples[1]["image"], image) for image in first[1])


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


def test_further_captions_change_nothing_else_and_are_drawn_with_replacement(
    tmp_path: Path,
) -> None:
    texts = ["red bird", "blue bird", "old bird"]
    rows = [{"file_name": f"{i}.png", "captions": texts} for i in range(3)]
    write_folder(tmp_path, rows, [gradient(30, 30)] * 3)
    plain = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 16, 5, augment=True, seed=2)
    several = plain.with_captions(3)
    seen = set()
    for epoch in range(30):
        plain.set_epoch(epoch)
        for index in range(3):
            example = several[index]
            assert example["more_tokens"].shape == (2, 5)
            assert example["more_lengths"].tolist() == [2, 2]
            assert same(plain[index], example)
            seen.add(tuple(VOCABULARY.decode(row) for row in example["more_tokens"]))
    assert seen == {(one, other) for one in texts for other in texts}
    assert "more_tokens" not in plain.with_captions(1)[0]


def test_no_picture_is_flipped_if_one_of_its_drawn_captions_names_a_side(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "captions": ["looks left bird", "old bird"]}]
    write_folder(tmp_path, rows, [gradient(90, 90)])
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 20, augment=True)
    several, flipped = examples.with_captions(2), {False: 0, True: 0}
    for epoch in range(80):
        examples.set_epoch(epoch)
        example = several[0]
        drawn = [example["tokens"], *example["more_tokens"]]
        sides = any("left" in VOCABULARY.decode(tokens) for tokens in drawn)
        flipped[sides] += int(example["image"][0, 0, 0] > example["image"][0, 0, -1])
    assert flipped[True] == 0
    assert flipped[False] > 2


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


def test_examples_without_images_are_the_same_and_read_no_picture(folder: Path) -> None:
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
from mirrorgan_fast.boxes import Box
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
        pytest.skip("this user may not mount a file system in a namespace")
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


def test_a_caption_without_a_known_word_is_skipped(tmp_path: Path) -> None:
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


def test_phrases_are_those_that_distinguish_pictures(tmp_path: Path) -> None:
    captions = [["red bird", "Old, RED bird!"], ["red zebra bird"], ["blue bird"], ["a bird"]]
    rows = [{"file_name": f"{n}.png", "captions": texts} for n, texts in enumerate(captions)]
    write_folder(tmp_path, rows, [gradient(4, 4)] * 4)
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 4)
    # "bird" is in all captions and distinguishes nothing; unknown words ("zebra", "a") are dropped.
    # This leaves red, red bird; blue, blue bird; old, old red, old red bird.
    expected = [[1, 1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0] * 7]
    found = examples.phrases(100)
    assert found.dtype == torch.bool
    assert sorted(map(tuple, found.T.tolist())) == sorted(zip(*expected, strict=True))
    assert torch.equal(examples.phrases(2), torch.tensor(expected)[:, :2].bool())


def test_phrases_of_equal_captions_are_refused(tmp_path: Path) -> None:
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


# --- boxes


def marked(width: int, height: int, box: Box) -> Image.Image:
    """Return a black picture with a white box."""
    x, y, columns, rows = box
    pixels = np.zeros((height, width, 3), np.uint8)
    bottom, right = round((y + rows) * height), round((x + columns) * width)
    pixels[round(y * height) : bottom, round(x * width) : right] = 255
    return Image.fromarray(pixels)


BOXES = [(0.0, 0.3, 0.4, 0.5), (0.6, 0.5, 0.4, 0.5), (0.35, 0.3, 0.25, 0.35)]


@pytest.fixture
def with_boxes(tmp_path: Path) -> ImageFolder:
    """Three pictures of different shapes, whose boxes are white; at two edges and in the middle."""
    shapes = [(200, 300), (350, 220), (240, 240)]
    rows = [
        {"file_name": f"{n}.png", "captions": ["red bird"], "box": box}
        for n, box in enumerate(BOXES)
    ]
    pictures = [marked(*shape, box) for shape, box in zip(shapes, BOXES, strict=True)]
    write_folder(tmp_path, rows, pictures)
    return ImageFolder(tmp_path)


def seen_box(image: torch.Tensor) -> tuple[float, ...]:
    """Return the bounds of what is white in an image (3, S, S), in shares of it."""
    white, size = image[0] > 127, image.shape[1]
    rows, columns = (white.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
    left, top = columns[0] / size, rows[0] / size
    return left, top, (columns[-1] + 1) / size - left, (rows[-1] + 1) / size - top


@pytest.mark.parametrize("augment", [False, True])
def test_a_box_is_where_it_is_seen_in_the_image(augment: bool, with_boxes: ImageFolder) -> None:
    examples = TrainingExamples(with_boxes, VOCABULARY, 64, augment=augment, boxes=True)
    lefts = set()
    for epoch in range(20):
        examples.set_epoch(epoch)
        for example in examples:
            assert example["box"].dtype == torch.float32
            if not (example["image"] > 127).any():
                continue  # a crop of a long picture may show nothing of the box
            assert example["box"].tolist() == pytest.approx(seen_box(example["image"]), abs=1 / 60)
            lefts.add(round(float(example["box"][0]), 3))
    assert len(lefts) > 20 if augment else len(lefts) == 3


def test_boxes_change_nothing_else_in_an_example(with_boxes: ImageFolder) -> None:
    plain = TrainingExamples(with_boxes, VOCABULARY, 32, augment=True)
    placed = TrainingExamples(with_boxes, VOCABULARY, 32, augment=True, boxes=True)
    for one, other in zip(plain, placed, strict=True):
        assert "box" not in one
        assert torch.equal(one["image"], other["image"])
    assert plain.digest() != placed.digest()
    bare = placed.without_images()
    assert "image" not in bare[1]
    assert torch.equal(bare[1]["box"], placed[1]["box"])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_boxes_of_many_examples_are_spread_over_the_pictures(
    count: int, with_boxes: ImageFolder
) -> None:
    examples = TrainingExamples(with_boxes, VOCABULARY, 32, augment=True, boxes=True)
    found = examples.boxes(count)
    assert found.shape == (count, 4)
    assert found.dtype == torch.float32
    expected = []
    for epoch in range(3):
        examples.set_epoch(epoch)
        expected += [example["box"] for example in examples]
    chosen = [0, 1] if count == 2 else range(count)
    assert torch.equal(found, torch.stack([expected[place] for place in chosen]))
    assert examples.epoch == 2  # as it was


def test_a_data_set_without_boxes_is_refused(with_boxes: ImageFolder, folder: Path) -> None:
    with pytest.raises(InputError, match=r"picture 'pictures/0' has no box, .*a \"box\" in each"):
        TrainingExamples(ImageFolder(folder), VOCABULARY, 32, boxes=True)
    with pytest.raises(InputError, match="the examples have no boxes"):
        TrainingExamples(with_boxes, VOCABULARY, 32).boxes(3)


def test_a_box_is_of_the_part_of_a_long_picture_that_is_kept(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "captions": ["bird"], "box": [0.48, 0.25, 0.03, 0.5]}]
    write_folder(tmp_path, rows, [marked(1000, 40, rows[0]["box"])])
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 64, augment=True, boxes=True)
    wide = 0
    for epoch in range(30):
        examples.set_epoch(epoch)
        image, box = examples[0]["image"], examples[0]["box"]
        if (image[0] > 127).any():
            wide += 1
            assert box.tolist() == pytest.approx(seen_box(image), abs=1 / 20)
    assert wide > 2


COLORED = Vocabulary(["<end>", "a", "an", "bird", "red", "blue", "orange", "with", "wings"])


def edited_captions(tmp_path: Path, caption: str, words: list[str], draws: int = 60) -> set[str]:
    """Return the captions that a caption becomes in so many epochs."""
    write_folder(tmp_path, [{"file_name": "a.png", "captions": [caption]}], [gradient(4, 4)])
    examples = TrainingExamples(ImageFolder(tmp_path), COLORED, 4, 9).with_edits(words)
    found = set()
    for epoch in range(draws):
        examples.set_epoch(epoch)
        example = examples[0]
        assert COLORED.decode(example["tokens"]) == caption
        found.add(COLORED.decode(example["edited_tokens"]))
    return found


def test_an_edit_changes_one_word_and_its_article(tmp_path: Path) -> None:
    assert edited_captions(tmp_path, "a red bird with blue wings", ["red", "blue", "orange"]) == {
        "a blue bird with blue wings",
        "an orange bird with blue wings",
        "a red bird with red wings",
        "a red bird with orange wings",
    }
    assert edited_captions(tmp_path, "an orange bird", ["red", "orange"]) == {"a red bird"}
    assert edited_captions(tmp_path, "a bird", ["red", "orange"]) == {"a bird"}


def test_edits_are_drawn_apart_and_do_not_change_the_rest_of_an_example(folder: Path) -> None:
    plain = TrainingExamples(ImageFolder(folder), VOCABULARY, 16, augment=True, seed=4)
    edited = plain.with_edits(["red", "blue"])
    for epoch in range(3):
        plain.set_epoch(epoch)
        for index in range(len(plain)):
            example = dict(edited[index])
            del example["edited_tokens"]
            assert same(dict(plain[index]), example)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "edit_words has 0 different words, expected two"),
        (["red", "red"], "edit_words has 1 different words, expected two"),
        (["red", "Red"], "edit_words has 1 different words, expected two"),
        (["red", "mauve"], "no caption has the word 'mauve'"),
        (["red", "blue-bird"], "no caption has the word 'blue-bird'.*one word each"),
        (["red", "-"], "no caption has the word '-'"),
    ],
)
def test_edits_need_two_words_of_the_captions(folder: Path, words: list[str], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        TrainingExamples(ImageFolder(folder), VOCABULARY, 16).with_edits(words)
