"""Parsing records: any input gives requests for images or is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorgan_fast.sampling.caption_formats import json_lines, plain_text
from mirrorgan_fast.sampling.captions import (
    BEGINNING,
    LONGEST_CAPTION,
    Record,
    Refused,
    Request,
    parse,
)


def requests(record: Record, number: int = 1) -> list[Request] | Refused:
    found = parse(number, record, seed=3, per_caption=2)
    return found if isinstance(found, Refused) else [found.request(k) for k in range(found.images)]


def read(line: bytes, *, number: int = 1, json: bool = False) -> list[Request] | Refused:
    (record,) = (json_lines if json else plain_text)([line])
    return requests(record, number)


def test_a_line_gives_several_requests() -> None:
    expected = [Request(4, 6 + k, "a red bird", 3, 6 + k) for k in range(2)]
    assert read(b"  a red bird \r\n", number=4) == expected
    assert read(b'{"caption": " a red bird", "color": 1}', number=4, json=True) == expected


def test_a_line_can_ask_for_an_image_of_another_run() -> None:
    line = json.dumps({"caption": "鸟", "seed": 8, "index": 2**70}).encode()
    assert read(line, number=2, json=True) == [
        Request(2, 2 + k, "鸟", 8, 2**70 + k) for k in range(2)
    ]


def test_captions_of_one_line_with_an_index_get_consecutive_indices() -> None:
    line = json.dumps({"captions": ["a", "b", "c"], "seed": 8, "index": 50}).encode()
    assert [requests(record, 5 + i) for i, record in enumerate(json_lines([line]))] == [
        [Request(5 + i, 2 * (4 + i) + k, "abc"[i], 8, 50 + 2 * i + k) for k in range(2)]
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("line", "json", "reason"),
    [
        (b"\n", False, "is empty"),
        (b" \t\r\n", False, "is empty"),
        (b"\n", True, "is empty"),
        (b"a \xff bird\n", False, "is not UTF-8 (byte 3)"),
        (b'{"caption": "a \xff bird"}\n', True, "is not UTF-8 (byte 16)"),
        (b"a \xed\xa0\xbd bird\n", False, "half a surrogate pair"),
        (b"a" * (LONGEST_CAPTION + 1), False, "is longer than 65,536 bytes"),
        (b'"' + "é".encode() * (LONGEST_CAPTION // 2) + b'a"', True, "is longer than 65,536 bytes"),
        (b'"' + b"a" * 2**20 + b'"', True, "is longer than 1,048,576 bytes"),
        (b"a bird\n", True, "is not JSON"),
        (b'{"caption": "a bird"', True, "is not JSON"),
        (b"[" * 60_000, True, "is not JSON"),
        (b'{"caption": 9}', True, 'has no "caption" that is text'),
        (b'{"text": null}', True, 'has no "text" that is text'),
        (b'["a bird"]', True, 'has no "caption" that is text'),
        (b"7", True, 'has no "caption" that is text'),
        (b'{"captions": 7}', True, 'has no "captions" that is text'),
        (b'{"captions": [7]}', True, 'has no "captions" that is text'),
        (b'{"captions": []}', True, 'has an empty list of "captions"'),
        (
            b'{"image": 1, "title": "a bird"}',
            True,
            'has no "caption", "text", "prompt" or "captions", only "image", "title"',
        ),
        (b"{}", True, 'or "captions", nothing at all'),
        (b'{"a\\n\\ud800": 1}', True, r'only "a\n\ud800"'),
        (json.dumps(dict.fromkeys("abcdefg", 1)).encode(), True, '"d", "e", ...'),
        (json.dumps({"a" * 50_000: 1}).encode(), True, f'only "{"a" * 40}"'),
        (b'{"caption": "  "}', True, "is empty"),
        (b'{"caption": "\\ud800 bird"}', True, "half a surrogate pair"),
        (b'{"caption": "a bird", "seed": -1}', True, '"seed" is not a whole number'),
        (b'{"caption": "a bird", "seed": true}', True, '"seed" is not a whole number'),
        (
            b'{"caption": "a bird", "index": 1.5}',
            True,
            '"index" is not a whole number',
        ),
        (b'{"caption": "a", "index": ' + b"9" * 4300 + b"}", True, '"index" is not a whole'),
        (b'{"caption": "a", "index": ' + b"9" * 4301 + b"}", True, "is not JSON"),
        (json.dumps({"caption": "a", "index": 2**128 - 1}).encode(), True, "is too large for all"),
    ],
)
def test_a_bad_caption_is_refused_with_its_line(line: bytes, json: bool, reason: str) -> None:
    refused = read(line, number=17, json=json)
    assert isinstance(refused, Refused)
    assert refused.line == 17
    assert reason in refused.reason
    assert refused.reason.isprintable()
    assert len(refused.text) <= BEGINNING * 4
    refused.text.encode()


@pytest.mark.parametrize("fields", [{"text": "a bird"}, {"text": "a bird", "captions": ["b"]}])
def test_text_is_used_before_prompt_and_captions(fields: dict[str, Any]) -> None:
    for more in ({}, {"prompt": "c"}, {"image": 7}):
        found = read(json.dumps({**more, **fields}).encode(), json=True)
        assert isinstance(found, list)
        assert found[0].caption == "a bird"


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_requests_or_are_refused(line: bytes, json: bool) -> None:
    for record in (json_lines if json else plain_text)([line]):
        found = requests(record)
        if isinstance(found, Refused):
            assert found.reason
            assert "\n" not in found.reason
            found.text.encode()
        else:
            assert len(found) == 2
            assert found[0].caption.strip() == found[0].caption != ""
            found[0].caption.encode()
