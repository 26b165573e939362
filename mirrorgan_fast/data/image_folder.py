"""An image folder: a folder of pictures with a metadata.jsonl."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mirrorgan_fast.boxes import Box, to_box
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.checks import (
    file_stamp,
    is_integer_of_64_bits,
    is_text,
    leads_out,
    no_such_file,
    shown,
)
from mirrorgan_fast.errors import InputError, listed
from mirrorgan_fast.files import StrPath, open_file, parse_json, reason
from mirrorgan_fast.pictures import MAX_PIXELS, read_picture, size_of_picture

METADATA = "metadata.jsonl"
LARGEST_METADATA = 2**32
"""Maximum size of ``metadata.jsonl`` in bytes, enough for two million pictures with ten captions
each."""
_LONGEST_ROW = 2**24  # bytes; parsed, a row may take twenty times as much memory
_MAX_LINES = 2**24


class _Row(NamedTuple):
    line: int
    file_name: str
    text: bytes  # the whole row, which is parsed only when it is needed: this takes less memory


class ImageFolder(CaptionedImages):
    """A folder with a ``metadata.jsonl``: one JSON object per line, one line per picture.

    Each object has ``file_name`` (the path of the picture inside the folder) and ``captions`` (a
    list of strings, at least one). ``label`` or ``class_id`` (an integer, in all rows or in none)
    is the class; without it each picture is its own class. ``box``, which only systems that place
    things need, is where in the picture the thing is that the captions describe. Any other fields
    are kept and returned by ``record``. A picture's name is its ``file_name`` without the
    extension.

    Args:
        root: the folder.
        split: the split. Only rows whose ``split_field`` has this value are used; None uses all.
        split_field: the field to compare with ``split``.
        max_pixels: maximum number of pixels. A larger picture is refused before it is decoded.

    Raises:
        InputError: a row breaks these rules or its picture is missing (the message names the file
            and the line), or the split has no rows (the message names the splits that exist).
            Pictures are opened only by ``image``, which raises InputError for a damaged one.
    """

    def __init__(
        self,
        root: StrPath,
        split: str | None = None,
        split_field: str = "split",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._root = Path(root)
        self._metadata = self._root / METADATA
        self._max_pixels = max_pixels
        self._fields: dict[str, None] = {}
        self._rows: list[_Row] = []
        labels: dict[str, list[int | str | None]] = {"label": [], "class_id": []}
        splits: dict[str, None] = {}
        seen: dict[str, tuple[int, str]] = {}  # line and path, by name
        for line, text in self._lines():
            record = self._read_record(line, text)
            self._fields |= dict.fromkeys(record)
            path = os.path.normpath(record["file_name"])
            first, other = seen.setdefault(_name(path), (line, path))
            if first != line:
                same = "same picture as" if path == other else "name, without its extension, of"
                raise self._error(line, f"{shown(record['file_name'])} is the {same} line {first}")
            if split is None or record.get(split_field) == split:
                self._rows.append(_Row(line, record["file_name"], text))
                for field, of_rows in labels.items():
                    value = record.get(field)
                    is_label = value is None or is_integer_of_64_bits(value)
                    of_rows.append(value if is_label else shown(value))
            elif split_field in record:
                other_split = record[split_field]
                is_name = isinstance(other_split, str)
                splits[other_split[:80] if is_name else shown(other_split)] = None
        if not seen:
            raise InputError(f"{self._metadata}: has no rows")
        if not self._rows:
            raise InputError(
                f'{self._metadata}: no row has the {split_field} "{split}"; '
                f"there are: {listed(sorted(splits)) or 'none at all'}"
            )
        for row in self._rows:
            if not os.path.isfile(self._root / row.file_name):
                raise self._error(row.line, no_such_file(self._root, row.file_name))
        self._labels = self._choose(labels)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> Image.Image:
        """Return the picture: mode "RGB", upright, on a white background.

        Raises:
            InputError: the file is damaged.
        """
        return read_picture(*self._file(index), self._max_pixels)

    def captions(self, index: int) -> list[str]:
        """Return the captions in the picture's row."""
        captions: list[str] = self.record(index)["captions"]
        return captions

    def name(self, index: int) -> str:
        """Return the path of the picture inside the folder, without the extension."""
        return _name(self._rows[index].file_name)

    def label(self, index: int) -> int:
        """Return the row's ``label`` or ``class_id``; if the rows have neither, ``index``."""
        return self._labels[index]

    def box(self, index: int) -> Box | None:
        """Return the row's ``box``: [x, y, width, height] in shares of the picture, from 0 to 1.

        None: the row has none.

        Raises:
            InputError: the row has something else there.
        """
        found = self.record(index).get("box")
        try:
            return None if found is None else to_box(found)
        except InputError as error:
            fault = f'has the "box" {shown(found)}, {error}'
            raise self._error(self._rows[index].line, fault) from error

    def size(self, index: int) -> tuple[int, int]:
        """Return the picture's width and height in pixels, upright.

        Raises:
            InputError: the beginning of the file is damaged.
        """
        return size_of_picture(*self._file(index), self._max_pixels)

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the picture's file, and the limit of pixels."""
        stamp = file_stamp(self._root / self._rows[index].file_name)
        return f"{stamp}, limit {self._max_pixels}"

    def record(self, index: int) -> dict[str, Any]:
        """Return the picture's whole row of ``metadata.jsonl``."""
        row = self._rows[index]
        return self._read_record(row.line, row.text)

    @property
    def fields(self) -> list[str]:
        """The names of all fields that occur in the rows of any split."""
        return list(self._fields)

    def _file(self, index: int) -> tuple[Path, str]:
        """Return the path of a picture, and the place that names it."""
        row = self._rows[index]
        return self._root / row.file_name, f"{self._metadata}, line {row.line}"

    def _error(self, line: int, fault: str) -> InputError:
        return InputError(f"{self._metadata}, line {line}: {fault}")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of ``metadata.jsonl`` that are not empty, with their numbers."""
        try:
            file = open_file(self._metadata)
        except InputError as error:
            raise InputError(
                f"{error}; an image folder needs this file, with one line per picture: "
                '{"file_name": "a.jpg", "captions": ["a red bird"]}'
            ) from error
        with file:
            try:
                if os.fstat(file.fileno()).st_size > LARGEST_METADATA:
                    raise InputError(f"{self._metadata}: has more than {LARGEST_METADATA:,} bytes")
                for line in range(1, _MAX_LINES + 1):
                    text = file.readline(_LONGEST_ROW + 1)
                    if len(text) > _LONGEST_ROW:
                        raise self._error(line, f"has more than {_LONGEST_ROW:,} bytes")
                    if not text:
                        return
                    if text.strip():
                        yield line, text
            except OSError as error:
                raise InputError(f"{self._metadata}: cannot be read ({reason(error)})") from error
        raise InputError(f"{self._metadata}: has more than {_MAX_LINES:,} lines")

    def _choose(self, labels: dict[str, list[int | str | None]]) -> list[int]:
        """Return the labels from the first label field that any row has. All rows must have it."""
        for field, of_rows in labels.items():
            if of_rows.count(None) < len(of_rows):
                chosen = []
                for row, label in zip(self._rows, of_rows, strict=True):
                    if not isinstance(label, int):
                        fault = f'"{field}" must be an integer of 64 bits, found {label}'
                        raise self._error(row.line, fault)
                    chosen.append(label)
                return chosen
        return list(range(len(self._rows)))

    def _read_record(self, line: int, text: bytes) -> dict[str, Any]:
        try:
            record = parse_json(text)
        except ValueError as error:
            raise self._error(line, f"not a JSON object ({error})") from error
        if not isinstance(record, dict):
            raise self._error(line, f"must be a JSON object, found {type(record).__name__}")
        for field in ("file_name", "captions"):
            if field not in record:
                there = listed([name[:80] for name in record]) or "nothing"
                raise self._error(line, f'has no "{field}"; it has {there}')
        file_name, captions = record["file_name"], record["captions"]
        if not isinstance(file_name, str) or not file_name:
            raise self._error(line, f'"file_name" must be a path, found {shown(file_name)}')
        if leads_out(file_name):
            raise self._error(line, f'"file_name" leads out of the folder: {shown(file_name)}')
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise self._error(
                line, f'"captions" must be a list of strings, found {shown(captions)}'
            )
        if not captions:
            raise self._error(line, '"captions" is empty; a picture needs at least one')
        for caption in captions:
            if not is_text(caption):
                raise self._error(line, f"a caption has a lone surrogate: {shown(caption)}")
        return record


def text_attributes(images: ImageFolder, index: int) -> dict[str, str]:
    """Return the ``attributes`` in a picture's row that are texts, by their names.

    Raises:
        InputError: the row has no attributes.
    """
    attributes = images.record(index).get("attributes")
    if not isinstance(attributes, dict):
        raise InputError(
            f"picture {images.name(index)!r} has no attributes in metadata.jsonl, such as "
            f'"attributes": {{"garment": "hat"}}'
        )
    return {name: value for name, value in attributes.items() if isinstance(value, str)}


def _name(file_name: str) -> str:
    return os.path.splitext(os.path.normpath(file_name))[0]
