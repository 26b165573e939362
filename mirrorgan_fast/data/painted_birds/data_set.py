"""The data set of painted birds, which are painted on demand or written as an image folder."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.data.captioned_images import Caption
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES, SPLITS, Bird, check_split
from mirrorgan_fast.data.painted_birds.drawing import (
    MIDDLE,
    PARTS,
    Painting,
    Place,
    box_of,
    check_size,
    paint,
    varied_place,
)
from mirrorgan_fast.data.painted_birds.words import describe
from mirrorgan_fast.data.worker_processes import in_processes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import check_free, open_lock, parse_json, read_file, reason, whole_file
from mirrorgan_fast.pictures import read_picture

MOST_BIRDS = 500_000
"""Maximum number of birds per split. With 2 kB per bird, `metadata.jsonl` can still be read."""


Places = Literal["middle", "varied"]
"""Where painted birds are: ``middle``: in the middle of the picture, most of which they fill;
``varied``: about half as large, anywhere in the picture."""
_SEEDS = 2**128


_MAX_WORKERS = 1024


def _is_within(value: object, minimum: int, maximum: int) -> bool:
    return type(value) is int and minimum <= value <= maximum


class PaintedBirds:
    """Painted birds of a split, painted on demand; a `CaptionedImages`.

    Picture i depends only on (seed, split, i). So a longer data set begins with the shorter one,
    and another size shows the same birds. The methods raise `IndexError` for an index that is out
    of range.

    Args:
        split: "train" or "test".
        count: number of birds, 1 to `MOST_BIRDS`.
        size: side length of the pictures in pixels.
        seed: at least 0 and below 2**128.
        places: where the birds are.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self, split: str, count: int, size: int = 128, seed: int = 0, places: Places = "middle"
    ) -> None:
        check_split(split)
        check_size(size)
        if not _is_within(count, 1, MOST_BIRDS):
            raise InputError(f"painted birds: count must be 1 to {MOST_BIRDS:,}, not {count!r}")
        if not _is_within(seed, 0, _SEEDS - 1):
            raise InputError(
                f"painted birds: seed must be at least 0 and below 2**128, not {seed!r}"
            )
        if places not in get_args(Places):
            raise InputError(
                f"painted birds: places must be {' or '.join(get_args(Places))}, not {places!r}"
            )
        self.split, self.count, self.side, self.seed = split, count, size, seed
        self.places = places

    def __len__(self) -> int:
        return self.count

    def bird(self, index: int) -> Bird:
        """Return the bird with its attributes."""
        return Bird.random(self._rng(index, 0), self.split)

    def painting(self, index: int, background: str | None = None) -> Painting:
        """Return the picture and the masks of its parts.

        Args:
            index: of the bird.
            background: shown instead of the bird's own; all else stays as it is.
        """
        bird = self.bird(index)
        if background is not None:
            bird = replace(bird, background=background)
        return paint(bird, self._rng(index, 1), self.side, self._place(index))

    def box(self, index: int) -> Box:
        """Return where in the picture the bird is."""
        return box_of(self.bird(index), self._rng(index, 1), self._place(index))

    def bird_captions(self, index: int) -> list[Caption]:
        """Return ten captions, each with the attributes that it asserts."""
        return describe(self.bird(index), self._rng(index, 2))

    def image(self, index: int) -> Image.Image:
        """Return the picture, RGB."""
        return Image.fromarray(self.painting(index).image)

    def captions(self, index: int) -> list[str]:
        """Return ten captions."""
        return [caption.text for caption in self.bird_captions(index)]

    def name(self, index: int) -> str:
        """Return the name of the picture, such as "train/00012"."""
        return f"{self.split}/{self._checked(index):05d}"

    def label(self, index: int) -> int:
        """Return the index: each bird is its own class."""
        return self._checked(index)

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of the picture in pixels."""
        self._checked(index)
        return self.side, self.side

    def stamp(self, index: int) -> str:
        """Return all that the picture depends on, besides its name."""
        where = "" if self.places == "middle" else f", {self.places} places"
        return f"drawing {_DRAWING_VERSION}, {self.side} pixels, seed {self.seed}{where}"

    def _place(self, index: int) -> Place:
        if self.places == "middle":
            return MIDDLE
        return varied_place(self.bird(index), self._rng(index, 1), self._rng(index, 3))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"painted birds: index {index} is not in 0 ... {self.count - 1}")
        return index

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(
            [self.seed, SPLITS.index(self.split), self._checked(index), purpose]
        )


# This number is increased whenever any picture or caption changes, or a row loses what it had. A
# run that was started with another number cannot be resumed.
_DRAWING_VERSION = 1


_STATE_FILE = ".paint.json"


def export_image_folder(
    root: str | Path,
    train: int,
    test: int,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    masks: bool = False,
    places: Places = "middle",
) -> None:
    """Write painted birds as an image folder: `images/<split>/<number>.png`, then `metadata.jsonl`.

    The run can be stopped or killed at any moment, and the same call resumes it. Until it is
    finished, the folder has a file `.paint.json` with the arguments.

    Each row has file_name, captions, split, attributes, `named`: the attributes that each caption
    asserts, and `box`: where in the picture the bird is (see ``boxes``).

    Args:
        root: the folder to write.
        train: number of birds in the training split, at most `MOST_BIRDS`; 0 omits the split.
        test: number of birds in the test split, likewise.
        size: side length of the pictures in pixels.
        seed: at least 0 and below 2**128.
        workers: number of processes, at most 1,024 (default: one per core). The files do not
            depend on it.
        progress: whether to show a progress bar on stderr.
        masks: whether to also write `masks/<split>/<number>.png`. These are indexed: 0 is nothing,
            and i is the i-th name in the "parts" of the row.
        places: where the birds are.

    Raises:
        InputError: the folder has other files in it or cannot be written, or an argument is out of
            range.
    """
    root = Path(root)
    if workers is None:
        workers = os.cpu_count() or 1
    if not _is_within(workers, 1, _MAX_WORKERS):
        raise InputError(f"workers must be 1 to {_MAX_WORKERS:,}, not {workers!r}")
    if (train, test) == (0, 0):
        raise InputError("cannot export 0 train and 0 test birds: ask for at least one")
    sets = [
        PaintedBirds(split, count, size, seed, places)
        for split, count in zip(SPLITS, (train, test), strict=True)
        if count != 0
    ]
    total = sum(map(len, sets))
    arguments = {"train": train, "test": test, "size": size, "seed": seed, "masks": masks}
    if places != "middle":
        arguments["varied"] = True
    with _unfinished(root, arguments | {"drawing": _DRAWING_VERSION}):
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
            whole_file(root / "metadata.jsonl", of_process=False) as partial,
            partial.open("w", encoding="utf-8") as metadata,
            tqdm(total=total, desc="painting birds", unit="image", disable=not progress) as bar,
        ):
            for row in rows:
                metadata.write(json.dumps(row) + "\n")
                bar.update()


@contextmanager
def _unfinished(root: Path, arguments: dict[str, int]) -> Iterator[None]:
    """Create a folder with a file of the arguments, which is removed if the block succeeds.

    If the folder already has such a file, its arguments must be the same.

    Raises:
        InputError: the arguments differ, the folder contains anything else, or another process is
            painting there.
    """
    state_file = root / _STATE_FILE
    if not os.path.lexists(state_file):
        check_free(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{root}: cannot be written ({reason(error)})") from error
        with whole_file(state_file, of_process=False) as partial:
            partial.write_text(json.dumps(arguments))
    with _lock(state_file):
        try:
            found = parse_json(read_file(state_file, 4096))
            if not isinstance(found, dict) or not {*map(type, found.values())} <= {int, bool}:
                raise ValueError("its contents are not valid")
        except ValueError as error:
            raise InputError(f"{state_file}: is damaged ({error}); remove the folder") from error
        if found != arguments:
            others = ", ".join(f"{name} {value}" for name, value in found.items())
            raise InputError(
                f"{root}: has an unfinished run with other arguments ({others}); use these "
                "arguments to resume it, choose a new folder, or remove this one"
            )
        yield
        state_file.unlink()


def _lock(state_file: Path) -> io.FileIO:
    """Lock the file. Wait a little, as the workers of a killed process end shortly after it."""
    refusal = f"{state_file.parent}: another process is painting there; wait for it"
    for _ in range(50):
        try:
            return open_lock(state_file, refusal)
        except InputError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            time.sleep(0.1)
    return open_lock(state_file, refusal)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({reason(error)})") from error
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, which leads out of the folder; remove it")


@dataclass(frozen=True)
class _Export:
    """Writes single pictures, and their masks if ``masks`` is set, to a folder."""

    root: Path
    masks: bool

    def write(self, job: tuple[PaintedBirds, int]) -> dict[str, Any]:
        """Write a picture unless it is already there, and return its row of `metadata.jsonl`."""
        birds, index = job
        name = f"{birds.name(index)}.png"
        picture, mask = self.root / "images" / name, self.root / "masks" / name
        paths = [picture, mask] if self.masks else [picture]
        if not all(_is_whole(path, birds.side) for path in paths):
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
            "box": birds.box(index),
        }
        if self.masks:
            row |= {"mask": f"masks/{name}", "parts": list(PARTS)}
        return row


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    with whole_file(path, of_process=False, synced=False) as partial:
        Image.fromarray(pixels).save(partial)


def _is_whole(path: Path, size: int) -> bool:
    """Whether a picture is there and not damaged, which it may be after a power failure."""
    if path.is_symlink() or not path.exists():
        return False
    try:
        return read_picture(path, str(path)).size == (size, size)
    except InputError:
        return False


def true_attributes(images: ImageFolder, indices: Iterable[int]) -> list[dict[str, str]]:
    """Return the attributes of the birds in the pictures, from the "attributes" of their rows.

    Raises:
        InputError: a row has no attributes, or not those of a painted bird.
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
