"""Text vectors to sample from: sentence features that another text encoder made, from a file."""

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from torch import Tensor
from tqdm import tqdm

from mirrorgan_fast.data.plain_pickle import read_plain_pickle
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, open_file, reason
from mirrorgan_fast.sampling.captions import Record

_ARE_READ = "a .npy file, or a pickle of a list with an array (captions, D) for each image"
_WANTED = "float16, float32 or float64, of the shape (rows, D) or (images, captions, D)"
_MAGIC, _PICKLES = b"\x93NUMPY", (".pickle", ".pkl", ".p")
_HEADER = 2**16  # bytes; NumPy's headers have 128
_Named = Iterator[tuple[str, np.ndarray]]


class TextVectors:
    """Text vectors, read as a stream. Use it in a ``with`` statement, which closes the file.

    A vector is named "row 12" or, in an array of three dimensions and in a pickle, "image 3,
    caption 2". All are counted from 0.

    Args:
        name: of the source in messages.
        vector_size: D, the length of the vectors.
        count: number of vectors.
        named: returns their names and arrays (D,), from the first on.
        file: to close at the end.
    """

    repeatable = True
    """Whether the source can be read more than once and by several processes."""

    def __init__(
        self,
        name: str,
        vector_size: int,
        count: int,
        named: Callable[[], _Named],
        file: BinaryIO | None = None,
    ) -> None:
        self.name, self.vector_size = name, vector_size
        self._count, self._named, self._file = count, named, file
        self._read = 0
        self.digest = ""
        """Of all vectors in float32, once ``prepare`` was called."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    @classmethod
    def open(cls, path: StrPath) -> Self:
        """Open a .npy file or a pickle.

        A .npy file has an array of float16, float32 or float64 of the shape (rows, D) or (images,
        captions, D), and is read a row at a time. A pickle has a list with an array (captions, D)
        for each image, as the ``char-CNN-RNN-embeddings.pickle`` of StackGAN's data, and is read
        whole, without running any of it (``read_plain_pickle``).

        Raises:
            InputError: the file cannot be read, or has something else.
        """
        file = open_file(path)
        try:
            beginning = file.read(_HEADER)
            if beginning.startswith(_MAGIC):
                return cls._of_npy(str(path), file, beginning)
            file.close()
            if beginning[:1] == b"\x80" or PurePath(path).suffix.lower() in _PICKLES:
                return cls._of_images(str(path), read_plain_pickle(path))
            raise InputError(f"{path}: is neither NumPy's array nor a pickle; give {_ARE_READ}")
        except OSError as error:
            file.close()
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        except BaseException:
            file.close()
            raise

    @classmethod
    def of(cls, vectors: np.ndarray | Tensor) -> Self:
        """Use vectors that are in memory, of the types and shapes of a .npy file.

        Raises:
            InputError: they have another type or shape.
        """
        if isinstance(vectors, Tensor):  # NumPy has no bfloat16
            vectors = (vectors.float() if vectors.is_floating_point() else vectors).numpy(
                force=True
            )
        name = "text vectors"
        if not isinstance(vectors, np.ndarray):
            raise InputError(f"{name}: found {type(vectors).__name__}, expected an array {_WANTED}")
        _check_array(name, vectors.shape, vectors.dtype)
        rows = vectors.reshape(-1, vectors.shape[-1])
        names = _names(vectors.shape)
        return cls(name, rows.shape[1], len(rows), lambda: zip(names(), rows, strict=True))

    @classmethod
    def _of_npy(cls, path: str, file: BinaryIO, beginning: bytes) -> Self:
        stream = io.BytesIO(beginning)  # so that no more is read than this, whatever it claims
        try:
            version = npy.read_magic(stream)
            read_header = npy.read_array_header_1_0
            if version != (1, 0):
                read_header = npy.read_array_header_2_0
            with warnings.catch_warnings():  # of headers by Python 2, and of odd literals
                warnings.simplefilter("ignore")
                shape, by_columns, dtype = read_header(stream)
        except Exception as error:  # NumPy raises many kinds for damaged headers
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: has a damaged header ({why:.200})") from error
        _check_array(path, shape, dtype)
        if by_columns:
            raise InputError(
                f"{path}: is stored by columns (Fortran order); save numpy.ascontiguousarray of it"
            )
        start, before = stream.tell(), os.fstat(file.fileno())
        length = shape[-1] * dtype.itemsize
        count = math.prod(shape[:-1])
        if count * length != before.st_size - start:
            # Python refuses to print numbers of thousands of digits, which a header may have
            said = f"{count * length:,}" if count * length < 2**63 else "far more"
            raise InputError(
                f"{path}: has {before.st_size - start:,} bytes of numbers, but its header says "
                f"{said}; is it a whole file?"
            )
        names = _names(shape)

        def named() -> _Named:
            for number, name in enumerate(names()):
                try:
                    row = os.pread(file.fileno(), length, start + number * length)
                except OSError as error:
                    raise InputError(f"{path}: cannot be read ({reason(error)})") from error
                if len(row) < length or os.fstat(file.fileno()).st_mtime_ns != before.st_mtime_ns:
                    raise InputError(f"{path}: has changed while it was read; start again")
                yield name, np.frombuffer(row, dtype)

        return cls(path, shape[-1], count, named, file)

    @classmethod
    def _of_images(cls, path: str, images: object) -> Self:
        if not isinstance(images, list) or not all(isinstance(it, np.ndarray) for it in images):
            raise InputError(f"{path}: is not a list of arrays; give {_ARE_READ}")
        if not images:
            raise InputError(f"{path}: is an empty list; give {_ARE_READ}")
        for i, image in enumerate(images):
            _check_array(f"{path}, image {i}", image.shape, image.dtype, dimensions=(2,))
            if image.shape[1] != images[0].shape[1]:
                raise InputError(
                    f"{path}, image {i}: has vectors of {image.shape[1]:,} numbers, but image 0 of "
                    f"{images[0].shape[1]:,}"
                )

        def named() -> _Named:
            for i, image in enumerate(images):
                for j, vector in enumerate(image):
                    yield f"image {i}, caption {j}", vector

        return cls(path, images[0].shape[1], sum(map(len, images)), named)

    @property
    def share(self) -> float:
        """The share of the vectors that has been read, from 0 to 1."""
        return self._read / self._count

    def prepare(self, *, quiet: bool = True) -> None:
        """Read and check all vectors once, before any image is made.

        Args:
            quiet: whether to hide the progress bar, which appears after 2 seconds.

        Raises:
            InputError: see ``records``.
        """
        if self.digest:
            return
        digest = hashlib.blake2b(digest_size=16)
        bar = tqdm(
            total=self._count,
            desc="checking text vectors",
            unit="vector",
            delay=2,
            disable=quiet,
        )
        try:
            for _, vector in self._checked():
                digest.update(vector.tobytes())
                with suppress(OSError):  # the terminal may be closed
                    bar.update()
        finally:
            with suppress(OSError):
                bar.close()
        self.digest = digest.hexdigest()

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield all vectors with their numbers, from 1.

        Raises:
            InputError: a vector has NaN or infinity, or the file has changed.
        """
        for line, (name, vector) in enumerate(self._checked(), start=1):
            self._read = line
            yield line, Record({"caption": name}, name, vector=vector)

    def _checked(self) -> _Named:
        """Yield the name of each vector and its numbers in float32, which are finite."""
        for name, numbers in self._named():
            with np.errstate(over="ignore"):  # float64 may be too large, which is infinity
                vector = np.array(numbers, np.float32)
            if not np.isfinite(vector).all():
                raise InputError(
                    f"{self.name}, {name}: found NaN, infinity or a number too large for float32"
                )
            yield name, vector


def _check_array(
    name: str, shape: Sequence[int], dtype: np.dtype, dimensions: Sequence[int] = (2, 3)
) -> None:
    """Raise InputError unless an array can have text vectors."""
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8) or len(shape) not in dimensions:
        wanted = _WANTED if 3 in dimensions else "float16, float32 or float64 of (captions, D)"
        raise InputError(
            f"{name}: is an array of {dtype!s:.60} of the shape {tuple(shape)!s:.60}, expected "
            f"{wanted}"
        )
    if min(shape) < 1:
        raise InputError(f"{name}: has no vectors: its shape is {tuple(shape)!s:.60}")


def _names(shape: Sequence[int]) -> Callable[[], Iterator[str]]:
    """Return a function that yields the names of the vectors of an array (rows or images, ...)."""
    if len(shape) == 2:
        return lambda: (f"row {i}" for i in range(shape[0]))
    return lambda: (f"image {i}, caption {j}" for i in range(shape[0]) for j in range(shape[1]))
