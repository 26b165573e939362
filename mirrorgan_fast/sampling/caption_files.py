"""Captions to sample from: a stream from a file, a pipe, the standard input or a list."""

import json
from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath
from mirrorgan_fast.sampling.caption_formats import Format, format_of
from mirrorgan_fast.sampling.captions import Record
from mirrorgan_fast.sampling.sources import (
    DamageError,
    Memory,
    Peekable,
    Source,
    open_source,
    text_of,
)
from mirrorgan_fast.vocabulary import each_caption


class Captions:
    """Captions that are read as a stream. Use it in a ``with`` statement, which closes the source.

    Args:
        source: the bytes of the captions.
    """

    vector_size: ClassVar[None] = None
    """Captions are not text vectors, of which this is the length."""
    digest: ClassVar[str] = ""
    """None: each caption is compared with the manifest."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._prepared: tuple[Peekable, Format] | None = None  # what ``records`` reads next
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    @classmethod
    def open(cls, path: StrPath) -> Self:
        """Open a file or a pipe, or the standard input if the path is "-".

        Plain text has one caption per line. JSON lines and a JSON array have strings, or objects
        with ``caption``, ``text``, ``prompt`` or ``captions`` (a string or a list of strings).
        These objects may also have ``seed`` and ``index``, to make an image as another run made it,
        and ``box``, where to draw: [x, y, width, height] (see ``boxes``). CSV and TSV have a column
        with one of these names, and may have a column ``box``. ``caption_formats.format_of``
        describes how the format is detected. The encoding may be UTF-8, or UTF-16 with a byte order
        mark, and the data may be packed with gzip.

        Raises:
            InputError: the source cannot be read, or has another format. (The format of a pipe is
                only checked by ``prepare``.)
        """
        captions = cls(open_source(path))
        if captions.repeatable:
            try:
                captions.prepare()
            except BaseException:
                captions._source.close()
                raise
        return captions

    @classmethod
    def of(cls, captions: Iterable[str], box: Box | None = None) -> Self:
        """Use captions that are in memory.

        Args:
            captions: any number of texts.
            box: where to draw, in all images; only for systems that take boxes.

        Raises:
            InputError: ``captions`` is a single string, or one of them is not a string.
        """
        others = {} if box is None else {"box": box}
        rows = [
            json.dumps({"caption": caption, **others}) + "\n" for caption in each_caption(captions)
        ]
        return cls(Memory("captions", "".join(rows).encode(), "captions.jsonl"))

    @property
    def name(self) -> str:
        """The name of the source in messages."""
        return self._source.name

    @property
    def repeatable(self) -> bool:
        """Whether the source can be read more than once and by several processes; a pipe cannot."""
        return self._source.repeatable

    @property
    def share(self) -> float | None:
        """The share of the source that has been read, from 0 to 1; None if that is not known."""
        size = self._source.size
        return min(1.0, self._source.position / size) if size else None

    def prepare(self, *, quiet: bool = True) -> None:
        """Detect the format, before any image is made. On a pipe, this waits for data.

        ``quiet`` is that of ``TextVectors.prepare``; here there is no progress bar.

        Raises:
            InputError: the format is not supported, or the source is a pipe that was read already.
        """
        if self._prepared is None:
            if self._begun and not self.repeatable:
                raise InputError(f"{self.name}: was read already, and cannot be read again")
            self._begun = True
            text = text_of(self._source)
            self._prepared = text, format_of(text, self.name, self._source.suffix)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield all records with their numbers, from 1.

        If a gzip file or a JSON array is damaged, the last record says so.

        Raises:
            InputError: see ``prepare``; or the source can no longer be read.
        """
        self.prepare()
        assert self._prepared is not None
        text, format = self._prepared
        self._prepared = None
        line = 0
        try:
            for line, record in enumerate(format(text), start=1):
                yield line, record
        except DamageError as error:
            yield line + 1, Record(None, "", str(error))
