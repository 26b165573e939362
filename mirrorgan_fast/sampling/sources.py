"""Sources of captions: a file, a pipe or memory, which are unpacked and converted to UTF-8."""

import codecs
import io
import logging
import os
import re
import select
import stat
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import PurePath
from typing import ClassVar

from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.files import StrPath, reason, without_waiting

ARE_READ = "text, JSON lines, a JSON array, CSV or TSV, each as it is or packed with gzip"
PATIENCE = 5.0
"""Seconds without data after which a pipe logs, once, that it is waiting."""
PEEKED = 2**21
"""Number of bytes that can be peeked at before they are read."""

_LOG = logging.getLogger("mirrorgan_fast")
_CHUNK = 4096  # bytes; small, because the progress bar depends on how much has been read
_UNPACKED = 65_536  # maximum number of bytes that are unpacked from gzip at a time
_WAIT = 500  # milliseconds; a signal that comes just before a wait is only handled after it
_BEGINNING = 512  # bytes from which the format is detected
_GZIP = b"\x1f\x8b"
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))

# Formats that are not text: description, suffixes of file names, and pattern of the first bytes.
_OTHERS = (
    ("a ZIP archive or an Office document", "zip docx xlsx pptx odt ods npz", rb"PK[\x01-\x07]"),
    ("an old Office document", "doc xls ppt", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("PDF", "pdf", rb"%PDF-"),
    ("PostScript", "ps eps", rb"%!PS"),
    ("RTF", "rtf", rb"\{\\rtf"),
    ("HTML or XML", "html htm xhtml xml svg", rb"(?i)\s*<(!doctype|html|\?xml)\b"),
    ("YAML", "yaml yml", rb"%YAML\b"),
    ("Parquet", "parquet pq", rb"PAR1"),
    ("Arrow", "arrow feather ipc", rb"ARROW1\x00|FEA1"),
    ("Avro", "avro", rb"Obj\x01"),
    ("ORC", "orc", rb"ORC[\x00-\x08]"),
    ("NumPy", "npy", rb"\x93NUMPY"),
    ("a pickle", "pkl pickle pt pth", rb"\x80[\x02-\x05]"),
    ("SQLite", "sqlite sqlite3 db", rb"SQLite format 3\x00"),
    ("HDF5", "h5 hdf5 hdf", rb"\x89HDF"),
    (
        "a picture or a film",
        "png jpg jpeg gif webp bmp tif tiff avif heic ico ppm pgm pbm psd mp4 mov",
        rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\x00{4}|II\*\x00|MM\x00\*|.{4}ftyp",
    ),
    ("packed with gzip twice", "", rb"\x1f\x8b"),
    ("packed with bzip2", "bz2 tbz2", rb"BZh[1-9]"),
    ("packed with xz", "xz txz lzma", rb"\xfd7zXZ\x00"),
    ("packed with Zstandard", "zst tzst", rb"\x28\xb5\x2f\xfd"),
    ("packed with LZ4", "lz4", rb"\x04\x22M\x18"),
    ("packed with compress", "z", rb"\x1f\x9d"),
    ("a 7z archive", "7z", rb"7z\xbc\xaf\x27\x1c"),
    ("a RAR archive", "rar", rb"Rar!\x1a"),
    ("a tar archive", "tar tgz", rb".{257}ustar"),
    ("UTF-32", "", rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff"),
)


class DamageError(Exception):
    """The rest of the data cannot be read; earlier data is valid. The message says why."""


class Source(ABC):
    """A source of bytes, which must be closed.

    Args:
        name: the name of the source in messages.
        path: a path whose suffixes show the format.

    Raises:
        InputError: the path has the suffix of a format that is not supported.
    """

    repeatable: ClassVar[bool]
    """Whether the source can be read more than once and by several processes."""
    size: int | None = None
    """The size in bytes; None if it is not known."""
    position = 0
    """Number of bytes that have been read."""

    def __init__(self, name: str, path: str = "") -> None:
        self.name = name
        suffix = PurePath(path).suffix.lower()
        self.packed = suffix == ".gz"
        """Whether the path has the suffix of gzip."""
        self.suffix = PurePath(PurePath(path).stem).suffix.lower() if self.packed else suffix
        """The suffix of the path without that of gzip: "", ".csv", ..."""
        for what, suffixes, _ in _OTHERS:
            if self.suffix[1:] in suffixes.split():
                raise InputError(f"{name}: is {what} by its name; give {ARE_READ}")

    @abstractmethod
    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes, from the beginning.

        Raises:
            InputError: they cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the source."""


class Memory(Source):
    """Bytes that are in memory."""

    repeatable = True

    def __init__(self, name: str, data: bytes, path: str = "") -> None:
        super().__init__(name, path)
        self._data, self.size = data, len(data)

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes."""
        for start in range(0, len(self._data), _CHUNK):
            chunk = self._data[start : start + _CHUNK]
            self.position = start + len(chunk)
            yield chunk

    def close(self) -> None:
        """Do nothing: there is no file to close."""


class File(Source):
    """A regular file, read from its current position."""

    repeatable = True

    def __init__(self, name: str, file: io.FileIO, path: str) -> None:
        super().__init__(name, path)
        self._file, self._start = file, file.tell()
        self.size = max(0, os.fstat(file.fileno()).st_size - self._start)

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes."""
        position = 0
        while True:
            # pread, because the processes of torchrun share one standard input and its position.
            try:
                chunk = os.pread(self._file.fileno(), _CHUNK, self._start + position)
            except OSError as error:
                raise InputError(f"{self.name}: cannot be read ({reason(error)})") from error
            if not chunk:
                return
            position += len(chunk)
            self.position = position
            yield chunk

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Pipe(Source):
    """A pipe or a terminal. Waits for data are short, so that signals are handled in between."""

    repeatable = False

    def __init__(self, name: str, file: io.FileIO, path: str) -> None:
        super().__init__(name, path)
        self._file = file
        self._ready = select.poll()
        self._ready.register(file, select.POLLIN)
        self._warned = False

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes, until no process has the pipe open for writing."""
        while True:
            self._wait()
            try:
                chunk = os.read(self._file.fileno(), _CHUNK)
            except BlockingIOError:  # another process was faster
                continue
            except OSError as error:
                raise InputError(f"{self.name}: cannot be read ({reason(error)})") from error
            if not chunk:
                return
            yield chunk

    def _wait(self) -> None:
        start = time.monotonic()
        while not self._ready.poll(_WAIT):
            if not self._warned and time.monotonic() - start >= PATIENCE:
                _LOG.warning("%s: waiting for captions", printable(self.name))
                self._warned = True

    def close(self) -> None:
        """Close the pipe."""
        self._file.close()


def open_source(path: StrPath) -> Source:
    """Open a file or a pipe, or the standard input if the path is "-". This does not wait for data.

    Raises:
        InputError: it cannot be opened, is a folder or a device, or has the suffix of a format that
            is not supported.
    """
    name = str(path)
    try:
        if name == "-":
            name, path = "standard input", ""
            if sys.stdin is None:
                raise InputError("standard input: is closed; give a file")
            file = io.FileIO(sys.stdin.fileno(), closefd=False)
        else:
            file = open(path, "rb", buffering=0, opener=without_waiting)  # noqa: SIM115
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({reason(error)})") from error
    try:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode):
            return File(name, file, str(path))
        waited_for = stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode) or file.isatty()
        # Other devices never end.
        if not waited_for and found.st_rdev != os.stat(os.devnull).st_rdev:
            raise InputError(f"{name}: is a device; give a file or a pipe")
        return Pipe(name, file, str(path))
    except BaseException:
        file.close()
        raise


class Peekable:
    """Chunks of bytes that can be peeked at before they are read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._seen: list[bytes] = []
        self.damage: DamageError | None = None
        """The damage that was found while peeking, if any."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks, which counts as reading them.

        Raises:
            DamageError: the rest of the data cannot be read.
        """
        while self._seen:
            yield self._seen.pop(0)
        if self.damage is not None:
            raise self.damage
        yield from self._chunks

    def peek(self) -> Iterator[bytes]:
        """Yield the first chunks without reading them, up to about ``PEEKED`` bytes.

        At damaged data, they end as if the data ended there.
        """
        size = 0
        for place in count():
            if place == len(self._seen):
                try:
                    self._seen.append(next(self._chunks))
                except StopIteration:
                    return
                except DamageError as error:
                    self.damage = error
                    return
            yield self._seen[place]
            size += len(self._seen[place])
            if size >= PEEKED:
                return

    def beginning(self) -> bytes:
        """Return the first bytes, without waiting for more than the first line that has text."""
        found = b""
        for chunk in self.peek():
            found += chunk
            text = found.lstrip()
            if len(found) >= _BEGINNING or b"\n" in text or b"\r" in text:
                break
        return found[:_BEGINNING]


def text_of(source: Source) -> Peekable:
    """Return the text of a source as UTF-8, without a byte order mark.

    Half a surrogate pair in UTF-16 becomes the three bytes that UTF-8 would use for it. Reading
    raises DamageError at the point where gzip or UTF-16 is damaged or cut off.

    Raises:
        InputError: it is not text, or has a format that is not supported.
    """
    found = Peekable(source.chunks())
    if found.beginning().startswith(_GZIP):
        found = Peekable(_unpacked(found))
    elif source.packed:
        raise InputError(f"{source.name}: is not packed with gzip, as its name says; rename it")
    beginning = found.beginning()
    if not beginning and found.damage is not None:
        raise InputError(f"{source.name}: {found.damage}")
    _refuse_others(source.name, beginning)  # before UTF-16: the marks of UTF-32 begin like it
    for mark, encoding in _MARKS:
        if beginning.startswith(mark):
            chunks = _without_mark(found, len(mark))
            found = Peekable(chunks if encoding == "utf-8" else _from_utf16(chunks, encoding))
            break
    beginning = found.beginning()
    _refuse_others(source.name, beginning)
    if _is_binary(beginning):
        raise InputError(
            f"{source.name}: is binary data, or UTF-16 without a byte order mark; give {ARE_READ}"
        )
    return found


def _refuse_others(name: str, beginning: bytes) -> None:
    for what, _, magic in _OTHERS:
        if re.match(magic, beginning, re.DOTALL):
            raise InputError(f"{name}: is {what}; give {ARE_READ}")


def _is_binary(beginning: bytes) -> bool:
    """Whether there are NULs where only binary data has them.

    That is: at the start, close to each other as in binary numbers, at every second byte as in
    UTF-16, or in a line that is not UTF-8. A single NUL in a caption is an ordinary character.
    """
    if re.match(rb"\x00|.*?\x00.?\x00.?\x00", beginning, re.DOTALL):
        return True
    # the first line, and the byte after its end, which is a NUL in half of UTF-16
    line = re.match(rb"[^\r\n]*[\r\n]?.?", beginning, re.DOTALL)
    assert line is not None
    if b"\0" not in line.group():
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line.group())  # may end within a character
    except UnicodeDecodeError:
        return True
    return False


def _unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack gzip: one or more members, which may be followed by zeros."""
    member = None
    for chunk in chunks:
        rest = chunk
        while rest:
            if member is None:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                member = zlib.decompressobj(wbits=31)  # with gzip's header and checksum
            try:
                found = member.decompress(rest, _UNPACKED)
            except zlib.error as error:
                raise DamageError(f"is gzip that is damaged ({error})") from error
            if found:
                yield found
            rest = member.unconsumed_tail
            if member.eof:
                rest, member = member.unused_data, None
    if member is not None:
        raise DamageError("is gzip that is cut off")


def _without_mark(chunks: Iterable[bytes], mark: int) -> Iterator[bytes]:
    for chunk in chunks:
        if rest := chunk[mark:]:
            yield rest
        mark = max(0, mark - len(chunk))


def _from_utf16(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for chunk in chunks:
        if text := decoder.decode(chunk):
            yield text.encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        raise DamageError("is UTF-16 that is cut off")
