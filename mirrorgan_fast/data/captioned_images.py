"""What a set of captioned images is, a folder of them, and training examples made from any.

A data set is anything with the five methods of CaptionedImages. ImageFolder reads the convention of
a folder of pictures beside a ``metadata.jsonl``; TrainingExamples turns any data set and a
vocabulary into the tensors a training step takes.
"""

import copy
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Protocol, Self, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.pictures import read_picture


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
    record: dict[str, Any]


class ImageFolder(CaptionedImages):
    """A folder with a ``metadata.jsonl``: one JSON object a line, a line a picture.

    Each object has ``file_name`` (the path of the picture inside the folder) and ``captions`` (a
    list of strings, at least one). ``label`` or ``class_id`` (an integer, in all rows or in none)
    is the class; without it each picture is its own class. Any other fields are kept and come back
    from ``record``. A picture's name is its ``file_name`` without the extension.

    root: the folder.
    split: take only the rows whose ``split_field`` is this; None takes all.
    split_field: the field to compare with ``split``.

    Raises InputError, naming the file and the line, for a row that breaks these rules or whose
    picture is not there, and for a split without rows, naming those there are. Pictures are opened
    by ``image``, which raises InputError for a damaged one.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        split_field: str = "split",
    ) -> None:
        self._root = Path(root)
        self._metadata = self._root / "metadata.jsonl"
        rows = self._read_rows()
        if split is not None:
            rows = self._select(rows, split, split_field)
        for row in rows:
            if not os.path.isfile(self._root / row.record["file_name"]):
                raise self._error(row.line, f"there is no file {row.record['file_name']!r:.80}")
        self._labels = self._read_labels(rows)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> Image.Image:
        """The picture, mode "RGB", upright, on white; raises InputError if its file is damaged."""
        row = self._rows[index]
        path = self._root / row.record["file_name"]
        return read_picture(path, place=f"{self._metadata}, line {row.line}")

    def captions(self, index: int) -> list[str]:
        """The list in the picture's row."""
        return list(self.record(index)["captions"])

    def name(self, index: int) -> str:
        """The path of the picture inside the folder, without the extension."""
        return _name(self.record(index)["file_name"])

    def label(self, index: int) -> int:
        """The row's ``label`` or ``class_id``; if the rows have none, ``index``."""
        return self._labels[index]

    def record(self, index: int) -> dict[str, Any]:
        """The picture's whole row of ``metadata.jsonl``."""
        return self._rows[index].record

    def _error(self, line: int, fault: str) -> InputError:
        return InputError(f"{self._metadata}, line {line}: {fault}")

    def _read_rows(self) -> list[_Row]:
        try:
            lines = self._metadata.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(
                f"{self._metadata}: cannot read it ({error.strerror}); an image folder needs this "
                'file, a line a picture: {"file_name": "a.jpg", "captions": ["a red bird"]}'
            ) from error
        rows: list[_Row] = []
        seen: dict[str, tuple[int, str]] = {}  # by name
        for line, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            record = self._read_record(line, text)
            path = os.path.normpath(record["file_name"])
            first, other = seen.setdefault(_name(path), (line, path))
            if first != line:
                same = "same picture as" if path == other else "name, without its extension, of"
                raise self._error(line, f"{record['file_name']!r:.80} is the {same} line {first}")
            rows.append(_Row(line, record))
        if not rows:
            raise InputError(f"{self._metadata}: has no rows")
        return rows

    def _read_record(self, line: int, text: bytes) -> dict[str, Any]:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._error(line, f"not a JSON object ({error})") from error
        if not isinstance(record, dict):
            raise self._error(line, f"must be a JSON object, found {type(record).__name__}")
        for field in ("file_name", "captions"):
            if field not in record:
                there = ", ".join(record) or "nothing"
                raise self._error(line, f'has no "{field}"; it has {there}')
        file_name, captions = record["file_name"], record["captions"]
        if not isinstance(file_name, str) or not file_name:
            raise self._error(line, f'"file_name" must be a path, found {file_name!r}')
        if leads_out(file_name):
            raise self._error(line, f'"file_name" leads out of the folder: {file_name!r}')
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise self._error(line, f'"captions" must be a list of strings, found {captions!r:.80}')
        if not captions:
            raise self._error(line, '"captions" is empty; a picture needs at least one')
        return record

    def _select(self, rows: list[_Row], split: str, split_field: str) -> list[_Row]:
        selected = [row for row in rows if row.record.get(split_field) == split]
        if not selected:
            there = {str(row.record[split_field]) for row in rows if split_field in row.record}
            raise InputError(
                f'{self._metadata}: no row has the {split_field} "{split}"; '
                f"there are: {', '.join(sorted(there)) or 'none at all'}"
            )
        return selected

    def _read_labels(self, rows: list[_Row]) -> list[int]:
        for field in ("label", "class_id"):
            if not any(field in row.record for row in rows):
                continue
            for row in rows:
                label = row.record.get(field)
                if not isinstance(label, int) or isinstance(label, bool) or not _fits(label):
                    raise self._error(
                        row.line, f'"{field}" must be an integer of 64 bits, found {label!r:.80}'
                    )
            return [row.record[field] for row in rows]
        return list(range(len(rows)))


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
        for argument, value, least in (
            ("image_size", image_size, 1),
            ("caption_length", caption_length, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{argument} must be at least {least}, found {value}")
        self._images = images
        self._vocabulary = vocabulary
        self._image_size = image_size
        self._caption_length = caption_length
        self._augment = augment
        self._seed = seed
        self._reads_images = True
        # In shared memory, because workers that outlive an epoch (persistent_workers) hold a copy
        # of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, at least 0; call it before iterating a DataLoader, not during."""
        if epoch < 0:
            raise InputError(f"epoch must be at least 0, found {epoch}")
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


def _fits(label: int) -> bool:
    return -(2**63) <= label < 2**63


def _name(file_name: str) -> str:
    return os.path.splitext(os.path.normpath(file_name))[0]
