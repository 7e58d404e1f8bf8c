"""Bodies of any size pass through a gateway of constant size, at their reader's pace, and end with their client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.support.processes import GatewayProcess, StartGateway
from tests.support.raw import Connection, raw_upstream

MIB = 1024 * 1024
PIECE = os.urandom(64 * 1024)
GROWTH = 32 * MIB
BUFFERED = 8 * MIB
"""What the gateway may hold of a body that nobody takes."""
IN_FLIGHT = 32 * MIB
"""What it and the kernel may: four socket buffers on the way, of up to 6 MiB each as Linux tunes them."""
ENDED_WITHIN = 1.0
STALL = 0.5


class Source:
    """An upstream that sends `size` bytes as fast as they are taken.

    `stalled` is set where nothing more was taken for a while, `closed` once the connection is.
    """

    def __init__(self, size: int, *, chunked: bool = False, headers: bytes = b"") -> None:
        self.size = size
        self.sent = 0
        self.digest = hashlib.sha256()
        self.stalled = asyncio.Event()
        self.closed = asyncio.Event()
        self.closed_at = 0.0
        self._chunked = chunked
        self._headers = headers

    async def __call__(self, connection: Connection) -> None:
        while await connection.request():
            closing = asyncio.ensure_future(connection.closed())
            closing.add_done_callback(self._note_closed)
            framing = b"Transfer-Encoding: chunked" if self._chunked else b"Content-Length: %d" % self.size
            connection.writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + self._headers + b"\r\n")
            with contextlib.suppress(ConnectionError):
                await self._send(connection.writer)
            await closing

    def _note_closed(self, _: object) -> None:
        self.closed_at = time.monotonic()
        self.closed.set()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while self.sent < self.size:
            piece = PIECE[: self.size - self.sent]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            await self._taken(writer)
            self.digest.update(piece)
            self.sent += len(piece)
        if self._chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async def _taken(self, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(STALL):
                    return await writer.drain()
            except TimeoutError:
                self.stalled.set()


class Sink:
    """An upstream that reads a request's body once `reading` is set, and answers with its digest."""

    def __init__(self) -> None:
        self.received = 0
        self.reading = asyncio.Event()
        self.came = asyncio.Event()
        self.first = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        head = (await connection.request()).lower()
        self.came.set()
        await self.reading.wait()
        digest = hashlib.sha256()
        try:
            async for piece in _body(connection.reader, head):
                digest.update(piece)
                self.received += len(piece)
                self.first.set()
            answer = digest.hexdigest().encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
            await connection.closed()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.closed.set()


async def _body(reader: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return
    left = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    while left:
        piece = await reader.read(min(left, 256 * 1024))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


def settings(url: str, *, timeout: str = "5s") -> dict[str, Any]:
    return {
        "upstreams": {"api": {"url": url, "timeout": timeout}},
        "routes": {
            "rest": {"path": "/{path:path}", "upstream": "api"},
            "kept": {"path": "/kept/{id}", "upstream": "api", "ttl": "60s"},
        },
    }


@asynccontextmanager
async def client_of(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(gateway.url, connector=connector, read_bufsize=64 * 1024) as session:
        yield session


async def warm(gateway: GatewayProcess, session: aiohttp.ClientSession) -> int:
    """The gateway's resident bytes once it has answered a request; its peak is counted from here."""
    async with session.get("/healthz") as response:
        assert response.status == 200
    gateway.forget_peak()
    return gateway.memory_now()


async def read_all(response: aiohttp.ClientResponse) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    async for piece in response.content.iter_any():
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


async def read_some(response: aiohttp.ClientResponse, size: int) -> bytes:
    return await response.content.readexactly(size)


@pytest.mark.parametrize(
    ("path", "chunked"),
    [pytest.param("/large", False, id="with a length"), pytest.param("/kept/large", True, id="chunked, of a ttl")],
)
async def test_a_download_of_200_mib_passes_whole_and_the_gateway_grows_by_less_than_32_mib(
    start_gateway: StartGateway, path: str, chunked: bool
) -> None:
    source = Source(200 * MIB, chunked=chunked, headers=b"Cache-Control: max-age=60\r\n")
    async with raw_upstream(source) as upstream:
        gateway = start_gateway(settings(upstream.url))
        async with client_of(gateway) as client:
            before = await warm(gateway, client)
            began = time.monotonic()
            async with client.get(path) as response:
                assert response.status == 200
                size, digest = await read_all(response)
            seconds = time.monotonic() - began
        grown = gateway.memory_peak() - before
    print(f"{size / MIB / seconds:.0f} MiB/s, grown by {grown / MIB:.1f} MiB")
    assert (size, digest) == (source.size, source.digest.hexdigest())
    assert grown < GROWTH


async def test_a_download_ends_upstream_within_a_second_of_its_client_leaving(start_gateway: StartGateway) -> None:
    source = Source(200 * MIB)
    async with raw_upstream(source) as upstream:
        gateway = start_gateway(settings(upstream.url))
        async with client_of(gateway) as client:
            response = await client.get("/large")
            await read_some(response, MIB)
            response.close()
            left = time.monotonic()
            await asyncio.wait_for(source.closed.wait(), 5)
    print(f"ended upstream after {(source.closed_at - left) * 1000:.0f} ms")
    assert source.closed_at - left < ENDED_WITHIN
    assert source.sent < source.size


async def test_a_download_that_its_client_did_not_read_ends_upstream_within_a_second_of_its_leaving(
    start_gateway: StartGateway,
) -> None:
    source = Source(200 * MIB)
    async with raw_upstream(source) as upstream:
        gateway = start_gateway(settings(upstream.url))
        async with client_of(gateway) as client:
            response = await client.get("/large")
            await read_some(response, MIB)
            await asyncio.wait_for(source.stalled.wait(), 10)
            response.close()
            left = time.monotonic()
            await asyncio.wait_for(source.closed.wait(), 5)
    print(f"ended upstream after {(source.closed_at - left) * 1000:.0f} ms")
    assert source.closed_at - left < ENDED_WITHIN


async def test_a_slow_client_holds_the_upstream_back_and_gets_all_though_it_pauses_longer_than_the_timeout(
    start_gateway: StartGateway,
) -> None:
    source = Source(100 * MIB)
    async with raw_upstream(source) as upstream:
        gateway = start_gateway(settings(upstream.url, timeout="300ms"))
        async with client_of(gateway) as client:
            before = await warm(gateway, client)
            async with client.get("/large") as response:
                first = await read_some(response, MIB)
                await asyncio.wait_for(source.stalled.wait(), 10)  # for longer than the upstream's timeout
                held = source.sent
                assert gateway.memory_peak() - before < BUFFERED
                size, _ = await read_all(response)
    print(f"held {(held - len(first)) / MIB:.1f} MiB on the way")
    assert held < IN_FLIGHT
    assert len(first) + size == source.size


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_an_upload_of_50_mib_reaches_the_upstream_as_it_comes_and_the_gateway_grows_by_less_than_32_mib(
    start_gateway: StartGateway, chunked: bool
) -> None:
    sink = Sink()
    sink.reading.set()
    digest = hashlib.sha256()
    pieces = 50 * MIB // len(PIECE)

    async def upload() -> AsyncIterator[bytes]:
        for number in range(pieces):
            digest.update(PIECE)
            yield PIECE
            if number == pieces // 2:
                await asyncio.wait_for(sink.first.wait(), 5)  # the upstream has some before the client has sent all

    async with raw_upstream(sink) as upstream:
        gateway = start_gateway({**settings(upstream.url), "max_request_body": "64MiB"})
        async with client_of(gateway) as client:
            before = await warm(gateway, client)
            headers = {} if chunked else {"Content-Length": str(pieces * len(PIECE))}
            async with client.post("/upload", data=upload(), headers=headers) as response:
                assert response.status == 200
                said = await response.text()
        grown = gateway.memory_peak() - before
    print(f"grown by {grown / MIB:.1f} MiB")
    assert (sink.received, said) == (50 * MIB, digest.hexdigest())
    assert grown < GROWTH


class Upload:
    """A body that goes on for ever; `stalled` is set where nothing more was taken for a while."""

    def __init__(self) -> None:
        self.sent = 0
        self.stalled = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while True:
            timer = loop.call_later(STALL, self.stalled.set)
            yield PIECE
            timer.cancel()
            self.sent += len(PIECE)


async def test_an_upload_that_the_upstream_does_not_take_is_not_buffered_and_ends_there_when_its_client_leaves(
    start_gateway: StartGateway,
) -> None:
    sink = Sink()
    upload = Upload()
    async with raw_upstream(sink) as upstream:
        gateway = start_gateway(settings(upstream.url, timeout="30s"))
        async with client_of(gateway) as client:
            before = await warm(gateway, client)
            sending = asyncio.ensure_future(client.post("/upload", data=upload.pieces()))
            await asyncio.wait_for(upload.stalled.wait(), 10)
            assert upload.sent < IN_FLIGHT
            assert gateway.memory_peak() - before < BUFFERED
            sending.cancel()
            await asyncio.wait((sending,))
            left = time.monotonic()
            sink.reading.set()  # so that the upstream sees the end behind what was sent
            await asyncio.wait_for(sink.closed.wait(), 5)
    print(f"held {upload.sent / MIB:.1f} MiB on the way, ended upstream after {time.monotonic() - left:.3f} s")
    assert time.monotonic() - left < ENDED_WITHIN


class Silent:
    """An upstream that takes a request and does not answer until it is told to."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.came = asyncio.Semaphore(0)
        self.requests = 0
        self.answering = asyncio.Event()
        self.closed = asyncio.Event()
        self._answer = answer

    async def __call__(self, connection: Connection) -> None:
        while head := await connection.request():
            if b"content-length: 4" in head.lower():
                await connection.reader.readexactly(4)
            self.requests += 1
            self.came.release()
            closing = asyncio.ensure_future(connection.closed())
            answering = asyncio.ensure_future(self.answering.wait())
            await asyncio.wait((closing, answering), return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                answering.cancel()
                self.closed.set()
                return
            await connection.send(self._answer)
            await closing
            self.closed.set()
            return


ALONE: list[tuple[str, str, dict[str, str], bytes | None]] = [
    ("POST", "/any", {}, None),
    ("POST", "/any", {}, b"body"),
    ("GET", "/any", {"Cache-Control": "no-store"}, None),
    ("GET", "/any", {"Cookie": "a=b"}, None),
    ("GET", "/kept/1", {"Authorization": "Bearer x"}, None),
]


async def test_a_request_for_its_client_alone_ends_upstream_when_the_client_leaves_before_the_answer(
    start_gateway: StartGateway,
) -> None:
    silent = Silent()
    async with raw_upstream(silent) as upstream:
        gateway = start_gateway(settings(upstream.url, timeout="30s"))
        async with client_of(gateway) as client:
            for method, path, headers, body in ALONE:
                silent.closed.clear()
                asking = asyncio.ensure_future(client.request(method, path, headers=headers, data=body))
                await asyncio.wait_for(silent.came.acquire(), 5)
                asking.cancel()
                await asyncio.wait((asking,))
                left = time.monotonic()
                await asyncio.wait_for(silent.closed.wait(), 5)
                print(f"{method} {path} {headers} ended upstream after {(time.monotonic() - left) * 1000:.0f} ms")
                assert time.monotonic() - left < ENDED_WITHIN


async def test_a_get_goes_on_for_those_who_wait_when_the_client_that_began_it_leaves(
    start_gateway: StartGateway,
) -> None:
    silent = Silent()
    async with raw_upstream(silent) as upstream:
        gateway = start_gateway(settings(upstream.url, timeout="30s"))
        async with client_of(gateway) as client:
            first = asyncio.ensure_future(client.get("/kept/1"))
            await asyncio.wait_for(silent.came.acquire(), 5)
            second = asyncio.ensure_future(client.get("/kept/1"))
            first.cancel()
            await asyncio.wait((first,))
            async with client.get("/healthz"):  # whatever the leaving did is done
                pass
            silent.answering.set()
            async with await second as response:
                assert await response.text() == "ok"
                assert "collapsed" in response.headers["Cache-Status"]
    assert silent.requests == 1


async def test_an_answer_that_turns_out_uncacheable_ends_upstream_when_its_client_has_left(
    start_gateway: StartGateway,
) -> None:
    head = b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 1000000\r\n\r\n"
    silent = Silent(head + PIECE)
    async with raw_upstream(silent) as upstream:
        gateway = start_gateway(settings(upstream.url, timeout="30s"))
        async with client_of(gateway) as client:
            asking = asyncio.ensure_future(client.get("/any"))
            await asyncio.wait_for(silent.came.acquire(), 5)
            asking.cancel()
            await asyncio.wait((asking,))
            async with client.get("/healthz"):
                pass
            answered = time.monotonic()
            silent.answering.set()
            await asyncio.wait_for(silent.closed.wait(), 5)
    assert time.monotonic() - answered < ENDED_WITHIN
