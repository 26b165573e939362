"""Detecting the format of captions, and reading their records one by one.

A record is a line of text, a line of JSON, an element of a JSON array, or a row of a table. If a
record cannot be read, only this record is refused and reading continues after it. Only one record
is in memory at a time, and records that are too long are not kept in memory.
"""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from mirrorgan_fast.boxes import box_in
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.files import parse_json
from mirrorgan_fast.sampling.captions import BEGINNING, LONGEST_CAPTION, Record
from mirrorgan_fast.sampling.sources import DamageError, Peekable

Format = Callable[[Iterable[bytes]], Iterator[Record]]
"""Reads the records of a text, which comes as chunks of UTF-8."""

KEYS = ("caption", "text", "prompt", "captions")
"""Keys of a JSON object and columns of a table. The first of these that is there has the caption.
"""
LONGEST_RECORD = 2**20
"""Maximum length of a JSON object or a row in bytes.

A line of a manifest is always shorter, so it can be read back. It has a caption of at most 65,536
bytes, and its unknown words. In JSON, a byte of the caption takes at most 6 bytes (a control
character is written as "\\u0001"): 393,216. The words have no control characters, but they are in
lower case (at most 3 bytes for 2) and in NFC (at most 3 bytes for 1), and there are at most 32,768
of them, each with 4 bytes around it: 425,984. The rest is a few hundred bytes.
"""

_KEY_NAMES = '"caption", "text", "prompt" or "captions"'
_MAX_LINES = 1000  # of a row; if there are more, a quotation mark is not closed
_JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",;\t", ".tsv": "\t", ".tab": "\t"}  # possible delimiters of the fields
_COLUMN = re.compile(r"([A-Za-z_][\w.-]*)?")  # pandas leaves the column of row numbers unnamed
_OBJECT = re.compile(rb'\{\s*("[^"\r\n]*"\s*:|\})')  # no caption begins like this
# The next character that changes the state of the JSON scanner: between the elements of an array,
# in an element (complete strings and anything irrelevant are skipped), and in a string.
_BETWEEN = re.compile(rb'(["\[\]{},])')
_IN_ELEMENT = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+(["\[\]{}])')
_IN_STRING = re.compile(rb'(["\\])')


def format_of(text: Peekable, name: str, suffix: str) -> Format:
    """Return the format of a text.

    Args:
        text: the text. Only as much of it is peeked at as is necessary to detect the format, and
            nothing is consumed.
        name: the name of the text in messages.
        suffix: the suffix of its file's name. ".jsonl", ".ndjson", ".csv" and ".tsv" determine the
            format. With another suffix the format is plain text, unless the beginning shows that it
            is not.

    Raises:
        InputError: it is JSON or a table, but without captions.
    """
    if suffix in _TABLES:
        return _table_by_suffix(text, name, _TABLES[suffix])
    begins = next((rest for chunk in text.peek() if (rest := chunk.lstrip())), b"")
    if begins.startswith(b"[") and (suffix == ".json" or _begins_an_array(text, suffix)):
        return json_array
    if suffix in _JSON_LINES_SUFFIXES:
        return json_lines
    if begins.startswith(b"{") and _is_json_lines(text, name):
        return json_lines
    if suffix == ".json":
        raise InputError(
            f"{name}: is neither a JSON array of captions nor JSON lines; give one of them"
        )
    delimiter = next((mark for mark in ",;\t" if _begins_a_table(text, mark)), None)
    return plain_text if delimiter is None else partial(table, delimiter=delimiter)


def _begins_an_array(text: Peekable, suffix: str) -> bool:
    """Whether the first element is an object or a string, followed by a comma or the end."""
    if suffix in _JSON_LINES_SUFFIXES and _json(next(_nonempty_lines(text), None)) is not None:
        return False  # the first line is an array by itself, so it is a line of JSON
    try:
        return isinstance(_json(next(_elements(text.peek()))), dict | str)
    except (StopIteration, DamageError):
        return False


def _is_json_lines(text: Peekable, name: str) -> bool:
    """Whether the text is JSON lines.

    It is if the first line is an object with a caption, or if the text begins like a JSON object
    and the second line is an object.

    Raises:
        InputError: the text is JSON of another form.
    """
    nonempty = _nonempty_lines(text)
    first = next(nonempty, None)
    found = _json(first)
    if isinstance(found, dict) and not found.keys().isdisjoint(KEYS):
        return True
    second = next(nonempty, None)
    begins = text.beginning() if first is None else first + (second or b"")
    if not _OBJECT.match(begins.lstrip()):
        return False
    if isinstance(_json(second), dict):
        return True
    larger = f"larger than a line of at most {LONGEST_RECORD:,} bytes"
    what = f"with {_listed(found)}" if isinstance(found, dict) else larger
    raise InputError(
        f"{name}: is a JSON object, {what}; give objects with {_KEY_NAMES}, one per line or in an "
        "array (of COCO's annotations: jq -c '.annotations[]')"
    )


def _json(data: bytes | None) -> Any:
    """Return the parsed JSON, with invalid bytes replaced; None if it is not JSON."""
    try:
        return parse_json((data or b"").decode(errors="replace"))
    except ValueError:
        return None


def _table_by_suffix(text: Peekable, name: str, delimiters: str) -> Format:
    longest: list[str] = []
    for delimiter in delimiters:
        header = next(_rows(lines(text.peek(), LONGEST_RECORD), delimiter), _NO_ROW).fields
        if _caption_column(header) is not None:
            return partial(table, delimiter=delimiter)
        longest = max(longest, header, key=len)
    there = f"only {_listed(longest)}" if longest else "which is empty or cannot be read"
    raise InputError(f"{name}: has no column {_KEY_NAMES} in its first row, {there}")


def _begins_a_table(text: Peekable, delimiter: str) -> bool:
    """Whether the first two rows have the same number of fields and the first is a header.

    A header has two or more column names, and one of them is a name for captions.
    """
    first = next(_nonempty_lines(text), None)
    header = next(_rows(iter([first]), delimiter), _NO_ROW).fields
    if len(header) < 2 or _caption_column(header) is None:
        return False
    if not all(_COLUMN.fullmatch(column) for column in header):
        return False
    rows = islice(_rows(lines(text.peek(), LONGEST_RECORD), delimiter), 2)
    return [len(row.fields) for row in rows] == [len(header)] * 2


def _nonempty_lines(text: Peekable) -> Iterator[bytes | None]:
    for line in lines(text.peek(), LONGEST_RECORD):
        if line is None or line.strip():
            yield line


# --- records --------------------------------------------------------------------------------------


def plain_text(chunks: Iterable[bytes]) -> Iterator[Record]:
    """Read one caption per line."""
    for line in lines(chunks, LONGEST_CAPTION):
        text = _text(line, LONGEST_CAPTION)
        yield text if isinstance(text, Record) else Record({"caption": text}, text[:BEGINNING])


def json_lines(chunks: Iterable[bytes]) -> Iterator[Record]:
    """Read one object or string per line."""
    for line in lines(chunks, LONGEST_RECORD):
        yield from _of_json(line)


def json_array(chunks: Iterable[bytes]) -> Iterator[Record]:
    """Read the objects and strings of an array.

    Raises:
        DamageError: the array has no end, or there is data after its end.
    """
    for element in _elements(chunks):
        yield from _of_json(element)


def table(chunks: Iterable[bytes], delimiter: str) -> Iterator[Record]:
    """Read the rows of CSV or TSV. The first row names the columns."""
    rows = _rows(lines(chunks, LONGEST_RECORD), delimiter)
    header = next(rows, _NO_ROW).fields
    column = _caption_column(header)
    assert column is not None, header
    box_column = next((i for i, name in enumerate(header) if name.strip() == "box"), None)
    for fields, data, reason in rows:
        if not reason and len(fields) != len(header):
            reason = f"has {len(fields)} fields where the first row has {len(header)}"
        found: dict[str, Any] | None = None
        if not reason:
            found = {"caption": fields[column]}
            if box_column is not None and (text := fields[box_column].strip()):
                found["box"] = box_in(text)
        yield Record(found, _beginning(data), reason)


def _of_json(data: bytes | None) -> Iterator[Record]:
    """Read an object with one or more captions, or a string."""
    text = _text(data, LONGEST_RECORD)
    if isinstance(text, Record):
        yield text
        return
    beginning = text[:BEGINNING]
    if not text:
        yield Record(None, beginning, "is empty")
        return
    try:
        found = parse_json(text)
    except ValueError as error:
        yield Record(None, beginning, f"is not JSON ({error})")
        return
    if not isinstance(found, dict):
        found = {"caption": found}
    key = next((key for key in KEYS if key in found), None)
    if key is None:
        there = f"only {_listed(found)}" if found else "nothing at all"
        yield Record(None, beginning, f"has no {_KEY_NAMES}, {there}")
        return
    several = found[key] if key == "captions" and isinstance(found[key], list) else [found[key]]
    if not several:
        yield Record(None, beginning, 'has an empty list of "captions"')
    others = {name: found[name] for name in ("seed", "index", "box") if name in found}
    for position, caption in enumerate(several):
        if isinstance(caption, str):
            yield Record({**others, "caption": caption}, beginning, position=position)
        else:
            yield Record(None, beginning, f'has no "{key}" that is text')


def _text(data: bytes | None, longest: int) -> str | Record:
    """Return the text of a record, or a record with the reason why it has none."""
    if data is None:
        return Record(None, "", f"is longer than {longest:,} bytes")
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        return Record(None, _beginning(data), _encoding_fault(data, error))


def _encoding_fault(data: bytes, error: UnicodeDecodeError) -> str:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return f"is not UTF-8 (byte {error.start + 1})"
    return "has half a surrogate pair, which is not valid text"


def _beginning(data: bytes) -> str:
    return data[:BEGINNING].decode("utf-8", "backslashreplace").strip()


def _caption_column(header: list[str]) -> int | None:
    names = [name.strip() for name in header]
    return next((names.index(key) for key in KEYS if key in names), None)


def _listed(names: Iterable[str]) -> str:
    """Return the first few names of keys or columns for a message. They may be any text."""
    quoted = [f'"{printable(name[:40])}"' for name in islice(names, 6)]
    return ", ".join([*quoted[:5], "..."] if len(quoted) > 5 else quoted)


# --- lines, elements and rows ---------------------------------------------------------------------


def lines(chunks: Iterable[bytes], longest: int) -> Iterator[bytes | None]:
    r"""Yield each line with its end, which is "\n", "\r\n" or "\r".

    Args:
        chunks: the text.
        longest: maximum length of a line in bytes, without its end. A longer line is replaced by
            None.
    """
    rest = bytearray()  # the beginning of a line that has no end yet
    cut = False  # whether its beginning was too long to keep
    for chunk in chunks:
        may_end = b"\n" in chunk or b"\r" in chunk or rest.endswith(b"\r")
        rest += chunk
        if may_end:
            whole = bytes(rest).splitlines(keepends=True)
            # "\r" may be followed by "\n" in the next chunk
            rest = bytearray(b"" if whole[-1].endswith(b"\n") else whole.pop())
            for line in whole:
                yield None if cut or len(line.rstrip(b"\r\n")) > longest else line
                cut = False
        if cut or len(rest) > longest + 1:
            del rest[:-1]
            cut = True
    if rest or cut:
        yield None if cut or len(rest.rstrip(b"\r\n")) > longest else bytes(rest)


def _elements(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield each element of a JSON array, or None in place of one that is too long.

    Only strings, brackets and commas are examined, so any other fault in an element does not affect
    the next one.

    Raises:
        DamageError: the array has no end, or there is data after its end.
    """
    stream = iter(chunks)
    depth = 0  # number of open brackets: 1 between elements
    in_string = escaped = False
    element = bytearray()
    count = 0
    for chunk in stream:
        start, position = 0, int(escaped)
        escaped = False
        while True:
            if in_string:
                found = _IN_STRING.search(chunk, position)
            elif depth > 1:
                found = _IN_ELEMENT.match(chunk, position)
            else:
                found = _BETWEEN.search(chunk, position)
            if found is None:
                break
            mark, position = found.group(1), found.end()
            if mark == b"\\":
                escaped = position == len(chunk)
                position += 1
            elif in_string or mark == b'"':
                in_string = not in_string
            elif mark in b"[{":
                depth += 1
                if depth == 1:  # the bracket of the array itself
                    start = position
                    element.clear()
            elif depth > 1:
                depth -= 1
            elif mark != b"}":
                element += chunk[start : position - 1]
                start = position
                if mark == b"," or count or element.strip():  # otherwise the array is empty: []
                    yield None if len(element) > LONGEST_RECORD else bytes(element)
                count += 1
                element.clear()
                if mark == b"]":
                    if any(rest.strip() for rest in chain([chunk[position:]], stream)):
                        raise DamageError("is after the end of the array")
                    return
        element += chunk[start:]
        del element[LONGEST_RECORD + 1 :]
    raise DamageError("is cut off: the array has no end")


class _Row(NamedTuple):
    fields: list[str]
    data: bytes
    reason: str = ""
    """Why the row cannot be read."""


_NO_ROW = _Row([], b"")


class _BadRowError(Exception):
    pass


def _rows(unread: Iterator[bytes | None], delimiter: str) -> Iterator[_Row]:
    """Yield the rows of a table from its lines, without the empty rows.

    If a closing quotation mark is missing, the row runs on into the next lines. So if a row cannot
    be read, only its first line is refused, and its other lines are read again. Each of them is
    read as a separate row, so that no line is read more than twice, except for the last one, where
    the fault was found: that line may begin a longer row.
    """
    again: deque[bytes | None] = deque()
    alone = 0  # how many lines of `again` must each be a separate row
    taken: list[bytes | None] = []

    def take() -> Iterator[str]:
        nonlocal alone
        max_lines = 1 if alone else _MAX_LINES
        size = 0
        while (line := again.popleft() if again else next(unread, b"")) != b"":
            if len(taken) == max_lines:
                again.appendleft(line)
                raise _BadRowError("has a quotation mark that is not closed")
            alone = max(0, alone - 1)
            taken.append(line)
            if line is None or size + len(line.rstrip(b"\r\n")) > LONGEST_RECORD:
                raise _BadRowError(f"is longer than {LONGEST_RECORD:,} bytes")
            size += len(line)
            yield line.decode("utf-8", "surrogateescape")

    while True:
        fields: list[str] = []
        reason = ""
        taken.clear()
        try:
            with _fields_of_any_length():
                fields = next(csv.reader(take(), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            reason = f"is not a row of a table ({error})"
        except _BadRowError as error:
            reason = str(error)
        if not taken:
            return
        if reason and len(taken) > 1:
            again.extendleft(reversed(taken[1:]))
            alone = len(taken) - 2
            del taken[1:]
        data = b"".join(line or b"" for line in taken)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            reason = reason or _encoding_fault(data, error)
        if fields or reason:
            yield _Row(fields, data, reason)


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Raise the field size limit of the csv module, which all its readers share, for a row."""
    before = csv.field_size_limit(LONGEST_RECORD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
