"""Names of upstreams: followed while requests go on, with what they lead to handed in and real servers behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import TCPConnector

from gateway.config.upstream import UpstreamConfig
from gateway.errors import UpstreamUnreachable
from gateway.upstreams.client import Upstream
from gateway.upstreams.name_resolution import INTERNALS
from gateway.upstreams.transport import Transport
from tests.support.raw import OK, Connection, always, once, raw_upstream

EVERY = 0.1
WAYS = pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"], ids=["plain", "session", "session with a body"])


class Book(AbstractResolver):
    """Leads each name to `addresses`; raises `error` if there is one. `asked` is released for each look-up."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.error: OSError | None = None
        self.asked = asyncio.Semaphore(0)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.release()
        if self.error is not None:
            raise self.error
        return [
            ResolveResult(hostname=host, host=each, port=port, family=socket.AF_INET, proto=0, flags=0)
            for each in self.addresses
        ]

    async def close(self) -> None:
        return None


class Server:
    """Answers each request with its own name; one for `/held` when `released` is set."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.asked = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.held = asyncio.Event()
        self.released = asyncio.Event()
        self.empty = asyncio.Event()
        self.last = 0.0

    async def speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            while head := await Connection(reader, writer).request():
                if b"transfer-encoding: chunked" in head.lower():
                    await reader.readuntil(b"0\r\n\r\n")
                self.asked, self.last = self.asked + 1, time.monotonic()
                if b" /held " in head:
                    self.held.set()
                    await self.released.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.name), self.name))
        finally:
            self.open.discard(writer)
            writer.close()
            if not self.open:
                self.empty.set()


@contextlib.asynccontextmanager
async def blue_and_green() -> AsyncIterator[tuple[Server, Server, int]]:
    """Two servers on one port: blue on 127.0.0.1, green on 127.0.0.2."""
    blue, green = Server(b"blue"), Server(b"green")
    first = await asyncio.start_server(blue.speak, "127.0.0.1", 0)
    port: int = first.sockets[0].getsockname()[1]
    second = await asyncio.start_server(green.speak, "127.0.0.2", port)
    try:
        yield blue, green, port
    finally:
        first.close()
        second.close()
        for writer in [*blue.open, *green.open]:
            writer.close()


@contextlib.asynccontextmanager
async def by_name(port: int, book: Book, **settings: object) -> AsyncIterator[Upstream]:
    config = UpstreamConfig.model_validate({"url": f"http://backend.test:{port}", **settings})
    upstream = Upstream("up", config, Transport(resolver=book, resolve_every=EVERY))
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def ask(upstream: Upstream, method: str = "GET", target: str = "/") -> bytes:
    async def content() -> AsyncIterator[bytes]:
        yield b"body"

    fetched = await upstream.fetch(method, target, [], content() if method == "POST" else None)
    body = await fetched.body.whole(1000)
    assert (fetched.status, body is None) == (200, False)
    return body


async def until(true: Callable[[], bool], book: Book) -> None:
    """Look after each look-up whether it is so."""
    async with asyncio.timeout(20):
        while not true():
            await book.asked.acquire()


def test_what_is_overridden_of_aiohttp_is_there() -> None:
    assert [name for name in INTERNALS[TCPConnector] if not hasattr(TCPConnector, name)] == []


@WAYS
async def test_a_name_that_moves_under_load_is_followed_and_no_request_fails(method: str) -> None:
    book = Book("127.0.0.1")
    async with blue_and_green() as (blue, green, port), by_name(port, book) as upstream:
        done = asyncio.Event()

        async def load() -> int:
            count = 0
            while not done.is_set():
                await ask(upstream, method)
                count += 1
            return count

        loads = [asyncio.create_task(load()) for _ in range(10)]
        await until(lambda: blue.asked > 100, book)
        held = asyncio.create_task(ask(upstream, method, "/held"))
        await blue.held.wait()
        book.addresses = ("127.0.0.2",)
        moved = time.monotonic()
        await until(lambda: green.asked > 300, book)
        done.set()
        assert sum(await asyncio.gather(*loads)) > 300
        assert blue.last < moved + EVERY + 1
        assert not held.done()
        blue.released.set()
        assert await held == b"blue"  # what was in flight is finished
        async with asyncio.timeout(5):
            await blue.empty.wait()  # and its connections are closed
        assert await ask(upstream, method) == b"green"


@WAYS
async def test_several_addresses_are_used_in_turn(method: str) -> None:
    book = Book("127.0.0.1", "127.0.0.2")
    async with blue_and_green() as (blue, green, port), by_name(port, book) as upstream:
        for _ in range(20):
            await ask(upstream, method)
        assert (blue.asked, green.asked) == (10, 10)
        assert (len(blue.open), len(green.open)) == (1, 1)


@WAYS
async def test_an_address_that_comes_in_addition_gets_its_share(method: str) -> None:
    book = Book("127.0.0.1")
    async with blue_and_green() as (blue, green, port), by_name(port, book) as upstream:
        await ask(upstream, method)
        book.addresses = ("127.0.0.1", "127.0.0.2")
        await book.asked.acquire()
        await until(lambda: bool(upstream.transport.names.several), book)  # type: ignore[attr-defined]
        for _ in range(10):
            await ask(upstream, method)
        assert (blue.asked, green.asked) == (6, 5)
        assert (len(blue.open), len(green.open)) == (1, 1)


@WAYS
async def test_an_address_that_takes_no_connection_is_passed_over_until_the_next_look_up(method: str) -> None:
    book = Book("127.0.0.3", "127.0.0.1")
    async with blue_and_green() as (blue, _, port), by_name(port, book) as upstream:
        for _ in range(10):
            assert await ask(upstream, method) == b"blue"
        names = upstream.transport.names  # type: ignore[attr-defined]
        assert len(blue.open) <= 2
        before = len(blue.open)
        assert repr(names) == "<Names [<Name backend.test 127.0.0.3, 127.0.0.1>]>"
        await until(lambda: bool(names.several), book)  # it is tried again
        for _ in range(10):
            assert await ask(upstream, method) == b"blue"
        assert len(blue.open) <= before + 1


async def test_a_look_up_that_fails_keeps_the_last_addresses_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    book = Book("127.0.0.1")
    async with blue_and_green() as (_, _, port), by_name(port, book) as upstream:
        assert await ask(upstream) == b"blue"
        names = upstream.transport.names  # type: ignore[attr-defined]
        book.error = socket.gaierror(-2, "Name or service not known")
        await until(lambda: names.failures >= 3, book)
        assert await ask(upstream) == b"blue"
        book.error, book.addresses = None, ("127.0.0.2",)
        await until(lambda: names.known()[0].peers == ["127.0.0.2"], book)
        assert await ask(upstream) == b"green"
    assert [record.getMessage() for record in caplog.records] == [
        "the name backend.test of an upstream is not found (Name or service not known); "
        "its last addresses stay in use: 127.0.0.1",
        "the name backend.test is found again: 127.0.0.2",
    ]


async def test_a_look_up_that_raises_anything_is_followed_by_the_next() -> None:
    book = Book("127.0.0.1")
    async with blue_and_green() as (_, _, port), by_name(port, book) as upstream:
        assert await ask(upstream) == b"blue"
        book.addresses = None  # type: ignore[assignment]
        await until(lambda: upstream.transport.names.failures >= 1, book)  # type: ignore[attr-defined]
        book.addresses = ("127.0.0.2",)
        await until(lambda: upstream.transport.names.known()[0].peers == ["127.0.0.2"], book)  # type: ignore[attr-defined]
        assert await ask(upstream) == b"green"


async def test_a_first_look_up_that_fails_is_an_error_and_the_next_request_looks_again() -> None:
    book = Book("127.0.0.1")
    book.error = socket.gaierror(-2, "Name or service not known")
    async with blue_and_green() as (_, _, port), by_name(port, book) as upstream:
        failed = await asyncio.gather(*(ask(upstream) for _ in range(5)), return_exceptions=True)
        assert {type(each) for each in failed} == {UpstreamUnreachable}
        book.error = None
        assert await ask(upstream) == b"blue"


async def test_names_are_looked_up_no_more_when_the_upstream_is_closed() -> None:
    book = Book("127.0.0.1")
    async with blue_and_green() as (_, _, port), by_name(port, book) as upstream:
        await ask(upstream)
        await book.asked.acquire()
        names = upstream.transport.names  # type: ignore[attr-defined]
    assert names.known() == []
    assert not [task for task in asyncio.all_tasks() if "_follow" in repr(task.get_coro())]


async def test_an_address_is_never_looked_up() -> None:
    book = Book("127.0.0.2")
    async with raw_upstream(always(OK)) as raw:
        upstream = Upstream("up", UpstreamConfig.model_validate({"url": raw.url}), Transport(resolver=book))
        for _ in range(3):
            assert await ask(upstream) == b"ok"
        assert book.asked.locked()
        await upstream.aclose()


async def test_the_first_look_up_outlives_the_request_that_made_it() -> None:
    book = Book("127.0.0.1")
    async with raw_upstream(once(OK)) as raw:
        port = int(raw.url.rpartition(":")[2])
        async with by_name(port, book) as upstream:
            impatient = asyncio.create_task(ask(upstream))
            await asyncio.sleep(0)
            patient = asyncio.create_task(ask(upstream))
            await book.asked.acquire()
            impatient.cancel()
            assert await patient == b"ok"
