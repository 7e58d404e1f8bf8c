"""Header blocks that repeat: their requests are served as if they were read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from gateway.edge.header_block import Repeat
from gateway.edge.hits import Edge
from gateway.http.request_parser import Limits, read_request
from gateway.testing import StubUpstream
from tests.support.edge_lines import Both, Changing, Counted, Line, Side, asked, get, living, masked
from tests.support.gateways import gateway
from tests.support.scale import size

EXAMPLES = size("protocol_stories")
LONG = b"a" * 560
SETTINGS = {
    "routes": {
        "own": {"path": "/own/{id}", "upstream": "api", "ttl": "1h"},
        "whole": {
            "path": "/whole/{id}",
            "parts": {"a": {"upstream": "api", "path": "/p", "ttl": "1h", "decode": "text"}},
        },
        "rest": {"path": "/{path:path}", "upstream": "api"},
    },
    "limits": {"request_line": 700, "request_head": 1024, "request_headers": 6},
}
METHODS = (b"GET", b"GET", b"GET", b"HEAD", b"get", b"BREW", b"TRACE")
TARGETS = (
    *(b"/own/1", b"/own/1", b"/whole/1", b"/o/1", b"/own/" + LONG, b"/own/" + LONG + LONG),
    *(b"http://gateway.test/own/1", b"http://GATEWAY.test:80/own/1", b"http://other.test/own/1"),
    *(
        b"http://gateway.test/o/1",
        b"HTTP://other.test/o/1",
        b"https://gateway.test:443/own/1",
        b"http://u@a.test/own/1",
    ),
    *(b"/own/1#a", b"/own/%00", b"*", b"own/1", b"/own/\xff"),
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"")
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HOSTS = (
    *(b"Host: gateway.test\r\n",) * 4,
    *(b"Host: other.test\r\n", b"Host: gateway.test:80\r\n", b"Host: a b\r\n", b"Host:\r\n", b""),
    b"Host: gateway.test\r\nHost: other.test\r\n",
)
FIELDS = (
    *(
        b"",
        b"",
        b"",
        b"Accept: a/b\r\n",
        b"X-Pad: " + LONG[:420] + b"\r\n",
        b"A: b\r\n" * 6,
        b"A : b\r\n",
        b" A: b\r\n",
    ),
    *(b"Connection: keep-alive\r\n", b"Connection: close\r\n", b"Connection: Host\r\n", b"A: b\0\r\n", b"A: b\n"),
    *(b"Content-Length: 0\r\n", b"Content-Length: x\r\n", b"Transfer-Encoding: gzip\r\n", b"Expect: it\r\n"),
    *(CHUNKED, b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
    *(b"Authorization: a\r\nAuthorization: b\r\n", b"Upgrade: h2c\r\n", b"Range: bytes=0-1\r\nRange: bytes=0-1\r\n"),
)
IDS = (
    *(b"", b"", b"X-Request-ID: a\r\n", b"X-Request-ID: b\r\n", b"X-Request-ID: " + b"c" * 128 + b"\r\n"),
    *(b"X-Request-ID: not sane\r\n", b"X-Request-ID: a\r\nX-Request-ID: b\r\n", b"X-Request-ID: a\0\r\n"),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    line = b"%b %b %b\r\n" % tuple(draw(st.sampled_from(each)) for each in (METHODS, TARGETS, VERSIONS))
    head = line + b"".join(draw(st.sampled_from(each)) for each in (HOSTS, FIELDS, IDS)) + b"\r\n"
    # Without its body a chunked request would be waited for.
    return head + b"0\r\n\r\n" if CHUNKED in head else head


ABSOLUTE = b"http://gateway.test/own/1"
KEPT = b"Connection: keep-alive\r\n"
PADDED = b"X-Pad: " + LONG[:420] + b"\r\n"


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[asyncio.Runner, Both]]:
    def side(clock: object, changing: Changing, *, edge: bool) -> Side:
        return Side(clock, changing, edge=edge, **SETTINGS)  # type: ignore[arg-type]

    with_headers = {"cache-control": "max-age=3600"}
    yield from living(lambda: Both(Changing(), side, with_headers))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=st.lists(requests(), min_size=2, max_size=8))
@example(story=[get(ABSOLUTE), get(b"/o/1"), get(ABSOLUTE), get(b"/o/1", b"other.test"), get(ABSOLUTE, b"other.test")])
@example(story=[get(b"/own/1"), get(b"/o/1", b"", KEPT, b"1.0"), get(b"/own/1", b"", KEPT)])
@example(story=[get(b"/own/1"), get(b"/own/" + LONG), get(b"/own/1", more=PADDED), get(b"/own/" + LONG, more=PADDED)])
def test_what_the_first_reading_refuses_every_later_one_refuses(
    both: tuple[asyncio.Runner, Both], story: list[bytes]
) -> None:
    runner, two = both
    runner.run(two.live([("ask", each) for each in story for _ in range(2)]))


# --- another credential --------------------------------------------------------------------------------------------

TOKENS = (b"Bearer eyJh.eyJh.c2ln", b"Bearer b", b"Basic YTpi", b"x\xff", b"\ta", b"a ", b"", b"a\0b", b"a\nb", b"a\tb")
AROUND = (b"", b"", b"Accept: a/b\r\n", b"X-Request-ID: abc\r\n", b"X-Token: b\r\n", b"Cookie: c=Bearer b\r\n")


@st.composite
def heads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two requests that differ by a credential, and sometimes by more."""
    before, after = draw(st.sampled_from(AROUND)), draw(st.sampled_from(AROUND))
    name = draw(st.sampled_from((b"Authorization: ", b"X-Token:", b"x-token: \t", b"Cookie: ", b"X-Other: ")))
    first = draw(st.sampled_from(TOKENS[:4]))
    second = draw(st.sampled_from((*TOKENS, b"a" * 900)) | st.binary(max_size=6))
    whole = b"GET /o/1 HTTP/1.1\r\nHost: a\r\n%b%b%b\r\n%b\r\n"
    cut = draw(st.sampled_from((b"", b"", b"", b"GET /o/1 HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n")))
    return whole % (before, name, first, after), whole % (before, name, second, after) + cut


@settings(deadline=None)
@given(two=heads())
@example(two=(get(b"/o/1", more=b"X-Token: a\r\n"), get(b"/o/1", more=b"X-Token: " + b"b" * 990 + b"\r\n")))
def test_a_block_with_another_credential_is_the_block_that_would_be_parsed(two: tuple[bytes, bytes]) -> None:
    app = gateway(StubUpstream(lambda _: httpx.Response(500)), {})
    edge = Edge(app.engine, metrics=app.metrics, credentials=("authorization", "x-token", "cookie:c"))
    limits, (first, second) = Limits(head=1024), two
    end = first.index(b"\r\n")
    repeat, _ = Repeat.of(edge, first, end, read_request(first, limits).fields, room=limits.head)
    renewed = repeat.renewed(second, end)
    if not repeat.block.plain or renewed is None:
        return
    event("found")
    found, request_id = renewed
    request = read_request(second, limits)  # which refuses nothing that was found
    assert second == request.head
    assert len(second) <= limits.head
    parsed, parsed_id = Repeat.of(edge, second, end, request.fields, room=limits.head)
    assert request_id == parsed_id or not repeat.numbered
    assert found.fields(request_id) == parsed.fields(request_id)
    for name in ("front", "front_length", "rear", "tail", "numbered", "at", "longest_line", "room"):
        assert getattr(found, name) == getattr(parsed, name)
    for name in ("form", "origin", "host", "plain", "takes_content", "described", "close", "keep", "traced", "proxied"):
        assert getattr(found.block, name) == getattr(parsed.block, name)
    assert found._around == parsed._looked_around()


def test_the_blocks_of_the_test_are_found_where_a_value_may_stand() -> None:
    app = gateway(StubUpstream(lambda _: httpx.Response(500)), {})
    edge = Edge(app.engine, metrics=app.metrics, credentials=("authorization",))
    for more in (b"", b"X-Request-ID: a\r\n", b"Accept: a/b\r\nX-Request-ID: a\r\n"):
        for line in (b"Authorization: Bearer %b\r\n", b"authorization:\tBearer %b\r\n"):
            first, second = (get(b"/o/1", more=line % value + more) for value in (b"a.b.c", b"d.e.fg"))
            end = first.index(b"\r\n")
            repeat, _ = Repeat.of(edge, first, end, read_request(first, Limits()).fields, room=1024)
            renewed = repeat.renewed(second, end)
            assert renewed is not None
            again = renewed[0].renewed(first, end)
            assert again is not None
            assert again[0].block is repeat.block
    behind = get(b"/o/1", more=b"X-Request-ID: a\r\nAuthorization: Bearer a\r\n")
    repeat, _ = Repeat.of(edge, behind, end, read_request(behind, Limits()).fields, room=1024)
    assert repeat.renewed(behind, end) is None  # which is read as any other


@pytest.mark.parametrize("credential", [b"", b"Authorization: Bearer a.b.c\r\n"])
@pytest.mark.parametrize("empty", [b"X-Request-ID: \r\n", b"X-Request-ID:\r\n"])
def test_an_empty_request_id_makes_another_block_than_an_id(credential: bytes, empty: bytes) -> None:
    app = gateway(StubUpstream(lambda _: httpx.Response(500)), {})
    edge = Edge(app.engine, metrics=app.metrics, credentials=("authorization",))
    given = empty.replace(b"\r", b"abc\r")
    for more in (empty, given, empty, given.replace(b"abc", b"-"), empty):
        head = get(b"/o/1", more=credential + more)
        fields = read_request(head, Limits()).fields
        repeat, request_id = Repeat.of(edge, head, head.index(b"\r\n"), fields, room=1024)
        assert repeat.block.plain is (more is not empty)
        assert repeat.fields(request_id) == fields


TARGETS_OF_THE_APP = (
    *(b"/seen/1", b"/seen/2?b=1&a=%20", b"/seen/%C3%A4?x", b"/seen//3", b"http://gateway.test/seen/4?a=1", b"/seen/5?"),
    *(b"/seen/%2e%2e/6", b"/seen/7;a=b", b"/seen/8?%zz", b"https://gateway.test/seen/9"),
)


@pytest.mark.parametrize("numbered", [b"", b"X-Request-ID: abc\r\n"])
async def test_the_app_is_handed_the_same_whether_a_header_block_repeats_or_not(numbered: bytes) -> None:
    scopes: list[dict[str, Any]] = []

    async def seeing(scope: Any, receive: Any, send: Any) -> None:
        messages = [await receive()]
        scopes.append({**{k: v for k, v in scope.items() if k not in CHANGING}, "received": messages})
        await app.app(scope, receive, send)

    app = Counted(gateway(StubUpstream(lambda _: httpx.Response(500)), {}))
    seen: Any = seeing
    seen.edge, seen.guard = app.app.edge, app.guard

    def request(target: bytes, method: bytes = b"GET") -> bytes:
        return b"%b %b HTTP/1.1\r\nHost: gateway.test\r\n%bX-A:  b \r\n\r\n" % (method, target, numbered)

    repeating = Line(seen)
    await asked(repeating, request(b"/first"))
    for target in TARGETS_OF_THE_APP:
        for method in (b"GET", b"HEAD"):
            feeding = repeating.protocol._feed
            repeating.protocol._feed = fail  # type: ignore[method-assign]
            again = await asked(repeating, request(target, method))
            repeating.protocol._feed = feeding  # type: ignore[method-assign]
            anew = await asked(Line(seen), request(target, method))
            assert masked(again) == masked(anew)
            assert scopes[-2] == scopes[-1]
    assert len(scopes) == 1 + 4 * len(TARGETS_OF_THE_APP)


CHANGING = ("extensions",)


def fail(data: bytes) -> None:
    raise AssertionError("httptools parsed a head that repeats")


async def test_the_last_request_of_a_repeated_block_on_a_connection_that_drains_ends_it() -> None:
    app = Counted(gateway(StubUpstream(lambda _: httpx.Response(500)), {}))
    line = Line(app)
    await asked(line, get(b"/first"))
    app.guard.draining = True
    assert b"\r\nconnection: close\r\n" in await asked(line, get(b"/second"))
    assert line.pipe.closed
