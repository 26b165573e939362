"""The image folder: rows, pictures and labels, and errors that name the line."""

import io
import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirrorgan_fast.data import image_folder
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.errors import InputError
from tests.data.conftest import gradient, write_folder


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


def test_a_split_has_only_its_own_rows(folder: Path) -> None:
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
        ('{"file_name": "folder", "captions": ["a bird"]}', "'folder' is not a regular file"),
        ('{"file_name": "pipe.png", "captions": ["a bird"]}', "'pipe.png' is not a regular file"),
        ('{"file_name": "loop.png", "captions": ["a bird"]}', "'loop.png' is not a regular file"),
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


def test_boxes_come_from_the_rows_and_are_checked_when_they_are_asked_for(tmp_path: Path) -> None:
    boxes = [[0.25, 0, 0.5, 1], None, [1, 2, 30, 40], "here"]
    rows = [{"file_name": f"{n}.png", "captions": ["a"], "box": box} for n, box in enumerate(boxes)]
    del rows[1]["box"]
    write_folder(tmp_path, rows, [gradient(9, 7)] * 4)
    images = ImageFolder(tmp_path)  # other programs may mean something else by "box"
    assert images.box(0) == (0.25, 0, 0.5, 1)
    assert images.box(1) is None
    for index, found in ((2, r"\[1, 2, 30, 40\]"), (3, "'here'")):
        fault = rf'line {index + 1}: has the "box" {found}, expected \[x, y, width, height\] in sh'
        with pytest.raises(InputError, match=fault):
            images.box(index)


def test_sizes_are_those_of_upright_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by a quarter
    rows = [{"file_name": name, "captions": ["a"]} for name in ("a.jpg", "b.png", "c.png")]
    write_folder(tmp_path, rows, [gradient(9, 7)] * 3)
    gradient(9, 7).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "c.png").write_bytes(b"no picture")
    images = ImageFolder(tmp_path)
    assert [images.size(i) for i in (0, 1)] == [(7, 9), (9, 7)]
    assert images.image(0).size == (7, 9)
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 3: .* is not a picture"):
        images.size(2)
    with pytest.raises(InputError, match="more than the limit of 50"):
        ImageFolder(tmp_path, max_pixels=50).size(1)


def test_names_that_differ_only_in_unicode_form_are_shown(tmp_path: Path) -> None:
    """Some systems store "ü" as one character, others as "u" and a combining mark."""
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


def test_the_metadata_file_has_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(image_folder, "_MAX_LINES", 1000)
    metadata.write_text(f"{GOOD}\n" + 998 * "\n")
    assert len(ImageFolder(tmp_path)) == 1
    metadata.write_text(f"{GOOD}\n" + 1000 * "\n")
    with pytest.raises(InputError, match="has more than 1,000 lines"):
        ImageFolder(tmp_path)


def test_rows_take_little_more_memory_than_their_file(tmp_path: Path) -> None:
    gradient(4, 4).save(tmp_path / "0.png")
    # Parsed JSON would take 20 times as much.
    row = {"file_name": "0.png", "captions": ["x"], "y": [[]] * 1000}
    with (tmp_path / "metadata.jsonl").open("w") as metadata:
        for number in range(500):
            name = f"{number}.png"
            if number:
                (tmp_path / name).symlink_to("0.png")
            metadata.write(json.dumps(row | {"file_name": name}) + "\n")
    # pathlib interns file names. Known ones are held here, so that Python's table of all interned
    # strings, which has megabytes after other tests, does not grow while memory is traced.
    interned = [sys.intern(f"{number}.png") for number in range(500)]
    tracemalloc.start()
    images = ImageFolder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(interned) == len(images)
    assert images.record(499) == row | {"file_name": "499.png"}
    assert peak < 1.5 * (tmp_path / "metadata.jsonl").stat().st_size


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(folder: Path) -> None:
    pixels = 150 * 190
    assert ImageFolder(folder, max_pixels=pixels).image(0).size == (150, 190)
    for images in (
        ImageFolder(folder, max_pixels=pixels - 1),
        open_images(folder, "test", max_pixels=pixels - 1),
    ):
        with pytest.raises(
            InputError, match=r"line 1: .*more than the limit of 28,499; .* --max-pixels"
        ):
            images.image(0)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "long", "file", "null"])
def test_metadata_that_is_not_a_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
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
        with pytest.raises(InputError, match=r"an image folder needs this file, with") as caught:
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
