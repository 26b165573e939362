"""Where images are written: files, WebDataset tars, NumPy arrays, or a sink of your own."""

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

# PNG with run-length encoding only, without a search for repeated sequences: a painted bird of
# 128 px takes 1.5 ms and 20 kB. With Pillow's default settings it takes 6.3 ms and 21 kB.
_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 1, "compress_type": Image.RLE}),
    "jpeg": ("JPEG", {}),
    "webp": ("WEBP", {"method": 0}),
}
SUFFIX = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""The suffixes of files of pictures, by their formats."""
FORMATS = ("png", "jpeg", "webp", "tar", "tar-jpeg", "tar-webp", "npy")
"""The formats that ``open_sink`` knows. A tar holds PNG files unless the name says otherwise."""
LOSSY = ("jpeg", "webp")
"""The endings of the names of formats that have a quality."""


class Sink(Protocol):
    """What ``sample_to_folder`` writes images to, shard by shard.

    Any object with these methods is a sink. ``encode`` is called from several threads, ``whole``
    from the thread that reads captions, and the other methods from a thread that only writes.
    """

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many of the images that an earlier call wrote to a shard are still there.

        Args:
            shard: the number of the shard, from 0.
            rows: the rows of these images.

        Returns:
            the number of complete images, counted from the first up to the first one that is not
            complete. The others are made again.
        """

    def encode(self, shard: int, result: Result) -> Any:
        """Convert an image to what ``write`` takes. Images come in any order."""

    def begin(self, shard: int, count: int) -> None:
        """Start a shard, or resume it after the ``count`` images that are already there."""

    def write(self, result: Result, encoded: Any) -> Row:
        """Write the next image of the shard. From then on it must survive the end of the process.

        Returns:
            the location of the image for the manifest, as a JSON object. If it has a ``file``, this
            must be in the output folder. It must not have ``caption``, ``seed`` or another field
            that each row has.
        """

    def end(self) -> None:
        """Complete the shard: it gets no more images."""

    def close(self) -> None:
        """Stop writing. A later run may resume a shard that is not complete."""


class OwnSink(Sink, ABC):
    """A sink of this program, whose images have locations that follow from their numbers."""

    @abstractmethod
    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the location of an image for the manifest.

        Args:
            shard: the number of the shard, from 0.
            number: the number of the image in the output, from 0.
            count: the number of images before it in the shard.
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
        folder: the folder in which it writes files.
        flat: for formats with one file per image, whether all files are in ``folder`` itself rather
            than in one folder per shard.
        quality: quality of JPEG and WebP files, 1 to 100.
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
    """One file per image: "00002/00002017.png" for image 2017 with 1,000 images per shard.

    Args:
        folder: see ``open_sink``.
        format: png, jpeg or webp.
        flat: see ``open_sink``.
        quality: see ``open_sink``.
    """

    def __init__(
        self, folder: str | os.PathLike[str], format: str, *, flat: bool = False, quality: int = 95
    ) -> None:
        self._folder = Path(folder)
        self._format, self._flat, self._quality = format, flat, quality

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of the image's file."""
        name = f"{number:04d}" if self._flat else f"{shard:05d}/{number:08d}"
        return {"file": f"{name}.{SUFFIX[self._format]}"}

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many images are there, from the first."""
        for i, row in enumerate(rows):
            if not _size(f"{self._folder}/{row.get('file', '')}"):  # a Path takes longer
                return i
        return len(rows)

    def encode(self, shard: int, result: Result) -> Row:
        """Write the file, perhaps earlier than the files of the images before it."""
        place = self.place(shard, result.request.number, 0)
        # The temporary name is the same in every run: a file that a killed run left is overwritten.
        path = self._folder / place["file"]
        with whole_file(path, of_process=False, synced=False) as partial:
            partial.write_bytes(encode(result.image, self._format, self._quality))
        return place

    def begin(self, shard: int, count: int) -> None:
        """Do nothing: files do not depend on each other."""

    def write(self, result: Result, encoded: Row) -> Row:
        """Return the name of the image's file, which ``encode`` has written."""
        return encoded

    def end(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Growing(OwnSink):
    """One file per shard, which has a hidden name until it is complete."""

    def __init__(self, folder: str | os.PathLike[str], suffix: str) -> None:
        self._folder, self._suffix = Path(folder), suffix
        self._shard = self._count = 0  # the shard being written, and the images in it
        self._file: io.FileIO | None = None

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of the shard's file."""
        return {"file": f"{shard:05d}.{self._suffix}"}

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        """Return how many images are there, from the first."""
        final, partial = self._paths(shard)
        if self._is_complete(final, len(rows)):
            return len(rows)
        return self._whole(final if _size(final) else partial, len(rows))[0]

    def begin(self, shard: int, count: int) -> None:
        """Resume the shard after the images that are there."""
        self._shard, self._count = shard, count
        final, partial = self._paths(shard)
        # A power failure may leave the file empty or cut off.
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
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _paths(self, shard: int) -> tuple[Path, Path]:
        name = f"{shard:05d}.{self._suffix}"
        return self._folder / name, self._folder / f".{name}"

    def _open(self) -> io.FileIO:
        """Open the file, positioned after its last image."""
        self._folder.mkdir(parents=True, exist_ok=True)
        final, partial = self._paths(self._shard)
        if not self._count:
            partial.unlink(missing_ok=True)  # it may be a link that somebody has put there
        elif _size(final):  # there are more captions now than when the shard was completed
            os.replace(final, partial)
        file = open_in_place(partial)
        whole, end = self._whole(partial, self._count)
        if whole < self._count:
            file.close()
            raise InputError(
                f"{final}: is damaged: {whole} of {self._count} images are complete; run the "
                "same command to make the others again"
            )
        file.truncate(end)
        file.seek(end)
        return file

    @abstractmethod
    def _is_complete(self, path: Path, count: int) -> bool:
        """Whether a file is complete.

        If the file says how many images it has, it must have ``count`` or more.
        """

    @abstractmethod
    def _whole(self, path: Path, count: int) -> tuple[int, int]:
        """Return how many of the first ``count`` images are complete, and where they end."""

    @abstractmethod
    def _head(self, result: Result) -> bytes:
        """Return the bytes before the first image."""

    @abstractmethod
    def _complete(self, file: io.FileIO) -> None:
        """Write what turns a partial file into a complete one."""


class Tars(_Growing):
    """One WebDataset tar per shard, with the picture, the caption and a JSON object of each image.

    The parts of an image are named "00002017.png", "00002017.txt" and "00002017.json". The same
    images give the same bytes.

    Args:
        folder: the folder in which the tars are written.
        format: the format of the pictures: png, jpeg or webp.
        quality: quality of JPEG and WebP files, 1 to 100.
    """

    _END = bytes(2 * tarfile.BLOCKSIZE)  # the end of a complete tar

    def __init__(
        self, folder: str | os.PathLike[str], format: str = "png", quality: int = 95
    ) -> None:
        super().__init__(folder, "tar")
        self._format, self._quality = format, quality

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of the image's tar, and the key of the image in it."""
        return {**super().place(shard, number, count), "key": f"{number:08d}"}

    def encode(self, shard: int, result: Result) -> bytes:
        """Return the parts of an image as members of a tar."""
        metadata = {**result.request.fields, "unknown": result.unknown}
        parts = (
            encode(result.image, self._format, self._quality),
            result.caption.encode(),
            json.dumps(metadata, ensure_ascii=False).encode(),
        )
        return b"".join(
            self._header(f"{result.request.number:08d}.{suffix}", len(data))
            + data
            + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
            for suffix, data in zip(self._suffixes(), parts, strict=True)
        )

    def _suffixes(self) -> tuple[str, str, str]:
        """Return the suffixes of the names of an image's parts."""
        return SUFFIX[self._format], "txt", "json"

    @staticmethod
    def _header(name: str, size: int) -> bytes:
        """Return the tar header of a part."""
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf(tarfile.USTAR_FORMAT)

    def _is_complete(self, path: Path, count: int) -> bool:
        size, tail = _size(path), tarfile.BLOCKSIZE + len(self._END)
        if size < tail or size % tarfile.BLOCKSIZE:
            return False
        with open_file(path) as file:
            file.seek(-tail, os.SEEK_END)
            last, end = file.read(tarfile.BLOCKSIZE), file.read()
        return end == self._END and any(last)  # a power failure leaves zeros before the end

    def _whole(self, path: Path, count: int) -> tuple[int, int]:
        end, size = 0, _size(path)
        if not size:
            return 0, 0
        with open_file(path) as file:
            for whole in range(count):
                position = end
                for suffix in self._suffixes():
                    file.seek(position)
                    taken = self._part(file.read(tarfile.BLOCKSIZE), suffix)
                    position += taken
                    if not taken or position > size:
                        return whole, end
                end = position
        return count, end

    def _part(self, header: bytes, suffix: str) -> int:
        """Return the size of a part with its header, in bytes; 0 if this class did not write it.

        Only headers that this class writes are accepted, not everything that a tar may contain.
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
    """One NumPy array per shard: uint8 (N, S, S, 3). The manifest says which row is which image.

    This format takes the least time to write and to read (``numpy.load(..., mmap_mode="r")``).

    Args:
        folder: the folder in which the arrays are written.
        image_size: S, if it is known. An array of another size is made again.
    """

    def __init__(self, folder: str | os.PathLike[str], image_size: int | None = None) -> None:
        super().__init__(folder, "npy")
        self._image_size = image_size

    def place(self, shard: int, number: int, count: int) -> Row:
        """Return the name of the image's array, and the row of the image in it."""
        return {**super().place(shard, number, count), "row": count}

    def encode(self, shard: int, result: Result) -> bytes:
        """Return the pixels of an image as bytes."""
        return result.image.tobytes()

    def _is_complete(self, path: Path, count: int) -> bool:
        shape = self._shape(path)
        whole = len(self._header(shape)) + math.prod(shape)
        return shape[0] >= max(1, count) and _size(path) == whole

    def _whole(self, path: Path, count: int) -> tuple[int, int]:
        shape = self._shape(path)
        begin, each = len(self._header(shape)), math.prod(shape[1:])
        if not each:
            return 0, 0
        whole = min(count, (_size(path) - begin) // each)
        return whole, begin + whole * each

    def _head(self, result: Result) -> bytes:
        return self._header((0, *result.image.shape))

    def _complete(self, file: io.FileIO) -> None:
        shape = self._shape(self._paths(self._shard)[1])
        file.seek(0)
        write_all(file, self._header((self._count, *shape[1:])))

    def _shape(self, path: Path) -> tuple[int, ...]:
        """Return the shape in a file's header; zeros if this class did not write the header.

        Only the one form of header that this class writes is accepted.
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
        is_valid = self._header(shape) == data and shape[1] == shape[2] == expected
        return shape if is_valid else nothing

    @staticmethod
    def _header(shape: tuple[int, ...]) -> bytes:
        """Return a header. Its length is the same for any number of images."""
        buffer = io.BytesIO()
        description = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()


def _size(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file in bytes; 0 if there is none. Links are not followed."""
    found = regular(path)
    return 0 if found is None else found.st_size


def encode(image: np.ndarray, format: str, quality: int = 95) -> bytes:
    """Return an image, uint8 (H, W, 3), as a PNG, JPEG or WebP file.

    Args:
        image: the pixels.
        format: png, jpeg or webp.
        quality: quality of JPEG and WebP files, 1 to 100.
    """
    name, options = _SAVE[format]
    if format != "png":
        options = {**options, "quality": quality}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name, **options)
    return buffer.getvalue()
