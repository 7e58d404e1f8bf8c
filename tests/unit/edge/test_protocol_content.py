"""Reads with content at the edge: the same bytes as from the app, and nothing of a request that is not whole."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import httpx
import pytest

from gateway.edge.hits import REMEMBERED_CONTENT
from gateway.identity.key_source import Stored
from gateway.testing import StubUpstream
from tests.support.edge_lines import Both, Changing, Counted, Line, Side, asked
from tests.support.gateways import gateway
from tests.support.tokens import TestIssuer
from tests.support.wire import door

JSON = b"Content-Type: application/json\r\n"
SEARCH: dict[str, Any] = {"path": "/s", "upstream": "api", "ttl": "60s", "methods": ["GET", "QUERY", "POST", "PUT"]}
SEARCH |= {"reads": ["POST"], "stale_while_revalidate": "60s", "body": {"normalise": "json"}}
ROUTES: dict[str, Any] = {
    "own": SEARCH,
    "origin": {"path": "/o", "upstream": "api", "methods": ["GET", "QUERY"]},
    "keyed": {"path": "/k", "upstream": "api", "ttl": "60s", "reads": ["POST"], "authorization": "key"},
}


def query(
    content: bytes,
    target: bytes = b"/s",
    more: bytes = JSON,
    method: bytes = b"QUERY",
    length: int | None = None,
    version: bytes = b"1.1",
) -> bytes:
    length = len(content) if length is None else length
    return b"%b %b HTTP/%b\r\nHost: gateway.test\r\n%bContent-Length: %d\r\n\r\n%b" % (
        *(method, target, version, more, length),
        content,
    )


def echoing() -> StubUpstream:
    def answer(request: httpx.Request) -> httpx.Response:
        fields = {"cache-control": "max-age=60", "etag": '"v1"'}
        return httpx.Response(200, content=b"[%b]" % request.content, headers=fields)

    return StubUpstream(answer)


def stand(**settings: Any) -> tuple[Line, Counted, StubUpstream]:
    upstream = echoing()
    counted = Counted(gateway(upstream, ROUTES, **settings))
    return Line(counted), counted, upstream


@pytest.mark.parametrize("request_id", [b"", b"X-Request-ID: one.1\r\n"])
@pytest.mark.parametrize("target", [b"/s", b"/o"])
async def test_a_repeated_read_is_answered_without_the_app(target: bytes, request_id: bytes) -> None:
    line, counted, upstream = stand()
    for content in (b'{"q":1}', b'{"q":2}'):
        answers = [await asked(line, query(content, target, request_id + JSON)) for _ in range(3)]
        assert all(answer.endswith(b"\r\n\r\n[%b]" % content) for answer in answers)
        assert [b"gateway; hit" in answer for answer in answers] == [False, True, True]
    assert (counted.asked, upstream.asked) == (2, 2)


REQUESTS = [
    query(content, target, more, method)
    for content in (b'{"a":1,"b":2}', b'{"b": 2, "a": 1}', b'{"a":1,"a":1}', b"")
    for target in (b"/s", b"/s?x=1", b"/o", b"/k")
    for more in (
        JSON,
        b"Content-Type: text/plain\r\n",
        JSON + b'If-None-Match: "v1"\r\n',
        JSON + b"Accept-Encoding: gzip\r\nOrigin: https://app.test\r\n",
        JSON + b"Range: bytes=0-3\r\n",
        JSON + b"Cache-Control: no-transform\r\n",
        JSON + b"Authorization: Bearer x\r\n",
    )
    for method in (b"QUERY", b"POST", b"PUT")
]


async def test_edge_and_app_answer_alike() -> None:
    def side(*args: Any, **kwargs: Any) -> Side:
        return Side(*args, **kwargs, routes=ROUTES, cors={"allow_origins": ["https://app.test"]}, trusted_proxies=[])

    both = Both(Changing(), side, {"cache-control": "max-age=60", "etag": '"v1"'})
    chance = random.Random(18)
    events: list[tuple[str, Any]] = [("turn", 61), ("turn", 130), ("purge", {"routes": ["own"]}), ("say", None)]
    story: list[tuple[str, Any]] = []
    for request in chance.sample(REQUESTS, 60):
        story += [("ask", request), ("again", None), ("again", None)]
        kind, what = chance.choice(events) if chance.random() < 0.2 else ("again", None)
        story.append((kind, (200, {"cache-control": "max-age=9"}, chance.randrange(5)) if kind == "say" else what))
        story += [("again", None), ("ask", b"GET /s HTTP/1.1\r\nHost: gateway.test\r\n\r\n"), ("ask", request)]
    await both.live(story)
    assert both.sides[0].counted.asked < both.sides[1].counted.asked
    assert both.sides[0].counts() == both.sides[1].counts()


async def test_content_that_comes_in_two_segments_is_never_taken_for_what_came_before() -> None:
    """The first segment begins as a request that is known by heart; the second ends it otherwise."""
    line, counted, _ = stand()
    for _ in range(3):
        await asked(line, query(b'{"q":1}'))
    for cut in range(1, 8):
        whole = query(b'{"q":%d}' % cut)
        line.send(whole[:-cut])
        assert line.pipe.written == b""
        line.send(whole[-cut:])
        assert (await line.answer()).endswith(b'[{"q":%d}]' % cut)
    assert counted.asked == 1 + 7  # a request in two segments is the app's


async def test_a_head_alone_of_a_known_read_is_not_a_request() -> None:
    line, _, upstream = stand()
    for _ in range(2):
        await asked(line, query(b'{"q":1}'))
    line.send(query(b"", length=7))
    assert line.pipe.written == b""
    line.send(b'{"q":3}')
    assert (await line.answer()).endswith(b'[{"q":3}]')
    assert upstream.asked == 2


async def test_pipelined_reads_are_answered_in_their_order() -> None:
    line, _, upstream = stand()
    contents = [b'{"q":%d}' % (number % 3) for number in range(12)]
    get = b"GET /s HTTP/1.1\r\nHost: gateway.test\r\n\r\n"
    for _ in range(2):
        written = b""
        line.send(b"".join(query(content) + get for content in contents))
        while written.count(b"HTTP/1.1 200") < 24:
            written += await asked(line, b"")
        places = [written.index(b"\r\n\r\n[" + content + b"]") for content in contents[:3]]
        assert places == sorted(places)
        assert [part.count(b"[]") for part in written.split(b'[{"q":')[1:]] == [1] * 12
    assert upstream.asked == 4


async def test_what_follows_content_that_is_longer_than_it_said_is_the_next_request() -> None:
    line, _, upstream = stand()
    for _ in range(3):
        answer = await asked(line, query(b'{"q":1}GARBAGE / HTTP/1.1\r\n\r\n', length=7))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 501" in answer
        line = Line(line.protocol.app)  # type: ignore[arg-type]
    assert [request.content for request in upstream.requests] == [b'{"q":1}']


@pytest.mark.parametrize("more", [b"Content-Length: 8\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_two_lengths_are_refused_though_the_content_is_known(more: bytes) -> None:
    line, _, _ = stand()
    for _ in range(2):
        await asked(line, query(b'{"q":1}'))
    assert (await asked(line, query(b'{"q":1}', more=JSON + more))).startswith(b"HTTP/1.1 400")


async def test_chunks_with_trailers_are_the_same_content_and_their_trailers_count_for_nothing() -> None:
    line, _, upstream = stand()
    await asked(line, query(b'{"q":1}'))
    head = b"QUERY /s HTTP/1.1\r\nHost: gateway.test\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    for trailer in (b"", b"Content-Type: text/plain\r\n", b"X-Other: 1\r\n"):
        answer = await asked(line, head + b'3\r\n{"q\r\n4\r\n":1}\r\n0\r\n' + trailer + b"\r\n")
        assert b"gateway; hit" in answer
    assert upstream.asked == 1


async def test_a_client_that_waits_for_100_gets_it_and_the_stored_response() -> None:
    async with door(gateway(echoing(), ROUTES)) as connect:
        wire = await connect()
        wire.send(query(b'{"q":1}'))
        assert (await wire.answer())[0] == 200
        wire.send(query(b"", more=JSON + b"Expect: 100-continue\r\n", length=7))
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b'{"q":1}')
        status, headers, body = await wire.answer()
        assert (status, body) == (200, b'[{"q":1}]')
        assert headers["cache-status"].startswith("gateway; hit")


async def test_users_get_their_own_responses_to_one_content_at_the_edge() -> None:
    """Signed tokens on one connection, in turn, with refused and missing ones between them."""
    issuer = TestIssuer()
    now = time.time()
    users = {
        name: issuer.sign("Ed25519", sub=name, aud="shop", iat=now - 10, exp=now + 600) for name in ("anna", "berta")
    }
    upstream = StubUpstream(
        lambda request: httpx.Response(200, content=request.content + request.headers["x-user"].encode())
    )
    mine = {**SEARCH, "identity": ["shop"], "per": ["sub"], "forward": {"x-user": "sub"}}
    shop = {"issuer": issuer.url, "jwks": json.loads(issuer.jwks), "audience": ["shop"]}
    app = gateway(upstream, {"mine": mine}, identity={"shop": shop})
    source: Any = app.worker_state.providers["shop"].source
    source._use(Stored(now, issuer.jwks))
    counted = Counted(app)
    line = Line(counted)

    async def search(content: bytes, credential: bytes) -> bytes:
        nonlocal line
        if line.pipe.is_closing():
            line = Line(counted)
        return await asked(line, query(content, b"/s", credential + JSON))

    for turn in range(4):
        before = counted.asked
        for content in (b'{"q":1}', b'{"q":2}'):
            for name, token in users.items():
                answer = await search(content, b"Authorization: Bearer " + token + b"\r\n")
                assert answer.endswith(b"\r\n\r\n" + content + name.encode())
                assert (b"gateway; hit" in answer) is (turn > 0)
        assert (counted.asked > before) is (turn == 0)  # the edge has all of them
        for credential in (
            b"",
            b"Authorization: Bearer x\r\n",
            b"Authorization: Bearer " + users["anna"][:-20] + b"A" * 20 + b"\r\n",
        ):
            assert (await search(b'{"q":1}', credential)).startswith(b"HTTP/1.1 401")
    assert upstream.asked == 4


async def test_a_method_that_is_no_read_of_the_route_is_not_answered_by_what_is_stored() -> None:
    line, _, upstream = stand()
    for _ in range(2):
        await asked(line, query(b'{"q":1}', method=b"POST"))
    for _ in range(2):
        assert (await asked(line, query(b'{"q":1}', b"/o", method=b"POST"))).startswith(b"HTTP/1.1 405")
        assert b"fwd=method" in await asked(line, query(b'{"q":1}', method=b"PUT"))
    assert upstream.asked == 3


async def test_what_is_remembered_of_contents_is_bounded() -> None:
    line, counted, _ = stand(memory="1MiB")
    edge = counted.edge
    for number in range(300):
        await asked(line, query(b'{"q":"%d%b"}' % (number, b"x" * 3000)))
    assert 0 < len(edge.known_contents) < 60
    known = sum(2560 + len(key) for key in edge.known_contents)
    assert known == edge._content_bytes <= edge._room // 4
    await asked(line, query(b'"%b"' % (b"x" * REMEMBERED_CONTENT)))
    assert not any(len(key) > REMEMBERED_CONTENT for key in edge.known_contents)
