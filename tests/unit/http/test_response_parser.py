"""Responses of upstreams, read strictly: heads, framings, chunks; and over sockets, whatever way the bytes are cut."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamError, UpstreamMalformed, UpstreamUnreachable
from gateway.http.response_parser import (
    Chunks,
    Fields,
    Head,
    HeadForm,
    HeadForms,
    Malformed,
    TooLarge,
    end_of_head,
    read_head,
)
from gateway.upstreams.request import Attempt, UpstreamTimeouts
from gateway.upstreams.transport import Transport
from tests.support.raw import OK, Connection, ask, raw_upstream, speaking_to

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((status, *lines, b"", b""))


# --- heads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "length", "chunked", "keeps"),
    [
        ((b"Content-Length: 2",), 2, False, True),
        ((b"Content-Length: 002",), 2, False, True),
        ((b"Transfer-Encoding: Chunked",), None, True, True),
        ((), None, False, False),
        ((b"Connection: keep-alive",), None, False, False),
        ((b"Content-Length: 2", b"Connection: x, Close"), 2, False, False),
        ((b"Content-Length: 2", b"Connection: close", b"Connection: keep-alive"), 2, False, False),
    ],
)
def test_the_framing_of_a_response(lines: tuple[bytes, ...], length: int | None, chunked: bool, keeps: bool) -> None:
    read = read_head(head(*lines), bodiless=False)
    assert (read.length, read.chunked, read.keeps) == (length, chunked, keeps)


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        ((b"Content-Length: 5",), False),
        ((b"Transfer-Encoding: chunked",), False),
        ((b"Content-Length: 0",), True),
        ((), True),
    ],
)
@pytest.mark.parametrize("status", [b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified"])
def test_a_status_without_content_that_announces_some_ends_its_connection(
    status: bytes, lines: tuple[bytes, ...], keeps: bool
) -> None:
    read = read_head(head(*lines, status=status), bodiless=False)
    assert (read.length, read.chunked, read.keeps) == (0, False, keeps)


@pytest.mark.parametrize(
    ("line", "length", "keeps"),
    [(b"Content-Length: 0", 0, True), (b"Content-Length: 5", 5, False), (b"Transfer-Encoding: chunked", None, False)],
)
def test_a_205_with_content_is_read_as_it_is_framed_and_ends_its_connection(
    line: bytes, length: int | None, keeps: bool
) -> None:
    read = read_head(head(line, status=b"HTTP/1.1 205 Reset Content"), bodiless=False)
    assert (read.length, read.keeps) == (length, keeps)


@pytest.mark.parametrize("long", [b"x" * 10, b"x" * 300])
def test_fields_that_name_the_upstreams_software_are_left_out(long: bytes) -> None:
    read = read_head(head(b"Server: a/1", b"Date: x", b"X-Powered-By: b", b"X-Long: " + long), bodiless=False)
    assert read.fields == [(b"date", b"x"), (b"x-long", long)]


def test_an_interim_response_that_announces_content_is_refused() -> None:
    for line in (b"Content-Length: 5", b"Transfer-Encoding: chunked"):
        with pytest.raises(Malformed):
            read_head(head(line, status=b"HTTP/1.1 103 Early Hints"), bodiless=False)
    assert read_head(head(b"Content-Length: 0", status=b"HTTP/1.1 103 Early Hints"), bodiless=False).keeps


def test_the_answer_to_a_head_has_no_body_and_its_connection_is_watched_where_it_announces_one() -> None:
    announcing, silent = (read_head(head(*lines), bodiless=True) for lines in ((b"Content-Length: 5",), ()))
    assert (announcing.length, announcing.keeps, announcing.quiet) == (0, True, True)
    assert (silent.length, silent.keeps, silent.quiet) == (0, True, False)


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        ((b"Content-Length: 2",), False),
        ((b"Content-Length: 2", b"Connection: Keep-Alive"), True),
        ((b"Transfer-Encoding: chunked", b"Connection: keep-alive"), False),
    ],
)
def test_http_1_0_keeps_a_connection_only_where_it_says_so(lines: tuple[bytes, ...], keeps: bool) -> None:
    assert read_head(head(*lines, status=b"HTTP/1.0 200 OK"), bodiless=False).keeps is keeps


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 2", b"Content-Length: 2"),
        (b"Content-Length: 2, 2",),
        (b"Content-Length: +2",),
        (b"Content-Length:",),
        (b"Content-Length: 9999999999999999999",),
        (b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: \x0bchunked",),
        (b"Content-Length : 2",),
        (b"X A: a",),
        (b": a",),
        (b"X-\xfc: a",),
        (b"nonsense",),
        (b"X-A: a\rb",),
        (b"X-A: a\0b",),
        (b" X-A: a",),
        (b"X-A: a",) * 257,
    ],
)
def test_what_could_be_understood_in_two_ways_is_refused(lines: tuple[bytes, ...]) -> None:
    for bodiless in (False, True):
        with pytest.raises(Malformed):
            read_head(head(*lines), bodiless=bodiless)


@pytest.mark.parametrize(
    "status",
    [
        *(b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK"),
        *(b"HTTP/1.1\t200 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 099 OK", b"ICY 200 OK", b""),
        *(b"HTTP/1.1 200 OK\r", b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 OK" + b"K" * 300 + b"\0"),
    ],
)
def test_what_is_no_status_line_is_refused(status: bytes) -> None:
    with pytest.raises(Malformed):
        read_head(head(b"Content-Length: 2", status=status), bodiless=False)


@pytest.mark.parametrize("reason", [b"", b" ", b" Not Found", b" gr\xc3\xbcn", b" long" * 100])
def test_a_reason_may_be_anything(reason: bytes) -> None:
    assert read_head(head(status=b"HTTP/1.1 404" + reason), bodiless=False).status == 404


def test_folded_lines_and_bare_line_feeds_are_read_as_they_were_meant() -> None:
    read = read_head(b"HTTP/1.1 200 OK\nX-A: a\r\n\t b\nX-B:c \n\r\n", bodiless=False)
    assert read.fields == [(b"x-a", b"a b"), (b"x-b", b"c")]


def test_a_folded_line_counts_as_one() -> None:
    folded = b"X-A: a" + b"\r\n b" * 256
    assert read_head(head(folded), bodiless=False, most_fields=1).fields == [(b"x-a", b"a" + b" b" * 256)]
    with pytest.raises(TooLarge):
        read_head(head(folded, b"X-B: b"), bodiless=False, most_fields=1)
    with pytest.raises(Malformed):
        read_head(head(b" X-A: a", folded), bodiless=False)


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\n\r\n"])
def test_a_head_ends_with_its_first_empty_line(end: bytes) -> None:
    data = b"HTTP/1.1 200 OK" + end
    assert end_of_head(data + b"x\r\n\r\n", 0) == len(data)
    assert end_of_head(data[:-1], 0) == 0


# --- chunks ----------------------------------------------------------------------------------------------------


def taken(data: bytes, size: int) -> tuple[bytes, bytes, bool]:
    chunks, content, behind = Chunks(1000), b"", b""
    for start in range(0, len(data), size):
        if chunks.done:
            behind += data[start : start + size]
            continue
        pieces, rest = chunks.take(data[start : start + size])
        content, behind = content + b"".join(pieces), behind + rest
    return content, behind, chunks.done


@pytest.mark.parametrize(
    "data",
    [
        b"4\r\nbody\r\n0\r\n\r\n",
        b'1\r\nb\r\n3;a=b;c="d"\r\nody\r\n0\r\n\r\n',
        b"4  \r\nbody\r\n000\r\n\r\n",
        b"00000000000000000000000004\r\nbody\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_are_read_however_they_are_cut(data: bytes, size: int) -> None:
    assert taken(data, size) == (b"body", b"", True)
    assert taken(data + b"HTTP/1.1", size) == (b"body", b"HTTP/1.1", True)
    assert taken(data[:-2], size) == (b"body", b"", False)


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"0x4\r\nbody\r\n",
        b"-4\r\nbody\r\n",
        b"\r\n",
        b"fffffffffffffffff\r\n",
        b"4\nbody\n0\n\n",
        b"4\r\nbodyX\r\n",
        b"4;\0\r\nbody\r\n",
        b"4;" + b"a" * 1100,
        b"4;" + b"a" * 1100 + b"\r\n",
        b"0\r\nnonsense\r\n\r\n",
        b"0\r\n" + b"X-A: a\r\n" * 200 + b"\r\n",
        b"0\r\nX-A: " + b"a" * 1100,
    ],
)
@pytest.mark.parametrize("size", [1, 5000])
def test_chunks_that_are_none_are_refused(data: bytes, size: int) -> None:
    with pytest.raises(Malformed):
        taken(data, size)


# --- over a socket ---------------------------------------------------------------------------------------------

WHOLE = {
    "length": OK,
    "chunks": CHUNKED + b"1;x=y\r\no\r\n1\r\nk\r\n0\r\nX-T: 1\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\n" + OK,
    "folded": b"HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "behind an empty line": b"\r\n" + OK,
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("size", [1, 3, 16])
async def test_a_response_in_small_pieces_is_read_and_its_connection_kept(data: bytes, size: int) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            for start in range(0, len(data), size):
                await connection.send(data[start : start + size])
                await asyncio.sleep(0)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        assert [await ask(upstream) for _ in range(2)] == [(200, b"ok")] * 2
        assert raw.connections == 1
        await upstream.aclose()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UpstreamUnreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Le", UpstreamUnreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", UpstreamMalformed),
        (CHUNKED + b"2\r\nok\r\n", UpstreamMalformed),
        (CHUNKED + b"2\r\nok\r\n0\r\n", UpstreamMalformed),
    ],
)
@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
async def test_a_connection_that_ends_before_its_response_is_an_error(
    data: bytes, error: type[UpstreamError], how: str
) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(data)
        if how == "reset":
            connection.writer.transport.abort()
        elif how == "half closed":
            connection.writer.write_eof()
            await connection.closed()

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, retry_budget=0)
        with pytest.raises((error, UpstreamUnreachable) if how == "reset" else error):
            await ask(upstream)
        assert upstream.transport.connections_in_use == 0  # type: ignore[attr-defined]
        await upstream.aclose()


async def test_a_body_that_ends_with_its_connection_is_read_to_its_end() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        for piece in (b"HTTP/1.1 200 OK\r\n\r\n", b"o", b"k"):
            await connection.send(piece)
            await asyncio.sleep(0)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        assert [await ask(upstream) for _ in range(2)] == [(200, b"ok")] * 2
        assert raw.connections == 2
        await upstream.aclose()


async def test_a_head_that_never_ends_is_refused_at_its_limit() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n")
        while not connection.writer.is_closing():
            await connection.send(b"X-A: " + b"a" * 1000 + b"\r\n")

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(UpstreamMalformed):
            await ask(upstream)
        await upstream.aclose()


async def test_who_is_cancelled_as_the_answer_comes_takes_nothing_from_the_next_on_that_connection() -> None:
    """The whole answer has come, and its connection is another's, when the one who waited for it is cancelled."""
    async with raw_upstream(_counting) as raw:
        transport = Transport(max_connections=1)
        url = raw.url + "/"

        async def get() -> bytes:
            received = await transport.send("GET", url, [], None, UpstreamTimeouts(bounded=True), Attempt())
            return received.content or b"".join([piece async for piece in received.stream])

        assert await get() == b"1"
        connection = next(iter(transport.plain._idle.values()))[0]
        first = asyncio.ensure_future(get())
        answered = connection.data_received

        def cancelling(data: bytes) -> None:
            connection.data_received = answered  # type: ignore[method-assign]
            answered(data)
            first.cancel()

        connection.data_received = cancelling  # type: ignore[method-assign]
        while connection.data_received == cancelling:
            await asyncio.sleep(0)
        assert await get() == b"3"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert raw.connections == 1
        assert transport.connections_in_use == 0
        await transport.aclose()


async def test_what_comes_on_a_connection_that_nobody_asked_ends_it_and_answers_no_other_request() -> None:
    async with raw_upstream(_counting) as raw:
        transport = Transport()

        async def get() -> bytes:
            received = await transport.send("GET", raw.url + "/", [], None, UpstreamTimeouts(bounded=True), Attempt())
            return received.content or b"".join([piece async for piece in received.stream])

        assert await get() == b"1"
        kept = next(iter(transport.plain._idle.values()))[0]
        kept.data_received(b"HTTP/1.1 200 OK\r\nContent-Le")
        assert not kept.usable
        assert await get() == b"1"
        assert raw.connections == 2
        await transport.aclose()


async def _counting(connection: Connection) -> None:
    number = 0
    while await connection.request():
        number += 1
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)


async def test_a_connection_that_nobody_uses_ends_and_those_who_wait_for_one_get_it_in_time_or_not() -> None:
    release = asyncio.Event()

    async def script(connection: Connection) -> None:
        while await connection.request():
            await release.wait()
            await connection.send(OK)

    async with raw_upstream(script) as raw:
        transport = Transport(max_connections=1, keepalive=0.05)

        async def get(pool: float) -> int:
            times = UpstreamTimeouts(pool=pool, bounded=True)
            received = await transport.send("GET", raw.url + "/", [], None, times, Attempt())
            await received.stream.aclose()
            return received.status

        first = asyncio.ensure_future(get(5))
        while not transport.connections_in_use:
            await asyncio.sleep(0)
        with pytest.raises(httpx.PoolTimeout):
            await get(0.01)
        release.set()
        assert await first == 200
        assert await get(5) == 200
        while raw.open:
            await asyncio.sleep(0.01)
        await transport.aclose()


async def test_an_upstream_that_is_closed_ends_what_waits_for_its_body() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await connection.closed()

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, timeout="10m")
        fetched = await upstream.fetch("GET", "/", [])
        whole = asyncio.ensure_future(fetched.body.whole(100))
        await asyncio.sleep(0)
        await upstream.aclose()
        with pytest.raises(UpstreamError):
            await whole


# --- forms of heads ----------------------------------------------------------------------------------------------

USUAL = [
    *(b"Server: a/1", b"Date: Mon, 30 Nov 2026 18:00:00 GMT", b"Content-Type: a/b; c=(1)", b'ETag: "1"'),
    *(b"Cache-Control:  max-age=60 ", b"Content-Length: 4", b"X-Empty:", b"X-Other: 1\t2"),
]


def known(*lines: bytes, times: int = 100, forms: HeadForms | None = None) -> HeadForms:
    """Forms after a head with these lines came so often."""
    forms = HeadForms() if forms is None else forms
    for _ in range(times):
        noted(forms, head(*lines))
    return forms


def noted(forms: HeadForms, data: bytes) -> Head:
    read = read_head(data, bodiless=False)
    forms.note(data, read)
    return read


def form_of(forms: HeadForms, *lines: bytes) -> HeadForm | None:
    return noted(forms, head(*lines)).fields.form


def test_a_head_that_has_a_form_is_read_as_any_other() -> None:
    forms = known(*USUAL)
    lines = [line.replace(b"1", b"2") if line[:4] in (b"Date", b"ETag", b"X-Ot", b"Serv") else line for line in USUAL]
    data = head(*(line.replace(b": 4", b": 0017") for line in lines))
    found = forms.match(data + b"body")
    assert found is not None
    assert found == (read_head(data, bodiless=False), len(data))
    again = forms.match(data)
    assert again is not None
    assert all(one is other for one, other in zip(found[0].fields, again[0].fields, strict=True))
    assert found[0].fields.form is form_of(forms, *USUAL)


def test_heads_of_the_forms_that_came_last_are_all_read_by_their_patterns() -> None:
    forms = HeadForms()
    kinds = [[*USUAL, b"Vary: %d" % kind] for kind in range(5)]
    for lines in kinds:
        known(*lines, forms=forms)
    assert [forms.match(head(*lines)) is not None for lines in kinds] == [False, True, True, True, True]
    for lines in kinds[1:]:
        data = head(*lines)
        assert forms.match(data) == (read_head(data, bodiless=False), len(data))
    form_of(forms, *kinds[0])
    assert [forms.match(head(*lines)) is not None for lines in kinds] == [True, False, True, True, True]


def test_a_head_that_does_not_match_its_own_form_displaces_no_other() -> None:
    forms = known(*USUAL)
    known(*USUAL, b"Vary: 1", forms=forms)
    odd = head(*USUAL).replace(b"\r\n", b"\n")
    for _ in range(5):
        assert forms.match(odd) is None
        noted(forms, odd)
    assert forms.match(head(*USUAL)) is not None
    assert forms.match(head(*USUAL, b"Vary: 1")) is not None


CHANGED = st.sampled_from(
    [b"", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n ", b"\0", b":", b"\xff", b"5", b"X-A: b\r\n"]
)


@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), CHANGED), min_size=1, max_size=4),
    lines=st.permutations(USUAL),
)
def test_what_matches_a_form_is_read_as_any_other_whatever_its_bytes(
    places: list[tuple[float, int, bytes]], lines: list[bytes]
) -> None:
    forms = known(*lines)
    data = head(*lines)
    for share, removed, added in places:
        at = int(share * len(data))
        data = data[:at] + added + data[at + removed :]
    found = forms.match(data)
    if found is not None:
        assert found[1] == end_of_head(data, 0)
        assert found[0] == read_head(data[: found[1]], bodiless=False)


def test_heads_with_one_form_differ_in_what_is_copied_alone() -> None:
    forms = known(*USUAL, times=2)
    same = form_of(forms, *USUAL)
    assert same is not None
    assert repr(same).startswith("<HeadForm date, content-type, etag, cache-control")
    assert form_of(forms, *(line.replace(b'"1"', b'"2"').replace(b": 4", b": 5") for line in USUAL)) is same
    assert dict(same.last)[b"etag"] == b'"2"'
    for others in (
        [line.replace(b"max-age=60", b"max-age=61") for line in USUAL],
        [line.replace(b"a/b", b"a/c") for line in USUAL],
        [*USUAL, b"Connection: close"],
        [*USUAL[1:], b"X-More: 1"],
        [*USUAL[-1:], *USUAL[:-1]],
    ):
        known(*others, times=2, forms=forms)
        assert form_of(forms, *others) not in (None, same)
    assert len(forms) == 6


def test_a_form_is_known_from_the_second_time_on_and_no_field_may_be_there_twice() -> None:
    forms = HeadForms()
    assert form_of(forms, *USUAL) is None
    assert form_of(forms, *USUAL) is not None
    assert [form_of(forms, *USUAL, b"X-Other: 3") for _ in range(100)] == [None] * 100


def test_a_head_with_a_cookie_has_no_form_and_is_kept_nowhere() -> None:
    forms = HeadForms()
    assert [form_of(forms, *USUAL, b"Set-Cookie: secret=1") for _ in range(3)] == [None] * 3
    assert not forms._known
    assert not forms._came_once


def test_a_long_head_has_no_form() -> None:
    forms = HeadForms()
    assert [form_of(forms, *USUAL, b"X-Long: " + b"a" * 4096) for _ in range(3)] == [None] * 3
    assert [form_of(forms, *[b"Server: a"] * 63) for _ in range(3)] == [None] * 3


def test_a_long_head_that_a_pattern_reads_is_not_kept() -> None:
    forms = known(b"X-A: 1")
    short, long = head(b"X-A: 2"), head(b"X-A: " + b"a" * 4096)
    for data, kept in ((short, True), (long, False)):
        one, other = forms.match(data), forms.match(data)
        assert one is not None
        assert other is not None
        assert one[0] == other[0] == read_head(data, bodiless=False)
        assert (one[0].fields[0] is other[0].fields[0]) == kept


def test_a_value_that_decides_and_changes_each_time_takes_no_place_for_ever() -> None:
    forms = known(*USUAL, times=2)
    usual = form_of(forms, *USUAL)
    assert usual is not None
    for number in range(1000):
        assert form_of(forms, b"Cache-Control: max-age=%d" % number) is None
        assert form_of(forms, *USUAL) is usual
    assert [form_of(forms, b"X-A: 1") is None for _ in range(2)] == [True, False]


def test_forms_are_as_many_as_their_bound() -> None:
    forms = HeadForms()
    for number in range(1000):
        known(b"Cache-Control: max-age=%d" % number, times=2, forms=forms)
        assert 0 < len(forms) <= 256
    assert len(forms) > 200


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 4\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nA: 1\r\n 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\nA: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nA: \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: a\r\n b: 4\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 4\r\nServer: a\r\n\tb: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\nServer: a\r\nContent-Length: 4\r\n\r\n",
    ],
)
def test_heads_that_deviate_from_http_are_read_line_by_line(data: bytes) -> None:
    forms = HeadForms()
    for _ in range(100):
        assert noted(forms, data).length == 4
    assert forms.match(data) is None
    assert isinstance(noted(forms, data).fields, Fields)
