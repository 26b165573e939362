"""Where images go: files, WebDataset tars, NumPy arrays, or an object of your own."""

import io
import json
import math
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import open_file, open_in_place, regular, whole_file, write_all
from mirrorgan_fast.sampling.sampler import Result

Row = Mapping[str, Any]
"""A line of the manifest."""

# PNG with runs alone, without a search for what is alike: a painted bird of 128 px takes 1.5 ms and
# 20 kB, with Pillow's own choice 6.3 ms and 21 kB.
_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 1, "compress_type": Image.RLE}),
    "jpeg": ("JPEG", {}),
    "webp": ("WEBP", {"method": 0}),
}
_SUFFIX = {"png": "png", "jpeg": "jpg", "webp": "webp"}
FORMATS = ("png", "jpeg", "webp", "tar", "tar-jpeg", "tar-webp", "npy")
"""What ``open_sink`` knows. In a tar are PNG files, or what its name says."""
LOSSY = ("jpeg", "webp")
"""What the names of formats end in that have a quality."""


class Sink(Protocol):
    """What ``sample_to_folder`` puts images into, shard by shard.

    Any object with these methods is one. ``encode`` is called from several threads, ``whole`` from
    the one that reads captions, the rest from one that only writes.
    """

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many images of a shard are there, of those that another run wrote.

        Args:
            shard: its number, from 0.
            rows: of these images.

        Returns:
            how many are whole, from the first; the others are made anew.
        """

    def encode(self, shard: int, result: Result) -> Any:
        """Turn an image into what ``write`` takes, in any order."""

    def begin(self, shard: int, count: int) -> None:
        """Begin a shard, or go on behind the ``count`` images of it that are there."""

    def write(self, result: Result, encoded: Any) -> Row:
        """Write the next image of the shard, which from then on must outlast the process.

        Returns:
            what the manifest has to say of where it is, as JSON has it. A ``file`` must be in the
            output folder; ``caption``, ``seed`` and the other fields of a row are taken.
        """

    def end(self) -> None:
        """The shard is complete."""

    def close(self) -> None:
        """There is no more for now; a shard that is not complete can be gone on with."""


class OwnSink(Sink, ABC):
    """A sink of this program: where an image is follows from its number."""

    @abstractmethod
    def place(self, shard: int, number: int, count: int) -> Row:
        """Return what the manifest says of where an image is.

        Args:
            shard: the number of its shard, from 0.
            number: of the image, from 0.
            count: images of the shard before it.
        """


def open_sink(
    format: str,
    folder: str | os.PathLike[str],
    *,
    flat: bool = False,
    quality: int = 95,
    image_size: int | None = None,
) -> OwnSink:
    """Return the sink of a format.

    Args:
        format: one of ``FORMATS``.
        folder: where its files are to be.
        flat: for files of one image, whether all of them are in ``folder`` rather than in a folder
            a shard.
        quality: of JPEG and WebP, 1 to 100.
        image_size: see ``Arrays``.

    Raises:
        InputError: there is no such format, or the quality is out of range.
    """
    check_format(format, quality)
    kind, _, picture = format.partition("-")
    if kind == "npy":
        return Arrays(folder, image_size)
    if kind == "tar":
        return Tars(folder, picture or "png", quality)
    return Files(folder, kind, flat=flat, quality=quality)


def check_format(format: str, quality: int) -> None:
    """Raise InputError if there is no such format, or the quality is out of range."""
    if format not in FORMATS:
        raise InputError(f"there is no format {format}; there are {', '.join(FORMATS)}")
    if not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}, expected 1 to 100")


class Files(OwnSink):
    """A file an image, "00002/00002017.png" for image 2017 of shards of 1,000.

    Args: as of ``open_sink``, without tars.
    """

    def __init__(
        self, folder: str | os.PathLike[str], format: str, *, flat: bool = False, quality: int = 95
    ) -> None:
        self._folder = Path(folder)
        self._format, self._flat, self._quality = format, flat, quality

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of its file."""
        name = f"{number:04d}" if self._flat else f"{shard:05d}/{number:08d}"
        return {"file": f"{name}.{_SUFFIX[self._format]}"}

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many are there."""
        for i, row in enumerate(rows):
            if not _size(f"{self._folder}/{row.get('file', '')}"):  # a Path takes longer
                return i
        return len(rows)

    def encode(self, shard: int, result: Result) -> Row:
        """Write the file, which may be there before those of images before it."""
        place = self.place(shard, result.request.number, 0)
        # The same temporary name in every run: what a killed one left is overwritten.
        with whole_file(self._folder / place["file"], of_process=False) as partial:
            partial.write_bytes(encode(result.image, self._format, self._quality))
        return place

    def begin(self, shard: int, count: int) -> None:
        """Do nothing: files do not depend on each other."""

    def write(self, result: Result, encoded: Row) -> Row:
        """Return where it is."""
        return encoded

    def end(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Growing(OwnSink):
    """A file a shard, that has a hidden name until it is complete."""

    def __init__(self, folder: str | os.PathLike[str], suffix: str) -> None:
        self._folder, self._suffix = Path(folder), suffix
        self._shard = self._count = 0  # the shard that is written, and images in it
        self._file: io.FileIO | None = None

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of its file."""
        return {"file": f"{shard:05d}.{self._suffix}"}

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many are there."""
        final, partial = self._paths(shard)
        if self._is_complete(final, len(rows)):
            return len(rows)
        return self._whole(final if _size(final) else partial, len(rows))[0]

    def begin(self, shard: int, count: int) -> None:
        """Go on behind the images that are there."""
        self._shard, self._count = shard, count
        final, partial = self._paths(shard)
        # A power cut may leave it empty or cut off.
        if _size(final) and not (count and self._is_complete(final, count)):
            os.replace(final, partial)

    def write(self, result: Result, encoded: bytes) -> Row:
        """Write the next image."""
        if self._file is None:
            self._file = self._open()
            if not self._count:
                write_all(self._file, self._head(result))
        write_all(self._file, encoded)
        place = self.place(self._shard, result.request.number, self._count)
        self._count += 1
        return place

    def end(self) -> None:
        """Complete the shard."""
        final, partial = self._paths(self._shard)
        if self._count and not _size(final):
            self._file = self._file or self._open()
            self._complete(self._file)
            self.close()
            os.replace(partial, final)

    def close(self) -> None:
        """Stop."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _paths(self, shard: int) -> tuple[Path, Path]:
        name = f"{shard:05d}.{self._suffix}"
        return self._folder / name, self._folder / f".{name}"

    def _open(self) -> io.FileIO:
        """Open the file behind its last image."""
        self._folder.mkdir(parents=True, exist_ok=True)
        final, partial = self._paths(self._shard)
        if not self._count:
            partial.unlink(missing_ok=True)  # which may be a link that somebody has put there
        elif _size(final):  # there are more captions now than when it was completed
            os.replace(final, partial)
        file = open_in_place(partial)
        whole, end = self._whole(partial, self._count)
        if whole < self._count:
            file.close()
            raise InputError(
                f"{final}: is damaged: {whole} of {self._count} images are whole; the same command "
                "makes the others again"
            )
        file.truncate(end)
        file.seek(end)
        return file

    @abstractmethod
    def _is_complete(self, path: Path, count: int) -> bool:
        """Whether this is a complete file, of ``count`` images or more as far as can be told."""

    @abstractmethod
    def _whole(self, path: Path, most: int) -> tuple[int, int]:
        """Return how many images of the first ``most`` are whole, and where the last one ends."""

    @abstractmethod
    def _head(self, result: Result) -> bytes:
        """Return what stands before the first image."""

    @abstractmethod
    def _complete(self, file: io.FileIO) -> None:
        """Write what a complete file needs."""


class Tars(_Growing):
    """A WebDataset tar a shard: of each image the picture, the caption and a JSON object.

    "00002017.png", "00002017.txt", "00002017.json". The same images give the same bytes.

    Args:
        folder: where they are to be.
        format: of the pictures: png, jpeg or webp.
        quality: of JPEG and WebP, 1 to 100.
    """

    _END = bytes(2 * tarfile.BLOCKSIZE)  # of a complete tar

    def __init__(
        self, folder: str | os.PathLike[str], format: str = "png", quality: int = 95
    ) -> None:
        super().__init__(folder, "tar")
        self._format, self._quality = format, quality

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of its tar, and its key in it."""
        return {**super().place(shard, number, count), "key": f"{number:08d}"}

    def encode(self, shard: int, result: Result) -> bytes:
        """Encode an image."""
        told = {
            "caption": result.caption,
            "seed": result.seed,
            "index": result.index,
            "unknown": result.unknown,
        }
        parts = (
            encode(result.image, self._format, self._quality),
            result.caption.encode(),
            json.dumps(told, ensure_ascii=False).encode(),
        )
        return b"".join(
            self._header(f"{result.request.number:08d}.{suffix}", len(data))
            + data
            + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
            for suffix, data in zip(self._suffixes(), parts, strict=True)
        )

    def _suffixes(self) -> tuple[str, str, str]:
        """Return those of an image's parts."""
        return _SUFFIX[self._format], "txt", "json"

    @staticmethod
    def _header(name: str, size: int) -> bytes:
        """Return what stands before a part."""
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf(tarfile.USTAR_FORMAT)

    def _is_complete(self, path: Path, count: int) -> bool:
        size, looked_at = _size(path), tarfile.BLOCKSIZE + len(self._END)
        if size < looked_at or size % tarfile.BLOCKSIZE:
            return False
        with open_file(path) as file:
            file.seek(-looked_at, os.SEEK_END)
            last, end = file.read(tarfile.BLOCKSIZE), file.read()
        return end == self._END and any(last)  # zeros before the end are what a power cut leaves

    def _whole(self, path: Path, most: int) -> tuple[int, int]:
        end, size = 0, _size(path)
        if not size:
            return 0, 0
        with open_file(path) as file:
            for whole in range(most):
                position = end
                for suffix in self._suffixes():
                    file.seek(position)
                    taken = self._part(file.read(tarfile.BLOCKSIZE), suffix)
                    position += taken
                    if not taken or position > size:
                        return whole, end
                end = position
        return most, end

    def _part(self, header: bytes, suffix: str) -> int:
        """Return how many bytes a part takes with its header, 0 if it is not one of this class.

        This reads no more of a tar than what this class writes, whatever else one may have.
        """
        name = re.match(rb"[0-9]{8,20}\.%b(?=\0)" % suffix.encode(), header)
        digits = re.fullmatch(rb"[0-7]{11}", header[124:135])
        if name is None or digits is None:
            return 0
        size = int(digits[0], 8)
        if self._header(name[0].decode(), size) != header:
            return 0
        return -(-(len(header) + size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def _head(self, result: Result) -> bytes:
        return b""

    def _complete(self, file: io.FileIO) -> None:
        write_all(file, self._END)


class Arrays(_Growing):
    """A NumPy array a shard: uint8 (N, S, S, 3), the manifest says which row is which image.

    What takes the least time to write, and to read (``numpy.load(..., mmap_mode="r")``).

    Args:
        folder: where they are to be.
        image_size: S, if it is known. An array that says another one is made anew.
    """

    def __init__(self, folder: str | os.PathLike[str], image_size: int | None = None) -> None:
        super().__init__(folder, "npy")
        self._image_size = image_size

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of its array, and its row in it."""
        return {**super().place(shard, number, count), "row": count}

    def encode(self, shard: int, result: Result) -> bytes:
        """Encode an image."""
        return result.image.tobytes()

    def _is_complete(self, path: Path, count: int) -> bool:
        shape = self._shape(path)
        whole = len(self._header(shape)) + math.prod(shape)
        return shape[0] >= max(1, count) and _size(path) == whole

    def _whole(self, path: Path, most: int) -> tuple[int, int]:
        shape = self._shape(path)
        begin, each = len(self._header(shape)), math.prod(shape[1:])
        if not each:
            return 0, 0
        whole = min(most, (_size(path) - begin) // each)
        return whole, begin + whole * each

    def _head(self, result: Result) -> bytes:
        return self._header((0, *result.image.shape))

    def _complete(self, file: io.FileIO) -> None:
        shape = self._shape(self._paths(self._shard)[1])
        file.seek(0)
        write_all(file, self._header((self._count, *shape[1:])))

    def _shape(self, path: Path) -> tuple[int, ...]:
        """Return what a header says, zeros if it is not one of this class.

        This reads no more than the one header that this class writes, whatever others may claim.
        """
        nothing = (0, 0, 0, 0)
        if not _size(path):
            return nothing
        with open_file(path) as file:
            data = file.read(len(self._header(nothing)))
        found = re.search(rb"\(([0-9]{1,18}), ([0-9]{1,9}), ([0-9]{1,9}), 3\)", data)
        if found is None:
            return nothing
        shape = *(int(size) for size in found.groups()), 3
        expected = shape[1] if self._image_size is None else self._image_size
        right = self._header(shape) == data and shape[1] == shape[2] == expected
        return shape if right else nothing

    @staticmethod
    def _header(shape: tuple[int, ...]) -> bytes:
        """Return a header, which has the same length for any number of images."""
        buffer = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, described)
        return buffer.getvalue()


def _size(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file; 0 if there is none, which a link to one is not."""
    found = regular(path)
    return 0 if found is None else found.st_size


def encode(image: np.ndarray, format: str, quality: int = 95) -> bytes:
    """Return an image, uint8 (H, W, 3), as a PNG, JPEG or WebP file.

    Args:
        image: the pixels.
        format: png, jpeg or webp.
        quality: of JPEG and WebP, 1 to 100.
    """
    name, options = _SAVE[format]
    if format != "png":
        options = {**options, "quality": quality}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name, **options)
    return buffer.getvalue()
