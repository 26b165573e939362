"""Boxes: which values are refused, and what becomes of a box in a part of its picture."""

from typing import Any

import numpy as np
import pytest

from mirrorgan_fast.boxes import LEAST_SIDE, Box, clipped, flipped, part_of, to_box
from mirrorgan_fast.errors import InputError


@pytest.mark.parametrize(
    "value",
    [
        [0, 0, 1, 1],
        (0.25, 0.5, 0.75, 0.5),
        [0.7, 0.1, 0.1 + 0.2, 0.9],  # its sums are over 1 by rounding
        [1 - LEAST_SIDE, 0.0, LEAST_SIDE, LEAST_SIDE],
    ],
)
def test_a_box_is_four_numbers_inside_the_picture(value: Any) -> None:
    assert to_box(value) == tuple(value)
    assert all(isinstance(number, float) for number in to_box(value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "0.1,0.2,0.3,0.4",
        0.5,
        {},
        [],
        [0.1, 0.2, 0.3],
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.1, 0.2, "0.3", 0.4],
        [0.1, 0.2, True, 0.4],
        [0.1, 0.2, None, 0.4],
        [0.1, 0.2, float("nan"), 0.4],
        [float("inf"), 0.2, 0.3, 0.4],
        [-0.01, 0.2, 0.3, 0.4],
        [0.1, -1e-9, 0.3, 0.4],
        [0.1, 0.2, 0.91, 0.4],
        [0.1, 0.7, 0.3, 0.4],
        [0.1, 0.2, 0.0, 0.4],
        [0.1, 0.2, 0.3, -0.1],
        [0.1, 0.2, 0.3, 0.009],
        [10, 20, 30, 40],
        [10**400, 0, 1, 1],
    ],
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^expected \[x, y, width, height\] in shares of"):
        to_box(value)


def mask_of(box: Box, side: int) -> np.ndarray:
    """Return the pixels of a picture whose middle is in a box."""
    x, y, width, height = box
    middles = (np.arange(side) + 0.5) / side
    columns = (middles > x) & (middles < x + width)
    rows = (middles > y) & (middles < y + height)
    return rows[:, None] & columns


def bounds(mask: np.ndarray) -> tuple[float, ...]:
    """Return the bounds of a mask in shares of its sides."""
    (rows,), (columns,) = mask.any(axis=1).nonzero(), mask.any(axis=0).nonzero()
    left, top = columns[0] / mask.shape[1], rows[0] / mask.shape[0]
    right, bottom = (columns[-1] + 1) / mask.shape[1], (rows[-1] + 1) / mask.shape[0]
    return left, top, right - left, bottom - top


def test_a_box_in_a_part_is_what_is_seen_of_its_mask() -> None:
    """In 2,000 random parts; where nothing or little is seen, a box of the least size is left."""
    side, seen = 240, 0
    rng = np.random.default_rng(0)
    for _ in range(2_000):
        left, top = rng.integers(0, side - 60, 2)
        columns, rows = rng.integers(60, 1 + side - max(left, top), 2)
        start, size = rng.uniform(0, 0.7, 2), rng.uniform(0.05, 0.3, 2)
        box = (*start.tolist(), *size.tolist())
        part = tuple((np.array([left, top, columns, rows]) / side).tolist())
        found = clipped(part_of(box, part))
        assert min(found[:2]) >= 0
        assert min(found[2:]) >= LEAST_SIDE - 1e-12
        assert max(found[0] + found[2], found[1] + found[3]) <= 1 + 1e-12
        mask = mask_of(box, side)[top : top + rows, left : left + columns]
        if not mask.any():
            continue
        seen += 1
        pixel = 1 / min(columns, rows)
        assert found == pytest.approx(bounds(mask), abs=1.01 * pixel + LEAST_SIDE)
        assert flipped(found) == pytest.approx(bounds(mask[:, ::-1]), abs=1.01 * pixel + LEAST_SIDE)
    assert seen > 500


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-0.5, 0.2, 1.0, 0.3), (0.0, 0.2, 0.5, 0.3)),
        ((0.2, -0.25, 0.5, 0.5), (0.2, 0.0, 0.5, 0.25)),
        ((0.6, 0.7, 2.0, 0.9), (0.6, 0.7, 0.4, 0.3)),
        ((-1.0, -1.0, 9.0, 9.0), (0.0, 0.0, 1.0, 1.0)),
        ((-2.0, 0.1, 1.0, 0.5), (0.0, 0.1, LEAST_SIDE, 0.5)),
        ((0.1, 3.0, 0.5, 1.0), (0.1, 1 - LEAST_SIDE, 0.5, LEAST_SIDE)),
        ((0.3, 0.3, 0.001, 0.5), (0.301 - LEAST_SIDE, 0.3, LEAST_SIDE, 0.5)),
    ],
)
def test_boxes_are_clipped_on_all_sides(box: Box, expected: Box) -> None:
    assert clipped(box) == pytest.approx(expected)
