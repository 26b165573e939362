"""The layout of CUB: crops by published boxes, the readers of other projects, hostile pickles."""

import multiprocessing
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirrorgan_fast.data import cub as cub_module
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.cub import CubFolder, read_captions_pickle, write_cub
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.errors import InputError

# Width and height, bounding box in the published form, and the resulting crop (left, top, right,
# bottom). The first two are pictures 39 and 3 of the data set.
BIRDS = {
    "001.Albatross/Albatross_39": ((320, 223), "69.0 57.0 199.0 141.0", (19, 0, 317, 223)),
    "001.Albatross/Albatross_3": ((500, 347), "14.0 112.0 388.0 186.0", (0, 0, 499, 347)),
    "002.Auklet/Auklet_1": ((200, 180), "90.0 70.0 31.0 20.0", (82, 57, 128, 103)),
    "002.Auklet/Auklet_2": ((40, 30), "0.0 0.0 1.0 1.0", (0, 0, 1, 1)),
}
NAMES = list(BIRDS)


def gradient(width: int, height: int) -> Image.Image:
    """Return a picture whose red grows by half a level per column, and green per row."""
    rows, columns = np.mgrid[:height, :width] / 2
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8))


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """Four pictures in the published layout; the second and fourth are in the test split."""
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_ends_and_a_byte_order_mark_are_read(cub: Path, end: str) -> None:
    for path in (*cub.rglob("text/*/*.txt"), *cub.glob("CUB_200_2011/*.txt")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("\n", end).encode())
    train = CubFolder(cub, "train")
    assert train.captions(1) == [f"a bird of {NAMES[2]}", "its bill is curved."]
    assert [train.name(index) for index in range(len(train))] == [NAMES[0], NAMES[2]]


def test_pickles_override_the_published_split(cub: Path) -> None:
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
        assert np.abs(difference).mean() < 1.0
        assert abs(difference.mean()) < 0.15  # one column too far right: 0.22 or more


def test_boxes_are_in_shares_of_the_crops(cub: Path) -> None:
    add_pickles(cub, "train", filenames=NAMES)
    images = CubFolder(cub, "train")
    for index, (_, text, (left, top, right, bottom)) in enumerate(BIRDS.values()):
        x, y, width, height = map(float, text.split())
        columns, rows = right - left, bottom - top
        assert images.size(index) == images.image(index).size == (columns, rows)
        found = images.box(index)
        ends = (found[0] + found[2], found[1] + found[3])
        first, last = (
            ((x - left) / columns, (y - top) / rows),
            (
                (x + width - left) / columns,
                (y + height - top) / rows,
            ),
        )
        assert found[:2] == pytest.approx([max(0, share) for share in first])
        assert ends == pytest.approx([min(1, share) for share in last])


@pytest.mark.parametrize(
    ("file_name", "content", "fault"),
    [
        ("CUB_200_2011/images.txt", None, "images.txt: cannot be read"),
        ("CUB_200_2011/bounding_boxes.txt", None, "bounding_boxes.txt: cannot be read"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 9\n", "no line for picture 3"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 9\n2 3 4\n", "line 2: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 nan 9\n", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 0 9\n", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1e300 1 9 9\n", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 inf 9\n", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 2147483649\n", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 " + 5000 * b"9", "line 1: cannot make sense"),
        ("CUB_200_2011/bounding_boxes.txt", b"1 1 1 9 9\n1 1 1 9 9\n", "'1' has a line already"),
        ("CUB_200_2011/images.txt", b"1 a.jpg\n2 b.jpg\n3 a.jpg\n", "1 and 3 are both 'a'"),
        ("CUB_200_2011/images.txt", b"1 a.jpg\n2\n", "line 2: cannot make sense of '2"),
        ("CUB_200_2011/images.txt", b"1 " + 9000 * b"a" + b".jpg\n", "line 1: cannot make sense"),
        ("CUB_200_2011/images.txt", b"1 a\0.jpg\n" + bytes(2**25), "more than 33,554,432 bytes"),
        ("CUB_200_2011/train_test_split.txt", b"1 1\n2 2\n", "line 2: cannot make sense"),
        ("CUB_200_2011/train_test_split.txt", b"1 1\n2 1" + 5000 * b"0", "line 2: cannot make"),
        ("CUB_200_2011/image_class_labels.txt", b"1 " + str(2**63).encode(), "line 1: cannot make"),
        ("CUB_200_2011/image_class_labels.txt", b"1 1" + 20 * b"0", "line 1: cannot make sense"),
        ("CUB_200_2011/image_class_labels.txt", b"1 1" + 5000 * b"0", "line 1: cannot make sense"),
        ("CUB_200_2011/image_class_labels.txt", b"1 1.5\n", "line 1: cannot make sense"),
        (f"text/{NAMES[2]}.txt", 2**20 * b"a" + b"b", "more than 1,048,576 bytes"),
        ("CUB_200_2011/train_test_split.txt", None, "train_test_split.txt: cannot be read"),
        ("CUB_200_2011/train_test_split.txt", b"1 1\n2 no\n", "line 2: cannot make sense"),
        ("CUB_200_2011/train_test_split.txt", b"1 0\n2 0\n3 0\n4 0\n", "no pictures of the split"),
        ("CUB_200_2011/image_class_labels.txt", b"1 1\n", "no line for picture 3"),
        (f"CUB_200_2011/images/{NAMES[2]}.jpg", None, "there is no file"),
        (f"text/{NAMES[2]}.txt", None, "cannot be read"),
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
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
@pytest.mark.parametrize(
    "file_name",
    [
        "CUB_200_2011/images.txt",
        "CUB_200_2011/image_class_labels.txt",
        f"CUB_200_2011/images/{NAMES[0]}.jpg",
        f"text/{NAMES[0]}.txt",
        "train/filenames.pickle",
    ],
)
def test_anything_but_a_regular_file_is_refused(file_name: str, kind: str, cub: Path) -> None:
    (cub / "train").mkdir()
    path = cub / file_name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(InputError, match=re.escape(Path(file_name).name)):
        CubFolder(cub, "train")


def test_names_that_differ_only_in_unicode_form_are_shown(cub: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    published = cub / "CUB_200_2011"
    (published / "images.txt").write_text(f"1 {composed}.jpg\n", encoding="utf-8")
    (cub / "text" / f"{composed}.txt").write_text("a bird\n")
    gradient(9, 9).save(published / "images" / f"{decomposed}.jpg")
    with pytest.raises(InputError, match=r"looks the same.*; rename") as caught:
        CubFolder(cub, "train")
    assert f"no file {composed + '.jpg'!a} but {decomposed + '.jpg'!a}" in str(caught.value)
    add_pickles(cub, "train", filenames=[decomposed])
    with pytest.raises(InputError, match="looks the same") as caught:
        CubFolder(cub, "train")
    assert f"{decomposed!a} is not in CUB_200_2011/images.txt but {composed!a}" in str(caught.value)


def test_links_to_one_long_caption_file_do_not_fill_the_memory(
    cub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cub_module, "_MAX_CAPTION_MEMORY", 100_000)
    CubFolder(cub, "train")
    (cub / "long.txt").write_text(600 * "a bird\n")
    for name in NAMES:
        (cub / "text" / f"{name}.txt").unlink()
        (cub / "text" / f"{name}.txt").symlink_to(cub / "long.txt")
    CubFolder(cub, "train")
    add_pickles(cub, "train", filenames=NAMES)
    with pytest.raises(InputError, match=r"Auklet_1\.txt: .*the captions exceed the memory limit"):
        CubFolder(cub, "train")


def test_a_large_picture_is_refused_or_cropped(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for images in (CubFolder(cub, "train", 320 * 223 - 1), open_images(cub, "train", None, 9)):
        with pytest.raises(InputError, match=r"Albatross_39\.jpg has 320 x 223 pixels, more than"):
            images.image(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL's limit has no effect
    assert CubFolder(cub, "train").image(0).size == (298, 223)


def test_a_box_may_reach_far_out_of_the_picture(cub: Path) -> None:
    far = "-2147483648 -2147483648 2147483648 2147483648"
    boxes = cub / "CUB_200_2011" / "bounding_boxes.txt"
    boxes.write_text("".join(f"{number} {far}\n" for number in range(1, 5)))
    assert CubFolder(cub, "train").image(0).size == (320, 223)


@pytest.mark.parametrize(
    ("filenames", "class_info", "fault"),
    [
        ({"a": 1}, None, "list of names"),
        ([1, 2], None, "list of names"),
        ([], None, "no pictures"),
        (["003.Crow/Crow_1"], None, "'003.Crow/Crow_1' is not in"),
        (NAMES[:2], [1], "has 1 classes for 2 pictures"),
        (NAMES[:2], [1, "x"], "list of integers"),
        (NAMES[:2], [1, True], "list of integers"),
        (NAMES[:2], [1, 2.0], "list of integers"),
        (NAMES[:2], [1, 2**63], "list of integers of 64 bits"),
        (NAMES[:2], np.array([1, 2]), "list of integers"),
        ([NAMES[0], NAMES[1], NAMES[0]], None, "the same picture twice"),
        (["a" * 3000], None, "'aaaa.*aaaa' is not in"),
        (["a\n\udcff\0"], None, r"is not in CUB"),
        ([None], None, "list of names"),
        ([b"name"], None, "list of names"),
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
    """Creates a file when ``pickle.loads`` loads it."""

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
    pickle.loads(content)  # pickle.loads does run its code
    assert marker.exists()


@pytest.mark.parametrize("cut", [0, 1, 7, -1])
def test_a_damaged_pickle_is_refused(cut: int, cub: Path) -> None:
    add_pickles(cub, "train", filenames=NAMES)
    path = cub / "train" / "filenames.pickle"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"filenames\.pickle: cannot be loaded"):
        CubFolder(cub, "train")


WORDS = {0: "<end>", 1: "red", 2: "bird"}


def test_a_captions_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.pickle"
    train, test = [[1, 2], [2], []], [[np.int64(2), np.int32(1)]]
    numbers = {word: number for number, word in WORDS.items()}
    path.write_bytes(pickle.dumps([train, test, WORDS, numbers], protocol=2))
    found_train, found_test, vocabulary = read_captions_pickle(path)
    assert found_train == train
    assert found_test == [[2, 1]]
    assert vocabulary.words == ("<end>", "red", "bird")


def test_numpy_integers_in_a_pickle_of_python_2_are_read(tmp_path: Path) -> None:
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
    """Pictures of a few flat blocks, which JPEG hardly changes."""

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


def test_a_written_data_set_can_be_read_back(tmp_path: Path) -> None:
    sets = {"train": Blocks("train", 5), "test": Blocks("test", 2)}
    root = tmp_path / "birds"
    root.mkdir()  # an empty folder is accepted
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


def test_the_readers_of_other_projects_find_everything(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    write_cub(Blocks("train", 3), Blocks("test", 1), root, progress=False)
    # Those readers split lines at white space, match tables by position, and cut ".jpg" off.
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
        odd = {
            "name out": "../x",
            "name absolute": "/x",
            "name space": "a b",
            "name twice": "train/00000",
            "name in other words": "train/./00000",
            "name null": "a\0b",
            "name no text": "\udcff",
            "name long": "x" * 300,
        }
        return odd.get(self.fault, super().name(1)) if index == 1 else super().name(index)

    def captions(self, index: int) -> list[str]:
        odd = {"no caption": [" "], "caption no text": ["a \ud800 bird"]}
        return odd.get(self.fault, super().captions(1)) if index == 1 else super().captions(index)

    def image(self, index: int) -> Image.Image:
        if (index, self.fault) == (1, "interrupted"):
            raise KeyboardInterrupt
        return super().image(index)


@pytest.mark.parametrize(
    "fault",
    [
        *("name out", "name absolute", "name space", "name twice", "name in other words"),
        *("name null", "name no text", "name long", "no caption", "caption no text"),
    ],
)
def test_a_failed_export_leaves_nothing(fault: str, tmp_path: Path) -> None:
    said = "File name too long" if fault == "name long" else "train picture '"
    with pytest.raises(InputError, match=said):
        write_cub(Odd(fault), Blocks("test", 1), tmp_path / "birds", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_cub(Odd("interrupted"), Blocks("test", 1), tmp_path / "birds", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file" / "birds", tmp_path / ("x" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(InputError, match="cannot write the data set") as caught:
            write_cub(Blocks("train", 1), Blocks("test", 1), root, False)
        assert str(caught.value).isprintable()


def test_the_next_export_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    class Killed(Blocks):
        def image(self, index: int) -> Image.Image:
            if index == 1:
                os._exit(9)
            return super().image(index)

    def write() -> None:
        write_cub(Killed("train", 2), Blocks("test", 1), tmp_path / "birds", False)

    killed = multiprocessing.get_context("fork").Process(target=write)
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".birds.partial"]
    write_cub(Blocks("train", 2), Blocks("test", 1), tmp_path / "birds", False)
    write_cub(Blocks("train", 2), Blocks("test", 1), tmp_path / "other", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds", "other"]
    assert files_of(tmp_path / "birds") == files_of(tmp_path / "other")


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
