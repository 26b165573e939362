"""Pictures are checked once and prepared: in a cache or not, the examples are the same."""

import json
import multiprocessing
import os
import pickle
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mirrorgan_fast.data import picture_cache, prepared_pictures
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.cub import CubFolder, write_cub
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.data.picture_cache import INDEX, PIXELS
from mirrorgan_fast.data.prepared_pictures import CheckedPictures, check_pictures
from mirrorgan_fast.errors import InputError
from tests.data.conftest import VOCABULARY, gradient, write_folder

SIZE = 24


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def check(images: CaptionedImages, **options: Any) -> CheckedPictures:
    how = {"augment": True, "quiet": True, **options}
    return check_pictures(images, SIZE, **how)


def caches(cache: Path) -> list[Path]:
    return sorted(cache.glob("pictures-*"))


def no_picture_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ImageFolder, index: int) -> Image.Image:
        raise AssertionError(f"picture {index} was decoded")

    monkeypatch.setattr(ImageFolder, "image", refuse)


# Preparation and examples


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [False, True])
def test_examples_are_the_same_with_and_without_a_cache(
    augment: bool, workers: int, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageFolder(folder)
    plain = TrainingExamples(images, VOCABULARY, SIZE, augment=augment, seed=3)
    expected = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        expected.append([plain[index] for index in range(len(plain))])
    checked = check(images, augment=augment, cache=cache)
    no_picture_is_decoded(monkeypatch)
    cached = TrainingExamples(
        checked.images, VOCABULARY, SIZE, augment=augment, seed=3, prepared=checked.prepared
    )
    for epoch in range(3):
        cached.set_epoch(epoch)
        found = list(DataLoader(cached, batch_size=None, num_workers=workers))
        assert len(found) == len(expected[epoch]) == 7
        for one, other in zip(found, expected[epoch], strict=True):
            assert one.keys() == other.keys()
            for key in one:
                assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])), key
    distinct = {example["image"].numpy().tobytes() for examples in expected for example in examples}
    assert len(distinct) == (21 if augment else 7)


def test_without_augmentation_the_pixels_are_those_of_version_4(folder: Path, cache: Path) -> None:
    images = ImageFolder(folder)
    checked = check(images, augment=False, cache=cache)
    examples = TrainingExamples(images, VOCABULARY, SIZE, prepared=checked.prepared)
    for index in range(len(images)):
        # as it was computed before there was a preparation
        picture = images.image(index)
        width, height = picture.size
        side: float = min(width, height)
        left, top = 0.5 * (width - side), 0.5 * (height - side)
        box = (left, top, left + side, top + side)
        square = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        found = examples[index]["image"].permute(1, 2, 0).numpy()
        assert np.array_equal(found, np.asarray(square))


def test_with_augmentation_they_are_crops_of_the_scaled_picture(folder: Path) -> None:
    images, size = ImageFolder(folder), 64
    examples = TrainingExamples(images, VOCABULARY, size, augment=True)
    for index in range(len(images)):
        picture = images.image(index)
        scale = 76 / min(picture.size)
        scaled = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)),
            Image.Resampling.BILINEAR,
        )
        crops = np.lib.stride_tricks.sliding_window_view(np.asarray(scaled), (size, size), (0, 1))
        flipped = crops[..., ::-1]
        places = []
        for epoch in range(8):
            examples.set_epoch(epoch)
            found = examples[index]["image"].numpy()
            for flip, there in enumerate((crops, flipped)):
                matches = (there == found).all(axis=(2, 3, 4))
                places += [(flip, *place) for place in np.argwhere(matches).tolist()]
        assert len(places) == 8, "each example is one crop"
        assert len(set(places)) > 4


def test_crops_reach_every_edge(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "captions": ["bird"]}]
    write_folder(tmp_path, rows, [gradient(21, 19)])  # prepared as it is: 19 = 16 * 76 / 64
    examples = TrainingExamples(ImageFolder(tmp_path), VOCABULARY, 16, augment=True)
    places = set()
    for epoch in range(300):
        examples.set_epoch(epoch)
        left, top, _ = examples[0]["image"].amin((1, 2)).tolist()
        places.add((left, top))
    assert places == {(left, top) for left in range(6) for top in range(4)}


def test_a_very_long_picture_does_not_take_gigabytes(tmp_path: Path, cache: Path) -> None:
    rows = [{"file_name": f"{n}.png", "captions": ["bird"]} for n in range(2)]
    write_folder(tmp_path / "set", rows, [gradient(1, 100_000), gradient(70, 9)])
    checked = check(ImageFolder(tmp_path / "set"), cache=cache)
    assert [checked.prepared[index].shape for index in range(2)] == [(224, 28, 3), (28, 218, 3)]
    middle = np.asarray(gradient(1, 100_000))[49_996:50_004, 0, 1]
    assert checked.prepared[0][[0, -1], 0, 1].tolist() == middle[[0, -1]].tolist()


def test_prepared_pictures_of_another_size_are_refused(folder: Path) -> None:
    images = ImageFolder(folder)
    prepared = check(images).prepared
    for others, size, augment in (
        (images, SIZE + 1, True),
        (images, SIZE, False),
        (ImageFolder(folder, "test"), SIZE, True),
    ):
        with pytest.raises(InputError, match=r"prepared must be \d pictures for"):
            TrainingExamples(others, VOCABULARY, size, augment=augment, prepared=prepared)


# The cache


def test_a_cache_is_filled_once(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = check(ImageFolder(folder), cache=cache, quiet=False)
    sizes = sum(first.prepared[index].size for index in range(7))
    assert caplog.messages == [f"pictures: about {sizes / 1e6:.1f} MB in {caches(cache)[0]}"]
    assert sorted(path.name for path in caches(cache)[0].iterdir()) == [INDEX, PIXELS]
    assert (caches(cache)[0] / PIXELS).stat().st_size == sizes
    no_picture_is_decoded(monkeypatch)
    caplog.clear()
    again = check(ImageFolder(folder), cache=cache, quiet=False)
    assert caplog.messages == []
    for index in range(7):
        assert np.array_equal(again.prepared[index], first.prepared[index])
        assert not again.prepared[index].flags.writeable


def test_each_preparation_has_its_own_cache(folder: Path, cache: Path) -> None:
    images = ImageFolder(folder)
    for augment, size in ((True, 8), (False, 8), (True, 9), (False, 9)):
        check_pictures(images, size, augment, cache=cache, quiet=True)
    check(ImageFolder(folder, "train"), cache=cache)
    assert len(caches(cache)) == 5


def test_a_changed_picture_is_not_taken_from_an_old_cache(folder: Path, cache: Path) -> None:
    before = check(ImageFolder(folder), cache=cache).prepared[2].copy()
    path = folder / "pictures/2.png"
    old = path.stat()
    changed = Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed.save(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    after = check(ImageFolder(folder), cache=cache)
    assert np.array_equal(after.prepared[2], after.prepared.preparation(changed))
    assert not np.array_equal(after.prepared[2], before)
    assert len(caches(cache)) == 2


def test_an_earlier_cache_is_named_and_stays(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(ImageFolder(folder), cache=cache)
    (earlier,) = caches(cache)
    size = (earlier / PIXELS).stat().st_size
    # those of another split, another size and without augmentation are not earlier ones
    check(ImageFolder(folder, "train"), cache=cache)
    check_pictures(ImageFolder(folder), SIZE + 1, True, cache=cache)
    check(ImageFolder(folder), cache=cache, augment=False)
    assert len(caches(cache)) == 4
    assert "can be deleted" not in caplog.text
    os.utime(folder / "pictures/2.png", ns=(0, 0))
    caplog.clear()
    check(ImageFolder(folder), cache=cache, quiet=False)
    about_earlier, new = caplog.messages
    assert new.startswith("pictures: about")
    assert about_earlier == (
        f"pictures: {earlier} ({size / 1e6:.1f} MB) was made before these pictures changed, or of "
        f"others with the same names; it can be deleted if no training needs it"
    )
    assert (earlier / PIXELS).stat().st_size == size
    caplog.clear()
    check(ImageFolder(folder), cache=cache, quiet=False)
    assert caplog.messages == []  # once


def test_what_decides_the_pixels_is_in_the_name(folder: Path, cache: Path, tmp_path: Path) -> None:
    check(ImageFolder(folder, max_pixels=30_000), cache=cache)
    check(ImageFolder(folder, max_pixels=40_000), cache=cache)
    assert len(caches(cache)) == 2
    for size in (64, 80):
        check(PaintedBirds("train", 3, size), cache=cache)
    check(PaintedBirds("train", 3, 64, seed=1), cache=cache)
    assert len(caches(cache)) == 5
    write_cub(PaintedBirds("train", 3, 64), PaintedBirds("test", 1, 64), tmp_path / "cub", False)
    check(CubFolder(tmp_path / "cub", "train"), cache=cache)
    boxes = tmp_path / "cub/CUB_200_2011/bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("64.0 64.0", "31.0 32.0"))
    check(CubFolder(tmp_path / "cub", "train"), cache=cache)
    assert len(caches(cache)) == 7


class Unstamped(CaptionedImages):
    """Pictures that may change at any time."""

    def __len__(self) -> int:
        return 3

    def image(self, index: int) -> Image.Image:
        return gradient(40 + index, 50)

    def captions(self, index: int) -> list[str]:
        return ["bird"]

    def name(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return index


def test_a_data_set_that_cannot_tell_changes_has_no_cache(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert check(Unstamped(), cache=cache).prepared.cache is None
    assert not cache.exists()
    assert "the data set cannot tell when they change" in caplog.text


def test_too_small_a_disk_means_no_cache(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = ImageFolder(folder)
    bytes_in_all = sum(check(images).prepared[index].size for index in range(7))
    for free, has_cache in ((2 * bytes_in_all - 1, False), (2 * bytes_in_all, True)):
        usage = shutil.disk_usage(folder)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        checked = check(images, cache=cache / "below")
        assert (checked.prepared.cache is not None) == has_cache
        assert cache.exists() == has_cache
        assert len(caplog.messages) == 1
        assert "pictures: no cache, because it would have" in caplog.text
        assert len(checked.images) == 7


def test_a_cache_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/below: cannot be written .*--no-cache"):
        check(ImageFolder(folder), cache=tmp_path / "file/below")


def test_a_disk_that_fills_up_leaves_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        check(ImageFolder(folder), cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the content of an index, whose checksum is right again."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())["content"]
        change(content)
        index = {"crc32": zlib.crc32(json.dumps(content).encode()), "content": content}
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def put(value: Any, *place: Any) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return rewritten(change)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no index": lambda folder: (folder / INDEX).unlink(),
    "no pixels": lambda folder: (folder / PIXELS).unlink(),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "pixels cut off": lambda folder: os.truncate(folder / PIXELS, 1000),
    "a pixel too many": lambda folder: os.truncate(
        folder / PIXELS, (folder / PIXELS).stat().st_size + 1
    ),
    "not JSON": lambda folder: (folder / INDEX).write_bytes(b"\xff{"),
    "deep JSON": lambda folder: (folder / INDEX).write_text("[" * 10_000),
    "a flipped digit": lambda folder: (folder / INDEX).write_text(
        (folder / INDEX).read_text().replace("[", "[1", 1)
    ),
    "a list": lambda folder: (folder / INDEX).write_text("[]"),
    "another format": put(2, "format"),
    "another data set": put("0" * 64, "digest"),
    "rows of another kind": put({}, "pictures"),
    "a row missing": rewritten(lambda content: content["pictures"].pop()),
    "a shape of three": put([28, 28, 3, 0], "pictures", 3),
    "too short": put([27, 28, 0], "pictures", 3),
    "too long": put([28, 225, 0], "pictures", 3),
    "no shorter side": put([29, 29, 0], "pictures", 3),
    "negative": put([28, -28, 0], "pictures", 3),
    "huge": put([28, 2**70, 0], "pictures", 3),
    "a fraction": put([28, 28.0, 0], "pictures", 3),
    "a truth": put([28, 28, True], "pictures", 3),
    "a large checksum": put([28, 28, 2**32], "pictures", 3),
    "nothing": put(None, "pictures", 3),
    "a fault and no pixels": put("", "pictures", 3),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_filled_anew(
    damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"file_name": f"{n}.png", "captions": ["bird"]} for n in range(4)]
    write_folder(tmp_path / "set", rows, [gradient(30 + n, 40) for n in range(4)])
    first = check(ImageFolder(tmp_path / "set"), cache=tmp_path / "cache")
    expected = [first.prepared[index].copy() for index in range(4)]
    (made,) = caches(tmp_path / "cache")
    del first
    damage(made)
    checked = check(ImageFolder(tmp_path / "set"), cache=tmp_path / "cache")
    (message,) = caplog.messages
    assert message.startswith(str(made))
    assert message.endswith("the cache is filled anew")
    assert message.isprintable()
    assert len(checked.images) == 4
    assert all(np.array_equal(checked.prepared[i], expected[i]) for i in range(4))
    caplog.clear()
    check(ImageFolder(tmp_path / "set"), cache=tmp_path / "cache")
    assert not caplog.messages


def test_damaged_pixels_stop_the_training(folder: Path, cache: Path) -> None:
    checked = check(ImageFolder(folder), cache=cache)
    (made,) = caches(cache)
    with open(made / PIXELS, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        last = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert checked.prepared[5].shape == (28, 36, 3)
    with pytest.raises(InputError, match=r"pixels\.uint8: is damaged; delete the folder .*pict"):
        checked.prepared[6]
    os.truncate(made / PIXELS, 10)  # the pages behind the end cannot be read any more
    with pytest.raises(InputError, match=r"pixels\.uint8: is damaged"):
        checked.prepared[5]


@contextmanager
def filling(folder: Path, cache: Path) -> Iterator[BaseProcess]:
    """A process in the middle of filling a cache for images without augmentation."""
    context = multiprocessing.get_context("fork")
    at_work = context.Event()

    class Stuck(ImageFolder):
        def image(self, index: int) -> Image.Image:
            if index == 5:
                at_work.set()
                time.sleep(600)
            return super().image(index)

    process = context.Process(
        target=check, args=(Stuck(folder),), kwargs={"augment": False, "cache": cache}
    )
    process.start()
    try:
        assert at_work.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("augment", [False, True])  # True: its own hidden folder is another one
def test_a_killed_fill_is_not_believed_and_is_removed(
    augment: bool, folder: Path, cache: Path
) -> None:
    with filling(folder, cache) as process:
        process.kill()
    (left,) = cache.glob(".pictures-*.partial")
    assert (left / PIXELS).exists()
    assert not caches(cache)
    checked = check(ImageFolder(folder), cache=cache, augment=augment)
    assert not list(cache.glob(".*.partial"))
    assert len(caches(cache)) == 1
    for index in range(7):
        expected = checked.prepared.preparation(checked.images.image(index))
        assert np.array_equal(checked.prepared[index], expected)


def test_what_another_process_is_filling_is_left_alone(folder: Path, cache: Path) -> None:
    with filling(folder, cache):
        check(ImageFolder(folder), cache=cache)
        assert len(list(cache.glob(".pictures-*.partial"))) == 1


def test_a_second_process_waits_for_the_first(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with filling(folder, cache) as process:
        naps: list[float] = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                process.kill()
                process.join()

        monkeypatch.setattr(prepared_pictures.time, "sleep", nap)
        checked = check(ImageFolder(folder), cache=cache, augment=False)
    assert len(naps) == 3
    (message,) = caplog.messages
    assert message.startswith(f"pictures: waiting for another process that fills {cache}")
    assert checked.prepared.cache is not None
    assert not list(cache.glob(".*.partial"))


def test_a_cache_that_another_process_has_filled_meanwhile_is_used(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageFolder(folder)
    check(images, cache=cache)
    (made,) = caches(cache)
    made.rename(cache / "aside")
    open_lock, tries = prepared_pictures.open_lock, []

    def locked_once(path: Path, refusal: str) -> Any:
        tries.append(path)
        if len(tries) == 1:
            raise InputError("locked") from BlockingIOError()
        (cache / "aside").rename(made)
        return open_lock(path, refusal)

    monkeypatch.setattr(prepared_pictures, "open_lock", locked_once)
    monkeypatch.setattr(prepared_pictures, "_size", lambda *_: 0)
    no_picture_is_decoded(monkeypatch)
    assert check(images, cache=cache).prepared[3].shape
    assert len(tries) == 2


def memory() -> int:
    """Bytes of this process that are not shared with a file."""
    with open("/proc/self/smaps_rollup") as file:
        rows = dict(line.split(":") for line in file.readlines()[1:])
    return 1024 * int(rows["Anonymous"].split()[0])


def test_reading_does_not_copy_the_whole_file(tmp_path: Path, cache: Path) -> None:
    count, size = 60, 640  # 74 MB
    rows = [{"file_name": f"{n}.bmp", "captions": ["bird"]} for n in range(count)]
    write_folder(tmp_path / "set", rows, [gradient(2, 2) for _ in range(count)])
    images = ImageFolder(tmp_path / "set")
    check_pictures(images, size, False, cache=cache, quiet=True)
    before = memory()
    checked = check_pictures(images, size, False, cache=cache, quiet=True)
    held = [checked.prepared[index] for index in range(count)]
    assert memory() - before < 2**24
    assert sum(picture.size for picture in held) > 7e7
    packed = pickle.dumps(checked.prepared)
    assert len(packed) < 2**16
    assert np.array_equal(pickle.loads(packed)[7], held[7])


# What is left out


@pytest.fixture
def broken(folder: Path) -> Path:
    """Picture 2 is cut off, picture 5 is text, and the captions of picture 4 have no word."""
    data = (folder / "pictures/2.png").read_bytes()
    (folder / "pictures/2.png").write_bytes(data[: len(data) // 2])
    (folder / "pictures/5.png").write_text("<html>")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), "captions": ["...", ""]})
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(params=[False, True], ids=["no cache", "cache"])
def where(request: pytest.FixtureRequest, cache: Path) -> Path | None:
    return cache if request.param else None


def test_broken_pictures_are_left_out_named_and_counted(
    broken: Path, where: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    images = ImageFolder(broken)
    for _ in range(2):  # the second time, a cache remembers them
        caplog.clear()
        checked = check(images, cache=where)
        names = [checked.images.name(index) for index in range(len(checked.images))]
        assert names == ["pictures/0", "pictures/1", "pictures/3", "pictures/6"]
        *named, count = caplog.messages
        assert [message.split(":")[:2] for message in named] == [
            ["left out", f" picture 'pictures/{number}'"] for number in (2, 4, 5)
        ]
        assert "is not a picture that can be read (image file is truncated" in named[0]
        assert named[1].endswith("its captions have no word")
        assert "its format is not supported" in named[2]
        assert count.startswith("left out 3 of 7 pictures; with --strict")
        assert (f"delete {where}/pictures-24-augmented-" in count) == (where is not None)
        for index, number in enumerate((0, 1, 3, 6)):
            picture = images.image(number)
            assert checked.images.captions(index) == images.captions(number)
            assert checked.images.label(index) == number
            assert checked.images.image(index) == picture
            prepared = checked.prepared[index]
            assert np.array_equal(prepared, checked.prepared.preparation(picture))
        examples = TrainingExamples(
            checked.images, VOCABULARY, SIZE, augment=True, prepared=checked.prepared
        )
        assert [example["index"] for example in DataLoader(examples, None)] == [0, 1, 2, 3]


def test_a_valid_cache_is_not_checked_again(
    broken: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(ImageFolder(broken), cache=cache)
    no_picture_is_decoded(monkeypatch)
    assert len(check(ImageFolder(broken), cache=cache).images) == 4


def test_strict_stops_at_the_first(broken: Path, cache: Path) -> None:
    images = ImageFolder(broken)
    with pytest.raises(InputError, match="'pictures/4' cannot be trained on: its captions have no"):
        check(images, strict=True)
    lines = (broken / "metadata.jsonl").read_text().replace("...", "bird")
    (broken / "metadata.jsonl").write_text(lines)
    images = ImageFolder(broken)
    for where in (None, cache):
        with pytest.raises(InputError, match=r"'pictures/2' cannot be .*image file is truncated"):
            check(images, strict=True, cache=where)
    assert not caches(cache)
    assert not list(cache.glob(".*.partial"))
    check(images, cache=cache)
    with pytest.raises(InputError, match=r"'pictures/2' cannot be .*image file is truncated"):
        check(images, strict=True, cache=cache)


def test_a_repaired_picture_is_read_again(broken: Path, cache: Path) -> None:
    assert len(check(ImageFolder(broken), cache=cache).images) == 4
    gradient(30, 30).save(broken / "pictures/5.png")
    assert len(check(ImageFolder(broken), cache=cache).images) == 5
    lines = (broken / "metadata.jsonl").read_text().replace("...", "bird")
    (broken / "metadata.jsonl").write_text(lines)
    assert len(check(ImageFolder(broken), cache=cache).images) == 6


def test_at_most_twenty_are_named(
    tmp_path: Path, where: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"file_name": f"{n:02}.png", "captions": ["bird"]} for n in range(30)]
    write_folder(tmp_path / "set", rows, [gradient(3, 3)] * 30)
    for number in range(5, 28):
        (tmp_path / f"set/{number:02}.png").write_text("\x1b[31m")
    assert len(check(ImageFolder(tmp_path / "set"), cache=where).images) == 7
    *named, more, count = caplog.messages
    assert [message[:23] for message in named] == [
        f"left out: picture '{number:02}':" for number in range(5, 25)
    ]
    assert more == "and 3 more"
    assert count.startswith("left out 23 of 30 pictures")


@pytest.mark.parametrize("good", [0, 1])
def test_fewer_than_two_pictures_are_refused(good: int, folder: Path, where: Path | None) -> None:
    for number in range(good, 7):
        (folder / f"pictures/{number}.png").write_text("")
    for _ in range(2):
        with pytest.raises(
            InputError, match=rf"^{good} of 7 pictures can be trained on, .*pictures/{good}'"
        ):
            check(ImageFolder(folder), cache=where)


def test_later_damage_stops_a_training_without_a_cache(folder: Path) -> None:
    checked = check(ImageFolder(folder))
    (folder / "pictures/3.png").write_text("")
    with pytest.raises(InputError, match=r"3\.png is not a picture"):
        checked.prepared[3]


def test_processes_find_the_same(
    broken: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageFolder(broken)
    here = check(images, cache=cache / "here")
    monkeypatch.setattr(prepared_pictures, "_WORTH_PROCESSES", 1)
    processes: list[int] = []
    in_processes = prepared_pictures.in_processes

    def counted(work: Any, jobs: Any, count: int, waiting: int) -> Iterator[Any]:
        processes.append(count)
        return in_processes(work, jobs, count, waiting)

    monkeypatch.setattr(prepared_pictures, "in_processes", counted)
    for workers, there in ((3, None), (3, cache / "there"), (0, cache / "none")):
        checked = check(images, cache=there, workers=workers)
        assert len(checked.images) == 4
        assert all(np.array_equal(checked.prepared[i], here.prepared[i]) for i in range(4))
    assert len(processes) == 2
    assert min(processes) >= 3
    files = [(caches(cache / name)[0] / PIXELS).read_bytes() for name in ("here", "there", "none")]
    assert len(set(files)) == 1
    with pytest.raises(InputError, match="'pictures/4'"):
        check(images, cache=cache / "strict", workers=3, strict=True)


def test_the_bar_is_shown_unless_quiet(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepared_pictures, "_BAR_AFTER", 0)
    check(ImageFolder(folder), cache=cache)
    assert capsys.readouterr().err == ""
    check(ImageFolder(folder), quiet=False)
    assert "checking pictures: 100%" in capsys.readouterr().err
    check(ImageFolder(folder), cache=cache / "other", quiet=False)
    assert "caching pictures: 100%" in capsys.readouterr().err


def test_a_long_reason_is_cut(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFolder, index: int) -> Image.Image:
        if index == 1:
            raise InputError("\u1234" * 10_000)
        return gradient(4, 4)

    monkeypatch.setattr(ImageFolder, "image", fail)
    for _ in range(2):
        assert len(check(ImageFolder(folder), cache=cache).images) == 6
    index = (caches(cache)[0] / INDEX).read_bytes()
    assert len(index) < picture_cache.__dict__["_LONGEST_ROW"] + 1000
