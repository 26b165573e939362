"""Writing the pictures of a repository, cropped and measured, as an image folder with captions."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from mirrorgan_fast.data.captioned_images import Caption
from mirrorgan_fast.data.checks import shown
from mirrorgan_fast.data.image_folder import METADATA
from mirrorgan_fast.data.prepare.colors import Colors, measure_colors
from mirrorgan_fast.data.prepare.held_out import Pair, held_out_pairs
from mirrorgan_fast.data.prepare.phrases import rng_of
from mirrorgan_fast.data.prepare.squares import scaled
from mirrorgan_fast.data.worker_processes import in_processes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, check_free, read_file, reason, regular, whole_folder
from mirrorgan_fast.pictures import read_picture

DEFAULT_SIZE = 256
"""Pictures are scaled down to at most this many pixels a side."""
MIN_SIZE, MAX_SIZE = 64, 1024

_LARGEST_TABLE = 2**25  # bytes; the tables of both repositories have less than 3 MB
_LEAST_SIDE = 32  # pixels
_MAX_WORKERS = 1024
_BAR_AFTER = 2  # seconds; shorter work shows no bar

Attributes = dict[str, str | bool | None]
"""What the captions of a picture name; None: it is not named."""


@dataclass(frozen=True)
class Source:
    """A picture of a repository that is to be prepared.

    Attributes:
        name: of the picture, unique, and a valid file name.
        path: of its file.
        facts: what is known of it beside its pixels.
        table: its row in the repository's table, or a part of the row.
    """

    name: str
    path: Path
    facts: Attributes
    table: Mapping[str, str]


@dataclass
class Found:
    """What the table of a repository leads to.

    Attributes:
        sources: the pictures to prepare.
        unused: numbers of rows and pictures that are not wanted, by the reason.
        faults: a line about each row that cannot be used.
    """

    sources: list[Source] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Repository(Protocol):
    """How the pictures of a public repository are found, cropped and described."""

    NAME: ClassVar[str]
    """In the rows of metadata.jsonl."""
    CLASS: ClassVar[str]
    """The attribute that says what a picture is of, one of ``facts``."""
    COLORS: ClassVar[tuple[str, ...]]
    """The attributes of ``measured`` that captions assert."""

    def find(self, root: Path) -> Found:
        """Return the pictures of a copy of the repository.

        Raises:
            InputError: the folder is not such a copy.
        """

    def square(self, picture: Image.Image) -> Image.Image | None:
        """Crop a picture to a square; None: it does not show what it should."""

    def measured(self, colors: Colors, kind: str) -> Attributes:
        """Return what captions name of the colors in a square, given what it is a picture of."""

    def pairs(self, attributes: Attributes) -> frozenset[Pair]:
        """Return the pairs of class and color that the captions name."""

    def captions(self, attributes: Attributes, rng: np.random.Generator) -> list[Caption]:
        """Return ten captions."""


@dataclass(frozen=True)
class Report:
    """What was written, and what was not.

    Attributes:
        pictures: number of pictures in each split.
        held_out: the pairs of class and color that only the test split has, in alphabetical order.
        unused: numbers of rows and pictures that are not wanted, by the reason.
        faults: a line about each row or picture that is missing or damaged.
    """

    pictures: Mapping[str, int]
    held_out: Sequence[Pair]
    unused: Mapping[str, int]
    faults: Sequence[str]


def prepare(
    repository: Repository,
    root: StrPath,
    output: StrPath,
    size: int = DEFAULT_SIZE,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Write the pictures of a repository as an image folder: `images/*.jpg` and `metadata.jsonl`.

    Each row has file_name, captions (ten), split, source: the name of the repository, attributes:
    what the captions may name, named: what each of them asserts, and table: the picture's row in
    the table of the repository. The split "test" has all pictures of some
    pairs of a class and a color, which "train" never shows (see `held_out.py`).

    The folder appears when it is complete. Its content depends on nothing but the repository and
    the size.

    Args:
        repository: which one it is.
        root: the folder of a copy of it, which is only read.
        output: the folder to create. It must not exist, or be empty.
        size: pictures are scaled down to at most this many pixels a side, 64 to 1,024.
        workers: number of processes, at most 1,024 (default: one per core).
        progress: whether to show a progress bar on stderr.

    Raises:
        InputError: ``root`` is no copy of the repository, ``output`` is not empty or cannot be
            written, no picture can be used, or an argument is out of range.
    """
    if workers is None:
        workers = os.cpu_count() or 1
    for name, value, least, most in (
        ("size", size, MIN_SIZE, MAX_SIZE),
        ("workers", workers, 1, _MAX_WORKERS),
    ):
        if type(value) is not int or not least <= value <= most:
            raise InputError(f"{name} must be {least} to {most:,}, not {value!r}")
    output = Path(os.path.abspath(output))
    check_free(output)
    found = repository.find(Path(root))
    sources = sorted(found.sources, key=lambda source: source.name)
    try:
        with whole_folder(output) as partial:
            (partial / "images").mkdir()
            work = _Work(repository, partial, size)
            results = in_processes(work.write, sources, max(1, min(workers, len(sources))))
            rows = []
            with (
                closing(results),
                tqdm(
                    total=len(sources),
                    desc="preparing",
                    unit="image",
                    delay=_BAR_AFTER,
                    disable=not progress,
                ) as bar,
            ):
                for result in results:
                    bar.update()
                    if isinstance(result, _Row):
                        rows.append(result)
                    elif result is None:
                        found.unused["pictures in which nothing was found"] += 1
                    else:
                        found.faults.append(result)
            if not rows:
                because = f" ({found.faults[0]})" if found.faults else ""
                raise InputError(f"{root}: no picture can be used{because}")
            held = held_out_pairs([row.pairs for row in rows])
            pictures = _write_metadata(partial / METADATA, repository.NAME, rows, held)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{output}: cannot be written ({reason(error)})") from error
    return Report(pictures, sorted(held), found.unused, found.faults)


@dataclass(frozen=True)
class _Row:
    """A picture that was written, without its split."""

    source: Source
    attributes: Attributes
    pairs: frozenset[Pair]
    captions: list[Caption]


@dataclass(frozen=True)
class _Work:
    """Writes single pictures to a folder."""

    repository: Repository
    folder: Path
    size: int

    def write(self, source: Source) -> _Row | str | None:
        """Write a picture.

        Returns:
            what was written; a text: why the picture cannot be read; None: it does not show what
            it should.
        """
        try:
            if regular(source.path) is None:  # a link could lead out of the folder
                return f"{source.name}: there is no regular file {source.path.name}"
            picture = read_picture(source.path, source.name)
        except OSError as error:
            return f"{source.name}: cannot be read ({reason(error)})"
        except InputError as error:
            return str(error)
        if min(picture.size) < _LEAST_SIDE:
            return f"{source.name}: has {picture.width} x {picture.height} pixels, too few"
        square = self.repository.square(scaled(picture, self.size))
        if square is None:
            return None
        path = self.folder / "images" / f"{source.name}.jpg"
        # No chroma subsampling, which would blur the edges of colors.
        scaled(square, self.size).save(path, quality=95, subsampling=0)
        pixels = np.asarray(read_picture(path, source.name))  # what measures it later sees this
        kind = str(source.facts[self.repository.CLASS])
        attributes = source.facts | self.repository.measured(measure_colors(pixels), kind)
        captions = self.repository.captions(attributes, rng_of(source.name, pixels.tobytes()))
        return _Row(source, attributes, self.repository.pairs(attributes), captions)


def _write_metadata(
    path: Path, name: str, rows: Sequence[_Row], held: frozenset[Pair]
) -> Counter[str]:
    """Write ``metadata.jsonl`` and return the number of rows of each split."""
    pictures = Counter(train=0, test=0)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            split = "test" if row.pairs & held else "train"
            pictures[split] += 1
            record: dict[str, Any] = {
                "file_name": f"images/{row.source.name}.jpg",
                "captions": [caption.text for caption in row.captions],
                "split": split,
                "source": name,
                "attributes": row.attributes,
                "named": [caption.named for caption in row.captions],
                "table": row.source.table,
            }
            file.write(json.dumps(record) + "\n")
    return pictures


def read_table(path: Path, columns: Sequence[str], missing: str) -> Iterator[list[str]]:
    """Yield the named columns of each row of a CSV file.

    Args:
        path: of the file.
        columns: the names of the columns.
        missing: what to say if the file or one of the columns is missing.

    Raises:
        InputError: the file is missing, has no such columns, is not UTF-8 text or no CSV.
    """
    if not os.path.isfile(path):
        raise InputError(f"{missing}; there is no file {path}")
    try:
        text = read_file(path, _LARGEST_TABLE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        if not set(columns) <= set(header):
            raise InputError(f"{missing}; {path} has the columns {shown(header)}")
        places = [header.index(column) for column in columns]
        for row in reader:
            if row:
                yield [row[place] if place < len(row) else "" for place in places]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a table ({error})") from error
