"""The handshake with an upstream: what is sent, which answers are accepted, and what bounds it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import UpstreamBusy, UpstreamCircuitOpen, UpstreamError, UpstreamMalformed
from gateway.http.field_changes import NO_CHANGES
from gateway.http.websocket import accepted
from gateway.upstreams.client import Upstream
from gateway.upstreams.websocket import LARGEST_REFUSAL, Refused, UpstreamSocket, WebSocketCounts, connect
from tests.support.raw import Connection, RawUpstream, Script, raw_upstream
from tests.support.raw import speaking_to as made_for

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"


_made: list[Upstream] = []


@pytest.fixture(autouse=True)
async def ended() -> AsyncIterator[None]:
    """Each test's upstreams are closed behind it."""
    yield
    while _made:
        await _made.pop().aclose()


def speaking_to(raw: RawUpstream, **settings: Any) -> Upstream:
    _made.append(made_for(raw, **settings))
    return _made[-1]


def answering(head: bytes, after: bytes = b"") -> Script:
    """Answers a handshake by `head`, in which KEY stands for the right Sec-WebSocket-Accept."""

    async def script(connection: Connection) -> None:
        match = re.search(rb"sec-websocket-key: (\S+)", await connection.request())
        assert match is not None
        await connection.send(head.replace(b"KEY", accepted(match[1])) + after)
        await connection.closed()

    return script


async def asked(
    upstream: Upstream, *, seen: Counter[str] | None = None, counts: WebSocketCounts | None = None
) -> UpstreamSocket | Refused:
    def see(result: str, seconds: float) -> None:
        if seen is not None:
            seen[result] += 1

    headers = [(b"origin", b"https://a.test"), (b"sec-websocket-extensions", b"permessage-deflate")]
    return await connect(upstream, counts or WebSocketCounts(), "/talk?x=1", headers, ["a", "b"], NO_CHANGES, see)


class Received:
    """Collects what an upstream sends behind its handshake."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = asyncio.Event()

    def from_upstream(self, data: bytes) -> None:
        self.data += data

    def upstream_lost(self) -> None:
        self.lost.set()

    def upstream_full(self, full: bool) -> None:
        return None


async def test_an_upstream_is_asked_as_the_rfc_says_without_extensions() -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append(await connection.request())
        await connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    async with raw_upstream(script) as raw:
        await asked(speaking_to(raw))
    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"GET /talk?x=1 HTTP/1.1"
    for line in (
        b"origin: https://a.test",
        b"connection: Upgrade",
        b"upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-protocol: a, b",
    ):
        assert lines.count(line) == 1
    assert b"permessage-deflate" not in heads[0]


async def test_what_comes_behind_the_handshake_waits_for_its_receiver() -> None:
    head, seen = UPGRADED + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Protocol: b\r\nX-A: 1\r\n\r\n", Counter[str]()
    async with raw_upstream(answering(head, b"\x81\x01a")) as raw:
        socket = await asked(speaking_to(raw), seen=seen)
        assert isinstance(socket, UpstreamSocket)
        assert (socket.subprotocol, socket.headers) == ("b", [(b"x-a", b"1")])
        received = Received()
        socket.give_to(received)
        assert received.data == b"\x81\x01a"
        socket.abort()
        await received.lost.wait()
    assert seen == {"1xx": 1}


@pytest.mark.parametrize(
    "head",
    [
        UPGRADED + b"\r\n",
        UPGRADED + b"Sec-WebSocket-Accept: d3Jvbmc=\r\n\r\n",
        UPGRADED + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Accept: KEY\r\n\r\n",
        UPGRADED + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Protocol: z\r\n\r\n",
        UPGRADED + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: KEY\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: KEY\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nX: " + b"x" * 70_000,
        b"nonsense\r\n\r\n",
    ],
)
async def test_another_101_is_an_invalid_answer(head: bytes) -> None:
    seen = Counter[str]()
    async with raw_upstream(answering(head)) as raw:
        with pytest.raises(UpstreamMalformed):
            await asked(speaking_to(raw), seen=seen)
        assert sum(seen.values()) == 1
        assert not seen.keys() & {"1xx", "cancelled"}


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", b"no"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", b"ab"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 426 X\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * (LARGEST_REFUSAL + 1), b""),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\n\r\n", b"no"),
    ],
)
async def test_any_other_answer_is_given_back_and_the_connection_closed(answer: bytes, body: bytes) -> None:
    async with raw_upstream(answering(answer)) as raw:
        refused = await asked(speaking_to(raw))
        assert isinstance(refused, Refused)
        assert refused.body == body
        assert not {b"upgrade", b"connection", b"content-length"} & {name for name, _ in refused.headers}
        async with asyncio.timeout(5):
            while raw.open:
                await asyncio.sleep(0.01)


async def test_a_body_may_end_with_its_connection() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 500 Broken\r\nConnection: close\r\n\r\nbroken")

    async with raw_upstream(script) as raw:
        refused = await asked(speaking_to(raw))
        assert isinstance(refused, Refused)
        assert (refused.status, refused.body) == (500, b"broken")


async def test_silence_and_a_refused_connection_are_errors_that_open_the_circuit_breaker() -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.closed()

    async with raw_upstream(silent) as raw:
        upstream = speaking_to(raw, timeout="50ms", breaker_failures=2)
        for _ in range(2):
            with pytest.raises(UpstreamError) as raised:
                await asked(upstream)
            assert raised.value.status == 504
        with pytest.raises(UpstreamCircuitOpen):
            await asked(upstream)
    gone = speaking_to(raw)
    with pytest.raises(UpstreamError) as raised:
        await asked(gone)
    assert raised.value.status == 502


async def test_one_more_than_max_websockets_is_refused_at_once() -> None:
    async with raw_upstream(answering(UPGRADED)) as raw:
        upstream = speaking_to(raw, max_websockets=3)
        with pytest.raises(UpstreamBusy):
            await asked(upstream, counts=WebSocketCounts(open=3))
        assert upstream.shed == 1
        assert raw.connections == 0


async def test_handshakes_under_way_count_as_well() -> None:
    arrived, counts = asyncio.Event(), WebSocketCounts()

    async def silent(connection: Connection) -> None:
        await connection.request()
        arrived.set()
        await connection.closed()

    async with raw_upstream(silent) as raw:
        upstream = speaking_to(raw, max_websockets=1)
        task = asyncio.ensure_future(asked(upstream, counts=counts))
        await arrived.wait()
        with pytest.raises(UpstreamBusy):
            await asked(upstream, counts=counts)
        task.cancel()
        await asyncio.wait([task])
    assert counts.opening == 0


async def test_interim_responses_are_bounded() -> None:
    async with raw_upstream(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 40)) as raw:
        with pytest.raises(UpstreamMalformed):
            await asked(speaking_to(raw))


async def test_a_cancelled_handshake_closes_its_connection() -> None:
    arrived = asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.request()
        arrived.set()
        await connection.closed()

    async with raw_upstream(silent) as raw:
        task = asyncio.ensure_future(asked(speaking_to(raw)))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while raw.open:
                await asyncio.sleep(0.01)
