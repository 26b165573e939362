"""What a set of captioned images is, a folder of them, and training examples made from any.

A data set is anything with the five methods of CaptionedImages. ImageFolder reads the convention of
a folder of pictures beside a ``metadata.jsonl``; TrainingExamples turns any data set and a
vocabulary into the tensors a training step takes.
"""

import copy
import hashlib
import json
import mmap
import os
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Protocol, Self, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError, listed
from mirrorgan_fast.files import StrPath, open_file, parse_json, reason
from mirrorgan_fast.pictures import MAX_PIXELS, read_picture

METADATA = "metadata.jsonl"
LARGEST_METADATA = 2**32
"""Bytes. Two million pictures with ten captions each."""
_LONGEST_ROW = 2**24  # bytes; parsed, a row may take twenty times as many
_MOST_LINES = 2**24


class CaptionedImages(Protocol):
    """A set of pictures, each with one or more captions."""

    def __len__(self) -> int:
        """How many pictures there are."""
        ...

    def image(self, index: int) -> Image.Image:
        """The picture, mode "RGB", of any size."""
        ...

    def captions(self, index: int) -> list[str]:
        """The picture's captions, at least one."""
        ...

    def name(self, index: int) -> str:
        """A name no other picture of the set has and that stays the same, such as "train/00012"."""
        ...

    def label(self, index: int) -> int:
        """The picture's class; without classes, a number of its own.

        Pictures of one class are not negatives of each other.
        """
        ...


class _Row(NamedTuple):
    line: int
    file_name: str
    text: bytes  # of the whole row, which is parsed when it is asked for: that takes less memory


class ImageFolder(CaptionedImages):
    """A folder with a ``metadata.jsonl``: one JSON object a line, a line a picture.

    Each object has ``file_name`` (the path of the picture inside the folder) and ``captions`` (a
    list of strings, at least one). ``label`` or ``class_id`` (an integer, in all rows or in none)
    is the class; without it each picture is its own class. Any other fields are kept and come back
    from ``record``. A picture's name is its ``file_name`` without the extension.

    root: the folder.
    split: take only the rows whose ``split_field`` is this; None takes all.
    split_field: the field to compare with ``split``.
    max_pixels: a picture of more is refused before it is decoded.

    Raises InputError, naming the file and the line, for a row that breaks these rules or whose
    picture is not there, and for a split without rows, naming those there are. Pictures are opened
    by ``image``, which raises InputError for a damaged one.
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
        seen: dict[str, tuple[int, str]] = {}  # by name
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
        """The picture, mode "RGB", upright, on white; raises InputError if its file is damaged."""
        row = self._rows[index]
        place = f"{self._metadata}, line {row.line}"
        return read_picture(self._root / row.file_name, place, self._max_pixels)

    def captions(self, index: int) -> list[str]:
        """The list in the picture's row."""
        captions: list[str] = self.record(index)["captions"]
        return captions

    def name(self, index: int) -> str:
        """The path of the picture inside the folder, without the extension."""
        return _name(self._rows[index].file_name)

    def label(self, index: int) -> int:
        """The row's ``label`` or ``class_id``; if the rows have none, ``index``."""
        return self._labels[index]

    def record(self, index: int) -> dict[str, Any]:
        """The picture's whole row of ``metadata.jsonl``."""
        row = self._rows[index]
        return self._read_record(row.line, row.text)

    @property
    def fields(self) -> list[str]:
        """The names of the fields that any row has, whatever its split."""
        return list(self._fields)

    def _error(self, line: int, fault: str) -> InputError:
        return InputError(f"{self._metadata}, line {line}: {fault}")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines of ``metadata.jsonl`` that are not empty, with their numbers."""
        try:
            file = open_file(self._metadata)
        except InputError as error:
            raise InputError(
                f"{error}; an image folder needs this file, a line a picture: "
                '{"file_name": "a.jpg", "captions": ["a red bird"]}'
            ) from error
        with file:
            try:
                if os.fstat(file.fileno()).st_size > LARGEST_METADATA:
                    raise InputError(f"{self._metadata}: has more than {LARGEST_METADATA:,} bytes")
                for line in range(1, _MOST_LINES + 1):
                    text = file.readline(_LONGEST_ROW + 1)
                    if len(text) > _LONGEST_ROW:
                        raise self._error(line, f"has more than {_LONGEST_ROW:,} bytes")
                    if not text:
                        return
                    if text.strip():
                        yield line, text
            except OSError as error:
                raise InputError(f"{self._metadata}: cannot be read ({reason(error)})") from error
        raise InputError(f"{self._metadata}: has more than {_MOST_LINES:,} lines")

    def _choose(self, labels: dict[str, list[int | str | None]]) -> list[int]:
        """The labels of the first field that any row has; then all rows must have it."""
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


class Example(TypedDict):
    """One training example.

    image: uint8 (3, S, S), RGB in [0, 255]; not there in examples ``without_images``.
    tokens: int64 (T,), word numbers, filled up with 0.
    length: how many of the T are words, in [1, T].
    index: the picture's index in the data set.
    label: the picture's class.
    """

    image: NotRequired[Tensor]
    tokens: Tensor
    length: int
    index: int
    label: int


class TrainingExamples(Dataset[Example]):
    """Pictures and captions as tensors, one example a picture, each time with one of its captions.

    Everything random (caption, crop, flip, the words kept of a long caption) depends on (seed,
    epoch, index) and nothing else, so that a resumed run sees what the uninterrupted one would have
    seen, with any number of workers.

    images: the data set.
    vocabulary: numbers the words; those it lacks are dropped, and captions of which nothing is left
        are passed over.
    image_size: S, the side of the examples' images in pixels.
    caption_length: T, the number of words kept.
    augment: scale the shorter side to 76/64 S, crop S x S anywhere and flip half of the images, as
        AttnGAN and MirrorGAN train, but none whose caption says "left" or "right"; otherwise the
        middle square, scaled to S.
    seed: of the randomness, at least 0.

    Raises InputError for a size, length or seed out of range; ``[index]`` raises it for a picture
    that cannot be read or that has no caption with a known word.
    """

    def __init__(
        self,
        images: CaptionedImages,
        vocabulary: Vocabulary,
        image_size: int,
        caption_length: int = 18,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        for argument, value, least, most in (
            ("image_size", image_size, 1, 4096),
            ("caption_length", caption_length, 1, 1024),
            ("seed", seed, 0, 2**128 - 1),
        ):
            if type(value) is not int or not least <= value <= most:
                raise InputError(
                    f"{argument} must be a whole number from {least} to {most:,}, found {value!r}"
                )
        self._images = images
        self._vocabulary = vocabulary
        self._image_size = image_size
        self._caption_length = caption_length
        self._augment = augment
        self._seed = seed
        self._reads_images = True
        # Shared with processes, because workers that outlive an epoch (persistent_workers) hold a
        # copy of everything else. Memory without a name takes no room in /dev/shm, which may be
        # small or not writable.
        self._epoch = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, at least 0; call it before iterating a DataLoader, not during."""
        if not 0 <= epoch < 2**63:
            raise InputError(f"epoch must be at least 0 and below 2**63, found {epoch}")
        self._epoch.fill_(epoch)

    def without_images(self) -> Self:
        """The same examples without their images, which are not read; epochs are set for both."""
        examples = copy.copy(self)
        examples._reads_images = False
        return examples

    def phrases(self, count: int) -> Tensor:
        """Which of the ``count`` commonest phrases each picture's captions have.

        A phrase is one to three words in a row, of at least one picture in a thousand; phrases that
        at least nine in ten pictures have tell nothing and are passed over.

        Returns:
            bool (pictures, P), the commonest phrase first; P is ``count`` or, where there are not
            as many, less.

        Raises InputError where there is none.
        """
        known = set(self._vocabulary.words)
        phrases_of: list[set[tuple[str, ...]]] = []
        for index in range(len(self)):
            found: set[tuple[str, ...]] = set()
            for caption in self._images.captions(index):
                words = [w for w in self._vocabulary.tokenize(caption) if w in known]
                for length in (1, 2, 3):
                    found.update(zip(*(words[i:] for i in range(length)), strict=False))
            phrases_of.append(found)
        counts = Counter(phrase for found in phrases_of for phrase in found)
        telling = [
            (-number, phrase)
            for phrase, number in counts.items()
            if len(self) / 1000 <= number < len(self) * 9 / 10
        ]
        if not telling:
            raise InputError("the captions of all pictures say the same: nothing to learn from")
        place = {phrase: i for i, (_, phrase) in enumerate(sorted(telling)[:count])}
        has = torch.zeros(len(self), len(place), dtype=torch.bool)
        for index, found in enumerate(phrases_of):
            has[index, [place[phrase] for phrase in found if phrase in place]] = True
        return has

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        rng = np.random.default_rng((self._seed, int(self._epoch), index))
        tokens, length, may_flip = self._caption(index, rng)
        example = Example(
            tokens=tokens, length=length, index=index, label=self._images.label(index)
        )
        if self._reads_images:
            example["image"] = self._image(index, rng, may_flip)
        return example

    def _caption(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int, bool]:
        """A caption with a known word: tokens (T,), length, and whether flipping keeps it true."""
        captions = self._images.captions(index)
        for choice in rng.permutation(len(captions)):
            encoded = self._vocabulary.encode([captions[choice]], self._caption_length, rng)
            length = int(encoded.lengths[0])
            if length > 0:
                may_flip = {"left", "right"}.isdisjoint(self._vocabulary.tokenize(captions[choice]))
                return encoded.tokens[0], length, may_flip
        raise InputError(
            f"picture {self._images.name(index)!r}: its captions have no word of the vocabulary"
        )

    def _image(self, index: int, rng: np.random.Generator, may_flip: bool) -> Tensor:
        """uint8 (3, S, S), cropped and scaled in one step: no pixel is interpolated twice."""
        picture = self._images.image(index)
        width, height = picture.size
        side: float = min(width, height)
        across, down, flip = 0.5, 0.5, False
        if self._augment:
            side *= 64 / 76
            across, down = rng.random(2)
            flip = bool(rng.random() < 0.5) and may_flip
        left, top = across * (width - side), down * (height - side)
        square = picture.resize(
            (self._image_size, self._image_size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        pixels = np.asarray(square)
        if flip:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def digest(self) -> str:
        """A fingerprint of all names, classes and captions, in their order."""
        rows = hashlib.sha256()
        for i in range(len(self)):
            row = [self._images.name(i), int(self._images.label(i)), *self._images.captions(i)]
            rows.update(json.dumps(row).encode())
        return rows.hexdigest()[:16]


def leads_out(path: str) -> bool:
    """Whether a path that should be inside a folder is absolute or climbs out of it.

    By its text and not its target: who links the folder of the pictures to another disk means to.
    """
    return os.path.isabs(path) or Path(os.path.normpath(path)).parts[:1] == ("..",)


def no_such_file(root: Path, path: str) -> str:
    """Say that a folder has no file of this path, and if there is one that looks the same."""
    here, found = root, []
    parts = Path(os.path.normpath(path)).parts
    for part in parts:
        there: str | None = part
        if not os.path.lexists(here / part):
            try:
                there = same_looking(part, os.listdir(here))
            except OSError:
                there = None
        if there is None:
            return f"there is no file {shown(path)}"
        found.append(there)
        here /= there
    if found == list(parts):
        return f"{shown(path)} is no regular file"
    return (
        f"there is no file {path!a} but {os.path.join(*found)!a}, which looks the same: its "
        "letters are composed in another way of Unicode; rename one as the other"
    )


def same_looking(name: str, others: Iterable[str]) -> str | None:
    """Return the first of other names that differs at most in how Unicode composes its letters."""
    form = unicodedata.normalize("NFC", name)
    return next((other for other in others if unicodedata.normalize("NFC", other) == form), None)


def is_integer_of_64_bits(value: object) -> bool:
    """Whether a value fits in an int64 tensor; True and False are no integers here."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_text(text: str) -> bool:
    """Whether a string can be written to a file: one with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxstring = _BRIEFLY.maxother = 80


def shown(value: object) -> str:
    """Show a value of a file in a message, however large or nested it is."""
    return _BRIEFLY.repr(value)


def _name(file_name: str) -> str:
    return os.path.splitext(os.path.normpath(file_name))[0]
