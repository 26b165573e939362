"""Edits of one color word in a caption, and what is measured when the generator has a fault."""

import dataclasses

import numpy as np
import pytest
import torch

from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES, COLORED_PARTS, COLORS, Bird
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.data.painted_birds.drawing import paint
from mirrorgan_fast.data.painted_birds.words import read_attributes
from mirrorgan_fast.evaluation.edits import Edit, edit_color_word, measure_edits, painted_pairs

from .conftest import Oracle

BIRDS = PaintedBirds("test", 8, size=64, seed=5)
NO_MARKS = {"wing_bars": "none", "eye_ring": "none"}


def edit(caption: str, seed: int = 0, **attributes: str) -> Edit:
    made = edit_color_word(caption, NO_MARKS | attributes, np.random.default_rng(seed))
    assert made is not None
    return made


def test_an_edit_changes_one_color_word_and_its_article() -> None:
    rng = np.random.default_rng(0)
    birds = PaintedBirds("test", 150, size=64)
    edited_parts, colors = set(), set()
    for i in range(len(birds)):
        attributes = dataclasses.asdict(birds.bird(i))
        for caption in birds.bird_captions(i):
            made = edit_color_word(caption.text, attributes, rng)
            assert made is not None
            assert made.caption == caption.text
            assert read_attributes(made.edited) == caption.named | dict.fromkeys(
                made.parts, made.color
            )
            assert all(caption.named[part] != made.color for part in made.parts)
            # Words include their commas; a color word never has one.
            before, after = caption.text.split(" "), made.edited.split(" ")
            changed = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            assert after[changed[-1]] == made.color
            if len(changed) > 1:
                assert changed == [changed[-1] - 1, changed[-1]]
                assert {before[changed[0]], after[changed[0]]} == {"a", "an"}
            edited_parts |= set(made.parts)
            colors.add(made.color)
            Bird(**(attributes | dict.fromkeys(made.parts, made.color)))
    assert edited_parts == set(COLORED_PARTS)
    assert colors == set(COLORS)


def test_the_article_fits_the_new_color() -> None:
    articles = set()
    for seed in range(60):
        made = edit("this is an orange bird with a long bill", seed)
        assert made.parts == ("back", "wing")
        assert made.edited == f"this is a {made.color} bird with a long bill"
        words = edit("a red tail", seed).edited.split()
        articles.add((words[0], words[1] == "orange"))
    assert articles == {("a", False), ("an", True)}


def test_marks_stay_visible() -> None:
    colors = {edit("red wings", seed, wing_bars="white").color for seed in range(150)}
    assert {"white", "yellow"}.isdisjoint(colors)
    assert {"black", "blue", "brown"} <= colors
    colors = {edit("a red head", seed, eye_ring="yellow").color for seed in range(150)}
    assert {"white", "yellow"}.isdisjoint(colors)
    marks = {"eye_ring": "yellow", "wing_bars": "white"}
    colors = {edit("a red belly", seed, **marks).color for seed in range(150)}
    assert colors == set(COLORS) - {"red"}


@pytest.mark.parametrize("caption", ["a small bird on a rock", "a bird with a yellow bill", ""])
def test_a_caption_without_a_colored_part_has_no_edit(caption: str) -> None:
    assert edit_color_word(caption, NO_MARKS, np.random.default_rng(0)) is None


def some_edits() -> tuple[list[Edit], list[dict[str, str]]]:
    rng = np.random.default_rng(1)
    attributes = [dataclasses.asdict(BIRDS.bird(i)) for i in range(len(BIRDS))]
    edits = [
        edit_color_word(BIRDS.captions(i)[0], of_bird, rng) for i, of_bird in enumerate(attributes)
    ]
    return [made for made in edits if made is not None], attributes


def test_painted_pairs_change_only_the_part(oracle: Oracle) -> None:
    edits, attributes = some_edits()
    before, after = painted_pairs(edits, attributes, size=64, seed=9)
    areas, means = [], []
    for i, (made, of_bird) in enumerate(zip(edits, attributes, strict=True)):
        new = of_bird | dict.fromkeys(made.parts, made.color)
        old_painting = paint(Bird(**of_bird), np.random.default_rng([9, i]), 64)
        np.testing.assert_array_equal(before[i].permute(1, 2, 0), old_painting.image)
        difference = np.abs(old_painting.image.astype(int) - after[i].permute(1, 2, 0).numpy())
        areas.append(np.mean((difference > 16).any(axis=2)))
        means.append(difference.mean())
        oracle.tell(before[i], of_bird)
        oracle.tell(after[i], new)
        shown = np.logical_or.reduce([old_painting.masks[part] for part in made.parts])
        assert (difference.max(axis=2) > 16)[shown].mean() > 0.9
    figures = measure_edits(oracle, edits, before, after)
    assert figures.right == 1
    assert figures.others_kept == 1
    assert figures.rest_change == 0
    assert figures.changed_area == pytest.approx(np.mean(areas))
    assert figures.mean_change == pytest.approx(np.mean(means))
    assert sum(figures.parts.claims.values()) == sum(len(made.parts) for made in edits)


def test_a_generator_that_ignores_the_word_is_noticed(oracle: Oracle) -> None:
    edits, attributes = some_edits()
    before, _ = painted_pairs(edits, attributes, size=64)
    for image, of_bird in zip(before, attributes, strict=True):
        oracle.tell(image, of_bird)
    figures = measure_edits(oracle, edits, before, before)
    assert figures.right == 0
    assert figures.others_kept == 1
    assert figures.changed_area == figures.mean_change == figures.rest_change == 0


def test_a_generator_that_changes_more_is_noticed(oracle: Oracle) -> None:
    edits, attributes = some_edits()
    before, after = painted_pairs(edits, attributes, size=64)
    after = (after.int() + 40).clamp(max=255).to(torch.uint8)  # all pixels are brighter
    for i, (made, of_bird) in enumerate(zip(edits, attributes, strict=True)):
        other_perch = next(value for value in ATTRIBUTES["perch"] if value != of_bird["perch"])
        oracle.tell(before[i], of_bird)
        oracle.tell(
            after[i], of_bird | dict.fromkeys(made.parts, made.color) | {"perch": other_perch}
        )
    figures = measure_edits(oracle, edits, before, after)
    others = sum(len(ATTRIBUTES) - len(made.parts) for made in edits)
    assert figures.right == 1
    assert figures.others_kept == pytest.approx(1 - len(edits) / others)
    assert figures.changed_area > 0.9
    assert 20 < figures.rest_change <= 40


def test_every_part_of_the_word_has_to_change(oracle: Oracle) -> None:
    edits = [Edit("a red bird", "a blue bird", ("back", "wing"), "blue")] * 2
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 4, 4).contiguous()
    base = {name: values[0] for name, values in ATTRIBUTES.items()}
    oracle.tell(images[2], base | {"back": "blue", "wing": "blue"})
    oracle.tell(images[3], base | {"back": "blue", "wing": "green"})
    figures = measure_edits(oracle, edits, images[:2], images[2:])
    assert figures.right == 0.5
    assert figures.parts.by_attribute == {"back": 1.0, "wing": 0.5}
    assert figures.mean_change == figures.rest_change == 2
