"""Painted birds: the picture shows, and the captions say, exactly what the bird is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirrorgan_fast import files
from mirrorgan_fast.data.painted_birds import (
    ATTRIBUTES,
    COLORED_PARTS,
    COLORS,
    HELD_OUT_PAIRS,
    Bird,
    PaintedBirds,
    describe,
    export_image_folder,
    held_out,
    paint,
)
from mirrorgan_fast.errors import InputError

# Written out again, apart from the tables that make the captions: what a word may say.
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
    """The mask and every pixel that touches it."""
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


def test_random_birds_take_every_value_and_stand_out() -> None:
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
    for position in (0, 1):  # every color word is known from training, in both places
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
        # Two pixels, not one: where two edges meet, a part may be thinner than its mask shows.
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


def test_one_bird_at_two_sizes_is_one_picture() -> None:
    small = paint(any_bird(2), np.random.default_rng(2), 128).image
    large = Image.fromarray(paint(any_bird(2), np.random.default_rng(2), 256).image).reduce(2)
    assert np.abs(small.astype(int) - np.asarray(large).astype(int)).mean() < 3


# --- captions


def test_captions_assert_what_they_name_and_it_is_true() -> None:
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
                if attribute == "wing":  # "wing bars" says nothing of the wing
                    said = " ".join(words).replace("wing bars", "").split()
                if attribute not in ("bill", "bill_color") and nouns & set(said):
                    assert attribute in caption.named, (caption, attribute)
            if main_color:
                assert caption.named["back"] == caption.named["wing"]


def _says_main_color(words: list[str]) -> bool:
    colors = {*COLORS, "grey", "violet"}
    return any(word == "bird" and words[i - 1] in colors for i, word in enumerate(words) if i)


def test_captions_speak_of_everything_and_mostly_of_the_large_parts() -> None:
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


def test_export_round_trip_whatever_the_workers(tmp_path: Path) -> None:
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
        assert row["named"] == [caption.named for caption in birds.bird_captions(i)]
        painting = birds.painting(i)
        with Image.open(one / row["file_name"]) as image:
            np.testing.assert_array_equal(np.asarray(image), painting.image)
        with Image.open(one / row["mask"]) as indexed:
            for number, part in enumerate(row["parts"], start=1):
                np.testing.assert_array_equal(np.asarray(indexed) == number, painting.masks[part])


def test_export_that_fails_leaves_no_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(InputError, match="disk full"):
        export_image_folder(tmp_path, 1, 0, 64, workers=1, progress=False)
    assert not (tmp_path / "metadata.jsonl").exists()


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
    with pytest.raises(InputError, match="at least 1, not 0"):
        PaintedBirds("train", 0)
    with pytest.raises(InputError, match="seed must not be negative"):
        PaintedBirds("train", 1, seed=-1)
    with pytest.raises(InputError, match="at least one"):
        export_image_folder(tmp_path / "new", 0, 0)
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        export_image_folder(tmp_path, 1, 1, progress=False)
    with pytest.raises(InputError, match="not an empty folder"):
        export_image_folder(tmp_path / "kept.txt", 1, 1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file/birds: cannot be written"):
        export_image_folder(tmp_path / "file" / "birds", train=1, test=0, size=64, progress=False)
