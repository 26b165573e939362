"""Where images go: files, WebDataset tars, NumPy arrays, or an object of your own."""

import io
import json
import math
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file, write_all
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
            what the manifest has to say of where it is.
        """

    def end(self) -> None:
        """The shard is complete."""

    def close(self) -> None:
        """There is no more for now; a shard that is not complete can be gone on with."""


def open_sink(
    format: str, folder: str | os.PathLike[str], *, flat: bool = False, quality: int = 95
) -> Sink:
    """Return the sink of a format.

    Args:
        format: one of ``FORMATS``.
        folder: where its files are to be.
        flat: for files of one image, whether all of them are in ``folder`` rather than in a folder
            a shard.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        InputError: there is no such format, or the quality is out of range.
    """
    check_format(format, quality)
    kind, _, picture = format.partition("-")
    if kind == "npy":
        return Arrays(folder)
    if kind == "tar":
        return Tars(folder, picture or "png", quality)
    return Files(folder, kind, flat=flat, quality=quality)


def check_format(format: str, quality: int) -> None:
    """Raise InputError if there is no such format, or the quality is out of range."""
    if format not in FORMATS:
        raise InputError(f"there is no format {format}; there are {', '.join(FORMATS)}")
    if not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}, expected 1 to 100")


class Files(Sink):
    """A file an image, "00002/00002017.png" for image 2017 of shards of 1,000.

    Args: as of ``open_sink``, without tars.
    """

    def __init__(
        self, folder: str | os.PathLike[str], format: str, *, flat: bool = False, quality: int = 95
    ) -> None:
        self._folder = Path(folder)
        self._format, self._flat, self._quality = format, flat, quality

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many are there."""
        for i, row in enumerate(rows):
            path = self._folder / row["file"]
            if not path.exists() or not path.stat().st_size:
                return i
        return len(rows)

    def encode(self, shard: int, result: Result) -> str:
        """Write the file, which may be there before those of images before it."""
        number = result.request.number
        name = f"{number:04d}" if self._flat else f"{shard:05d}/{number:08d}"
        file = f"{name}.{_SUFFIX[self._format]}"
        # The same temporary name in every run: what a killed one left is overwritten.
        with whole_file(self._folder / file, of_process=False) as partial:
            partial.write_bytes(encode(result.image, self._format, self._quality))
        return file

    def begin(self, shard: int, count: int) -> None:
        """Do nothing: files do not depend on each other."""

    def write(self, result: Result, encoded: str) -> Row:
        """Return where it is."""
        return {"file": encoded}

    def end(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Growing(Sink, ABC):
    """A file a shard, that has a hidden name until it is complete."""

    def __init__(self, folder: str | os.PathLike[str], suffix: str) -> None:
        self._folder, self._suffix = Path(folder), suffix
        self._final = self._partial = Path()
        self._count = 0  # of images in it
        self._file: io.FileIO | None = None

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many are there."""
        final, partial = self._paths(shard)
        if final.exists():
            return len(rows)
        return self._whole(partial, len(rows))[0] if partial.exists() else 0

    def begin(self, shard: int, count: int) -> None:
        """Go on behind the images that are there."""
        self._final, self._partial = self._paths(shard)
        self._count = count

    def write(self, result: Result, encoded: bytes) -> Row:
        """Write the next image."""
        if self._file is None:
            self._file = self._open()
            if not self._count:
                write_all(self._file, self._head(result))
        write_all(self._file, encoded)
        self._count += 1
        return {"file": self._final.name}

    def end(self) -> None:
        """Complete the shard."""
        if self._count and not self._final.exists():
            self._complete(self._file or self._open())
            self.close()
            os.replace(self._partial, self._final)

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
        if self._final.exists():  # there are more captions now than when it was completed
            os.replace(self._final, self._partial)
        end = self._whole(self._partial, self._count)[1] if self._count else 0
        # Not buffered: what is written outlasts the process.
        file = io.FileIO(self._partial, "r+" if self._count else "w+")
        file.truncate(end)
        file.seek(end)
        return file

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

    def __init__(
        self, folder: str | os.PathLike[str], format: str = "png", quality: int = 95
    ) -> None:
        super().__init__(folder, "tar")
        self._format, self._quality = format, quality

    def encode(self, shard: int, result: Result) -> bytes:
        """Encode an image."""
        told = {
            "caption": result.caption,
            "seed": result.seed,
            "index": result.index,
            "unknown": result.unknown,
        }
        parts = {
            _SUFFIX[self._format]: encode(result.image, self._format, self._quality),
            "txt": result.caption.encode(),
            "json": json.dumps(told, ensure_ascii=False).encode(),
        }
        return b"".join(
            self._member(f"{self._key(result)}.{suffix}", data) for suffix, data in parts.items()
        )

    def write(self, result: Result, encoded: bytes) -> Row:
        """Write the next image."""
        return {**super().write(result, encoded), "key": self._key(result)}

    @staticmethod
    def _key(result: Result) -> str:
        return f"{result.request.number:08d}"

    @staticmethod
    def _member(name: str, data: bytes) -> bytes:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        header = member.tobuf(tarfile.USTAR_FORMAT)
        return header + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)

    def _whole(self, path: Path, most: int) -> tuple[int, int]:
        whole, end, size = 0, 0, path.stat().st_size
        with suppress(tarfile.TarError), tarfile.open(path, "r:") as tar:
            while whole < most:
                members = [tar.next() for _ in range(3)]
                if None in members or tar.offset > size:
                    break
                whole, end = whole + 1, tar.offset
        return whole, end

    def _head(self, result: Result) -> bytes:
        return b""

    def _complete(self, file: io.FileIO) -> None:
        write_all(file, bytes(2 * tarfile.BLOCKSIZE))


class Arrays(_Growing):
    """A NumPy array a shard: uint8 (N, S, S, 3), the manifest says which row is which image.

    What takes the least time to write, and to read (``numpy.load(..., mmap_mode="r")``).

    Args:
        folder: where they are to be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder, "npy")

    def encode(self, shard: int, result: Result) -> bytes:
        """Encode an image."""
        return result.image.tobytes()

    def write(self, result: Result, encoded: bytes) -> Row:
        """Write the next image."""
        return {**super().write(result, encoded), "row": self._count - 1}

    def _whole(self, path: Path, most: int) -> tuple[int, int]:
        with path.open("rb") as file:
            try:
                shape = self._shape(file)
            except ValueError:
                return 0, 0
            begin, each = file.tell(), math.prod(shape[1:])
        whole = min(most, (path.stat().st_size - begin) // each)
        return whole, begin + whole * each

    def _head(self, result: Result) -> bytes:
        return self._header((0, *result.image.shape))

    def _complete(self, file: io.FileIO) -> None:
        file.seek(0)
        header = self._header((self._count, *self._shape(file)[1:]))
        file.seek(0)
        write_all(file, header)

    @staticmethod
    def _shape(file: IO[bytes] | io.FileIO) -> tuple[int, ...]:
        """Read a header."""
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return shape

    @staticmethod
    def _header(shape: tuple[int, ...]) -> bytes:
        """Return a header, which has the same length for any number of images."""
        buffer = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, described)
        return buffer.getvalue()


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
