"""Shared event streams on real connections: past ASGI, through it, and to clients that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.identity.key_source import Stored
from gateway.observability.access_log import silent
from tests.support.gateways import served
from tests.support.raw import Connection, raw_upstream
from tests.support.tokens import TestIssuer
from tests.support.wire import Wire, door

STREAM = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /prices HTTP/1.1\r\nHost: a\r\n%b\r\n"


class Source:
    """An upstream of event streams: the heads of its requests, and a way to send to all."""

    def __init__(self, start: bytes = b"HTTP/1.1 200 OK\r\n") -> None:
        self.heads: list[bytes] = []
        self._head = start + STREAM
        self._open: list[Connection] = []

    async def __call__(self, connection: Connection) -> None:
        self.heads.append(await connection.request())
        await connection.send(self._head)
        self._open.append(connection)
        await connection.closed()

    async def say(self, *numbers: int, text: bytes = b"x", to: int | None = None) -> None:
        for number in numbers:
            event = b"id: %d\ndata: %b\n\n" % (number, text)
            for connection in self._open if to is None else self._open[to : to + 1]:
                await connection.send(b"%x\r\n%b\r\n" % (len(event), event))


def site(url: str, issuers: dict[str, Any] | None = None, **settings: Any) -> Gateway:
    route = {"path": "/prices", "upstream": "api", "ttl": "0s", "stream": "share", **settings}
    config = {"redis_url": "none", "upstreams": {"api": {"url": url}}, "routes": {"prices": route}}
    return create_app({**config, "identity": issuers or {}}, log=silent)


async def told(wire: Wire, ending: bytes) -> bytes:
    """What comes until a chunk ends so."""
    async with asyncio.timeout(20):
        return await wire.reader.readuntil(ending + b"\r\n")


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"], ids=["past ASGI", "through ASGI"])
async def test_clients_share_a_stream_and_a_client_that_comes_back_misses_nothing(more: bytes) -> None:
    source = Source()
    async with raw_upstream(source) as raw, door(site(raw.url)) as connect:
        wires = [await connect() for _ in range(3)]
        for wire in wires:
            wire.send(GET % more)
            head = await wire.reader.readuntil(b"\r\n\r\n")
            head = head if b"HTTP/1.1 200" in head else await wire.reader.readuntil(b"\r\n\r\n")
            assert b"cache-status: gateway; fwd=bypass; " in head
            assert (b"collapsed" in head) is (wire is not wires[0])
        await source.say(1, 2)
        for wire in wires:
            assert b"retry: " in await told(wire, b"id: 2\ndata: x\n\n")
        back = await connect()
        back.send(GET % (b"Last-Event-ID: 1\r\n" + more))
        text = await told(back, b"id: 2\ndata: x\n\n")
        assert b"id: 1\n" not in text
        assert len(source.heads) == 1


async def test_the_guard_sees_how_much_of_a_stream_was_written() -> None:
    source = Source()
    async with raw_upstream(source) as raw:
        app = site(raw.url)
        async with door(app) as connect:
            wire = await connect()
            wire.send(GET % b"")
            await wire.reader.readuntil(b"\r\n\r\n")
            await source.say(1)
            text = await told(wire, b"id: 1\ndata: x\n\n")
            [connection] = app.guard._connections
            assert isinstance(connection, GatewayProtocol)
            assert connection._asking is not None
            assert connection._asking.written == len(text)


async def test_head_and_http_1_0_of_a_stream() -> None:
    """HEAD is answered by the upstream's head, and costs nobody a stream; HTTP/1.0 gets events until the end."""
    source = Source()
    async with raw_upstream(source) as raw, door(site(raw.url)) as connect:
        wire = await connect()
        wire.send(GET.replace(b"GET", b"HEAD") % b"")
        async with asyncio.timeout(20):
            head = await wire.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"text/event-stream" in head
        old = await connect()
        old.send((GET % b"").replace(b"HTTP/1.1", b"HTTP/1.0"))
        async with asyncio.timeout(20):
            assert b"transfer-encoding" not in (await old.reader.readuntil(b"\r\n\r\n")).lower()
            await old.reader.readuntil(b"retry: ")
            await source.say(1)
            await old.reader.readuntil(b"id: 1\ndata: x\n\n")
        assert source.heads[-1].startswith(b"GET ")


async def test_partitions_of_the_key_have_streams_of_their_own() -> None:
    source = Source()
    async with raw_upstream(source) as raw, door(site(raw.url, authorization="key")) as connect:
        for user in (b"a", b"b", b"a"):
            wire = await connect()
            wire.send(GET % (b"Authorization: " + user + b"\r\n"))
            head = await wire.reader.readuntil(b"\r\n\r\n")
            assert b"private" in head
    assert sorted(head.lower().count(b"authorization: a\r\n") for head in source.heads) == [0, 1]


async def test_a_user_s_clients_share_a_stream_that_no_other_user_gets_even_when_all_is_purged() -> None:
    """The upstream calls it private; each event says whose stream it is in."""
    issuer, now, source = TestIssuer(), time.time(), Source(b"HTTP/1.1 200 OK\r\nCache-Control: private\r\n")
    shop = {"issuer": issuer.url, "jwks": json.loads(issuer.jwks), "audience": ["shop"]}
    settings = {"identity": ["shop"], "per": ["sub"], "forward": {"x-user": "sub"}}
    async with raw_upstream(source) as raw:
        app = site(raw.url, {"shop": shop}, **settings)
        keys: Any = app.worker_state.providers["shop"].source
        keys._use(Stored(now, issuer.jwks))
        async with door(app) as connect:
            wires: list[tuple[bytes, Wire]] = []
            for user in ("anna", "berta", "anna", "berta"):
                token = issuer.sign("Ed25519", sub=user, aud="shop", iat=now - 10, exp=now + 600)
                wire = await connect()
                wire.send(GET % (b"Authorization: Bearer " + token + b"\r\n"))
                head = await wire.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert b"private" in head
                wires.append((user.encode(), wire))
            assert len(source.heads) == 2
            await app.purge(everything=True)
            for number, head in enumerate(source.heads):
                await source.say(number, text=head.lower().partition(b"x-user: ")[2].partition(b"\r")[0], to=number)
            for user, wire in wires:
                assert user in await told(wire, b"data: " + user + b"\n\n")
            refused = await connect()
            refused.send(GET % b"")
            assert (await refused.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")


async def test_a_client_that_does_not_read_is_cut_and_the_others_get_all() -> None:
    source = Source()
    async with raw_upstream(source) as raw:
        app = site(raw.url)
        async with served(app, http=GatewayProtocol) as url:
            port = int(url.rpartition(":")[2])
            stuck = socket.socket()
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", port))
            stuck.sendall(GET % b"")
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
            writer.write(GET % b"")
            await reader.readuntil(b"\r\n\r\n")
            streams, number = app.worker_state.streams, 0
            async with asyncio.timeout(30):
                while streams.clients < 2:
                    await asyncio.sleep(0)
                while not streams.counts.cut["lagged"]:  # once the kernel takes no more for it
                    number += 1
                    await source.say(number, text=b"x" * 4000)
                    await reader.readuntil(b"id: %d\n" % number)
            assert streams.clients == 1
            await source.say(number + 1)
            await reader.readuntil(b"id: %d\n" % (number + 1))
            writer.close()
            stuck.close()


async def test_a_client_that_leaves_is_forgotten() -> None:
    source = Source()
    async with raw_upstream(source) as raw:
        app = site(raw.url)
        async with door(app) as connect:
            wires = [await connect() for _ in range(2)]
            for wire in wires:
                wire.send(GET % b"")
                await wire.reader.readuntil(b"\r\n\r\n")
            wires[0].writer.close()
            async with asyncio.timeout(20):
                while app.worker_state.streams.clients > 1:
                    await asyncio.sleep(0)
            await source.say(1)
            await told(wires[1], b"id: 1\ndata: x\n\n")
