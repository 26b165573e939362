"""Captions from files, pipes and lists: all of them, in order and numbered."""

import gzip
import json
import os
import random
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.caption_formats import LONGEST_RECORD
from mirrorgan_fast.sampling.captions import (
    LONGEST_CAPTION,
    Line,
    Record,
    Refused,
    Request,
    parse,
)
from mirrorgan_fast.sampling.rows import image_row
from mirrorgan_fast.sampling.sampler import Result
from mirrorgan_fast.vocabulary import END, Vocabulary

TEXTS = ["a red bird", "a small, blue bird", 'a "green" bird', "an orange bird\non a rock"]
OBJECTS = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(TEXTS)]
CSV = 'file_name,text\r\n0.png,{}\r\n1.png,"{}"\r\n2.png,"a ""green"" bird"\r\n3.png,"{}"\r\n'
FORMATS = {
    "captions.json": json.dumps(OBJECTS),
    "captions.jsonl": "".join(json.dumps(row) + "\n" for row in OBJECTS),
    "metadata.jsonl": json.dumps({"captions": TEXTS[:3]}) + "\n" + json.dumps(TEXTS[3]),
    "captions.csv": CSV.format(TEXTS[0], TEXTS[1], TEXTS[3]),
    "captions.tsv": CSV.format(TEXTS[0], TEXTS[1], TEXTS[3])
    .replace(",", "\t")
    .replace("l\t", "l,"),
    "captions": CSV.format(TEXTS[0], TEXTS[1], TEXTS[3]),
    "captions.txt": json.dumps(TEXTS, indent=2),
}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read(captions: Captions) -> list[tuple[int, str | None]]:
    return [
        (line, None if record.fields is None else record.fields["caption"])
        for line, record in captions.records()
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_all_formats_have_the_same_captions(name: str, encoding: str, tmp_path: Path) -> None:
    data = FORMATS[name].encode(encoding)
    expected = list(enumerate(TEXTS, start=1))
    paths = [written(tmp_path / name, data), written(tmp_path / f"{name}.gz", gzip.compress(data))]
    for path in paths:
        with Captions.open(path) as captions:
            assert captions.repeatable
            for _ in range(2):
                assert read(captions) == expected
                assert captions.share == 1


def test_captions_of_a_list() -> None:
    texts = ["a bird", "  ", "鸟\n", "[a]", "\ud83d", "x" * (LONGEST_CAPTION + 1)]
    with Captions.of(iter(texts)) as captions:
        assert captions.repeatable
        for _ in range(2):
            assert read(captions) == list(enumerate(texts, start=1))
            assert captions.share == 1
    with Captions.of([]) as captions:
        assert read(captions) == []
        assert captions.share is None
    for wrong in ("a bird", ["a bird", 7]):
        with pytest.raises(
            InputError, match=r"captions must be a list of strings|must be a string"
        ):
            Captions.of(wrong)


def test_the_share_grows_with_the_lines_read(tmp_path: Path) -> None:
    path = written(tmp_path / "captions", b"a red bird\n" * 10_000)
    with Captions.open(path) as captions:
        for line, _ in captions.records():
            assert captions.share is not None
            assert line / 10_000 <= captions.share <= line / 10_000 + 0.1


def test_the_last_record_reports_damage(tmp_path: Path) -> None:
    numbers = random.Random(0)
    texts = [f"a bird {numbers.random()}" for _ in range(5000)]
    whole = gzip.compress("\n".join(texts).encode())
    for name, data, reason in (
        ("c.txt.gz", whole[: len(whole) // 2], "is gzip that is cut off"),
        ("c", whole[:-8] + bytes(8), "is gzip that is damaged"),
        ("c.json", json.dumps(texts)[:-9].encode(), "is cut off: the array has no end"),
        ("c.json", json.dumps(texts).encode() + b"]", "is after the end of the array"),
        ("c.txt", "\n".join(texts).encode("utf-16")[:-1], "is UTF-16 that is cut off"),
    ):
        with Captions.open(written(tmp_path / name, data)) as captions:
            for _ in range(2):
                *whole_ones, last = captions.records()
                count = len(whole_ones)
                assert count > 2000
                assert [record.fields for _, record in whole_ones] == [
                    {"caption": text} for text in texts[:count]
                ]
                assert last[0] == count + 1
                assert last[1].fields is None
                assert reason in last[1].reason


def test_refused_files_are_closed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    before = len(os.listdir("/dev/fd"))
    for name, data in (("c.csv", b"a,b"), ("c.json", b"{}"), ("c", b"\0"), ("c.zip", b"a")):
        with pytest.raises(InputError, match=f"{name}: "):
            Captions.open(written(tmp_path / name, data))
    assert len(os.listdir("/dev/fd")) == before
    assert not recwarn


# --- pipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_captions_of_a_pipe_are_read_once(name: str, tmp_path: Path) -> None:
    pipe = tmp_path / ("pipe" + Path(name).suffix)
    os.mkfifo(pipe)
    with Captions.open(pipe) as captions:
        assert not captions.repeatable
        writer = threading.Thread(target=pipe.write_bytes, args=(FORMATS[name].encode(),))
        writer.start()
        captions.prepare()
        assert captions.share is None
        assert read(captions) == list(enumerate(TEXTS, start=1))
        writer.join()
        for again in (captions.prepare, captions.records().__next__):
            with pytest.raises(InputError, match="was read already, and cannot be read again"):
                again()


def test_a_pipe_of_another_format_is_refused() -> None:
    end, other = os.pipe()
    os.write(other, b"%PDF-1.7\n")
    os.close(other)
    with (
        Captions.open(f"/dev/fd/{end}") as captions,
        pytest.raises(InputError, match=f"/dev/fd/{end}: is PDF; give text"),
    ):
        captions.prepare()
    os.close(end)


def test_typed_captions_are_read_line_by_line(tmp_path: Path) -> None:
    for lines in (
        ["a red bird\n", "a bird\n"],
        ['{"text": "a"}\n', '"b"\n'],
        ["[\n", '"a",', '"b",'],
    ):
        end, other = os.pipe()
        with Captions.open(f"/dev/fd/{end}") as captions:
            os.write(other, lines[0].encode())
            records = captions.records()
            if lines[0] == "[\n":
                os.write(other, lines[1].encode())
                assert next(records)[0] == 1
                os.write(other, lines[2].encode())
            else:
                assert next(records)[0] == 1
                os.write(other, lines[1].encode())
            assert next(records)[0] == 2
        os.close(end)
        os.close(other)


# --- what is written can be read back -------------------------------------------------------------

WORST = {
    "control characters": "\1",
    "words of a letter": "q ",
    "words of a letter between control characters": "q\1",
    "quotation marks": 'q"',
    "three letters of one": "\u0958 ",  # NFC decomposes it
    "longer in lower case": "\u0130",
    "longer in lower case, as words": "\u023a ",
    "no words": "\U0001d160\1",
    "one word": "\U0002f800",
}


@pytest.mark.parametrize("kind", WORST)
def test_the_longest_rows_of_a_manifest_can_be_read_back(kind: str, tmp_path: Path) -> None:
    unit = WORST[kind]
    caption = (unit * (LONGEST_CAPTION // len(unit.encode())))[:LONGEST_CAPTION].strip()
    vocabulary = Vocabulary([END, "bird"])
    (unknown,) = vocabulary.encode([caption], 8).unknown
    request = Request(10**15, 10**15, caption, 2**128 - 1, 2**128 - 1)
    result = Result(request, np.zeros((1, 1, 3), np.uint8), [], unknown, [])
    row = image_row(result, {"file": "0" * 255 + "/" + "0" * 255})
    assert len(row) < LONGEST_RECORD
    for name, data in (("m.jsonl", row + row), ("m.json", b"[" + row + b"," + row + b"]")):
        with Captions.open(written(tmp_path / name, data)) as captions:
            for line, record in captions.records():
                parsed = parse(line, record, seed=0, per_caption=1)
                assert isinstance(parsed, Line)
                first = parsed.first
                assert (first.caption, first.seed, first.index) == (caption, 2**128 - 1, 2**128 - 1)


def test_how_long_words_can_become() -> None:
    """The bounds behind ``LONGEST_RECORD``: at most 3 bytes of 2 by lower case, 3 of 1 by NFC."""
    for letter in map(chr, range(sys.maxunicode + 1)):
        if not "\ud800" <= letter <= "\udfff":
            lower = letter.lower()
            assert 2 * len(lower.encode()) <= 3 * len(letter.encode())
            normal = unicodedata.normalize("NFC", lower)
            assert len(normal.encode()) <= 3 * len(lower.encode())
            if letter.isalnum() or unicodedata.category(letter)[0] == "M":  # in words
                assert json.dumps(normal, ensure_ascii=False) == f'"{normal}"'


def test_a_refused_record_keeps_its_line_reason_and_beginning() -> None:
    record = Record(None, "a b", "is odd")
    assert parse(7, record, seed=0, per_caption=2) == Refused(7, "is odd", "a b")
