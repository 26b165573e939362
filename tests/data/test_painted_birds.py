"""Painted birds: pictures and captions agree exactly with the bird's attributes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirrorgan_fast import files
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds import data_set
from mirrorgan_fast.data.painted_birds.bird import (
    ATTRIBUTES,
    COLORED_PARTS,
    COLORS,
    HELD_OUT_PAIRS,
    Bird,
    held_out,
)
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds, export_image_folder
from mirrorgan_fast.data.painted_birds.drawing import paint
from mirrorgan_fast.data.painted_birds.words import describe
from mirrorgan_fast.data.worker_processes import in_processes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import lock

# The words of each part and value, written independently of the tables that make the captions.
WORDS_OF_PART = {
    "crown": {"crown", "head", "cap"},
    "back": {"back", "nape"},
    "breast": {"breast", "chest"},
    "belly": {"belly", "abdomen", "underside"},
    "wing": {"wings", "wing"},
    "tail": {"tail"},
    "wing_bars": {"bars", "wingbars"},
    "eye_ring": {"ring", "eyering"},
    "bill": {"bill", "beak"},
    "bill_color": {"bill", "beak"},
}
WORDS_OF_VALUE = {
    "gray": {"gray", "grey"},
    "purple": {"purple", "violet"},
    "none": {"no"},
    "short": {"short", "stubby"},
    "small": {"small", "little", "tiny"},
    "large": {"large", "big"},
    "level": {"level"},
    "branch": {"branch", "twig"},
    "rock": {"rock", "stone"},
    "reed": {"reed", "stem"},
    "forest": {"forest", "woods"},
    "meadow": {"meadow", "field"},
    "sunset": {"sunset", "dusk"},
}


def any_bird(seed: int, **attributes: str) -> Bird:
    rng = np.random.default_rng(seed)
    return dataclasses.replace(Bird.random(rng, "train"), **attributes)


def grown(mask: np.ndarray) -> np.ndarray:
    """Return the mask with every pixel that touches it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(shifts)


def files_of(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- birds


def test_random_birds_have_every_value_and_visible_marks() -> None:
    rng = np.random.default_rng(0)
    birds = [Bird.random(rng, "train") for _ in range(1500)]
    for name, values in ATTRIBUTES.items():
        assert {getattr(bird, name) for bird in birds} == set(values)
    for bird in birds:
        assert bird.wing_bars != bird.wing
        assert bird.eye_ring != bird.crown
    shared = np.mean([bird.back == bird.wing for bird in birds])
    assert 0.28 < shared < 0.46


def test_held_out_pairs_divide_the_splits() -> None:
    train, test = PaintedBirds("train", 1500), PaintedBirds("test", 300)
    assert not any(held_out(train.bird(i)) for i in range(len(train)))
    assert all(held_out(test.bird(i)) for i in range(len(test)))
    shown = {(bird.crown, bird.belly) for bird in map(test.bird, range(len(test)))}
    assert shown == HELD_OUT_PAIRS
    assert len(HELD_OUT_PAIRS) == 12
    for position in (0, 1):  # the test split has every color, in both places
        assert {pair[position] for pair in HELD_OUT_PAIRS} == set(COLORS)


# --- pictures


@pytest.mark.parametrize("size", [64, 97, 128])
def test_painting_is_deterministic(size: int) -> None:
    first = paint(any_bird(3), np.random.default_rng(5), size)
    again = paint(any_bird(3), np.random.default_rng(5), size)
    other = paint(any_bird(3), np.random.default_rng(6), size)
    assert first.image.shape == (size, size, 3)
    assert first.image.dtype == np.uint8
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).any()
    for name, mask in first.masks.items():
        assert mask.shape == (size, size)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, again.masks[name])


@pytest.mark.parametrize("pose", ATTRIBUTES["pose"])
@pytest.mark.parametrize("size", ATTRIBUTES["size"])
@pytest.mark.parametrize("background", ATTRIBUTES["background"])
def test_every_part_shows_its_color(pose: str, size: str, background: str) -> None:
    names, values = list(COLORS), np.array(list(COLORS.values()), dtype=float)
    for shift in range(len(names)):
        colors = {part: names[(i + shift) % 10] for i, part in enumerate(COLORED_PARTS)}
        marks = {"wing_bars": ["white", "black", "yellow"][shift % 3], "eye_ring": "white"}
        bird = any_bird(shift, pose=pose, size=size, background=background, **colors, **marks)
        painting = paint(bird, np.random.default_rng(shift), 128)
        for part, color in (colors | marks | {"bill": bird.bill_color}).items():
            mask = painting.masks[part]
            assert mask.sum() >= (60 if part in COLORED_PARTS else 8), (part, bird)
            mean = painting.image[mask].mean(axis=0)
            nearest = names[int(np.argmin(((values - mean) ** 2).sum(axis=1)))]
            assert nearest == color, (part, bird)


def test_masks_do_not_overlap_and_leave_only_eye_and_legs() -> None:
    for seed in range(20):
        masks = paint(any_bird(seed), np.random.default_rng(seed), 128).masks
        total = np.sum([mask.astype(int) for mask in masks.values()], axis=0)
        assert total.max() == 1
        assert (total == 0).mean() < 0.06


@pytest.mark.parametrize("part", [*COLORED_PARTS, "bill_color", "wing_bars", "eye_ring"])
def test_a_changed_part_changes_the_picture_only_there(part: str) -> None:
    for seed in range(6):
        before = any_bird(seed, crown="blue", wing="green", wing_bars="white", eye_ring="white")
        other = [v for v in ATTRIBUTES[part] if v != getattr(before, part)]
        after = dataclasses.replace(before, **{part: other[seed % len(other)]})
        painted = paint(before, np.random.default_rng(seed), 128)
        changed = (painted.image != paint(after, np.random.default_rng(seed), 128).image).any(
            axis=2
        )
        mask = painted.masks["bill" if part == "bill_color" else part]
        assert changed[mask].mean() > 0.9
        # Two pixels, not one: where two edges meet, a part may be too thin to be in its mask.
        assert not changed[~grown(grown(mask))].any()


@pytest.mark.parametrize("scenery", ["background", "perch"])
def test_changed_scenery_keeps_the_bird(scenery: str) -> None:
    before = any_bird(1, perch="rock", background="sky")
    after = dataclasses.replace(before, **{scenery: "ground" if scenery == "perch" else "forest"})
    paintings = [paint(bird, np.random.default_rng(0), 128) for bird in (before, after)]
    for part in COLORED_PARTS:
        np.testing.assert_array_equal(paintings[0].masks[part], paintings[1].masks[part])


def test_sizes_never_overlap() -> None:
    def area(size: str, seed: int, pose: str) -> int:
        masks = paint(any_bird(4, size=size, pose=pose), np.random.default_rng(seed), 128).masks
        return sum(int(masks[part].sum()) for part in COLORED_PARTS)

    for pose in ATTRIBUTES["pose"]:
        small, medium, large = (
            [area(size, seed, pose) for seed in range(25)] for size in ("small", "medium", "large")
        )
        assert max(small) < min(medium)
        assert max(medium) < min(large)


def test_the_bird_stays_inside_the_picture() -> None:
    for seed in range(60):
        bird = any_bird(seed, size="large", bill="long", pose=ATTRIBUTES["pose"][seed % 2])
        masks = paint(bird, np.random.default_rng(seed), 128).masks
        frame = np.ones((128, 128), dtype=bool)
        frame[1:-1, 1:-1] = False
        for part in (*COLORED_PARTS, "bill"):
            assert not (masks[part] & frame).any(), bird


def test_direction_is_where_the_bill_points() -> None:
    for seed in range(10):
        for direction in ATTRIBUTES["direction"]:
            bird = any_bird(seed, direction=direction)
            masks = paint(bird, np.random.default_rng(seed), 96).masks
            bill, tail = (np.nonzero(masks[part])[1].mean() for part in ("bill", "tail"))
            assert (bill > tail) == (direction == "right")


def test_a_bird_looks_the_same_at_two_sizes() -> None:
    small = paint(any_bird(2), np.random.default_rng(2), 128).image
    large = Image.fromarray(paint(any_bird(2), np.random.default_rng(2), 256).image).reduce(2)
    assert np.abs(small.astype(int) - np.asarray(large).astype(int)).mean() < 3


# --- captions


@pytest.mark.parametrize("places", ["middle", "varied"])
def test_the_box_is_the_bounds_of_the_bird_and_its_legs(places: Any) -> None:
    birds = PaintedBirds("train", 40, 128, places=places)
    below = []
    for i in range(len(birds)):
        masks = birds.painting(i).masks
        bird = np.logical_or.reduce(
            [mask for part, mask in masks.items() if part not in ("perch", "background")]
        )
        rows, columns = bird.any(axis=1).nonzero()[0], bird.any(axis=0).nonzero()[0]
        x, y, width, height = (128 * share for share in birds.box(i))
        assert 0 <= x < x + width <= 128
        assert 0 <= y < y + height <= 128
        # A mask lacks pixels of which less than half is covered: the tip of a long bill.
        assert -7 < x - columns[0] < 1
        assert -2.5 < y - rows[0] < 1
        assert -1 < x + width - (columns[-1] + 1) < 7
        below.append(y + height - (rows[-1] + 1))  # legs are in no mask
        assert -1 < below[-1] < 0.3 * height
    assert np.mean(below) > 1


def test_a_varied_place_moves_and_scales_the_whole_bird() -> None:
    middle, varied = (PaintedBirds("train", 60, 64, places=p) for p in ("middle", "varied"))
    corners = []
    for i in range(len(middle)):
        assert middle.bird(i) == varied.bird(i)
        (_, _, width, height), (left, top, columns, rows) = middle.box(i), varied.box(i)
        assert (columns, rows) == pytest.approx((0.55 * width, 0.55 * height), abs=0.01)
        assert 0.005 < left < left + columns < 0.995
        assert 0.005 < top < top + rows < 0.995
        corners.append((left, top))
    assert np.std(corners, axis=0).min() > 0.1
    assert middle.stamp(0) != varied.stamp(0)
    with pytest.raises(InputError, match="places must be middle or varied, not 'there'"):
        PaintedBirds("train", 1, places="there")  # type: ignore[arg-type]


def test_captions_state_exactly_what_they_name_and_it_is_true() -> None:
    for seed in range(150):
        bird = any_bird(seed)
        for caption in describe(bird, np.random.default_rng(seed)):
            words = caption.text.replace(",", "").split()
            assert len(words) <= 18
            assert caption.text.replace(",", "") == " ".join(words).lower()
            assert "".join(words).isalpha()
            assert 2 <= len(caption.named) <= 7
            main_color = "body" if _says_main_color(words) else ""
            for attribute, value in caption.named.items():
                assert getattr(bird, attribute) == value
                assert WORDS_OF_VALUE.get(value, {value}) & set(words), (caption, attribute)
                if attribute in WORDS_OF_PART and not (
                    main_color and attribute in ("back", "wing")
                ):
                    assert WORDS_OF_PART[attribute] & set(words), (caption, attribute)
            for attribute, nouns in WORDS_OF_PART.items():
                said = words
                if attribute == "wing":  # "wing bars" does not name the wing
                    said = " ".join(words).replace("wing bars", "").split()
                if attribute not in ("bill", "bill_color") and nouns & set(said):
                    assert attribute in caption.named, (caption, attribute)
            if main_color:
                assert caption.named["back"] == caption.named["wing"]


def _says_main_color(words: list[str]) -> bool:
    colors = {*COLORS, "grey", "violet"}
    return any(word == "bird" and words[i - 1] in colors for i, word in enumerate(words) if i)


def test_captions_name_every_attribute_and_mostly_the_large_parts() -> None:
    birds = PaintedBirds("train", 300)
    named = [caption.named for i in range(len(birds)) for caption in birds.bird_captions(i)]
    share = {name: np.mean([name in one for one in named]) for name in ATTRIBUTES}
    assert min(share[part] for part in COLORED_PARTS) > max(
        share[name] for name in ATTRIBUTES if name not in COLORED_PARTS
    )
    for name in ("pose", "direction", "perch", "background"):
        assert 0.08 <= share[name] <= 0.18
    assert np.mean(["none" in one.values() for one in named]) < 0.05


# --- data set and export


def test_data_set_is_a_function_of_seed_split_and_index() -> None:
    birds = PaintedBirds("train", 5, size=64, seed=3)
    longer = PaintedBirds("train", 50, size=64, seed=3)
    assert len(birds) == 5
    for i in (4, 0):
        assert birds.bird(i) == longer.bird(i)
        assert birds.captions(i) == longer.captions(i)
        assert birds.image(i).tobytes() == longer.image(i).tobytes()
        assert birds.label(i) == i
    assert birds.name(2) == "train/00002"
    assert birds.bird(0) != PaintedBirds("train", 5, seed=4).bird(0)
    assert len({longer.bird(i) for i in range(50)}) == 50
    with pytest.raises(IndexError):
        birds.bird(5)


def test_an_export_can_be_read_back_with_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        export_image_folder(
            tmp_path / str(workers), 7, 4, 64, seed=1, workers=workers, progress=False, masks=True
        )
    one, two = tmp_path / "1", tmp_path / "2"
    assert files_of(one) == files_of(two)
    rows = [json.loads(line) for line in (one / "metadata.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 7 + ["test"] * 4
    assert not list(one.glob("*.unfinished"))
    for row, (split, i) in zip(
        rows, [("train", i) for i in range(7)] + [("test", i) for i in range(4)], strict=True
    ):
        birds = PaintedBirds(split, 7, 64, seed=1)
        assert row["attributes"] == dataclasses.asdict(birds.bird(i))
        assert row["captions"] == birds.captions(i)
        assert tuple(row["box"]) == birds.box(i) == ImageFolder(one).box(rows.index(row))
        assert row["named"] == [caption.named for caption in birds.bird_captions(i)]
        painting = birds.painting(i)
        with Image.open(one / row["file_name"]) as image:
            np.testing.assert_array_equal(np.asarray(image), painting.image)
        with Image.open(one / row["mask"]) as indexed:
            for number, part in enumerate(row["parts"], start=1):
                np.testing.assert_array_equal(np.asarray(indexed) == number, painting.masks[part])


def test_an_export_has_birds_in_varied_places(tmp_path: Path) -> None:
    export_image_folder(tmp_path, 3, 2, 64, workers=1, progress=False, places="varied")
    images, birds = ImageFolder(tmp_path, "test"), PaintedBirds("test", 2, 64, places="varied")
    for i in range(2):
        assert images.image(i) == birds.image(i)
        assert images.box(i) == birds.box(i)


def test_export_that_fails_leaves_no_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(InputError, match="disk full"):
        export_image_folder(tmp_path, 1, 0, 64, workers=1, progress=False)
    assert not (tmp_path / "metadata.jsonl").exists()


def test_the_paintings_have_not_changed() -> None:
    """Whoever changes them must increase `_DRAWING_VERSION`, so that older runs do not resume."""
    rows = hashlib.sha256()
    for split in ("train", "test"):
        birds = PaintedBirds(split, 50, 64, seed=7)
        for i in range(50):
            said = [(caption.text, caption.named) for caption in birds.bird_captions(i)]
            rows.update(json.dumps([dataclasses.asdict(birds.bird(i)), said]).encode())
    assert data_set._DRAWING_VERSION == 1
    assert rows.hexdigest()[:16] == "a187e9c44c8c488d"
    for i, expected in enumerate(PAINTED):
        small = PaintedBirds("test", 3, 128, seed=7).image(i).resize((4, 4), Image.Resampling.BOX)
        found = np.asarray(small).astype(int)
        difference = found - np.frombuffer(bytes.fromhex(expected), np.uint8).reshape(4, 4, 3)
        assert np.abs(difference).max() <= 1  # other processors may round differently


# Red, green and blue of 16 areas of three birds.
PAINTED = (
    "687f67687f67667d64667c635b735c4a5a4c989c92586d5652655276623e77796372876a7c7e758883808f8b877a7e74",
    "cbd9e3d5dfe6c8d8e2c7d7e3d4dfe5aeb1b1786a54c3d2dcacb2b6a57d76b7947ebfcfd9b4bdb9c2c7c7aeb8b4b8c0c0",
    "ae93a9b58a98ae95aaa48ca9caa7aaa47160c3a29bd9afa8d8b4a2a3836e86726ad9b4a17f7a778c87837f7b789b888b",
)


def paint_with(root: Path, **changes: Any) -> None:
    arguments = {"train": 9, "test": 4, "size": 64, "seed": 3, "workers": 2, "masks": True}
    export_image_folder(root, **{**arguments, **changes}, progress=False)


@pytest.mark.parametrize("rows", [0, 6, 12])
def test_a_killed_export_resumes(tmp_path: Path, rows: int) -> None:
    def paint_and_be_killed() -> None:
        def killed_after(*arguments: Any) -> Any:
            for number, row in enumerate(in_processes(*arguments)):
                if number == rows:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield row

        data_set.in_processes = killed_after
        paint_with(root)

    root = tmp_path / "stopped"
    killed = multiprocessing.get_context("fork").Process(target=paint_and_be_killed)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert (root / ".paint.json").exists()
    assert not (root / "metadata.jsonl").exists()
    paint_with(tmp_path / "whole")
    paint_with(root, workers=1)
    assert files_of(root) == files_of(tmp_path / "whole")


def test_an_incomplete_picture_is_painted_again(begun: Path, tmp_path: Path) -> None:
    """The power may fail after a file gets its name and before all its content is on the disk."""
    paint_with(tmp_path / "whole")
    pictures = sorted(begun.rglob("0*.png"))
    pictures[0].write_bytes(b"")
    pictures[1].write_bytes(pictures[1].read_bytes()[:-40])
    Image.new("RGB", (65, 64)).save(pictures[-1])
    paint_with(begun)
    assert files_of(begun) == files_of(tmp_path / "whole")


def test_finished_pictures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_set, "in_processes", interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        paint_with(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".paint.json", "images", "masks"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("0*.png")}
    assert len(times) >= 10
    monkeypatch.undo()
    paint_with(tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks", "metadata.jsonl"]


def interrupted_after(count: int) -> Any:
    def in_this_process(work: Any, jobs: Any, processes: int) -> Any:
        for number, job in enumerate(jobs):
            if number == count:
                raise KeyboardInterrupt
            yield work(job)

    return in_this_process


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which five of thirteen pictures are painted."""
    with monkeypatch.context() as patch:
        patch.setattr(data_set, "in_processes", interrupted_after(5))
        with pytest.raises(KeyboardInterrupt):
            paint_with(tmp_path / "begun")
    return tmp_path / "begun"


@pytest.mark.parametrize(
    "changes", [{"train": 8}, {"test": 0}, {"size": 65}, {"seed": 4}, {"masks": False}]
)
def test_an_export_with_other_arguments_does_not_resume(
    begun: Path, changes: dict[str, Any]
) -> None:
    before = files_of(begun)
    with pytest.raises(
        InputError, match=r"unfinished .* \(train 9, test 4, size 64, seed 3, masks T"
    ):
        paint_with(begun, **changes)
    assert files_of(begun) == before


def test_an_export_of_another_drawing_version_does_not_resume(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_set, "_DRAWING_VERSION", 2)
    with pytest.raises(InputError, match="has an unfinished run with other arguments"):
        paint_with(begun)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"[" * 4000,
        b'{"train": [1]}',
        b'{"train": "x"}',
        b"\xff",
        b"x" * 5000,
    ],
)
def test_a_damaged_paint_json_is_refused(begun: Path, content: bytes) -> None:
    (begun / ".paint.json").write_bytes(content)
    with pytest.raises(InputError, match=r"(damaged|unfinished run).*; .*remove") as caught:
        paint_with(begun)
    assert str(caught.value).isprintable()


def test_nothing_is_written_through_links(begun: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00000.png").write_text("mine")
    (begun / "images" / "train" / "00007.png").symlink_to(outside / "00000.png")
    shutil.rmtree(begun / "images" / "test", ignore_errors=True)
    (begun / "images" / "test").symlink_to(outside)
    with pytest.raises(InputError, match="images/test: is a link"):
        paint_with(begun)
    (begun / "images" / "test").unlink()
    paint_with(begun)
    assert (outside / "00000.png").read_text() == "mine"
    assert not (begun / "images" / "train" / "00007.png").is_symlink()


def test_two_processes_do_not_paint_in_the_same_folder(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_set.time, "sleep", lambda seconds: None)
    with (begun / ".paint.json").open() as file:
        lock(file, "taken")
        with pytest.raises(InputError, match="another process is painting there"):
            paint_with(begun)
    paint_with(begun)


# --- bad input


@pytest.mark.parametrize("size", [0, 63, 513])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(InputError, match=f"64 to 512 pixels wide, not {size}"):
        paint(any_bird(0), np.random.default_rng(0), size)
    with pytest.raises(InputError, match="64 to 512"):
        PaintedBirds("train", 1, size=size)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="no split 'val': choose from train, test"):
        PaintedBirds("val", 3)
    with pytest.raises(InputError, match="no split 'val'"):
        Bird.random(np.random.default_rng(0), "val")
    with pytest.raises(InputError, match="belly cannot be 'pink': choose from red"):
        any_bird(0, belly="pink")


def test_bad_counts_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="count must be 1 to 500,000, not 0"):
        PaintedBirds("train", 0)
    with pytest.raises(InputError, match="seed must be at least 0"):
        PaintedBirds("train", 1, seed=-1)
    with pytest.raises(InputError, match="at least one"):
        export_image_folder(tmp_path / "new", 0, 0)
    for count in (-1, 500_001, 10**20, True, 1.0, "9"):
        with pytest.raises(InputError, match=r"count must be 1 to 500,000, not "):
            export_image_folder(tmp_path / "new", 1, count)  # type: ignore[arg-type]
    for seed in (2**128, 2**200, 0.5):
        with pytest.raises(InputError, match="seed must be at least 0 and below"):
            export_image_folder(tmp_path / "new", 1, 1, seed=seed)  # type: ignore[arg-type]
    for size in (10**20, 64.0):
        with pytest.raises(InputError, match="64 to 512 pixels wide"):
            export_image_folder(tmp_path / "new", 1, 1, size=size)  # type: ignore[arg-type]
    for workers in (0, -1, 1025, 10**20, 1.5):
        with pytest.raises(InputError, match="workers must be 1 to 1,024, not"):
            export_image_folder(tmp_path / "new", 1, 1, workers=workers)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        export_image_folder(tmp_path, 1, 1, progress=False)
    with pytest.raises(InputError, match="not an empty folder"):
        export_image_folder(tmp_path / "kept.txt", 1, 1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("file/birds", "x" * 300, "a\0\nb"):
        with pytest.raises(InputError, match=r"(birds|xxx|a.*b): cannot be written") as caught:
            export_image_folder(tmp_path / name, train=1, test=0, size=64, progress=False)
        assert str(caught.value).isprintable()
