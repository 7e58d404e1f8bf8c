"""Records in Redis that somebody changed, with a seal that is right: whatever they say, no request fails by them, no
response is framed wrongly, and nobody is given another's."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from xxhash import xxh3_64_digest

from gateway.app.gateway import Gateway
from gateway.cache.redis.store import RedisStore
from gateway.edge.protocol import GatewayProtocol
from gateway.policy.entry import Entry, Life
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import gateway, served

TIMES = 150
NEXT = b'{"next":true}'
PLANTED = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted"
TEXTS = ("", "a", "a b", "x-kind", ":host", "cookie:a", "A", "a\r\nb: c", "\0", "é", "€", "\u0131", "x" * 70_000, "*")
NUMBERS = (0.0, -1.0, 1e300, 2e9, 9e12, math.inf, -math.inf, math.nan)
FIELDS = (
    (b"content-length", b"3"),
    (b"transfer-encoding", b"chunked"),
    (b"connection", b"close"),
    (b"vary", b"*"),
    (b"vary", b"\xff, x\xb2"),
    (b"x", b"a\r\n\r\n"),
    (b"", b""),
    (b"Upper", b"1"),
    (b"content-encoding", b"gzip, br"),
    (b"content-type", b"text/html; charset=undefined"),
    (b"cache-control", b"max-age=99999999999999999999999"),
    (b"etag", b'"'),
    (b"date", b"never"),
    (b"last-modified", b"Sun, 31 Feb 99999 00:00:00 GMT"),
    (b"link", b"<" * 2000),
    (b"location", b"http://[::1"),
    (b"expires", b"0"),
    (b"content-range", b"bytes 9-1/x"),
)
VALUES: dict[str, tuple[Any, ...]] = {
    "status": (0, 100, 101, 103, 199, 200, 204, 205, 206, 299, 301, 304, 404, 429, 600, 999, -1, 2**62),
    "body": (b"", PLANTED, b"\0" * 1000),
    **dict.fromkeys(("born", "started", "initial_age", "jitter"), NUMBERS),
    "softened": (None, 0.0, 1e300),
    "distrusted": (True, False),
    **dict.fromkeys(("tags", "vary", "names"), (*((text,) for text in TEXTS), ("a",) * 300)),
    **dict.fromkeys(("route", "stamp", "primary"), TEXTS),
    "life": tuple(Life(lifetime=number, stale_if_error=other) for number in NUMBERS for other in (None, *NUMBERS)),
}


def sealed(payload: bytes) -> bytes:
    return b"GW\x03" + xxh3_64_digest(payload) + payload


def changed(chance: random.Random, data: bytes) -> bytes:
    """A record with one to three things in it changed, or bytes of it."""
    payload = data[11:]
    if chance.random() < 0.3:
        raw = bytearray(payload)
        for _ in range(chance.randint(1, 3)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        return sealed(bytes(raw))
    entry = msgspec.msgpack.decode(payload, type=Entry)
    for _ in range(chance.randint(1, 3)):
        if chance.random() < 0.3:
            fields = [*entry.headers, *chance.sample(FIELDS, chance.randint(1, 3))]
            entry = msgspec.structs.replace(entry, headers=tuple(fields))
        else:
            name = chance.choice(sorted(VALUES))
            entry = msgspec.structs.replace(entry, **{name: chance.choice(VALUES[name])})
    return sealed(msgspec.msgpack.encode(entry))


def changed_index(chance: random.Random, data: bytes) -> bytes:
    primary, _ = msgspec.msgpack.decode(data[11:])
    sets = [[chance.choice(TEXTS) for _ in range(chance.randint(0, 3))] for _ in range(chance.randint(0, 12))]
    return sealed(msgspec.msgpack.encode((primary, sets)))


def status_in(data: bytes) -> int:
    """The status that a record states; a 5xx may be stored where its life is stated."""
    try:
        return int(msgspec.msgpack.decode(data[11:])[5])
    except (msgspec.DecodeError, LookupError, TypeError, ValueError):
        return 0


def app_of(valkey: Embedded, clock: TurnedClock) -> tuple[Gateway, StubUpstream]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/next":
            return httpx.Response(200, content=NEXT, headers={"cache-control": "no-store"})
        return httpx.Response(200, json={"n": 1}, headers={"cache-control": "max-age=600", "vary": "X-Kind"})

    upstream = StubUpstream(answer)
    routes = {
        "joined": {"path": "/joined", "parts": {"one": {"upstream": "api", "path": "/item"}}},
        "rest": {"path": "/{path:path}", "upstream": "api"},
    }
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=5.0)
    return gateway(upstream, routes, clock=clock, store=store, redis_budget="5s"), upstream


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if status in (204, 304):
        assert not lengths
        return status, b""
    assert len(lengths) == 1
    assert b"transfer-encoding" not in head.lower()
    return status, await reader.readexactly(int(lengths[0].partition(b":")[2]))


def requests() -> Iterator[bytes]:
    while True:
        yield b"GET /item HTTP/1.1\r\nHost: a\r\nX-Kind: a\r\n\r\n"
        yield b"GET /joined HTTP/1.1\r\nHost: a\r\nX-Kind: a\r\n\r\n"
        yield b"HEAD /item HTTP/1.1\r\nHost: a\r\nX-Kind: a\r\n\r\n"
        yield b"GET /item HTTP/1.1\r\nHost: a\r\nX-Kind: a\r\nRange: bytes=0-1\r\nAccept-Encoding: gzip\r\n\r\n"


@pytest.mark.parametrize("kind", ["e", "i"], ids=["responses", "indices"])
@pytest.mark.parametrize("http", [GatewayProtocol, "httptools"], ids=["at the edge", "by the app alone"])
async def test_a_changed_record_harms_nobody(valkey: Embedded, clock: TurnedClock, http: Any, kind: str) -> None:
    chance = random.Random(14)
    app, _ = app_of(valkey, clock)
    store: Any = app.shared
    change = changed if kind == "e" else changed_index
    async with served(app, http=http) as url:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(next(requests()))
        assert await read(reader) == (200, b'{"n":1}')
        await app.engine.settle()
        (name,) = [name async for name in store._client.scan_iter(f"{store._prefix}{kind}:*")]
        real = await store._client.get(name)
        for request, _ in zip(requests(), range(TIMES), strict=False):
            planted = change(chance, real)
            await store._client.set(name, planted)
            app.engine.memory.clear()
            writer.write(request)
            if request.startswith(b"HEAD"):
                status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
            else:
                status, _ = await read(reader)
            # A part of another status, or that is no JSON, is a failure of its upstream's: it is answered, with 502.
            assert status < 500 or (status == 502 and b"/joined" in request) or status == status_in(planted), planted
            writer.write(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await read(reader) == (200, NEXT), planted
        writer.close()
    assert app.engine.tiers.unreadable > TIMES // 10


@pytest.mark.parametrize("name", ["€", "\u0131", "a\r\nb", "Upper", ""])
async def test_an_index_of_no_names_is_a_counted_miss_and_is_replaced(
    valkey: Embedded, clock: TurnedClock, name: str
) -> None:
    app, upstream = app_of(valkey, clock)
    store: Any = app.shared
    async with served(app, http=GatewayProtocol) as url, httpx.AsyncClient(base_url=url) as client:
        await client.get("/item")
        await app.engine.settle()
        (index,) = [key async for key in store._client.scan_iter(f"{store._prefix}i:*")]
        real = await store._client.get(index)
        primary, _ = msgspec.msgpack.decode(real[11:])
        await store._client.set(index, sealed(msgspec.msgpack.encode((primary, [[name]]))))
        app.engine.memory.clear()
        before = app.engine.tiers.unreadable
        assert (await client.get("/item")).json() == {"n": 1}
        assert app.engine.tiers.unreadable > before
        await app.engine.settle()
        assert await store._client.get(index) == real
        assert upstream.asked == 2


@pytest.mark.parametrize("status", [204, 205])
async def test_a_response_without_content_that_has_some_is_a_counted_miss(
    valkey: Embedded, clock: TurnedClock, status: int
) -> None:
    app, upstream = app_of(valkey, clock)
    store: Any = app.shared
    async with served(app, http=GatewayProtocol) as url, httpx.AsyncClient(base_url=url) as client:
        await client.get("/item")
        await app.engine.settle()
        (name,) = [key async for key in store._client.scan_iter(f"{store._prefix}e:*")]
        entry = msgspec.msgpack.decode((await store._client.get(name))[11:], type=Entry)
        planted = msgspec.structs.replace(entry, status=status, body=PLANTED)
        await store._client.set(name, sealed(msgspec.msgpack.encode(planted)))
        app.engine.memory.clear()
        assert (await client.get("/item")).json() == {"n": 1}
        assert app.engine.tiers.unreadable == 1
        assert upstream.asked == 2


async def test_what_would_not_be_read_is_not_written_and_counted(valkey: Embedded, clock: TurnedClock) -> None:
    app, upstream = app_of(valkey, clock)
    store: Any = app.shared
    vary = ", ".join(f"x-{number}" for number in range(300))
    upstream.answer = lambda request: httpx.Response(
        200, content=b"x", headers={"cache-control": "max-age=600", "vary": vary}
    )
    async with served(app, http=GatewayProtocol) as url, httpx.AsyncClient(base_url=url) as client:
        await client.get("/item")
        await app.engine.settle()
        assert "hit" in (await client.get("/item")).headers["cache-status"]
        assert [key async for key in store._client.scan_iter(f"{store._prefix}[ei]:*")] == []
    assert app.engine.tiers.unstorable == 1
    assert b"gateway_unstorable_records_total 1.0" in app.metrics.render()
