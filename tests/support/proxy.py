"""A TCP proxy that does what networks do: delays, starves, cuts, swallows, spoils.

    async with faulty("127.0.0.1", port) as proxy:      # or faulty("/path/of/a/unix.sock")
        ...                                             # speak to proxy.host, proxy.port
        proxy.down.delay = 0.05                         # what the server says arrives 50 ms late
        proxy.cut()                                     # every open connection is reset

`up` is what clients send, `down` what the server sends. A fault may be set at any time and holds from the next piece
on, for the connections that are open as well as for new ones. Counts of bytes are those of one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536


@dataclass
class Faults:
    """What happens to the bytes of one direction. Seconds, bytes, bytes a second."""

    delay: float = 0.0
    """How late each piece arrives."""
    jitter: float = 0.0
    """By how much later still, at most; each piece by a share of its own."""
    bandwidth: float | None = None
    """Bytes a second that pass."""
    slices: int | None = None
    """The most bytes that arrive in one piece."""
    between: float = 0.0
    """Seconds between two slices."""
    cut_after: int | None = None
    """After so many bytes the connection is reset, in both directions."""
    close_after: int | None = None
    """After so many bytes this direction ends (a FIN), and the other goes on: a half-close."""
    truncate_after: int | None = None
    """Bytes after so many vanish, and the connection stays open."""
    blackhole: bool = False
    """Whether all bytes vanish."""
    corrupt: Callable[[bytes], bytes] | None = None
    """What becomes of each piece."""
    extra: bytes = b""
    """What arrives after each piece, though nobody sent it."""

    def clear(self) -> None:
        """No fault any more."""
        for each in fields(self):
            setattr(self, each.name, each.default)

    def room(self, passed: int) -> int:
        """How many more bytes pass after `passed`, before one of the counts is reached."""
        limits = [limit for limit in (self.cut_after, self.close_after, self.truncate_after) if limit is not None]
        return max(0, min(limits, default=passed + CHUNK) - passed)


def flipped(share: float = 1.0, *, seed: int = 0) -> Callable[[bytes], bytes]:
    """Flips one bit of a share of the pieces."""
    chance = random.Random(seed)

    def spoil(piece: bytes) -> bytes:
        if chance.random() >= share:
            return piece
        at = chance.randrange(len(piece))
        return piece[:at] + bytes((piece[at] ^ (1 << chance.randrange(8)),)) + piece[at + 1 :]

    return spoil


class _Cut(Exception):
    """The connection is to be reset."""


@dataclass(eq=False)
class _Pair:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def reset(self) -> None:
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                # Lingering for no time makes the close a RST.
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@dataclass(eq=False)
class FaultProxy:
    """A running proxy; `faulty` makes one. `accepted` counts the connections that clients opened."""

    up: Faults = field(default_factory=Faults)
    down: Faults = field(default_factory=Faults)
    host: str = "127.0.0.1"
    port: int = 0
    accepted: int = 0
    swallowed: int = 0
    passed_up: int = 0
    passed_down: int = 0

    def __post_init__(self) -> None:
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Event()
        self._moving.set()
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._target: tuple[str, int] | str = ""

    def __repr__(self) -> str:
        return f"<FaultProxy {self.host}:{self.port} to {self._target} open={self.open}>"

    @property
    def open(self) -> int:
        """How many connections pass through it now."""
        return len(self._pairs)

    def url(self, of: str) -> str:
        """The URL `of` with this proxy's address in the place of its host and port."""
        parts = urlsplit(of)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self.host}:{self.port}"))

    def cut(self) -> None:
        """Reset every open connection."""
        for pair in tuple(self._pairs):
            pair.reset()

    def stall(self) -> None:
        """From now on nothing moves, and nothing is lost: connections open, and are silent."""
        self._moving.clear()

    def resume(self) -> None:
        self._moving.set()

    def clear(self) -> None:
        """No fault any more, in either direction."""
        self.up.clear()
        self.down.clear()
        self.resume()

    async def refuse(self) -> None:
        """From now on connections are refused; those that are open are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.sleep(0)

    async def accept(self) -> None:
        """Accept connections (again), at the same address."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, self.host, self.port, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]

    async def until(self, true: Callable[[], bool], timeout: float = 10.0) -> None:
        """Wait until `true` holds, asked whenever a connection comes or goes, or bytes pass."""
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(true)

    async def start(self, host: str, port: int | None) -> None:
        self._target = host if port is None else (host, port)
        await self.accept()

    async def aclose(self) -> None:
        self.resume()
        await self.refuse()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _told(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            if isinstance(self._target, str):
                behind, before = await asyncio.open_unix_connection(self._target)
            else:
                behind, before = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, before)
        self._pairs.add(pair)
        await self._told()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, before, self.up))
                group.create_task(self._pump(behind, writer, self.down))
        except* (_Cut, OSError):
            pair.reset()
        finally:
            self._pairs.discard(pair)
            writer.close()
            before.close()
            await self._told()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> None:
        passed = 0
        while piece := await reader.read(CHUNK):
            await self._moving.wait()
            await asyncio.sleep(faults.delay + faults.jitter * random.random())
            if faults.blackhole:
                self.swallowed += len(piece)
                await self._told()
                continue
            passed += await self._pass(piece[: faults.room(passed)], writer, faults)
            if faults.cut_after is not None and passed >= faults.cut_after:
                raise _Cut
            if faults.close_after is not None and passed >= faults.close_after:
                break
        await self._moving.wait()
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass(self, piece: bytes, writer: asyncio.StreamWriter, faults: Faults) -> int:
        if not piece:
            return 0
        length = len(piece)
        if faults.corrupt is not None:
            piece = faults.corrupt(piece)
        size = faults.slices or (length if faults.bandwidth is None else max(1, int(faults.bandwidth / 50)))
        data = piece + faults.extra
        for start in range(0, len(data), size):
            part = data[start : start + size]
            if faults.bandwidth is not None:
                await asyncio.sleep(len(part) / faults.bandwidth)
            elif start:
                await asyncio.sleep(faults.between)
            writer.write(part)
            await writer.drain()
            if faults is self.up:
                self.passed_up += len(part)
            else:
                self.passed_down += len(part)
            await self._told()
        return length


@contextlib.asynccontextmanager
async def faulty(host: str, port: int | None = None) -> AsyncIterator[FaultProxy]:
    """A proxy to `host` and `port` on a free port of this machine; without a port, `host` is a unix socket's path."""
    proxy = FaultProxy()
    await proxy.start(host, port)
    try:
        yield proxy
    finally:
        await proxy.aclose()


@contextlib.asynccontextmanager
async def faulty_url(url: str) -> AsyncIterator[FaultProxy]:
    """A proxy to what `url` names (http, redis or unix)."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        context = faulty(parts.path)
    else:
        assert parts.hostname is not None
        context = faulty(parts.hostname, parts.port or 80)
    async with context as proxy:
        yield proxy
