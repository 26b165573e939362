"""What is wanted of a caption: which images, and if none can be made of it, why."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mirrorgan_fast.errors import listed

LONGEST_CAPTION = 65_536
"""Bytes of UTF-8; a longer caption is refused."""
BEGINNING = 500
"""Letters of a refused caption that are kept."""
_NUMBERS = 2**128  # seeds and indices are below


class Record(NamedTuple):
    """A caption as it was read, not yet checked."""

    fields: Mapping[str, Any] | None
    """``caption``, and where the record names them ``seed`` and ``index``, of whatever type. None
    if it could not be read."""
    beginning: str
    """How the record begins; what is told of it if it is refused."""
    reason: str = ""
    """Why it could not be read."""
    position: int = 0
    """Of the caption in a list of captions that share the fields, from 0."""


@dataclass(frozen=True)
class Request:
    """An image that is wanted."""

    line: int
    """The number of its caption in its source, from 1."""
    number: int
    """Where the image stands in the output, from 0; its file is named after it."""
    caption: str
    seed: int
    index: int
    """Of the seed's noises, from 0. Caption, seed and index decide the image."""


class Line(NamedTuple):
    """A caption, and how many images of it are wanted."""

    first: Request
    images: int

    def request(self, k: int) -> Request:
        """Return the image k of it, from 0."""
        first = self.first
        return replace(first, number=first.number + k, index=first.index + k)


@dataclass(frozen=True)
class Refused:
    """A caption that no image can be made of."""

    line: int
    reason: str
    text: str
    """How it begins."""


def parse(line: int, record: Record, *, seed: int, per_caption: int) -> Line | Refused:
    """Take what is wanted from a record, if it can be taken.

    Args:
        line: its number, from 1.
        record: as it was read. One with a ``seed`` and an ``index``, as a line of a manifest has
            them, asks for the image that another run made.
        seed: where the record has none.
        per_caption: images of each caption. Where the record has no index, that of its first image
            is ``(line - 1) * per_caption``.
    """
    if record.fields is None:
        return Refused(line, record.reason, record.beginning)
    number = (line - 1) * per_caption
    fields = {"seed": seed, "index": number, **record.fields}
    first = request_of(fields, line, number, record.beginning)
    if isinstance(first, Refused):
        return first
    if "index" in record.fields and record.position:
        first = replace(first, index=first.index + record.position * per_caption)
    if first.index + per_caption > _NUMBERS:  # a line of the manifest would have it
        return Refused(line, '"index" is too large for all images', record.beginning)
    return Line(first, per_caption)


def request_of(
    fields: Mapping[str, Any], line: int, number: int, beginning: str
) -> Request | Refused:
    """Take a caption, a seed and an index for an image, if they can be taken.

    Args:
        fields: ``caption``, ``seed`` and ``index``, of whatever type.
        line: where they come from.
        number: of the image in the output.
        beginning: what is told of a refused one.
    """
    caption = fields.get("caption")
    if not isinstance(caption, str):
        return Refused(line, 'has no "caption" that is text', beginning)
    caption = caption.strip()
    try:
        size = len(caption.encode())
    except UnicodeEncodeError:
        return Refused(line, "has half a surrogate pair, which is no text", beginning)
    if size > LONGEST_CAPTION:
        return Refused(line, f"is longer than {LONGEST_CAPTION:,} bytes", beginning)
    for name in ("seed", "index"):
        if type(fields[name]) is not int or not 0 <= fields[name] < _NUMBERS:
            return Refused(line, f'"{name}" is no whole number from 0 to 2^128', beginning)
    if not caption:
        return Refused(line, "is empty", beginning)
    return Request(line, number, caption, fields["seed"], fields["index"])


def no_known_word(request: Request, unknown: list[str]) -> Refused:
    """Return why a caption of unknown words alone is refused."""
    why = f"has no word that the model knows ({listed(unknown) or 'it has no words'})"
    return Refused(request.line, why, request.caption[:BEGINNING])
