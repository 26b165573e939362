"""The rows of a run, one per image or refused caption: how they are written and checked.

A row is a line of JSON. What it must contain follows from the description of the run
(``check_run``) and from the rows before it (``Rows``), except for the texts, seeds and indices of
the captions. Rows that are read are not trusted.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mirrorgan_fast.boxes import EXPECTED, to_box
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import parse_json
from mirrorgan_fast.sampling.captions import Refused
from mirrorgan_fast.sampling.sampler import Result
from mirrorgan_fast.sampling.sinks import FORMATS, LOSSY, OwnSink, Row, open_sink

LONGEST_ROW = 2**22
"""Maximum length of a row in bytes. A caption of 64 KiB takes six times as many bytes if each byte
is escaped, and the same again as unknown words."""
IS_REFUSED = b'{"error": '
"""The beginning of each row of a refused caption. No other row begins like this."""

_Field = tuple[Callable[[Any], bool], str]  # a check of the value, and its description


def _whole(minimum: int, maximum: int) -> _Field:
    # bool is a subclass of int
    return (
        lambda value: type(value) is int and minimum <= value <= maximum,
        "a whole number in range",
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_box(value: Any) -> bool:
    try:
        to_box(value)
    except InputError:
        return False
    return True


_TEXT: _Field = lambda value: isinstance(value, str), "text"
_REASON: _Field = lambda value: isinstance(value, str) and value != "", "a reason"
_POSITIVE, _NUMBER = _whole(1, 2**63 - 1), _whole(0, 2**128 - 1)
_RUN: dict[str, _Field] = {
    "model": _TEXT,
    "dtype": _TEXT,
    "device": _TEXT,
    "sink": _TEXT,
    "seed": _NUMBER,
    "per_caption": _POSITIVE,
    "psi": (_is_share, "0 to 1"),
    "format": (lambda value: isinstance(value, str) and value in FORMATS, "a known format"),
    "quality": _whole(1, 100),  # only of JPEG and WebP
    "text_vectors": _TEXT,  # a digest; only if there are some
    "shard_size": _POSITIVE,
    "flat": (lambda value: isinstance(value, bool), "true or false"),
}
_IMAGE: dict[str, _Field] = {
    "caption": _TEXT,
    "seed": _NUMBER,
    "index": _NUMBER,
    "box": (_is_box, EXPECTED),  # only in the row of an image with a given box
    "unknown": (_is_texts, "a list of words"),
    "line": _POSITIVE,
}
_REFUSED: dict[str, _Field] = {"error": _REASON, "line": _POSITIVE, "text": _TEXT}
_OUR_FILE = re.compile(r"([0-9]{5,}/[0-9]{8,}|[0-9]{4,})\.(png|jpg|webp)|[0-9]{5,}\.(tar|npy)")


def check_run(run: Any) -> None:
    """Check the description of a run: everything that determines its images except the captions.

    Of text vectors, which the manifest does not have, it has a digest.

    Args:
        run: a JSON object with the class name of the user's own ``sink`` or "", a description of
            the model and the device, the fields of ``SamplingSettings``, and ``text_vectors``.

    Raises:
        ValueError: it does not describe a run. The message says why.
    """
    if not isinstance(run, dict):
        raise ValueError("is not a JSON object")
    _check_fields(run, _RUN, optional=("quality", "text_vectors"))
    if run.keys() - _RUN.keys() or ("quality" in run) != run["format"].endswith(LOSSY):
        raise ValueError("has fields that a run does not have")


def captions_of_shard(run: Mapping[str, Any]) -> int:
    """Return the number of captions per shard of a run."""
    return max(1, int(run["shard_size"]) // int(run["per_caption"]))


def own_sink(run: Mapping[str, Any], folder: Path) -> OwnSink | None:
    """Return the sink that knows where a run's images are; None if it is a sink of the user's."""
    return None if run["sink"] else open_sink(run["format"], folder, flat=run["flat"])


def image_row(result: Result, place: Row) -> bytes:
    """Return the row of an image, which ``sample --captions`` can read.

    Args:
        result: the image.
        place: the location of the image, as the sink returned it.

    Raises:
        ValueError: the location has contents that cannot be in a row.
    """
    row = {**result.request.fields, "unknown": result.unknown, "line": result.request.line}
    return _line({**row, **place})


def refused_row(refused: Refused) -> bytes:
    """Return the row of a caption from which no image can be made."""
    return _line({"error": refused.reason, "line": refused.line, "text": refused.text})


def check_place(folder: Path, place: Row) -> None:
    """Check the location of an image that a sink of the user's own returned.

    Args:
        folder: the output folder.
        place: what ``write`` returned. If it has a ``file``, this must be in the folder after
            symbolic links are resolved.

    Raises:
        ValueError: the file is not in the folder, or the location has a field that each row has
            already.
    """
    if taken := place.keys() & {*_IMAGE, "error"}:
        raise ValueError(f'has the field "{min(taken)}", which each row has already')
    if "file" in place and not _is_inside(folder, place["file"]):
        raise ValueError(f"names the file {place['file']!r:.300}, which is not in the folder")


def is_ours(row: Row) -> bool:
    """Whether a row's file has a name that this program gives, so that it may be removed."""
    return isinstance(row.get("file"), str) and _OUR_FILE.fullmatch(row["file"]) is not None


class Rows:
    """Checks the rows of a shard, in their order.

    Args:
        run: the description of the run, which ``check_run`` has checked.
        shard: the number of the shard.
        folder: the output folder.
    """

    def __init__(self, run: Mapping[str, Any], shard: int, folder: Path) -> None:
        captions = captions_of_shard(run)
        self._per_caption: int = run["per_caption"]
        self._shard, self._folder = shard, folder
        self._own = own_sink(run, folder)
        self._line, self._last = shard * captions, (shard + 1) * captions
        self._of_line = 0  # images of this line so far, 0 if it was refused
        self._images = 0  # images of the shard so far

    def take(self, data: bytes) -> Row:
        """Parse and check the next row.

        Args:
            data: the line of the row.

        Returns:
            the row.

        Raises:
            ValueError: this run cannot have written this row next. The message says why.
        """
        row = parse_json(data)
        if not isinstance(row, dict):
            raise ValueError("is not a JSON object")
        if "error" in row:
            _check_fields(row, _REFUSED)
            self._follow(row["line"], refused=True)
            _check_same(row, _REFUSED, {}, data)
            return row
        _check_fields(row, _IMAGE, optional="box")
        fields = [name for name in _IMAGE if name != "box" or "box" in row]
        self._follow(row["line"], refused=False)
        if self._own is None:
            place = {name: value for name, value in row.items() if name not in _IMAGE}
            check_place(self._folder, place)
        else:
            number = (row["line"] - 1) * self._per_caption + self._of_line - 1
            _check_same(row, fields, self._own.place(self._shard, number, self._images), data)
        self._images += 1
        return row

    def _follow(self, line: int, refused: bool) -> None:
        """Advance to the next image of the line, or to the next line."""
        if not refused and line == self._line and 0 < self._of_line < self._per_caption:
            self._of_line += 1
        elif line == self._line + 1 <= self._last and self._of_line in (0, self._per_caption):
            self._line, self._of_line = line, 0 if refused else 1
        else:
            raise ValueError(f"is for line {line}, which is out of order")


def _check_fields(
    row: Mapping[str, Any], fields: Mapping[str, _Field], optional: Sequence[str] = ()
) -> None:
    for name, (fits, expected) in fields.items():
        if name not in row:
            if name not in optional:
                raise ValueError(f'has no "{name}"')
        elif not fits(row[name]):
            raise ValueError(f'has the "{name}" {row[name]!r:.100}, expected {expected}')


def _check_same(row: Row, fields: Iterable[str], place: Row, data: bytes) -> None:
    """Check that a row has these fields and this location, in this order and in this notation.

    The bytes are compared because they are copied to the manifest unchanged.
    """
    expected = {**row, **place}
    if [*row] == [*fields, *place] and _line(expected) == data:
        return
    for name, value in place.items():
        if row.get(name) != value:
            raise ValueError(f'has the "{name}" {row.get(name)!r:.300}, expected {value!r}')
    raise ValueError("is not written as this program writes it")


def _is_inside(folder: Path, name: Any) -> bool:
    if not isinstance(name, str) or os.path.isabs(name) or ".." in name.split("/"):
        return False
    try:
        inside, found = os.path.realpath(folder), os.path.realpath(folder / name)
    except (OSError, ValueError):  # a NUL, or characters that a file name cannot have
        return False
    return found.startswith(os.path.join(inside, ""))


_encoder = json.JSONEncoder(ensure_ascii=False)  # json.dumps would create one in each call


def _line(row: Row) -> bytes:
    return _encoder.encode(row).encode() + b"\n"
