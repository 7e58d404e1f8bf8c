"""What lies in the shared tier alone, the edge asks for itself: same answers, in order, and nobody left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
from msgspec import structs

from gateway.app.gateway import Gateway
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import Read
from gateway.cache.store import entry_name
from gateway.edge.shared_lookup import Records
from gateway.policy.entry import decode_stored, encode
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Counted, Line, masked
from tests.support.entries import STORED
from tests.support.gateways import gateway


def answer(request: httpx.Request) -> httpx.Response:
    text = (request.url.path + " ") * 100
    return httpx.Response(200, text=text, headers={"etag": '"v1"', "vary": "Accept-Language", "surrogate-key": "t x"})


class Held:
    """A shared tier whose reads wait while it is shut."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.asked = asyncio.Event()
        self.reads: list[Sequence[str]] = []
        self._is_shut = False
        self._waiting: list[tuple[Read, Sequence[str]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        future: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self.ask(names, future.set_result)
        return await future

    def ask(self, names: Sequence[str], then: Callable[[list[bytes | None]], None]) -> Read:
        self.reads.append(names)
        self.asked.set()
        if not self._is_shut:
            return self._store.ask(names, then)
        read = Read(names, then)
        self._waiting.append((read, names))
        return read

    def shut(self) -> None:
        self._is_shut = True
        self.asked.clear()

    def open(self) -> None:
        self._is_shut = False
        for read, names in self._waiting:
            if read.then is not None:
                self._store.ask(names, read.then)
        self._waiting.clear()


class Site:
    def __init__(self, store: RedisStore, *, memory: str = "0") -> None:
        self.store = Held(store)
        self.upstream = StubUpstream(answer)
        route = {"path": "/own/{id}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "20s"}
        self.clock = TurnedClock()
        self.app: Gateway = gateway(
            self.upstream,
            {"own": route},
            clock=self.clock,
            store=self.store,
            memory=memory,
            redis_budget="20s",
            cors={"allow_origins": ["https://app.test"]},
        )
        self.app.engine._storing.jitter = lambda: 0.5
        self.counted = Counted(self.app)
        self.line = Line(self.counted)

    async def ask(self, request: bytes) -> bytes:
        self.line.send(request)
        answered = await self.line.answer()
        await self.app.engine.settle()
        return answered


@pytest.fixture
async def site(redis_store: RedisStore) -> AsyncIterator[Site]:
    site = Site(redis_store)
    await site.app.start()
    yield site
    site.store.open()
    await site.app.stop()


def get(path: str = "/own/1", *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/{version}", "Host: gateway.test", *lines, "", "")).encode()


FORMS = [
    get(),
    get("/own/1", "Accept-Language: de"),
    get("/own/1", 'If-None-Match: "v1"'),
    get("/own/1", "Origin: https://app.test"),
    get("/own/1", "Accept-Encoding: gzip, br"),
    get("/own/1", "X-Request-ID: abc"),
    get(method="HEAD"),
]


@pytest.mark.parametrize("form", FORMS)
async def test_the_answer_is_what_the_app_would_have_answered(site: Site, form: bytes) -> None:
    await site.ask(form)
    edge, site.app.edge = site.app.edge, None
    by_app = await site.ask(form)
    site.app.edge = edge
    asked = site.counted.asked

    by_edge = await site.ask(form)

    assert site.counted.asked == asked
    assert masked(by_edge) == masked(by_app)
    assert b"cache-status: gateway; hit" in by_edge
    assert site.upstream.asked == 1


async def test_each_answer_is_what_the_shared_tier_has_by_then(site: Site, redis_store: RedisStore) -> None:
    await site.ask(get())
    first = await site.ask(get())
    (key,) = {key for ready in site.app.edge._known.values() for key in ready.ready} if site.app.edge else set()
    data = (await redis_store.read([entry_name(key)]))[0]
    assert data is not None
    stored = decode_stored(data, key)
    assert stored is not None
    other = structs.replace(stored, body=stored.body.replace(b"/own/1", b"/own/x"))
    assert await redis_store.write([(entry_name(key), encode(other), 60.0)])

    second = await site.ask(get())

    assert first.count(b"/own/1") == 100
    assert second.count(b"/own/x") == 100
    assert first.partition(b"\r\n\r\n")[0].count(b"etag") == second.partition(b"\r\n\r\n")[0].count(b"etag") == 1


async def test_a_body_larger_than_its_route_would_store_is_a_miss(site: Site, redis_store: RedisStore) -> None:
    await site.ask(get())
    await site.ask(get())
    (key,) = {key for ready in site.app.edge._known.values() for key in ready.ready} if site.app.edge else set()
    data = (await redis_store.read([entry_name(key)]))[0]
    assert data is not None
    stored = decode_stored(data, key)
    assert stored is not None
    largest = site.app.config.max_body
    for size, asked in ((largest, 1), (largest + 1, 2)):
        planted = structs.replace(stored, body=b"x" * size)
        assert await redis_store.write([(entry_name(key), encode(planted), 60.0)])
        await site.ask(get())
        assert site.upstream.asked == asked


async def test_what_the_shared_tier_lacks_is_asked_of_the_app_and_looked_for_once_before(site: Site) -> None:
    await site.ask(get())
    await site.app.purge(everything=True)
    site.store.reads.clear()

    again = await site.ask(get())

    assert b"fwd=miss" in again
    assert site.upstream.asked == 2
    # By the edge, and by whoever holds the lease, as it was stored a moment ago.
    assert 1 <= len(site.store.reads) <= 2


async def test_what_comes_behind_a_request_that_waits_is_answered_behind_it(site: Site) -> None:
    await site.ask(get("/own/1"))
    await site.ask(get("/own/2"))
    site.store.shut()
    site.line.send(get("/own/1") + get("/own/2"))
    await site.store.asked.wait()
    site.line.send(get("/own/1"))
    site.store.open()

    answers = b""
    while answers.count(b"HTTP/1.1 200") < 3:
        answers += await site.line.answer()
        await asyncio.sleep(0)

    bodies = [part.partition(b"\r\n\r\n")[2][:6] for part in answers.split(b"HTTP/1.1 200")[1:]]
    assert bodies == [b"/own/1", b"/own/2", b"/own/1"]
    assert site.upstream.asked == 2


async def test_a_hit_in_memory_is_answered_behind_the_request_that_waits_before_it(redis_store: RedisStore) -> None:
    site = Site(redis_store, memory="8MiB")
    await site.ask(get("/own/1"))
    await site.ask(get("/own/2"))
    site.app.engine.memory.clear()
    await site.ask(get("/own/2"))
    site.store.shut()
    site.line.send(get("/own/1"))
    await site.store.asked.wait()
    site.line.send(get("/own/2"))
    site.store.open()

    answers = b""
    while answers.count(b"HTTP/1.1 200") < 2:
        answers += await site.line.answer()
        await asyncio.sleep(0)

    bodies = [part.partition(b"\r\n\r\n")[2][:6] for part in answers.split(b"HTTP/1.1 200")[1:]]
    assert bodies == [b"/own/1", b"/own/2"]
    await site.app.stop()


async def test_a_client_that_leaves_while_its_request_waits_leaves_nothing_behind(site: Site) -> None:
    await site.ask(get())
    site.store.shut()
    site.line.send(get())
    await site.store.asked.wait()

    site.line.pipe.close()
    site.line.hang_up()

    assert await site.line.answer() == b""
    assert site.app.guard._requests == 0


async def test_a_request_that_waits_as_the_server_stops_is_answered_and_its_connection_ends(site: Site) -> None:
    await site.ask(get())
    site.store.shut()
    site.line.send(get())
    await site.store.asked.wait()

    site.line.protocol.shutdown()
    assert not site.line.pipe.closed
    site.store.open()

    assert (await site.line.answer()).startswith(b"HTTP/1.1 200")
    assert site.line.pipe.closed


OTHERS = {
    "body": structs.replace(STORED, body=b"ydob"),
    "longer": structs.replace(STORED, body=b"body body"),
    "empty": structs.replace(STORED, body=b""),
    "headers": structs.replace(STORED, headers=((b"etag", b'"ydob"'),)),
    "behind": structs.replace(STORED, names=("ydob",)),
}


@pytest.mark.parametrize("secret", [b"", b"s"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_response_under_the_key_is_read_as_it_is(secret: bytes, name: str) -> None:
    records = Records(secret, most=4)
    assert records.stored(encode(STORED, secret), "k") == STORED
    assert records.stored(encode(OTHERS[name], secret), "k") == OTHERS[name]
    assert records.stored(encode(STORED, secret), "k") == STORED


@pytest.mark.parametrize("secret", [b"", b"s"])
def test_the_same_response_has_the_same_headers_as_an_object(secret: bytes) -> None:
    records = Records(secret, most=4)
    first, second = (records.stored(encode(STORED, secret), "k") for _ in range(2))
    assert first is not None
    assert second is not None
    assert first == second == STORED
    assert first.headers is second.headers


@pytest.mark.parametrize("secret", [b"", b"s"])
def test_what_is_changed_or_cut_anywhere_is_none_though_it_was_known(secret: bytes) -> None:
    data = encode(STORED, secret)
    records = Records(secret, most=4)
    records.stored(data, "k")
    for at in range(len(data)):
        changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        assert records.stored(changed, "k") is None is decode_stored(changed, "k", secret)
        assert records.stored(data[:at], "k") is None
    assert records.stored(data, "k") == STORED


def test_no_more_are_remembered_than_said() -> None:
    records = Records(b"", most=2)
    for key in "abc":
        stored = structs.replace(STORED, key=key, primary=key)
        assert records.stored(encode(stored), key) == stored
    assert len(records) == 2
