"""The shared bird layout: crops as published for real birds, a second reader, hostile pickles."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.cub import CubFolder, read_captions_pickle, write_cub
from mirrorgan_fast.errors import InputError

# Width and height, bounding box as published, and the crop (left, top, right, bottom) it leads to:
# the first two are pictures 39 and 3 of the data set.
BIRDS = {
    "001.Albatross/Albatross_39": ((320, 223), "69.0 57.0 199.0 141.0", (19, 0, 317, 223)),
    "001.Albatross/Albatross_3": ((500, 347), "14.0 112.0 388.0 186.0", (0, 0, 499, 347)),
    "002.Auklet/Auklet_1": ((200, 180), "90.0 70.0 31.0 20.0", (82, 57, 128, 103)),
    "002.Auklet/Auklet_2": ((40, 30), "0.0 0.0 1.0 1.0", (0, 0, 1, 1)),
}
NAMES = list(BIRDS)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows by half a level a column, green by half a level a row."""
    rows, columns = np.mgrid[:height, :width] / 2
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8))


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """Four pictures as the data set is published; the second and fourth are of the test split."""
    root = tmp_path / "birds"
    published = root / "CUB_200_2011"
    for name, (size, _, _) in BIRDS.items():
        picture = published / "images" / f"{name}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        gradient(*size).save(picture, quality=95)
        text = root / "text" / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"a bird of {name}\n\n  its bill is curved.  \n")
    tables: dict[str, list[object]] = {
        "images.txt": [f"{name}.jpg" for name in NAMES],
        "bounding_boxes.txt": [box for _, box, _ in BIRDS.values()],
        "train_test_split.txt": [1, 0, 1, 0],
        "image_class_labels.txt": [1, 1, 2, 2],
    }
    for file_name, values in tables.items():
        lines = [f"{number} {value}\n" for number, value in enumerate(values, start=1)]
        (published / file_name).write_text("".join(lines))
    return root


def add_pickles(root: Path, split: str, **content: object) -> None:
    (root / split).mkdir(exist_ok=True)
    for name, value in content.items():
        (root / split / f"{name}.pickle").write_bytes(pickle.dumps(value, protocol=2))


def test_the_published_split_labels_and_captions(cub: Path) -> None:
    train, test = CubFolder(cub, "train"), CubFolder(cub, "test")
    assert [train.name(index) for index in range(len(train))] == [NAMES[0], NAMES[2]]
    assert [test.name(index) for index in range(len(test))] == [NAMES[1], NAMES[3]]
    assert [train.label(0), train.label(1), test.label(0), test.label(1)] == [1, 2, 1, 2]
    assert train.captions(1) == [f"a bird of {NAMES[2]}", "its bill is curved."]


def test_pickles_decide_the_split_where_they_are(cub: Path) -> None:
    order = [NAMES[3], NAMES[0], NAMES[1]]
    add_pickles(cub, "train", filenames=order, class_info=[np.int64(7), 8, 9])
    train = CubFolder(cub, "train")
    assert [train.name(index) for index in range(3)] == order
    assert [train.label(index) for index in range(3)] == [7, 8, 9]
    (cub / "train" / "class_info.pickle").unlink()
    train = CubFolder(cub, "train")
    assert [train.label(index) for index in range(3)] == [2, 1, 1]
    (cub / "CUB_200_2011" / "image_class_labels.txt").unlink()
    train = CubFolder(cub, "train")
    assert [train.label(index) for index in range(3)] == [0, 1, 2]


def test_birds_are_cropped_by_their_boxes(cub: Path) -> None:
    add_pickles(cub, "train", filenames=NAMES)
    images = CubFolder(cub, "train")
    for index, (size, _, crop) in enumerate(BIRDS.values()):
        found = images.image(index)
        expected = gradient(*size).crop(crop)
        assert found.size == expected.size
        assert found.mode == "RGB"
        difference = np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)
        assert np.abs(difference).mean() < 1.0  # one column too far right would be 0.5 of itself
        assert abs(difference.mean()) < 0.15


@pytest.mark.parametrize(
    ("file_name", "content", "fault"),
    [
        ("CUB_200_2011/images.txt", None, "images.txt: cannot read it"),
        ("CUB_200_2011/bounding_boxes.txt", None, "bounding_boxes.txt: cannot read it"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 9\n", "no line for picture 3"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 9\n2 3 4\n", "line 2: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 nan 9\n", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 0 9\n", "line 1: cannot make sense"),
        ("CUB_200_2011/train_test_split.txt", None, "train_test_split.txt: cannot read it"),
        ("CUB_200_2011/train_test_split.txt", b"1 1\n2 no\n", "line 2: cannot make sense"),
        ("CUB_200_2011/train_test_split.txt", b"1 0\n2 0\n3 0\n4 0\n", "no pictures of the split"),
        ("CUB_200_2011/image_class_labels.txt", b"1 1\n", "no line for picture 3"),
        (f"CUB_200_2011/images/{NAMES[2]}.jpg", None, "no such picture"),
        (f"text/{NAMES[2]}.txt", None, "cannot read it"),
        (f"text/{NAMES[2]}.txt", b" \n\n", "has no caption"),
        (f"text/{NAMES[2]}.txt", b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_a_missing_or_damaged_file_is_refused(
    file_name: str, content: bytes | None, fault: str, cub: Path
) -> None:
    if content is None:
        (cub / file_name).unlink()
    else:
        (cub / file_name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        CubFolder(cub, "train")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("filenames", "class_info", "fault"),
    [
        ({"a": 1}, None, "list of names"),
        ([1, 2], None, "list of names"),
        ([], None, "no pictures"),
        (["003.Crow/Crow_1"], None, "'003.Crow/Crow_1' is not in"),
        (NAMES[:2], [1], "has 1 classes of 2 pictures"),
        (NAMES[:2], [1, "x"], "list of integers"),
    ],
)
def test_wrong_pickles_are_refused(
    filenames: object, class_info: object, fault: str, cub: Path
) -> None:
    add_pickles(cub, "test", filenames=filenames)
    if class_info is not None:
        add_pickles(cub, "test", class_info=class_info)
    with pytest.raises(InputError, match=fault):
        CubFolder(cub, "test")


def test_names_that_lead_out_of_the_folder_are_refused(cub: Path) -> None:
    (cub / "CUB_200_2011" / "images.txt").write_text("1 ../../secret.jpg\n")
    with pytest.raises(InputError, match="leads out of the folder"):
        CubFolder(cub, "train")


def test_a_damaged_picture_and_a_box_outside_are_refused(cub: Path) -> None:
    boxes = cub / "CUB_200_2011" / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("90.0 70.0", "900.0 70.0"))
    picture = cub / "CUB_200_2011" / "images" / f"{NAMES[0]}.jpg"
    picture.write_bytes(picture.read_bytes()[:900])
    train = CubFolder(cub, "train")
    with pytest.raises(InputError, match=r"Albatross_39\.jpg is not a picture"):
        train.image(0)
    with pytest.raises(InputError, match=r"Auklet_1\.jpg: its bounding box is outside"):
        train.image(1)


def test_only_train_and_test_are_splits(cub: Path) -> None:
    with pytest.raises(InputError, match="'val'"):
        CubFolder(cub, "val")


class Hostile:
    """Runs a program when it is unpickled by the book."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_code(protocol: int, cub: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    content = pickle.dumps([Hostile(marker), "name"], protocol=protocol)
    add_pickles(cub, "train")
    (cub / "train" / "filenames.pickle").write_bytes(content)
    with pytest.raises(InputError, match="could run code"):
        CubFolder(cub, "train")
    assert not marker.exists()
    (tmp_path / "captions.pickle").write_bytes(content)
    with pytest.raises(InputError, match="could run code"):
        read_captions_pickle(tmp_path / "captions.pickle")
    assert not marker.exists()
    pickle.loads(content)  # the pickle is a working one
    assert marker.exists()


@pytest.mark.parametrize("cut", [0, 1, 7, -1])
def test_a_damaged_pickle_is_refused(cut: int, cub: Path) -> None:
    add_pickles(cub, "train", filenames=NAMES)
    path = cub / "train" / "filenames.pickle"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"filenames\.pickle: cannot be loaded"):
        CubFolder(cub, "train")


WORDS = {0: "<end>", 1: "red", 2: "bird"}


def test_captions_pickle_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "captions.pickle"
    train, test = [[1, 2], [2], []], [[np.int64(2), np.int32(1)]]
    numbers = {word: number for number, word in WORDS.items()}
    path.write_bytes(pickle.dumps([train, test, WORDS, numbers], protocol=2))
    found_train, found_test, vocabulary = read_captions_pickle(path)
    assert found_train == train
    assert found_test == [[2, 1]]
    assert vocabulary.words == ("<end>", "red", "bird")


def test_numbers_of_numpy_in_a_pickle_of_python_2_are_read(tmp_path: Path) -> None:
    # [[[200]], [], {0: "<end>", 1: "w1", ... 200: "w200"}, {}], where [200] is written by hand,
    # opcode by opcode, as cPickle of Python 2 wrote a numpy.int64.
    scalar = (
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02i8K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08\xc8\0\0\0\0\0\0\0\x86R"
    )
    words = pickle.dumps({n: f"w{n}" if n else "<end>" for n in range(201)}, 2)[2:-1]
    path = tmp_path / "captions.pickle"
    path.write_bytes(b"\x80\x02](](](" + scalar + b"ee]" + words + b"}e.")
    train, test, vocabulary = read_captions_pickle(path)
    assert (train, test, len(vocabulary)) == ([[200]], [], 201)
    assert type(train[0][0]) is int


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([[], [], WORDS], "must be"),
        ("captions", "must be"),
        ([[], [], {1: "red", 2: "bird"}, {}], "must be"),
        ([[], [], {0: "red", 1: "bird"}, {}], "word 0 of the vocabulary"),
        ([[], [], {0: "<end>", 1: 5}, {}], "word 1 of the vocabulary"),
        ([[[1, 3]], [], WORDS, {}], "number without a word"),
        ([[], [[-1]], WORDS, {}], "number without a word"),
        ([["red bird"], [], WORDS, {}], "list of integers"),
        ([[[[1]]], [], WORDS, {}], "list of integers"),
    ],
)
def test_a_wrong_captions_pickle_is_refused(content: object, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.pickle"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=fault) as caught:
        read_captions_pickle(path)
    assert str(path) in str(caught.value)


class Blocks(CaptionedImages):
    """Pictures of a few flat blocks, which JPEG keeps well."""

    def __init__(self, split: str, count: int) -> None:
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Image.Image:
        rng = np.random.default_rng((len(self.split), index))
        blocks = rng.integers(0, 256, (3 + index, 5, 3), np.uint8)
        return Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))

    def captions(self, index: int) -> list[str]:
        return [f"{self.split} bird\n {index}", "ein schöner Vogel", "  "]

    def name(self, index: int) -> str:
        return f"{self.split}/{index:05}"

    def label(self, index: int) -> int:
        return index // 2 + 40


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    sets = {"train": Blocks("train", 5), "test": Blocks("test", 2)}
    root = tmp_path / "birds"
    root.mkdir()  # an empty folder is no obstacle
    write_cub(sets["train"], sets["test"], root, progress=False)
    assert list(tmp_path.iterdir()) == [root]
    for split, written in sets.items():
        found = CubFolder(root, split)
        assert len(found) == len(written)
        for index in range(len(written)):
            assert found.name(index) == written.name(index)
            assert found.label(index) == written.label(index)
            assert found.captions(index) == [f"{split} bird {index}", "ein schöner Vogel"]
            assert found.image(index).size == written.image(index).size
            difference = np.asarray(found.image(index), int) - np.asarray(written.image(index), int)
            assert np.abs(difference).mean() < 3


def test_a_reader_as_the_peers_have_it_finds_everything(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    write_cub(Blocks("train", 3), Blocks("test", 1), root, progress=False)
    # The tables are split at white space and joined by position; keys drop the four of ".jpg".
    table, boxes = (
        [line.split() for line in (root / "CUB_200_2011" / name).read_text().splitlines()]
        for name in ("images.txt", "bounding_boxes.txt")
    )
    assert [row[0] for row in table] == [row[0] for row in boxes] == ["1", "2", "3", "4"]
    box_of = {
        row[1][:-4]: [int(float(value)) for value in box[1:]]
        for row, box in zip(table, boxes, strict=True)
    }
    for split, count in (("train", 3), ("test", 1)):
        content = (root / split / "filenames.pickle").read_bytes()
        assert content[:2] == b"\x80\x02"
        names = pickle.loads(content)
        assert names == [f"{split}/{index:05}" for index in range(count)]
        classes = pickle.loads((root / split / "class_info.pickle").read_bytes())
        assert classes == [index // 2 + 40 for index in range(count)]
        for name in names:
            assert len((root / "text" / f"{name}.txt").read_text().splitlines()) == 2
            width, height = Image.open(root / "CUB_200_2011" / "images" / f"{name}.jpg").size
            box = box_of[name]
            reach = int(max(box[2], box[3]) * 0.75)
            center_x, center_y = int((2 * box[0] + box[2]) / 2), int((2 * box[1] + box[3]) / 2)
            assert center_x - reach <= 0
            assert center_y - reach <= 0
            assert center_x + reach >= width
            assert center_y + reach >= height


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    root.mkdir()
    (root / "mine").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        write_cub(Blocks("train", 1), Blocks("test", 1), root, progress=False)
    with pytest.raises(InputError, match="not an empty folder"):
        write_cub(Blocks("train", 1), Blocks("test", 1), root / "mine", progress=False)
    assert [path.name for path in root.iterdir()] == ["mine"]


class Odd(Blocks):
    """Blocks with one fault in the second picture."""

    def __init__(self, fault: str) -> None:
        super().__init__("train", 2)
        self.fault = fault

    def name(self, index: int) -> str:
        odd = {"name out": "../x", "name space": "a b", "name twice": "train/00000"}
        return odd.get(self.fault, super().name(1)) if index == 1 else super().name(index)

    def captions(self, index: int) -> list[str]:
        return [" "] if (index, self.fault) == (1, "no caption") else super().captions(index)

    def image(self, index: int) -> Image.Image:
        if (index, self.fault) == (1, "interrupted"):
            raise KeyboardInterrupt
        return super().image(index)


@pytest.mark.parametrize("fault", ["name out", "name space", "name twice", "no caption"])
def test_a_failed_export_leaves_nothing(fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train picture '"):
        write_cub(Odd(fault), Blocks("test", 1), tmp_path / "birds", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_cub(Odd("interrupted"), Blocks("test", 1), tmp_path / "birds", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the data set"):
        write_cub(Blocks("train", 1), Blocks("test", 1), tmp_path / "file" / "birds", False)
