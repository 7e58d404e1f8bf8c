"""What one worker takes at most, whatever clients and upstreams send: the peak of its resident memory, as the kernel
keeps it (`VmHWM`), beside what it was before.

Each kind of input is a function that sends it and tells what was answered. The gateway is a process of its own; what
it is told to keep at most stands in `SETTINGS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.scenarios import path_of, response
from tests.support.processes import GatewayProcess
from tests.support.raw import Connection, raw_upstream

KIB, MIB, GB = 1024, 1024 * 1024, 10**9
MEMORY, MAX_BODY, MAX_UPLOAD = 32 * MIB, 2 * MIB, 16 * MIB
KEYS = 40_000
SETTINGS: dict[str, Any] = {
    "access_log": False,
    "memory": "32MiB",
    "max_body": "2MiB",
    "max_request_body": "16MiB",
    "limits": {"connections_per_client": 20_000},
}
_PIECE = b"x" * (64 * KIB)
_BOMB = gzip.compress(bytes(50 * 10**6))


class Upstream:
    """Answers by the first segment of the path."""

    async def script(self, connection: Connection) -> None:
        while head := await connection.request():
            kind = path_of(head).split("/")[1].partition("?")[0]
            if not await self._answer(connection, kind):
                return

    async def _answer(self, connection: Connection, kind: str) -> bool:
        if kind == "endless":
            connection.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GB)
            with contextlib.suppress(ConnectionError):
                for _ in range(GB // len(_PIECE)):
                    connection.writer.write(_PIECE)
                    await connection.writer.drain()
                connection.writer.write(_PIECE[: GB % len(_PIECE)])
                await connection.writer.drain()
            return True
        if kind == "upload":
            await connection.closed()
            return False
        await connection.send(_ANSWERS.get(kind, _ANSWERS["small"]))
        return True


_ANSWERS = {
    "small": response(b"x" * 500),
    "large": response(b"x" * (MAX_BODY - KIB)),
    "bomb": response(_BOMB, "200 OK", "Content-Type: application/json", "Content-Encoding: gzip"),
    "long": response(b"", "200 OK", "X-Long: " + "x" * 8 * MIB),
    "many": response(b"", "200 OK", *(f"X-{n}: {n}" for n in range(10_000))),
}


def configured(url: str) -> dict[str, Any]:
    timed = {"upstream": "api", "ttl": "5m"}
    return {
        **SETTINGS,
        "upstreams": {"api": {"url": url, "timeout": "10s"}},
        "routes": {
            "bomb": {"path": "/joined", "parts": {"bomb": {"upstream": "api", "path": "/bomb"}}},
            "rest": {"path": "/{path:path}", **timed},
        },
    }


@dataclass(frozen=True)
class Tried:
    statuses: Counter[str]
    growth: int
    """Bytes, of the peak over what was resident before."""


Try = Callable[[GatewayProcess], Awaitable[Iterable[str]]]


async def tried(directory: Path, attempt: Try) -> Tried:
    """What becomes of a worker that has answered a thousand requests, so that what it needs in any case is there."""
    async with raw_upstream(Upstream().script) as raw:
        gateway = await asyncio.to_thread(GatewayProcess, directory, configured(raw.url), name="bounds")
        try:
            await many_keys(gateway, count=1000)
            gateway.forget_peak()
            before = gateway.memory_now()
            statuses = Counter(await attempt(gateway))
            return Tried(statuses, gateway.memory_peak() - before)
        finally:
            await asyncio.to_thread(gateway.end)


# --- what is sent ----------------------------------------------------------------------------------------------


def request(target: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", "Host: a.test", *fields, "", "")).encode()


async def connected(gateway: GatewayProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def said(reader: asyncio.StreamReader) -> str:
    """The status of an answer; empty where none came."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(20):
            return (await reader.readline())[9:12].decode("latin-1")
    return ""


async def asked(gateway: GatewayProcess, pieces: Iterable[bytes]) -> str:
    """The status of the answer to a request of so many pieces, sent until it is there."""
    reader, writer = await connected(gateway)
    answer = asyncio.ensure_future(said(reader))
    with contextlib.suppress(OSError):
        for piece in pieces:
            if answer.done():
                break
            writer.write(piece)
            await writer.drain()
    status = await answer
    writer.close()
    return status


async def _each(gateway: GatewayProcess, count: int, pieces: Callable[[], Iterable[bytes]]) -> list[str]:
    return await asyncio.gather(*(asked(gateway, pieces()) for _ in range(count)))


async def long_header(gateway: GatewayProcess) -> list[str]:
    """8 MiB of one field, ten times at once."""
    start = request("/small")[:-2] + b"X-Long: "
    return await _each(gateway, 10, lambda: itertools.chain((start,), itertools.repeat(_PIECE, 128), (b"\r\n\r\n",)))


async def many_headers(gateway: GatewayProcess) -> list[str]:
    """10,000 fields, ten times at once."""
    whole = request("/small", *(f"X-{n}: {n}" for n in range(10_000)))
    return await _each(gateway, 10, lambda: (whole,))


async def upload(gateway: GatewayProcess) -> list[str]:
    """1 GB that says so."""
    head = b"POST /upload HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % GB
    return await _each(gateway, 4, lambda: itertools.chain((head,), itertools.repeat(_PIECE, GB // len(_PIECE))))


async def chunked_upload(gateway: GatewayProcess) -> list[str]:
    """1 GB in chunks, to an upstream that takes none of it."""
    head = b"POST /upload HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(_PIECE), _PIECE)
    return await _each(gateway, 4, lambda: itertools.chain((head,), itertools.repeat(chunk, GB // len(_PIECE))))


async def bomb(gateway: GatewayProcess) -> list[str]:
    """48 kB that are 50 MB, as a part that must be decoded, and as an answer that is passed on as it is."""
    return [await asked(gateway, (request(path),)) for path in ("/joined", "/bomb")]


async def long_answer(gateway: GatewayProcess) -> list[str]:
    """A field of 8 MiB, then 10,000 fields, from the upstream."""
    return [await asked(gateway, (request(path),)) for path in ("/long", "/many")]


async def download(gateway: GatewayProcess) -> list[str]:
    """1 GB, read to its end."""
    reader, writer = await connected(gateway)
    writer.write(request("/endless"))
    head, left = await reader.readuntil(b"\r\n\r\n"), GB
    while left and (piece := await reader.read(MIB)):
        left -= len(piece)
    writer.close()
    return [head[9:12].decode() if not left else f"{left} missing"]


async def slow_readers(gateway: GatewayProcess, path: str = "/large", count: int = 500) -> list[str]:
    """Clients that ask for a large answer, and read nothing of it for a while."""
    async with AsyncExitStack() as stack:
        readers = []
        for number in range(count):
            reader, writer = await connected(gateway)
            stack.callback(writer.close)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request(f"{path}?{number % 4}"))
            readers.append((reader, writer))
        await _stands_still(gateway)
        for _, writer in readers:
            writer.transport.resume_reading()  # type: ignore[attr-defined]
        return await asyncio.gather(*(said(reader) for reader, _ in readers))


async def _stands_still(gateway: GatewayProcess) -> None:
    """Return once the worker computes next to nothing; it is another process, which says no word of that."""
    before, now = -1.0, 0.0
    while now > before + 0.02:
        before = now
        await asyncio.sleep(0.5)
        now = gateway.processor_time()


async def many_keys(gateway: GatewayProcess, count: int = KEYS) -> list[str]:
    """Requests of a query string each, on 32 connections: some 50 MB of entries and more, where 32 are allowed."""
    numbers = itertools.count()
    statuses: list[str] = []

    async def client() -> None:
        reader, writer = await connected(gateway)
        while (number := next(numbers)) < count:
            writer.write(request(f"/small?q={number}-{id(numbers)}"))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(500)
            statuses.append(head[9:12].decode())
        writer.close()

    await asyncio.gather(*(client() for _ in range(32)))
    return statuses


async def connections(gateway: GatewayProcess, count: int = 10_000) -> list[str]:
    """So many connections at once, each of which asks once and is kept."""
    statuses = []
    async with AsyncExitStack() as stack:
        for _ in range(count // 100):
            some = [await connected(gateway) for _ in range(100)]
            for _, writer in some:
                stack.callback(writer.close)
                writer.write(request("/small"))
            statuses += await asyncio.gather(*(said(reader) for reader, _ in some))
    return statuses


async def slow_streams(gateway: GatewayProcess) -> list[str]:
    """A hundred clients of an answer that is passed on as it comes, and read nothing of it for a while."""
    return await slow_readers(gateway, "/endless", 100)


@dataclass(frozen=True)
class Bound:
    attempt: Try
    statuses: dict[str, int]
    growth: int
    """Bytes, at most: twice the cap that is for the kind, and 4 MiB for what the allocator keeps."""


KEPT = 4 * MIB
PIPES = 2 * MIB
"""What one stream may lie about in, on its way through: the two sockets' buffers in the process, read in pieces of up
to 256 KiB, and the pieces between them."""
BOUNDS = {
    "a field of 8 MiB, 10 times at once": Bound(long_header, {"431": 10}, 10 * 2 * 32 * KIB + KEPT),
    "10,000 fields, 10 times at once": Bound(many_headers, {"431": 10}, 10 * 2 * 32 * KIB + KEPT),
    "an upload of 1 GB, 4 at once": Bound(upload, {"413": 4}, 4 * PIPES + KEPT),
    "the same in chunks, of unknown length": Bound(chunked_upload, {"413": 4}, 4 * PIPES + KEPT),
    "48 kB that are 50 MB: decoded, passed on": Bound(bomb, {"502": 1, "200": 1}, 2 * MAX_BODY + KEPT),
    "an upstream's field of 8 MiB, its 10,000 fields": Bound(long_answer, {"502": 2}, 2 * 2 * 64 * KIB + KEPT),
    "a download of 1 GB": Bound(download, {"200": 1}, PIPES + KEPT),
    "500 clients that do not read 2 MiB of a hit": Bound(
        slow_readers, {"200": 500}, 500 * 64 * KIB + 4 * MAX_BODY + KEPT
    ),
    "100 clients that do not read a stream": Bound(slow_streams, {"200": 100}, 100 * PIPES // 2 + KEPT),
    f"{KEYS:,} query strings, memory of 32 MiB": Bound(many_keys, {"200": KEYS}, 2 * MEMORY + KEPT),
    "10,000 connections": Bound(connections, {"200": 10_000}, 10_000 * 8 * KIB + KEPT),
}
