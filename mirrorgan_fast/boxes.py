"""Boxes: where in a picture something is, as (x, y, width, height) in shares of its sides."""

from mirrorgan_fast.errors import InputError

Box = tuple[float, float, float, float]
"""x and y of the upper left corner, width and height, each from 0 to 1: shares of the picture's
width and height."""
LEAST_SIDE = 0.01
"""Smallest width and height of a box."""
EXPECTED = (
    f"[x, y, width, height] in shares of the picture: four numbers from 0 to 1, x + width and "
    f"y + height at most 1, width and height at least {LEAST_SIDE}"
)
_ROUNDING = 1e-6  # of float32


def to_box(value: object, rounding: float = _ROUNDING) -> Box:
    """Return a value from outside as a box.

    Args:
        value: anything, such as a part of a parsed JSON object.
        rounding: by which x + width and y + height may be over 1, and a side below its least.

    Raises:
        InputError: it is not a list or tuple of four numbers that are a box; the message is what
            is expected.
    """
    numbers = [
        float(number)
        for number in (value if isinstance(value, list | tuple) else ())
        if isinstance(number, int | float)
        and not isinstance(number, bool)
        and 0 <= number <= 1  # NaN is not
    ]
    if len(numbers) == 4 == len(value):  # type: ignore[arg-type]
        x, y, width, height = numbers
        inside = max(x + width, y + height) <= 1 + rounding
        if inside and min(width, height) >= LEAST_SIDE - rounding:
            return x, y, width, height
    raise InputError(f"expected {EXPECTED}")


def box_in(text: str) -> list[float] | str:
    """Return the numbers of a text such as "0.1, 0.2, 0.5, 0.4", with or without square brackets.

    If it has anything but numbers, the text itself is returned.
    """
    try:
        numbers = [float(part) for part in text.strip(" []").split(",")]
    except ValueError:
        return text
    return numbers


def part_of(box: Box, part: Box) -> Box:
    """Return where a box is in a part of the picture, in shares of the part.

    Args:
        box: in shares of the picture. It may reach out of it.
        part: the part, in shares of the picture.

    Returns:
        the box in shares of the part. It may reach out of the part (see ``clipped``).
    """
    (x, y, width, height), (left, top, columns, rows) = box, part
    return (x - left) / columns, (y - top) / rows, width / columns, height / rows


def clipped(box: Box) -> Box:
    """Return what is inside the picture of a box that may reach out of it, on any side.

    If less than ``LEAST_SIDE`` is left of a side, the result has that size, at the edge.
    """
    x, width = _clipped(box[0], box[2])
    y, height = _clipped(box[1], box[3])
    return x, y, width, height


def flipped(box: Box) -> Box:
    """Return where a box is in the picture's mirror image, in which left is right."""
    x, y, width, height = box
    return max(0.0, 1 - (x + width)), y, width, height


def _clipped(start: float, size: float) -> tuple[float, float]:
    end = min(max(start + size, LEAST_SIDE), 1.0)
    start = max(min(start, 1 - LEAST_SIDE), 0.0)
    start = min(start, end - LEAST_SIDE)
    return start, end - start
