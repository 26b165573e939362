"""Requests: which images to make from a caption, or why none can be made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mirrorgan_fast.boxes import Box, to_box
from mirrorgan_fast.errors import InputError, listed

LONGEST_CAPTION = 65_536
"""Maximum length in bytes of UTF-8. A longer caption is refused."""
BEGINNING = 500
"""Number of characters of a refused caption that are kept."""
_NUMBERS = 2**128  # seeds and indices are less than this


class Record(NamedTuple):
    """A caption as it was read, not yet checked."""

    fields: Mapping[str, Any] | None
    """``caption`` and, if the record has them, ``seed``, ``index`` and ``box``. The values are of
    any type. None if the record could not be read."""
    beginning: str
    """The beginning of the record, which is reported if the record is refused."""
    reason: str = ""
    """Why the record could not be read."""
    position: int = 0
    """Position of the caption, from 0, in a list of captions that share the other fields."""
    vector: np.ndarray | None = None
    """A text vector, float32 (D,), which the caption then only names."""


@dataclass(frozen=True)
class Request:
    """A request for one image."""

    line: int
    """The number of its caption in its source, from 1."""
    number: int
    """The number of the image in the output, from 0. Its file is named after this number."""
    caption: str
    seed: int
    index: int
    """Index of the noise among those of the seed, from 0. Caption, seed, index and box determine
    the image."""
    box: Box | None = None
    """Where to draw; None: of systems that place things, a box that seed and index determine."""
    vector: np.ndarray | None = field(default=None, compare=False)
    """A text vector, float32 (D,), instead of the caption, which then is its name."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a caption file from which ``request_of`` makes this request again."""
        box = {} if self.box is None else {"box": self.box}
        return {"caption": self.caption, "seed": self.seed, "index": self.index, **box}


class Line(NamedTuple):
    """A caption, and the number of images to make from it."""

    first: Request
    images: int

    def request(self, k: int) -> Request:
        """Return the request for image k of this caption, counted from 0."""
        first = self.first
        return replace(first, number=first.number + k, index=first.index + k)


@dataclass(frozen=True)
class Refused:
    """A caption from which no image can be made."""

    line: int
    reason: str
    text: str
    """The beginning of the caption."""


def parse(
    line: int, record: Record, *, seed: int, per_caption: int, boxes: bool = False
) -> Line | Refused:
    """Turn a record into requests for images, or refuse it.

    Args:
        line: the number of the record, from 1.
        record: the record as it was read. If it has a ``seed`` and an ``index``, like a line of a
            manifest, it requests the image that another run made.
        seed: the seed, if the record has none.
        per_caption: number of images per caption. If the record has no index, the index of its
            first image is ``(line - 1) * per_caption``.
        boxes: whether the system takes boxes. Otherwise a ``box`` is ignored, as any other field
            is that means nothing to it.
    """
    if record.fields is None:
        return Refused(line, record.reason, record.beginning)
    number = (line - 1) * per_caption
    fields = {"seed": seed, "index": number, **record.fields}
    if not boxes:
        fields.pop("box", None)
    first = request_of(fields, line, number, record.beginning)
    if isinstance(first, Refused):
        return first
    first = replace(first, vector=record.vector)
    if "index" in record.fields and record.position:
        first = replace(first, index=first.index + record.position * per_caption)
    if first.index + per_caption > _NUMBERS:  # a line of the manifest would contain this index
        return Refused(line, '"index" is too large for all images', record.beginning)
    return Line(first, per_caption)


def request_of(
    fields: Mapping[str, Any], line: int, number: int, beginning: str
) -> Request | Refused:
    """Check the caption, seed and index of an image, and return its request or a refusal.

    Args:
        fields: ``caption``, ``seed`` and ``index``, and maybe ``box``. The values are of any type.
        line: the line that they come from.
        number: the number of the image in the output.
        beginning: the beginning of the record, which is reported if it is refused.
    """
    caption = fields.get("caption")
    if not isinstance(caption, str):
        return Refused(line, 'has no "caption" that is text', beginning)
    caption = caption.strip()
    try:
        size = len(caption.encode())
    except UnicodeEncodeError:
        return Refused(line, "has half a surrogate pair, which is not valid text", beginning)
    if size > LONGEST_CAPTION:
        return Refused(line, f"is longer than {LONGEST_CAPTION:,} bytes", beginning)
    for name in ("seed", "index"):
        if type(fields[name]) is not int or not 0 <= fields[name] < _NUMBERS:
            return Refused(line, f'"{name}" is not a whole number from 0 to 2^128 - 1', beginning)
    if not caption:
        return Refused(line, "is empty", beginning)
    box = fields.get("box")
    try:
        box = None if box is None else to_box(box)
    except InputError as error:
        return Refused(line, f'has a "box" that is none ({error})', beginning)
    return Request(line, number, caption, fields["seed"], fields["index"], box)


def no_known_word(request: Request, unknown: list[str]) -> Refused:
    """Return the refusal of a caption in which the model knows no word."""
    why = f"has no word that the model knows ({listed(unknown) or 'it has no words'})"
    return Refused(request.line, why, request.caption[:BEGINNING])
