"""ranges: which bytes of a stored body a request wants (RFC 9110 §14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.headers import Headers
from gateway.http.ranges import (
    ByteRange,
    OutOfRange,
    PartialBody,
    combine,
    cut,
    is_single,
    is_whole,
    rest_of,
    span_of,
    strong_validator,
    wanted,
)

MODIFIED = b"Wed, 01 Jan 2025 00:00:00 GMT"
TAGGED = [(b"etag", b'"v1"'), (b"last-modified", MODIFIED), (b"date", b"Wed, 01 Jan 2025 00:00:01 GMT")]
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
    assert wanted(asking(text), (), 10) == ByteRange(*part, 10)


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
    assert wanted(asking(b"bytes=0-1", condition), response, 10) == ByteRange(0, 1, 10)


@pytest.mark.parametrize(
    ("condition", "response"),
    [
        pytest.param(b'"v2"', TAGGED, id="another tag"),
        pytest.param(b'W/"v1"', [(b"etag", b'W/"v1"')], id="a weak tag"),
        pytest.param(b'"v1"', [], id="a tag where there is none"),
        pytest.param(HTTP_DATE_LATER, TAGGED, id="another date"),
        pytest.param(MODIFIED, [(b"etag", b'"v1"')], id="a date where there is none"),
        pytest.param(b"yesterday", [(b"last-modified", b"yesterday"), (b"date", MODIFIED)], id="no date"),
        pytest.param(MODIFIED, [(b"last-modified", MODIFIED), (b"date", MODIFIED)], id="a date of this very second"),
        pytest.param(MODIFIED, [(b"last-modified", MODIFIED)], id="a date that nothing shows to be past"),
        pytest.param(b"", TAGGED, id="empty"),
        pytest.param(b'"v1", "v2"', TAGGED, id="two tags"),
    ],
)
def test_a_range_does_not_count_where_if_range_names_another_response(condition: bytes, response: Headers) -> None:
    assert wanted(asking(b"bytes=0-1", condition), response, 10) is None


def test_a_part_tells_its_place() -> None:
    assert ByteRange(2, 5, 10).content_range == b"bytes 2-5/10"


@given(st.binary(max_size=20), st.integers(0, 25), st.none() | st.integers(0, 25))
def test_a_range_gives_what_a_slice_gives(body: bytes, start: int, end: int | None) -> None:
    part = wanted(asking(b"bytes=%d-%s" % (start, b"" if end is None else b"%d" % end)), (), len(body))
    expected = body[start:] if end is None else body[start : end + 1]
    given_bytes = body[part.first : part.last + 1] if isinstance(part, ByteRange) else b""
    assert given_bytes == expected


@given(
    st.text(st.sampled_from("bytes=-0123456789, \t")) | st.text(st.characters(max_codepoint=0xFF)), st.integers(0, 9)
)
def test_no_range_reaches_beyond_its_body(text: str, size: int) -> None:
    part = wanted(asking(text.encode("latin-1")), (), size)
    assert not isinstance(part, ByteRange) or 0 <= part.first <= part.last < size


# --- stored parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [
        pytest.param(b"bytes 0-4/10", ByteRange(0, 4, 10), id="a part"),
        pytest.param(b"BYTES 9-9/10", ByteRange(9, 9, 10), id="the last byte, the unit in capitals"),
        pytest.param(b"bytes 0-4/*", None, id="of an unknown size"),
        pytest.param(b"bytes */10", None, id="unsatisfied"),
        pytest.param(b"bytes 5-4/10", None, id="backwards"),
        pytest.param(b"bytes 0-10/10", None, id="beyond the end"),
        pytest.param(b"items 0-4/10", None, id="another unit"),
        pytest.param(b"bytes 0-4", None, id="no size"),
        pytest.param(b"", None, id="empty"),
    ],
)
def test_a_content_range_tells_which_part_it_is(text: bytes, span: ByteRange | None) -> None:
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
    found = cut(asking(text), (), ByteRange(*span, 10), body)
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
    assert cut(asking(text), (), ByteRange(*span, 10), b"0123456789"[span[0] : span[1] + 1]) is None


# --- combining parts (RFC 9111 §3.4) -----------------------------------------------------------------------

WHOLE = b"0123456789"


def piece(start: int, end: int, *fields: tuple[bytes, bytes], body: bytes = WHOLE) -> PartialBody:
    """The bytes `start` to `end` (exclusive) of a body, as a 206 brings them."""
    span = ByteRange(start, end - 1, len(body))
    return PartialBody(((b"content-range", span.content_range), *(fields or ((b"etag", b'"v1"'),))), body[start:end])


@given(
    st.binary(min_size=1, max_size=20).flatmap(
        lambda body: st.tuples(st.just(body), *(st.integers(0, len(body) - 1) for _ in range(4)))
    )
)
def test_two_parts_that_touch_are_together_what_a_slice_gives(case: tuple[bytes, int, int, int, int]) -> None:
    body, a, b, c, d = case
    one, two = piece(min(a, b), max(a, b) + 1, body=body), piece(min(c, d), max(c, d) + 1, body=body)
    joined = combine(one, two)
    if max(a, b) + 1 < min(c, d) or max(c, d) + 1 < min(a, b):
        assert joined is None
    else:
        start, end = min(a, b, c, d), max(a, b, c, d) + 1
        assert joined is not None
        assert joined.body == body[start:end]
        assert span_of(joined.headers) == ByteRange(start, end - 1, len(body))
        assert is_whole(joined.headers) == (start == 0 and end == len(body))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(piece(0, 5), piece(5, 10, (b"etag", b'"v2"')), id="another tag"),
        pytest.param(piece(0, 5, (b"etag", b'W/"1"')), piece(5, 10, (b"etag", b'W/"1"')), id="a weak tag"),
        pytest.param(piece(0, 5, (b"a", b"1")), piece(5, 10, (b"a", b"1")), id="no validator"),
        pytest.param(piece(0, 5), piece(6, 10), id="a byte between them"),
        pytest.param(piece(0, 5), piece(5, 11, body=WHOLE + b"A"), id="another size"),
        pytest.param(piece(0, 5), PartialBody(piece(5, 10).headers, b"56"), id="fewer bytes than it says"),
        pytest.param(piece(0, 5), PartialBody(((b"etag", b'"v1"'),), b"56789"), id="no place of its own"),
    ],
)
def test_parts_that_may_be_of_two_representations_are_not_joined(one: PartialBody, two: PartialBody) -> None:
    assert combine(one, two) is None


def test_joined_parts_have_the_new_ones_fields_and_keep_the_others() -> None:
    old = piece(0, 5, (b"etag", b'"v1"'), (b"a", b"1"), (b"b", b"1"))
    joined = combine(old, piece(5, 10, (b"etag", b'"v1"'), (b"b", b"2")))
    assert joined is not None
    assert {name: value for name, value in joined.headers if name in (b"a", b"b")} == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        pytest.param(piece(0, 4), [(b"range", b"bytes=4-"), (b"if-range", b'"v1"')], id="the end is missing"),
        pytest.param(piece(4, 10), [(b"range", b"bytes=0-3"), (b"if-range", b'"v1"')], id="the beginning is missing"),
        pytest.param(piece(2, 4), [], id="both are missing"),
        pytest.param(piece(0, 10), [], id="nothing is missing"),
        pytest.param(piece(0, 4, (b"etag", b'W/"v1"')), [], id="only a weak validator"),
        pytest.param(piece(0, 4, *TAGGED[1:]), [(b"range", b"bytes=4-"), (b"if-range", MODIFIED)], id="a strong date"),
    ],
)
def test_the_rest_of_a_part_is_asked_for_by_one_range_on_a_strong_condition(
    part: PartialBody, fields: list[tuple[bytes, bytes]]
) -> None:
    assert rest_of(part.headers) == fields


@given(st.lists(st.tuples(st.sampled_from([b"etag", b"last-modified", b"date", b"content-range"]), st.binary())))
def test_no_validator_or_range_however_malformed_raises(headers: list[tuple[bytes, bytes]]) -> None:
    strong_validator(headers)
    rest_of(headers)
    combine(PartialBody(headers, b"1"), PartialBody(headers, b"1"))


@pytest.mark.parametrize(
    ("lines", "single"),
    [
        ([b"bytes=0-1"], True),
        ([b" BYTES=-3 "], True),
        ([b"bytes=0-1,4-5"], False),
        ([b"bytes=0-1", b"bytes=4-5"], False),
        ([b"items=0-1"], False),
        ([b"bytes=a-b"], False),
        ([], False),
    ],
)
def test_one_well_formed_range_is_told_from_several_and_from_none(lines: list[bytes], single: bool) -> None:
    assert is_single([(b"range", line) for line in lines]) is single
