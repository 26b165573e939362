"""A cache of prepared pictures on disk, from which a picture is read without decoding it.

A cache is a folder with two files: ``pixels.uint8`` has the pictures, each (H, W, 3), one after the
other in the order of the data set; ``index.json`` has the shape and the CRC-32 of each picture, or
the reason why it could not be read. The folder appears only once it is complete.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from mirrorgan_fast.data.checks import shown
from mirrorgan_fast.data.preparation import LONGEST, Preparation
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import (
    open_file,
    parse_json,
    read_file,
    reason,
    remove_unfinished,
    whole_folder,
)

INDEX, PIXELS = "index.json", "pixels.uint8"
PREFIX = "pictures-"
"""How the name of every cache begins."""
_FORMAT = 1
_LONGEST_REASON = 300  # characters
_LONGEST_ROW = 6 * _LONGEST_REASON + 4  # bytes; JSON writes a character in up to six
_LARGEST_INDEX = 2**28  # bytes; 3 MB for the 118,287 pictures of COCO


class PictureCache:
    """The prepared pictures in a cache, memory-mapped.

    Nothing in the files is trusted: the index is checked when the cache is opened, and a picture's
    CRC-32 each time it is read, which takes 0.07 ms for 152 x 152 pixels on a Xeon core.

    Args:
        folder: the cache.
        digest: of the data set and the preparation, which the cache was made for.
        preparation: how its pictures were prepared.
        count: number of pictures in the data set.

    Raises:
        InputError: the cache is incomplete or damaged, or was made for something else.
    """

    def __init__(self, folder: Path, digest: str, preparation: Preparation, count: int) -> None:
        self.folder = folder
        self.faults: dict[int, str] = {}
        """Why a picture could not be read, by its index in the data set."""
        rows = _read_index(folder / INDEX, digest, count)
        self._shapes = np.zeros((count, 2), np.int64)
        self._checksums = np.zeros(count, np.uint32)
        for index, row in enumerate(rows):
            match row:
                case str():
                    self.faults[index] = row
                case [height, width, checksum] if _is_shape(height, width, preparation) and (
                    _is_whole_number(checksum, 0, 2**32 - 1)
                ):
                    self._shapes[index] = height, width
                    self._checksums[index] = checksum
                case _:
                    raise InputError(f"{folder / INDEX}: picture {index} is {shown(row)}")
        sizes = 3 * self._shapes.prod(axis=1)
        self._starts = sizes.cumsum() - sizes
        self._size = int(sizes.sum())
        self._map = self._opened()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return a picture, uint8 (H, W, 3). It is part of the mapped file and cannot be changed.

        Raises:
            InputError: it is damaged.
        """
        height, width = self._shapes[index].tolist()
        # Without this check, reading behind the end of a file that was cut would kill the process.
        if self._map.size() == self._size:
            pixels = np.frombuffer(self._map, np.uint8, height * width * 3, self._starts[index])
            if zlib.crc32(pixels.data) == self._checksums[index]:
                return pixels.reshape(height, width, 3)
        raise InputError(
            f"{self.folder / PIXELS}: is damaged; delete the folder {self.folder} and run again: "
            f"it is filled anew"
        )

    def part(self, indices: Sequence[int]) -> Self:
        """Return a cache of these pictures only, in this order, on the same file."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)  # not copy.copy, which would map the file again
        part.faults = {i: self.faults[old] for i, old in enumerate(indices) if old in self.faults}
        kept = np.array(indices, np.int64)
        part._shapes, part._checksums = self._shapes[kept], self._checksums[kept]
        part._starts = self._starts[kept]
        return part

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are not forked map the file again, instead of getting a copy of it.
        return {name: value for name, value in self.__dict__.items() if name != "_map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map = self._opened()

    def _opened(self) -> mmap.mmap:
        path = self.folder / PIXELS
        with open_file(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found != self._size:
                raise InputError(f"{path}: has {found:,} bytes, expected {self._size:,}")
            if not found:  # no picture can be read; an empty file cannot be mapped
                return mmap.mmap(-1, 1)
            try:
                return mmap.mmap(file.fileno(), self._size, access=mmap.ACCESS_READ)
            except OSError as error:
                raise InputError(f"{path}: cannot be mapped ({reason(error)})") from error


def fill_cache(folder: Path, digest: str, pictures: Iterable[NDArray[np.uint8] | str]) -> None:
    """Write a cache. It appears at the end, or not at all.

    What killed processes have left in the parent folder is removed, and so is a damaged cache.

    Args:
        folder: the cache.
        digest: see ``PictureCache``.
        pictures: every picture of the data set in order, uint8 (H, W, 3); or the reason why it
            cannot be read.

    Raises:
        InputError: it cannot be written.
    """
    try:
        for leftover in folder.parent.glob(f".{PREFIX}*.partial"):
            with suppress(InputError):  # another process is writing it, or it is not ours
                remove_unfinished(leftover, "in use")
        for name in (INDEX, PIXELS):
            with suppress(FileNotFoundError):
                os.unlink(folder / name)
        with whole_folder(folder, synced=False) as partial:
            rows: list[str | list[int]] = []
            with open(partial / PIXELS, "wb") as file:
                for picture in pictures:
                    if isinstance(picture, str):
                        rows.append(picture[:_LONGEST_REASON])
                    else:
                        pixels = np.ascontiguousarray(picture)
                        file.write(pixels.data)
                        rows.append([*pixels.shape[:2], zlib.crc32(pixels.data)])
                _sync(file)
            content = {"format": _FORMAT, "digest": digest, "pictures": rows}
            index = {"crc32": _checksum(content), "content": content}
            with open(partial / INDEX, "wb") as file:
                file.write(json.dumps(index).encode())
                _sync(file)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({reason(error)}); use another folder (--cache FOLDER), "
            f"or train without a cache (--no-cache)"
        ) from error


def _sync(file: BinaryIO) -> None:
    """Wait until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _read_index(path: Path, digest: str, count: int) -> list[Any]:
    """Return the rows of an index. They are not checked yet.

    Raises:
        InputError: the index is damaged, or was made for something else.
    """
    text = read_file(path, min(_LARGEST_INDEX, 4096 + count * _LONGEST_ROW))
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    match found:
        case {"crc32": int(checksum), "content": dict(content)} if checksum == _checksum(content):
            pass
        case _:
            raise InputError(f"{path}: its CRC-32 is wrong")
    match content:
        case {"format": found_format, "digest": found_digest, "pictures": list(rows)}:
            made_for = (found_format, found_digest, len(rows))
        case _:
            raise InputError(f"{path}: is not an index of pictures")
    if made_for != (_FORMAT, digest, count):
        raise InputError(f"{path}: was made for {shown(made_for)}, not {(_FORMAT, digest, count)}")
    return rows


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _is_shape(height: object, width: object, preparation: Preparation) -> bool:
    """Whether a prepared picture can have this height and width."""
    shorter = preparation.shorter_side
    longest = LONGEST * shorter if preparation.augment else shorter
    sides = [side for side in (height, width) if _is_whole_number(side, shorter, longest)]
    return len(sides) == 2 and shorter in sides


def _is_whole_number(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
