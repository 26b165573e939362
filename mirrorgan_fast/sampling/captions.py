"""Captions as a stream: text or JSON lines, from a file or a pipe, of any size."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple

LONGEST_LINE = 65_536
"""Bytes; a longer line is refused without ever being in memory as a whole."""
BEGINNING = 500
"""Letters of a refused caption that are kept."""


@dataclass(frozen=True)
class Request:
    """An image that is wanted."""

    line: int
    """Where its caption stands in its source, from 1."""
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


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line's number, from 1, and its bytes, or None if they are too many."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE + 1)
        yield number, None


def parse(
    line: int, data: bytes | None, *, json_lines: bool, seed: int, per_caption: int
) -> Line | Refused:
    """Read a line of captions.

    Args:
        line: its number.
        data: what ``lines`` yields.
        json_lines: whether it is a JSON object: ``caption``, and if an image is to be made as
            another run made it (as a line of its manifest says) ``seed`` and ``index``.
        seed: where the line has none.
        per_caption: images of each caption. Where the line has no index, that of its first image
            is ``(line - 1) * per_caption``.
    """
    if data is None:
        return Refused(line, f"is longer than {LONGEST_LINE:,} bytes", "")
    try:
        text = data.decode("utf-8-sig" if line == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        return Refused(line, f"is not UTF-8 (byte {error.start + 1})", _beginning(data))
    beginning = text[:BEGINNING]
    number = (line - 1) * per_caption
    fields: Any = {"caption": text}
    if json_lines and text:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Refused(line, f"is not JSON ({error})", beginning)
        if not isinstance(fields, dict):
            fields = {}
    first = request_of({"seed": seed, "index": number, **fields}, line, number, beginning)
    return Line(first, per_caption) if isinstance(first, Request) else first


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
    if any("\ud800" <= letter <= "\udfff" for letter in caption):
        return Refused(line, "has half a surrogate pair, which is no text", beginning)
    for name in ("seed", "index"):
        if type(fields[name]) is not int or not 0 <= fields[name] < 2**128:
            return Refused(line, f'"{name}" is no whole number from 0 to 2^128', beginning)
    if not caption:
        return Refused(line, "is empty", beginning)
    return Request(line, number, caption, fields["seed"], fields["index"])


def no_known_word(request: Request, unknown: list[str]) -> Refused:
    """Return why a caption of unknown words alone is refused."""
    named = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    why = f"has no word that the model knows ({named or 'it has no words'})"
    return Refused(request.line, why, request.caption[:BEGINNING])


def _beginning(data: bytes) -> str:
    return data[:BEGINNING].decode("utf-8", "backslashreplace").strip()
