"""ranges: which bytes of a stored body a request wants (RFC 9110 §14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import Headers
from gateway.ranges import OutOfRange, Part, cut, span_of, wanted

MODIFIED = b"Wed, 01 Jan 2025 00:00:00 GMT"
TAGGED = [(b"etag", b'"v1"'), (b"last-modified", MODIFIED)]
HTTP_DATE_LATER = b"Thu, 02 Jan 2025 00:00:00 GMT"


def asking(text: bytes, if_range: bytes | None = None) -> Headers:
    return [(b"range", text), *([(b"if-range", if_range)] if if_range is not None else [])]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param(b"bytes=0-0", (0, 0), id="the first byte"),
        pytest.param(b"bytes=2-5", (2, 5), id="a piece"),
        pytest.param(b"bytes=2-", (2, 9), id="from there on"),
        pytest.param(b"bytes=9-9", (9, 9), id="the last byte"),
        pytest.param(b"bytes=5-99", (5, 9), id="beyond the end"),
        pytest.param(b"bytes=0-999999999999999999", (0, 9), id="far beyond the end"),
        pytest.param(b"bytes=-3", (7, 9), id="the last three"),
        pytest.param(b"bytes=-99", (0, 9), id="more than there is"),
        pytest.param(b"BYTES=0-1", (0, 1), id="the unit in capitals"),
        pytest.param(b" bytes=0-1 ", (0, 1), id="space around"),
    ],
)
def test_a_range_selects_its_bytes(text: bytes, part: tuple[int, int]) -> None:
    assert wanted(asking(text), (), 10) == Part(*part, 10)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        pytest.param(b"bytes=10-", 10, id="just after the end"),
        pytest.param(b"bytes=99-100", 10, id="far after the end"),
        pytest.param(b"bytes=-0", 10, id="the last none"),
        pytest.param(b"bytes=0-", 0, id="of an empty body"),
        pytest.param(b"bytes=-5", 0, id="the last of an empty body"),
    ],
)
def test_a_range_that_holds_no_byte_is_out_of_range(text: bytes, size: int) -> None:
    assert wanted(asking(text), (), size) == OutOfRange(size)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"bytes=-", id="no number"),
        pytest.param(b"bytes=5-2", id="backwards"),
        pytest.param(b"bytes=0-1,3-4", id="several"),
        pytest.param(b"bytes=0-1, 3-4", id="several with space"),
        pytest.param(b"items=0-1", id="another unit"),
        pytest.param(b"bytes 0-1", id="no equals sign"),
        pytest.param(b"bytes=a-b", id="letters"),
        pytest.param(b"bytes=+0-1", id="a sign"),
        pytest.param(b"bytes=--1", id="two hyphens"),
        pytest.param(b"bytes=0x0-1", id="hexadecimal"),
        pytest.param(b"bytes=0-1\xb2", id="a superscript"),
        pytest.param(b"bytes=0 - 1", id="space within"),
        pytest.param(b"bytes=0-1000000000000000000", id="nineteen digits"),
    ],
)
def test_a_range_that_cannot_be_read_asks_for_the_whole(text: bytes) -> None:
    assert wanted(asking(text), (), 10) is None


def test_a_range_that_runs_backwards_asks_for_the_whole_wherever_the_body_ends() -> None:
    assert wanted(asking(b"bytes=5-2"), (), 3) is None


def test_no_range_asks_for_the_whole() -> None:
    assert wanted((), (), 10) is None


def test_two_range_lines_ask_for_the_whole() -> None:
    assert wanted([*asking(b"bytes=0-1"), *asking(b"bytes=3-4")], (), 10) is None


@pytest.mark.parametrize(
    ("condition", "response"),
    [
        pytest.param(b'"v1"', TAGGED, id="the tag"),
        pytest.param(MODIFIED, TAGGED, id="the date"),
    ],
)
def test_a_range_counts_where_if_range_names_this_response(condition: bytes, response: Headers) -> None:
    assert wanted(asking(b"bytes=0-1", condition), response, 10) == Part(0, 1, 10)


@pytest.mark.parametrize(
    ("condition", "response"),
    [
        pytest.param(b'"v2"', TAGGED, id="another tag"),
        pytest.param(b'W/"v1"', [(b"etag", b'W/"v1"')], id="a weak tag"),
        pytest.param(b'"v1"', [], id="a tag where there is none"),
        pytest.param(HTTP_DATE_LATER, TAGGED, id="another date"),
        pytest.param(MODIFIED, [(b"etag", b'"v1"')], id="a date where there is none"),
        pytest.param(b"yesterday", [(b"last-modified", b"yesterday")], id="no date"),
        pytest.param(b"", TAGGED, id="empty"),
        pytest.param(b'"v1", "v2"', TAGGED, id="two tags"),
    ],
)
def test_a_range_does_not_count_where_if_range_names_another_response(condition: bytes, response: Headers) -> None:
    assert wanted(asking(b"bytes=0-1", condition), response, 10) is None


def test_a_part_tells_its_place() -> None:
    assert Part(2, 5, 10).content_range == b"bytes 2-5/10"


@given(st.binary(max_size=20), st.integers(0, 25), st.none() | st.integers(0, 25))
def test_a_range_gives_what_a_slice_gives(body: bytes, start: int, end: int | None) -> None:
    part = wanted(asking(b"bytes=%d-%s" % (start, b"" if end is None else b"%d" % end)), (), len(body))
    expected = body[start:] if end is None else body[start : end + 1]
    given_bytes = body[part.first : part.last + 1] if isinstance(part, Part) else b""
    assert given_bytes == expected


@given(
    st.text(st.sampled_from("bytes=-0123456789, \t")) | st.text(st.characters(max_codepoint=0xFF)), st.integers(0, 9)
)
def test_no_range_reaches_beyond_its_body(text: str, size: int) -> None:
    part = wanted(asking(text.encode("latin-1")), (), size)
    assert not isinstance(part, Part) or 0 <= part.first <= part.last < size


# --- stored parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [
        pytest.param(b"bytes 0-4/10", Part(0, 4, 10), id="a part"),
        pytest.param(b"BYTES 9-9/10", Part(9, 9, 10), id="the last byte, the unit in capitals"),
        pytest.param(b"bytes 0-4/*", None, id="of an unknown size"),
        pytest.param(b"bytes */10", None, id="unsatisfied"),
        pytest.param(b"bytes 5-4/10", None, id="backwards"),
        pytest.param(b"bytes 0-10/10", None, id="beyond the end"),
        pytest.param(b"items 0-4/10", None, id="another unit"),
        pytest.param(b"bytes 0-4", None, id="no size"),
        pytest.param(b"", None, id="empty"),
    ],
)
def test_a_content_range_tells_which_part_it_is(text: bytes, span: Part | None) -> None:
    assert span_of([(b"content-range", text)]) == span


def test_without_a_content_range_no_part_is_known() -> None:
    assert span_of(()) is None


@pytest.mark.parametrize(
    ("text", "span", "piece"),
    [
        pytest.param(b"bytes=4-6", (4, 6), b"456", id="the very part"),
        pytest.param(b"bytes=5-5", (4, 6), b"5", id="a piece of it"),
        pytest.param(b"bytes=7-", (5, 9), b"789", id="the end"),
        pytest.param(b"bytes=-2", (5, 9), b"89", id="the last two"),
        pytest.param(b"bytes=-2", (8, 9), b"89", id="the last two, no more"),
    ],
)
def test_a_stored_part_answers_for_what_lies_in_it(text: bytes, span: tuple[int, int], piece: bytes) -> None:
    body = b"0123456789"[span[0] : span[1] + 1]
    found = cut(asking(text), (), Part(*span, 10), body)
    assert found is not None
    part, content = found
    assert content == piece == b"0123456789"[part.first : part.last + 1]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        pytest.param(b"bytes=3-5", (4, 6), id="begins before it"),
        pytest.param(b"bytes=5-7", (4, 6), id="ends after it"),
        pytest.param(b"bytes=5-", (4, 6), id="open at the end"),
        pytest.param(b"bytes=-3", (4, 6), id="the last three"),
        pytest.param(b"bytes=-9", (5, 9), id="more of the end than there is"),
        pytest.param(b"bytes=99-", (5, 9), id="out of range"),
        pytest.param(b"bytes=0-1,5-5", (5, 9), id="several"),
        pytest.param(b"", (5, 9), id="no range"),
    ],
)
def test_a_stored_part_does_not_answer_for_what_lies_outside(text: bytes, span: tuple[int, int]) -> None:
    assert cut(asking(text), (), Part(*span, 10), b"0123456789"[span[0] : span[1] + 1]) is None
