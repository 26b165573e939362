"""Captions to be sampled: from a file, a pipe, the standard input or a list, as a stream."""

import json
from collections.abc import Iterable, Iterator
from typing import Self

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
    """Captions that are read as a stream; to be closed, or used in a ``with`` statement.

    Args:
        source: their bytes.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._prepared: tuple[Peekable, Format] | None = None  # what is to be read next
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    @classmethod
    def open(cls, path: StrPath) -> Self:
        """Open a file or a pipe, or the standard input if the path is "-".

        Text has a caption a line. JSON lines and a JSON array have strings, or objects with
        ``caption``, ``text``, ``prompt`` or ``captions`` (a string, or a list of them), and, if an
        image is to be made as another run made it, ``seed`` and ``index``. CSV and TSV have a
        column of one of these names. See ``caption_formats.format_of`` for how they are told
        apart. All may be in UTF-8, or in UTF-16 with a byte order mark, and packed with gzip.

        Raises:
            InputError: it cannot be read, or is of another format. (Of a pipe, ``prepare`` tells.)
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
    def of(cls, captions: Iterable[str]) -> Self:
        """Take captions that are in memory.

        Raises:
            InputError: they are a single string, or one is no string.
        """
        rows = [json.dumps({"caption": caption}) + "\n" for caption in each_caption(captions)]
        return cls(Memory("captions", "".join(rows).encode(), "captions.jsonl"))

    @property
    def name(self) -> str:
        """What they are called in messages."""
        return self._source.name

    @property
    def repeatable(self) -> bool:
        """Whether they can be read more than once, and by several processes; not from a pipe."""
        return self._source.repeatable

    @property
    def share(self) -> float | None:
        """How much of them was read, from 0 to 1, if that is known."""
        size = self._source.size
        return min(1.0, self._source.position / size) if size else None

    def prepare(self) -> None:
        """Tell the format before anything is made of them. A pipe is waited for.

        Raises:
            InputError: they are of a format that is not read; or were read already, from a pipe.
        """
        if self._prepared is None:
            if self._begun and not self.repeatable:
                raise InputError(f"{self.name}: was read already, and cannot be once more")
            self._begun = True
            text = text_of(self._source)
            self._prepared = text, format_of(text, self.name, self._source.suffix)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the records and their numbers, from 1, from the first one on.

        If a gzip file or a JSON array is damaged, the last record is one that tells so.

        Raises:
            InputError: as ``prepare``, or they cannot be read on.
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
