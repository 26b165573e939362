"""Records of all formats against Python's own readers, which need the whole text in memory."""

import csv
import io
import json
import random
import re
import tracemalloc
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import PurePath
from typing import Any

import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.sampling.caption_formats import (
    LONGEST_RECORD,
    format_of,
    json_array,
    json_lines,
    lines,
    plain_text,
    table,
)
from mirrorgan_fast.sampling.captions import LONGEST_CAPTION, Record
from mirrorgan_fast.sampling.sources import DamageError, Peekable

LETTERS = [*"ab ,;\t'\"\\[]{}:/", "\v", "\f", "\x1c", "\x85", "\u2028", "é", "鸟", "🐦", "\0"]


def cut(data: bytes, randomly: random.Random) -> Iterator[bytes]:
    """Yield chunks of random sizes, often of a single byte."""
    most = randomly.choice([1, 3, 20, 5000]) if len(data) < 10_000 else 50_000
    start = 0
    while start < len(data):
        size = randomly.randint(1, most)
        yield data[start : start + size]
        start += size


def opened(data: bytes, name: str, randomly: random.Random | None) -> Iterator[Record]:
    chunks = Peekable(cut(data, randomly) if randomly else iter([data] if data else []))
    return format_of(chunks, "captions", PurePath(name).suffix)(chunks)


def read(data: bytes, name: str = "", randomly: random.Random | None = None) -> list[Record]:
    return list(opened(data, name, randomly))


def captions(records: list[Record]) -> list[str | None]:
    """Return the caption of each record, None for a refused one."""
    return [record.fields and record.fields["caption"] for record in records]


def some_text(randomly: random.Random, more: str = "") -> str:
    return "".join(randomly.choices([*LETTERS, *more], k=randomly.randint(0, 12)))


# --- against other readers ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_lines_are_those_of_python(seed: int) -> None:
    for randomly in map(random.Random, range(seed, seed + 10)):
        text = (
            "a"
            + "".join(
                some_text(randomly) + randomly.choice(["\n", "\r", "\r\n", "\n\r"])
                for _ in range(20)
            )
            + randomly.choice(["", "b"])
        )
        expected = [line.strip() for line in io.StringIO(text, newline=None)]
        assert captions(read(text.encode(), "captions.txt", randomly)) == expected


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_arrays_are_those_of_python(seed: int) -> None:
    for randomly in map(random.Random, range(seed, seed + 10)):
        rows = [some_row(randomly) for _ in range(randomly.choice([0, 1, 2, 30]))]
        style: dict[str, Any] = {
            "indent": randomly.choice([None, 1, "\t"]),
            "ensure_ascii": randomly.random() < 0.5,
        }
        text = (
            randomly.choice(["", " \n"])
            + json.dumps(rows, **style)
            + randomly.choice(["", "\n \n"])
        )
        expected = list(chain.from_iterable(map(captions_of, json.loads(text))))
        assert captions(read(text.encode(), "captions.json", randomly)) == expected
        first_is_one = bool(rows) and isinstance(rows[0], str | dict)
        if first_is_one:  # then the format is recognized without a file name
            assert captions(read(text.encode(), "", randomly)) == expected
        in_lines = "".join(json.dumps(row) + "\r\n" for row in rows)
        assert captions(read(in_lines.encode(), "captions.jsonl", randomly)) == expected


def some_row(randomly: random.Random, depth: int = 0) -> Any:
    text = some_text(randomly, more="\n\r")
    match randomly.randrange(8):
        case 0 | 1:
            return text
        case 2:
            return {
                "captions": [text, *(some_text(randomly) for _ in range(randomly.randrange(3)))]
            }
        case 3 if depth < 4:
            return [some_row(randomly, depth + 1) for _ in range(randomly.randrange(4))]
        case 4:
            return randomly.choice([None, True, -1.5e9, 12, {}, [], "", {"a": {}}])
        case _:
            row = {some_text(randomly): some_row(randomly, depth + 1) if depth < 4 else 1}
            return row | {randomly.choice(["caption", "text", "prompt", "captions", "no"]): text}


def captions_of(row: Any) -> list[str | None]:
    if isinstance(row, str):
        return [row]
    if not isinstance(row, dict):
        return [None]
    for key in ("caption", "text", "prompt"):
        if key in row:
            return [row[key] if isinstance(row[key], str) else None]
    several = row.get("captions")
    if isinstance(several, list) and several:
        return [text if isinstance(text, str) else None for text in several]
    return [several if isinstance(several, str) else None]


@pytest.mark.parametrize("seed", range(0, 300, 10))
def test_rows_are_those_of_python(seed: int) -> None:
    for randomly in map(random.Random, range(seed, seed + 10)):
        width, out = randomly.randint(1, 4), io.StringIO()
        # A table of one column has no ";" that would show the delimiter.
        delimiter = randomly.choice(",;\t" if width > 1 else ",\t")
        writer = csv.writer(
            out,
            delimiter=delimiter,
            quoting=randomly.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
            lineterminator=randomly.choice(
                ["\r\n", "\n\r\n", "\r\r\n"]
            ),  # the last two add empty lines
        )
        column = randomly.randrange(width)
        header = [f"column{i}" for i in range(width)]
        header[column] = randomly.choice(["caption", "text", "prompt", "captions"])
        writer.writerow(header)
        for _ in range(randomly.randrange(20)):
            count = width if randomly.random() < 0.9 else randomly.randint(1, 6)
            writer.writerow([some_text(randomly, more="\n\r") for _ in range(count)])
        text = out.getvalue()
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row
        ]
        expected = [row[column] if len(row) == width else None for row in rows[1:]]
        name = "captions.tsv" if delimiter == "\t" else "captions.csv"
        assert captions(read(text.encode(), name, randomly)) == expected
        if width > 1 and len(rows) > 1 and len(rows[1]) == width:  # then it is recognized, too
            assert captions(read(text.encode(), "captions.txt", randomly)) == expected


@pytest.mark.parametrize("seed", range(0, 300, 10))
def test_damaged_texts_give_the_same_records_in_any_chunks(seed: int) -> None:
    texts = ["a red bird", 'a "big", bird', "[a], {b}"]
    wholes = [
        json.dumps([{"caption": text} for text in texts]),
        json.dumps(texts, indent=1),
        "".join(json.dumps({"text": text}) + "\n" for text in texts),
        'file,caption\r\n0.png,"a red, blue bird"\r\n1.png,a bird\r\n2.png,"a\nbird"\r\n',
    ]
    for randomly in map(random.Random, range(seed, seed + 10)):
        data = bytearray(randomly.choice(wholes).encode())
        for _ in range(randomly.randint(1, 4)):
            place = randomly.randrange(len(data))
            data[place : place + randomly.randrange(3)] = bytes(
                randomly.choices(b'",\\[]{}\r\n:a\xff\xe9', k=randomly.randrange(3))
            )
        name = randomly.choice(["", "c.json", "c.jsonl", "c.csv", "c.txt"])
        first, *others = [told(bytes(data), name, chunks) for chunks in (None, randomly, randomly)]
        assert others == [first, first]


def told(data: bytes, name: str, randomly: random.Random | None) -> list[Record | str]:
    found: list[Record | str] = []
    try:
        found.extend(opened(data, name, randomly))
    except (InputError, DamageError) as error:
        found.append(str(error))
    return found


# --- which format it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        "a red bird, small, on a rock",
        "caption, text",
        "text;bird,text",
        "[a red bird], a blue one",
        "[1, 2]",
        '["red" bird]',
        '["a red bird',
        "[]",
        "{a red bird}",
        '{"red" bird}',
        '"a red bird", he said',
        '"a red bird',
        "{",
        "[",
        "---",
        "# birds",
        "<a red bird>",
        "-",
        "caption",
        "a\0bird",
        "BMW, a red bird",
        "PK is a bird",
        "null",
    ],
)
def test_plain_text_stays_plain_text(first: str) -> None:
    rest = ["a blue bird, with wings", '{"caption": "a bird"}', "[a bird]", '"a, bird"', "a,b"]
    for name in ("captions.txt", "captions", ""):
        text = "\n".join([first, *rest])
        assert captions(read(text.encode(), name, random.Random(0))) == [first, *rest]
        assert captions(read(first.encode(), name)) == [first]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ('{"caption": "a"}\n{"text": "b"}', "", ["a", "b"]),
        ('\n \n{"caption": "a"}', "", [None, None, "a"]),
        ('{"caption": "a\n{"text": "b"}', "", [None, "b"]),
        ('{"no": 1}\n{"text": "b"}', "c.json", [None, "b"]),
        ('{"text": "\udce9"}', "", [None]),
        ('["\udce9", "b"]', "", [None, "b"]),
        ('"a"\n"b"', "c.ndjson", ["a", "b"]),
        ("a\nb", "c.jsonl", [None, None]),
        ('["a", "b"]\n', "c.jsonl", [None]),
        ('[\n{"text": "a"},\n{"text": "b"}\n]', "c.ndjson", ["a", "b"]),
        ('{"captions": ["a", "b"]}', "c.jsonl", ["a", "b"]),
        ('["a", "b"]', "", ["a", "b"]),
        ('\r\n[\r\n"a",{"prompt":"b"}]', "c.txt", ["a", "b"]),
        ("[]", "c.json", []),
        ("[1, 2]", "c.json", [None, None]),
        ("file_name,text\n0.png,a", "", ["a"]),
        (",caption\n0,a\n", "", ["a"]),
        ('"file_name"\t"text"\r"0.png"\t"a, b"', "", ["a, b"]),
        ("id;prompt\n0;a", "", ["a"]),
        ("id;prompt\n0;a", "c.csv", ["a"]),
        ("caption\na\nb", "c.csv", ["a", "b"]),
        ("image, caption \n0.png, a", "c.csv", [" a"]),
        ("id,text,caption\n1,2,3", "c.csv", ["3"]),
        ("caption\n", "c.tsv", []),
    ],
)
def test_formats_are_recognized(text: str, name: str, expected: list[str | None]) -> None:
    for randomly in (None, random.Random(0), random.Random(1)):
        data = text.encode("utf-8", "surrogateescape")
        assert captions(read(data, name, randomly)) == expected


COCO = {"info": {}, "images": [], "annotations": [{"image_id": 1, "caption": "a bird"}]}


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        (json.dumps(COCO), "coco.json", '"info", "images", "annotations".*COCO.*jq -c'),
        (json.dumps(COCO), "", "is a JSON object, with"),
        (json.dumps(COCO, indent=1), "coco.json", "is a JSON object, larger than a line"),
        (json.dumps({"caption": "a"}, indent=1) * 2, "", "is a JSON object, larger than a line"),
        ('{"info": "' + "a" * 2**21 + '"}', "", "is a JSON object, larger than a line"),
        ('"a bird"', "c.json", "neither a JSON array of captions nor JSON lines"),
        ("a bird", "c.json", "neither a JSON array of captions nor JSON lines"),
        ("", "c.json", "neither a JSON array of captions nor JSON lines"),
        ("file,title\n0.png,a", "c.csv", 'no column "caption",.*only "file", "title"'),
        ("a red, blue bird\n", "c.tsv", 'no column "caption",.*only "a red, blue bird"'),
        ("", "c.csv", "first row, which is empty"),
        ('"caption', "c.csv", "first row, which is empty or cannot be read"),
    ],
)
def test_json_and_tables_without_captions_are_refused(text: str, name: str, reason: str) -> None:
    for randomly in (None, random.Random(0)):
        with pytest.raises(InputError, match=reason):
            read(text.encode(), name, randomly)


def test_a_format_is_recognized_from_as_little_as_possible() -> None:
    """Otherwise typed captions would have to wait."""

    def never() -> Iterator[bytes]:
        raise AssertionError("read on")
        yield b""

    for begins in ("a bird\n", '{"text": "a"}\n', '["a",', "a, b\n", "caption\n", '"a bird\n'):
        text = Peekable(chain([begins.encode()], never()))
        format = format_of(text, "captions", "")
        if not begins.startswith("["):
            assert len(captions([next(format(text))])) == 1


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        '{"caption": "a" "b"}',
        '{"caption": "a"]}',
        "{]",
        "}",
        "nothing",
        "'a'",
        "",
        '"a\nb"',
        '"a" "b"',
        '{"caption": "\udcff"}',
        '{"caption": "a\\x"}',
        '["\\"]", "\\\\"]',
        "[[[[[]]]]]",
        "[" * 5000 + "]" * 5000,
    ],
)
def test_only_the_bad_element_is_refused(bad: str) -> None:
    text = f' \n["first", {bad}, "second, [", {{"text": "third"}}]'
    data = text.encode("utf-8", "surrogateescape")
    for randomly in (None, random.Random(0)):
        assert captions(read(data, "c.json", randomly)) == ["first", None, "second, [", "third"]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("", "has no end"),
        (', "b', "has no end"),
        (', {"caption": "b"', "has no end"),
        ("] [", "after the end"),
        ('], "b"]', "after the end"),
    ],
)
def test_elements_before_a_damaged_end_are_read(end: str, reason: str) -> None:
    for seed in range(4):
        records = json_array(cut(f'["a", "b"{end}'.encode(), random.Random(seed)))
        assert captions([next(records)]) == ["a"]
        with pytest.raises(DamageError, match=reason):
            list(records)


ROWS = 'id,caption\n0,a\n{}\n2,"c, d"\n3,"e\nf"\n4,g\n'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("1,red, small bird", "has 3 fields where the first row has 2"),
        ("1", "has 1 fields"),
        ('1,"red bird', "not a row of a table"),
        ('1,"red" bird', "not a row of a table"),
        ('"1,red bird', "not a row of a table"),
        ("1,red \udcff bird", r"is not UTF-8 \(byte 7\)"),
        ("\udce9,red bird", r"is not UTF-8 \(byte 1\)"),
        (f'1,"{"a " * LONGEST_RECORD}"', "is longer than 1,048,576 bytes"),
        (f"1,{'a ' * LONGEST_RECORD}", "is longer than 1,048,576 bytes"),
    ],
)
def test_only_the_bad_row_is_refused(bad: str, reason: str) -> None:
    data = ROWS.format(bad).encode("utf-8", "surrogateescape")
    for randomly in (None, random.Random(3)):
        found = list(table(cut(data, randomly) if randomly else [data], ","))
        assert captions(found) == ["a", None, "c, d", "e\nf", "g"]
        assert re.search(reason, found[1].reason)


@pytest.mark.parametrize("count", [10, 3000])
def test_a_quotation_mark_that_is_never_closed_costs_one_row(count: int) -> None:
    text = 'id,caption\n0,"a bird\n' + "".join(f"{i},bird {i}\n" for i in range(count))
    assert captions(list(table([text.encode()], ","))) == [
        None,
        *(f"bird {i}" for i in range(count)),
    ]


def test_rows_after_a_fault_are_read() -> None:
    too_long = "1,x" + "x" * LONGEST_RECORD
    text = f'id,caption\n0,"open\n{too_long}\n2,a\n3,"open\n4,"b\nc"\n5,d\n6,"open'
    for randomly in (None, random.Random(0)):
        records = table(cut(text.encode(), randomly) if randomly else [text.encode()], ",")
        assert captions(list(records)) == [None, None, "a", None, "b\nc", "d", None]


def test_quotation_marks_that_open_on_every_line_take_linear_time() -> None:
    """Each line closes the field of the line before and opens another: 0.2 s, not minutes."""
    lines = 30_000
    assert captions(list(table([b"caption,b\n" + b'a","b\n' * lines], ","))) == [None] * lines


def test_a_field_may_be_longer_than_the_csv_module_allows() -> None:
    before = csv.field_size_limit()
    text = f"article,caption\n{'word ' * 100_000},a bird\n"
    assert captions(list(table([text.encode()], ","))) == ["a bird"]
    assert csv.field_size_limit() == before


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1, 3, 2**20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n", b"\nnext", b"\r\nnext", b"\rnext"])
def test_lines_that_are_too_long_are_skipped(extra: int, end: bytes) -> None:
    content = b"a" * (70_000 + extra)
    for randomly in (random.Random(0), random.Random(3)):
        first, *rest = lines(cut(content + end, randomly), 70_000)
        assert first == (None if extra > 0 else content + end.removesuffix(b"next"))
        assert rest == ([b"next"] if end.endswith(b"next") else [])


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_records_are_read_up_to_the_longest(extra: int) -> None:
    line = b"a" * (LONGEST_CAPTION + extra)
    assert captions(list(plain_text([line]))) == [None if extra > 0 else line.decode()]
    row = b'{"caption": "a", "x": ""}'
    row = row.replace(b'""', b'"' + b"," * (LONGEST_RECORD - len(row) + extra) + b'"')
    expected = [None if extra > 0 else "a", "b"]
    assert captions(list(json_lines([row + b'\n"b"']))) == expected
    assert captions(list(json_array([b"[" + row + b',"b"]']))) == expected
    row = b'"' + b"a" * (LONGEST_RECORD - 4 + extra) + b'",b'
    assert captions(list(table([b"x,text\n" + row + b"\nc,b"], ","))) == [expected[0] and "b", "b"]


@pytest.mark.parametrize("begins", ["", '{"caption": "', '["', "[" * 9000, '[{"a": "\\'])
@pytest.mark.parametrize("name", ["", "c.json", "c.csv"])
@pytest.mark.parametrize("more", ["a", " ", "long " * 9999 + '","', "long " * 9999 + "\n"])
def test_endless_records_are_not_kept_in_memory(begins: str, name: str, more: str) -> None:
    head = 'x,caption\n"' if name == "c.csv" else ""
    chunk = (more * (65_536 // len(more))).encode()
    chunks = chain([(head + begins or "a").encode()], repeat(chunk, 160))  # 10 MB
    tracemalloc.start()
    try:
        text = Peekable(chunks)
        for _ in format_of(text, "captions", name[1:])(text):
            pass
    except (InputError, DamageError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**23
