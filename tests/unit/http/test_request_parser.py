"""request_parser: what two servers could interpret differently is refused, and the end of a body is found strictly.

What clients get to see of it is tested in `tests/unit/edge/test_guard.py`, with the same requests.
"""

from __future__ import annotations

import re

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestRefused
from gateway.http.request_parser import (
    METHODS,
    ChunkedBody,
    Framing,
    LengthBody,
    Limits,
    Line,
    Request,
    check_part,
    is_value,
    read_field,
    read_fields,
    read_line,
    read_request,
)
from tests.support.raw_requests import ACCEPTED, GET, HOST, POST, REFUSED

LIMITS = Limits()
OF_OTHERS = frozenset(
    (
        *("TRACE", "the absolute form of another host", "the absolute form without a host"),
        *("a fragment", "an encoded slash", "out of the root"),
    )
)
"""Requests that are refused by who interprets the target or has the routes."""


def read(sent: bytes, limits: Limits = LIMITS) -> tuple[Request, bytes]:
    """A request as a connection reads it that gets `sent` at once, and what comes behind it."""
    sent = sent.removeprefix(b"\r\n")  # RFC 9112 §2.2
    end = sent.find(b"\r\n\r\n") + 4
    if end < 4 or end > limits.head:
        check_part(sent, limits)
        raise EOFError
    request = read_request(sent[:end], limits)
    length = request.framing.length
    body = ChunkedBody(limits) if length is None else LengthBody(length)
    behind = sent[body.take(sent, end) :]
    if not body.done:
        raise EOFError
    return request, behind


def refusal(sent: bytes, limits: Limits = LIMITS) -> tuple[int, str]:
    with pytest.raises(RequestRefused) as refused:
        read(sent, limits)
    return refused.value.status, refused.value.reason


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in OF_OTHERS])
def test_a_request_that_can_be_read_in_two_ways_is_refused(name: str) -> None:
    sent, status, reason = REFUSED[name]
    assert refusal(sent) == (status, reason)


@pytest.mark.parametrize("name", sorted(OF_OTHERS))
def test_what_the_target_means_and_which_methods_a_route_has_is_left_to_others(name: str) -> None:
    assert read(REFUSED[name][0])[1] == b""


def test_a_refusal_says_whats_wrong() -> None:
    with pytest.raises(RequestRefused, match=r"^Duplicate header field content-type\.$"):
        read(POST + b"Content-Type: a/b\r\nContent-Type: a/b\r\n\r\n")


def test_a_refusal_comes_with_the_first_bytes_that_no_others_can_mend() -> None:
    line = b"GET / HTTP/2.0\r\n"
    for length in range(len(line)):
        check_part(line[:length], LIMITS)
    with pytest.raises(RequestRefused) as refused:
        check_part(line, LIMITS)
    assert refused.value.status == 505


@pytest.mark.parametrize("part", [b"", b"GET", b"GET / HTTP/1.1\r", GET, GET + b"Host: a\r", GET + b"A: b\r\n\r"])
def test_the_beginning_of_a_request_is_waited_for(part: bytes) -> None:
    for seen in range(len(part) + 1):
        check_part(part, LIMITS, seen=seen)


def test_a_request_line_is_judged_once_however_much_of_the_head_follows() -> None:
    head = b"BREW / HTTP/1.1\r\nA: b\r\n"
    with pytest.raises(RequestRefused, match="Unknown method"):
        check_part(head, LIMITS, seen=len(b"BREW / HTTP/1.1\r"))
    check_part(head, LIMITS, seen=len(b"BREW / HTTP/1.1\r\n"))


@pytest.mark.parametrize("break_", [b"\n", b"\ra", b"\x00"])
def test_a_bare_break_is_seen_where_its_halves_come_apart(break_: bytes) -> None:
    part = GET + b"A: b" + break_
    with pytest.raises(RequestRefused) as refused:
        check_part(part, LIMITS, seen=len(part) - 1)
    assert refused.value.reason == "bare_break"


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        (Limits(line=13), 414, "long_line"),
        (Limits(headers=1), 431, "many_headers"),
        (Limits(body=2), 413, "large_body"),
    ],
)
def test_a_request_at_its_limits_passes_and_one_more_byte_or_field_does_not(
    limits: Limits, status: int, reason: str
) -> None:
    sent = b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    assert refusal(sent, limits) == (status, reason)
    assert read(sent, Limits(line=14, headers=2, body=3))[1] == b""


# --- what is accepted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ACCEPTED.values(), ids=ACCEPTED)
def test_a_well_formed_request_is_read_to_its_end_and_no_further(sent: bytes) -> None:
    request, behind = read(sent + GET)
    assert behind == GET
    assert request.head == sent.removeprefix(b"\r\n")[: len(request.head)]
    assert request.line.method in (b"GET", b"POST")


def test_a_request_is_its_line_its_fields_and_its_framing() -> None:
    sent = b"POST /a?b HTTP/1.1\r\nHost: A.test\r\nX-A: \t b \xe9 \t\r\nContent-Length: 0\r\n\r\n"
    request, _ = read(sent)
    assert request.line == Line(b"POST", b"/a?b", "1.1")
    assert request.fields == [(b"host", b"A.test"), (b"x-a", b"b \xe9"), (b"content-length", b"0")]
    assert request.framing == Framing(0)


def test_options_for_the_server_has_an_asterisk_for_its_target() -> None:
    assert read_line(b"OPTIONS * HTTP/1.1", LIMITS).target == b"*"  # RFC 9112 §3.2.4


@pytest.mark.parametrize("target", [b"/", b"http://a.test/", b"HTTPS://a.test/x?y"])
def test_a_target_in_origin_or_absolute_form_is_kept_as_it_is(target: bytes) -> None:
    assert read_line(b"GET " + target + b" HTTP/1.0", LIMITS) == Line(b"GET", target, "1.0")


@pytest.mark.parametrize(
    ("sent", "framing"),
    [
        pytest.param(GET + HOST, Framing(0), id="none"),
        pytest.param(POST + b"Content-Length: 7\r\n", Framing(7), id="a length"),
        pytest.param(POST + b"Content-Length: 00007\r\n", Framing(7), id="a length with zeros in front"),
        pytest.param(POST + b"Transfer-Encoding: \tChunked \r\n", Framing(None), id="chunked"),
        pytest.param(b"GET / HTTP/1.0\r\n", Framing(0), id="HTTP/1.0 without a host"),
        pytest.param(b"GET / HTTP/1.0\r\nExpect: x\r\n", Framing(0), id="an expectation in HTTP/1.0"),
        pytest.param(b"POST / HTTP/1.0\r\nContent-Length: 7\r\n", Framing(7), id="HTTP/1.0 with a length"),
        pytest.param(GET + HOST + b"Upgrade: h2c\r\n", Framing(0, upgrade=True), id="an upgrade"),
        pytest.param(POST + b"Upgrade: h2c\r\nContent-Length: 7\r\n", Framing(7, upgrade=True), id="with a length"),
        pytest.param(
            POST + b"Upgrade: h2c\r\nTransfer-Encoding: chunked\r\n", Framing(None, upgrade=True), id="chunked, upgrade"
        ),
    ],
)
def test_the_framing_of_a_request(sent: bytes, framing: Framing) -> None:
    assert read_request(sent + b"\r\n", LIMITS).framing == framing  # RFC 9112 §6.3


@pytest.mark.parametrize("method", sorted(METHODS - {b"POST", b"PUT", b"PATCH", b"QUERY", b"CONNECT"}))
def test_http_1_0_needs_no_length_for_methods_without_a_body(method: bytes) -> None:
    assert read_request(method + b" / HTTP/1.0\r\n\r\n", LIMITS).framing == Framing(0)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"QUERY"])
def test_http_1_0_needs_a_length_for_methods_with_a_body(method: bytes) -> None:
    assert refusal(method + b" / HTTP/1.0\r\n\r\n") == (411, "no_length")  # RFC 9110 §8.6


def test_fields_that_may_stand_twice_are_kept_in_their_order() -> None:
    block = b"Cookie: a=b\r\nAccept: c\r\nCookie: d=e\r\n"
    assert read_fields(block, LIMITS) == [(b"cookie", b"a=b"), (b"accept", b"c"), (b"cookie", b"d=e")]
    assert read_fields(b"", LIMITS) == []


def test_connection_may_name_fields_of_this_hop() -> None:
    assert read(GET + HOST + b"Connection: close , X-Own\r\nX-Own: 1\r\n\r\n")[1] == b""


@given(st.binary(max_size=40))
def test_a_field_line_is_refused_or_has_a_lower_case_name_and_a_value_without_controls(line: bytes) -> None:
    try:
        name, value = read_field(line)
    except RequestRefused:
        return
    assert name == name.lower()
    assert line.lower().startswith(name + b":")
    assert value == value.strip(b" \t")
    assert not set(value) & ({*range(32)} - {9} | {127})


@given(st.binary(max_size=12) | st.text(" \ta\x7f\xff", max_size=5).map(lambda text: text.encode("latin-1")))
def test_a_text_is_a_value_if_a_field_line_is_read_so(text: bytes) -> None:
    try:
        found: object = read_fields(b"a:" + text + b"\r\n", LIMITS)
    except RequestRefused:
        found = None
    assert is_value(text) is (found == [(b"a", text)])


# --- bodies ------------------------------------------------------------------------------------------------


def taken(data: bytes, limits: Limits) -> ChunkedBody:
    body = ChunkedBody(limits)
    body.take(data, 0)
    return body


@given(st.binary(max_size=20), st.integers(0, 20), st.integers(1, 20))
def test_a_body_of_known_length_ends_with_its_last_byte_however_it_comes(data: bytes, length: int, step: int) -> None:
    body, at = LengthBody(length), 0
    while at < len(data) and not body.done:
        at = body.take(data[: at + step], at)
    assert (at, body.done) == (min(length, len(data)), length <= len(data))


def test_trailers_end_with_an_empty_line() -> None:
    assert taken(b"3\r\nabc\r\n0\r\nX-One: 1\r\n\r\n", Limits()).done


@pytest.mark.parametrize(("lines", "length"), [(3, 1), (2, 60)])
def test_trailers_count_against_the_limits_of_a_head(lines: int, length: int) -> None:
    trailers = (b"X-One: " + b"1" * length + b"\r\n") * lines
    with pytest.raises(RequestRefused, match="trailers are too large") as refused:
        taken(b"0\r\n" + trailers + b"\r\n", Limits(head=100, headers=2))
    assert (refused.value.status, refused.value.reason) == (431, "large_head")


def test_a_trailer_line_without_an_end_is_refused_at_the_limit_of_a_head() -> None:
    body = taken(b"0\r\n" + b"a" * 100, Limits(head=100))
    with pytest.raises(RequestRefused, match="line of the chunked body is too long"):
        body.take(b"a", 0)


def test_a_size_line_without_an_end_is_refused_after_a_kilobyte() -> None:
    body = taken(b"3;" + b"a" * 1022, LIMITS)
    with pytest.raises(RequestRefused, match="line of the chunked body is too long"):
        body.take(b"a", 0)


@pytest.mark.parametrize("size", [b"3", b"3;a", b"3 ; a=b", b"3\t;\xe9", b"0000000000000003", b'3;a="b";c'])
def test_a_chunk_size_may_have_extensions_which_are_ignored(size: bytes) -> None:
    body = ChunkedBody(LIMITS)
    assert body.take(size + b"\r\nabc\r\n0\r\n\r\nbehind", 0) == len(size) + 12
    assert body.done


@pytest.mark.parametrize("data", [b"3\rabc\r\n", b"3\r\r\nabc", b"3\r\nabc\n0\r\n", b"0\r\nA: b\n\r\n"])
def test_a_bare_break_in_a_chunked_body_is_refused(data: bytes) -> None:
    with pytest.raises(RequestRefused, match="bare line break"):
        taken(data, LIMITS)


def test_the_content_of_all_chunks_together_is_bounded() -> None:
    chunks = b"2\r\nab\r\n" * 2
    assert not taken(chunks, Limits(body=4)).done
    with pytest.raises(RequestRefused, match="too large") as refused:
        taken(chunks + b"1\r\n", Limits(body=4))
    assert (refused.value.status, refused.value.reason) == (413, "large_body")


# --- beside llhttp, which decodes what passes --------------------------------------------------------------


def test_every_method_let_through_is_one_that_llhttp_knows() -> None:
    for method in METHODS - {b"CONNECT"}:
        httptools.HttpRequestParser(object()).feed_data(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")


class _Bodies:
    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.binary(max_size=20), st.data())
def test_the_end_of_a_chunked_body_is_found_where_llhttp_finds_it(
    chunks: list[bytes], behind: bytes, data: st.DataObject
) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    framing = ChunkedBody(Limits())
    sent, taken = body + behind, 0
    while taken < len(sent) and not framing.done:
        piece = sent[taken : taken + data.draw(st.integers(1, 30))]
        taken += framing.take(piece, 0)
    assert (taken, framing.done) == (len(body), True)
    bodies = _Bodies()
    httptools.HttpRequestParser(bodies).feed_data(CHUNKED + sent[:taken])
    assert (bodies.body, bodies.complete) == (b"".join(chunks), True)


@given(st.binary(max_size=60))
def test_no_chunked_body_is_taken_whole_that_llhttp_does_not_take_whole(data: bytes) -> None:
    framing = ChunkedBody(Limits())
    try:
        end = framing.take(data, 0)
    except RequestRefused:
        return
    if framing.done:
        bodies = _Bodies()
        httptools.HttpRequestParser(bodies).feed_data(CHUNKED + data[:end])
        assert bodies.complete


PIECES = (
    b"A: b",
    b"Cookie: a=b; c=d",
    b" folded",
    b"A : b",
    b"A: \x00",
    b"A: b\x7f",
    b"A:\tb",
    b"A: b\x1f",
    b"no colon",
    b"",
)
ENDS = (b"\r\n",) * 6 + (b"\n", b"\r", b"\r\r\n")


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(ENDS)), max_size=5))
def test_a_block_is_read_as_if_each_character_were_looked_for(pieces: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(line + end for line, end in pieces)
    try:
        found: object = read_fields(block, LIMITS)
    except RequestRefused as refused:
        found = refused.reason
    bare = re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", block) is not None
    assert found == ("bare_break" if bare else _one_by_one(block))


def _one_by_one(block: bytes) -> object:
    try:
        return [read_field(line) for line in block.split(b"\r\n")[:-1]]
    except RequestRefused as refused:
        return refused.reason
