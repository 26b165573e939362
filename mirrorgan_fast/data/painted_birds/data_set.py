"""The data set of painted birds, painted when asked for, or written as an image folder."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES, SPLITS, Bird, check_split
from mirrorgan_fast.data.painted_birds.drawing import PARTS, Painting, check_size, paint
from mirrorgan_fast.data.painted_birds.words import BirdCaption, describe
from mirrorgan_fast.data.worker_processes import in_processes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import check_free, open_lock, parse_json, read_file, reason, whole_file
from mirrorgan_fast.pictures import read_picture

MOST_BIRDS = 500_000
"""Of a split: their `metadata.jsonl`, 2 kB a bird, can still be read."""


_SEEDS = 2**128


_MOST_WORKERS = 1024


def _is_within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


class PaintedBirds:
    """`count` painted birds of a split, painted when asked for; a `CaptionedImages`.

    Picture i is a function of (seed, split, i) only: a longer data set begins with the shorter one,
    and another size shows the same birds. An unknown split, a count below 1 or above `MOST_BIRDS`,
    a size out of range or a seed below 0 or from 2**128 on raises `InputError`; an index out of
    range `IndexError`.
    """

    def __init__(self, split: str, count: int, size: int = 128, seed: int = 0) -> None:
        check_split(split)
        check_size(size)
        if not _is_within(count, 1, MOST_BIRDS):
            raise InputError(
                f"painted birds: count must be at least 1, not {count!r}, at most {MOST_BIRDS:,}"
            )
        if not _is_within(seed, 0, _SEEDS - 1):
            raise InputError(
                f"painted birds: seed must not be negative, and below 2**128; it is {seed!r}"
            )
        self.split, self.count, self.size, self.seed = split, count, size, seed

    def __len__(self) -> int:
        return self.count

    def bird(self, index: int) -> Bird:
        """What bird it is."""
        return Bird.random(self._rng(index, 0), self.split)

    def painting(self, index: int) -> Painting:
        """The picture and the masks of its parts."""
        return paint(self.bird(index), self._rng(index, 1), self.size)

    def bird_captions(self, index: int) -> list[BirdCaption]:
        """Ten captions with the attributes each one asserts."""
        return describe(self.bird(index), self._rng(index, 2))

    def image(self, index: int) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(self.painting(index).image)

    def captions(self, index: int) -> list[str]:
        """Ten captions."""
        return [caption.text for caption in self.bird_captions(index)]

    def name(self, index: int) -> str:
        """Like "train/00012"."""
        return f"{self.split}/{self._checked(index):05d}"

    def label(self, index: int) -> int:
        """Every bird is a class of its own."""
        return self._checked(index)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"painted birds: index {index} is not in 0 ... {self.count - 1}")
        return index

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(
            [self.seed, SPLITS.index(self.split), self._checked(index), purpose]
        )


# Raised when a picture, a caption or a row becomes another one: a painting that an older version
# has begun cannot go on.
_DRAWING = 1


_BEGUN = ".paint.json"


def export_image_folder(
    root: str | Path,
    train: int,
    test: int,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    masks: bool = False,
) -> None:
    """Write painted birds as an image folder: `images/<split>/<number>.png`, then `metadata.jsonl`.

    Stopped at any time, even killed, the same call goes on from there. Until it is done, a file
    `.paint.json` in the folder has the arguments.

    train, test: number of birds of each split, at most `MOST_BIRDS` (0 leaves it out). workers:
    processes, at most 1,024 (default: one a core); the files do not depend on it. masks: also write
    `masks/<split>/<number>.png`, indexed: 0 is nothing, i is the i-th name of the "parts" of the
    row. Every row has file_name, captions, split, attributes, and `named`: what each caption
    asserts.

    A folder that has other files in it or cannot be written, a bad size or count raises
    `InputError`.
    """
    root = Path(root)
    if workers is None:
        workers = os.cpu_count() or 1
    if not _is_within(workers, 1, _MOST_WORKERS):
        raise InputError(f"workers must be 1 to {_MOST_WORKERS:,}, not {workers!r}")
    if (train, test) == (0, 0):
        raise InputError("cannot export 0 train and 0 test birds: ask for at least one")
    sets = [
        PaintedBirds(split, count, size, seed)
        for split, count in zip(SPLITS, (train, test), strict=True)
        if count != 0
    ]
    total = sum(map(len, sets))
    asked = {"train": train, "test": test, "size": size, "seed": seed, "masks": masks}
    with _begun(root, asked | {"drawing": _DRAWING}):
        for kind in ("images", "masks") if masks else ("images",):
            for folder in (root / kind, *(root / kind / birds.split for birds in sets)):
                _make_folder(folder)
        rows = in_processes(
            _Export(root, masks).write,
            ((birds, index) for birds in sets for index in range(len(birds))),
            min(workers, total),
        )
        with (
            closing(rows),
            whole_file(root / "metadata.jsonl", of_process=False) as unfinished,
            unfinished.open("w", encoding="utf-8") as metadata,
            tqdm(total=total, desc="painting birds", unit="image", disable=not progress) as bar,
        ):
            for row in rows:
                metadata.write(json.dumps(row) + "\n")
                bar.update()


@contextmanager
def _begun(root: Path, asked: dict[str, int]) -> Iterator[None]:
    """Make a folder and note in it what is painted there, until the block ends without an error.

    If something was begun there, it must be the same. Raises `InputError` if it is not, if the
    folder has anything else in it, or if another process paints there.
    """
    begun = root / _BEGUN
    if not os.path.lexists(begun):
        check_free(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{root}: cannot be written ({reason(error)})") from error
        with whole_file(begun, of_process=False) as partial:
            partial.write_text(json.dumps(asked))
    with _lock(begun):
        try:
            found = parse_json(read_file(begun, 4096))
            if not isinstance(found, dict) or not {*map(type, found.values())} <= {int, bool}:
                raise ValueError("it has other contents")
        except ValueError as error:
            raise InputError(f"{begun}: is damaged ({error}); remove the folder") from error
        if found != asked:
            others = ", ".join(f"{name} {value}" for name, value in found.items())
            raise InputError(
                f"{root}: another painting was begun there ({others}); go on with its arguments, "
                "choose a new folder, or remove this one"
            )
        yield
        begun.unlink()


def _lock(begun: Path) -> io.FileIO:
    """Lock it; the processes of a painter that was killed end a moment later than it."""
    refusal = f"{begun.parent}: another process is painting there; wait for it"
    for _ in range(50):
        try:
            return open_lock(begun, refusal)
        except InputError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            time.sleep(0.1)
    return open_lock(begun, refusal)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({reason(error)})") from error
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, which leads out of the folder; remove it")


@dataclass(frozen=True)
class _Export:
    """Where pictures are written, and what of them."""

    root: Path
    masks: bool

    def write(self, job: tuple[PaintedBirds, int]) -> dict[str, Any]:
        """Write a picture, unless it is there, and return its row of `metadata.jsonl`."""
        birds, index = job
        name = f"{birds.name(index)}.png"
        picture, mask = self.root / "images" / name, self.root / "masks" / name
        wanted = [picture, mask] if self.masks else [picture]
        if not all(_is_whole(path, birds.size) for path in wanted):
            painting = birds.painting(index)
            _save(painting.image, picture)
            if self.masks:
                indexed = np.zeros(painting.image.shape[:2], np.uint8)
                for i, part in enumerate(PARTS, start=1):
                    indexed[painting.masks[part]] = i
                _save(indexed, mask)
        captions = birds.bird_captions(index)
        row: dict[str, Any] = {
            "file_name": f"images/{name}",
            "captions": [caption.text for caption in captions],
            "split": birds.split,
            "attributes": asdict(birds.bird(index)),
            "named": [caption.named for caption in captions],
        }
        if self.masks:
            row |= {"mask": f"masks/{name}", "parts": list(PARTS)}
        return row


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    with whole_file(path, of_process=False, synced=False) as partial:
        Image.fromarray(pixels).save(partial)


def _is_whole(path: Path, size: int) -> bool:
    """Whether a picture is there already; one that was written as the power failed is damaged."""
    if path.is_symlink() or not path.exists():
        return False
    try:
        return read_picture(path, str(path)).size == (size, size)
    except InputError:
        return False


def true_attributes(images: ImageFolder, indices: Iterable[int]) -> list[dict[str, str]]:
    """Return what the pictures show, from the "attributes" of their rows.

    Raises:
        InputError: a row has none, or not those of a painted bird.
    """
    found = []
    for index in indices:
        record = images.record(index)
        if not is_painted(record):
            raise InputError(
                f"picture {images.name(index)!r} has no attributes of a painted bird in "
                f"metadata.jsonl; export painted birds (mirrorgan-fast paint)"
            )
        found.append(record["attributes"])
    return found


def is_painted(record: Mapping[str, Any]) -> bool:
    """Return whether a row of metadata.jsonl has the attributes of a painted bird."""
    attributes = record.get("attributes")
    return isinstance(attributes, dict) and all(
        attributes.get(name) in values for name, values in ATTRIBUTES.items()
    )
