"""Captions as a stream, whatever is in it."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorgan_fast.sampling.captions import BEGINNING, LONGEST_LINE, Refused, Request, lines, parse


def read(
    line: bytes | None, *, number: int = 1, json_lines: bool = False
) -> list[Request] | Refused:
    found = parse(number, line, json_lines=json_lines, seed=3, per_caption=2)
    return found if isinstance(found, Refused) else [found.request(k) for k in range(found.images)]


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)))
def test_every_line_comes_with_its_number(content: list[bytes]) -> None:
    stream = io.BytesIO(b"".join(line + b"\n" for line in content))
    assert list(lines(stream)) == [(i, line + b"\n") for i, line in enumerate(content, start=1)]


@pytest.mark.parametrize("extra", [-1, 0, 1, LONGEST_LINE, 2**20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nnext"])
def test_lines_that_are_too_long_are_passed_over(extra: int, end: bytes) -> None:
    content = b"a" * (LONGEST_LINE + extra)
    first, *rest = lines(io.BytesIO(content + end))
    assert first == (1, None if extra > 0 else content + end[:1])
    assert rest == ([(2, b"next")] if end == b"\nnext" else [])


def test_a_line_is_several_requests() -> None:
    expected = [Request(4, 6 + k, "a red bird", 3, 6 + k) for k in range(2)]
    assert read(b"  a red bird \r\n", number=4) == expected
    assert read(b'{"caption": " a red bird", "color": 1}', number=4, json_lines=True) == expected


def test_only_the_first_line_has_a_mark_of_byte_order() -> None:
    first = read(b"\xef\xbb\xbfa bird\n")
    assert isinstance(first, list)
    assert first[0].caption == "a bird"


def test_a_line_can_ask_for_an_image_of_another_run() -> None:
    line = json.dumps({"caption": "鸟", "seed": 8, "index": 2**70}).encode()
    assert read(line, number=2, json_lines=True) == [
        Request(2, 2 + k, "鸟", 8, 2**70 + k) for k in range(2)
    ]


@pytest.mark.parametrize(
    ("line", "json_lines", "reason"),
    [
        (b"\n", False, "is empty"),
        (b" \t\r\n", False, "is empty"),
        (b"\n", True, "is empty"),
        (b"a \xff bird\n", False, "is not UTF-8 (byte 3)"),
        (None, False, "is longer than 65,536 bytes"),
        (b"a bird\n", True, "is not JSON"),
        (b'{"caption": "a bird"', True, "is not JSON"),
        (b"[" * 60_000, True, "is not JSON"),
        (b'{"caption": 9}', True, 'has no "caption" that is text'),
        (b'{"text": "a bird"}', True, 'has no "caption" that is text'),
        (b'["a bird"]', True, 'has no "caption" that is text'),
        (b'{"caption": "  "}', True, "is empty"),
        (b'{"caption": "\\ud800 bird"}', True, "half a surrogate pair"),
        (b'{"caption": "a bird", "seed": -1}', True, '"seed" is no whole number'),
        (b'{"caption": "a bird", "seed": true}', True, '"seed" is no whole number'),
        (
            b'{"caption": "a bird", "index": 1.5}',
            True,
            '"index" is no whole number',
        ),
        (b'{"caption": "a", "index": ' + b"9" * 4300 + b"}", True, '"index" is no whole'),
    ],
)
def test_what_is_no_caption_is_refused_with_its_line(
    line: bytes | None, json_lines: bool, reason: str
) -> None:
    refused = read(line, number=17, json_lines=json_lines)
    assert isinstance(refused, Refused)
    assert refused.line == 17
    assert reason in refused.reason
    assert len(refused.text) <= BEGINNING * 4
    refused.text.encode()


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_requests_or_refused(line: bytes, json_lines: bool) -> None:
    found = read(line, json_lines=json_lines)
    if isinstance(found, Refused):
        assert found.reason
        assert "\n" not in found.reason
    else:
        assert len(found) == 2
        assert found[0].caption.strip() == found[0].caption != ""
        found[0].caption.encode()
