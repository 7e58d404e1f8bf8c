"""The time from an event to each client of a shared stream, beside a bare asyncio server with as many sockets.

    python -m benchmarks.streams [--clients 1000] [--events 40] [--turns 3]

Both are measured in turn, in one run, by the same clients: an event has the instant at which it was made, by the clock
that all processes share. Another such server is the gateway's upstream, which it serves by one connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, cast

import uvloop

EVERY = 0.1
"""Seconds between two events."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /prices HTTP/1.1\r\nHost: benchmark\r\nAccept: text/event-stream\r\n\r\n"
CONFIGURATION = """\
port: {port}
redis_url: none
workers: 1
admin_listen: none
access_log: false
upstreams: {{market: {{url: "http://127.0.0.1:{upstream}"}}}}
routes: {{prices: {{path: /prices, upstream: market, ttl: 0s, stream: share}}}}
"""


class BareConnection(asyncio.Protocol):
    """A client of the bare server, whatever it asks for."""

    clients: ClassVar[dict[asyncio.Transport, None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(HEAD)
        self.clients[self.transport] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.clients.pop(self.transport, None)


async def serve(port: int) -> None:
    """The bare server."""
    await asyncio.get_running_loop().create_server(BareConnection, "127.0.0.1", port, backlog=4096)
    while True:
        await asyncio.sleep(EVERY)
        event = b"id: 1\ndata: %d\n\n" % time.monotonic_ns()
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        for transport in tuple(BareConnection.clients):
            transport.write(chunk)


class Reader(asyncio.Protocol):
    """One client; `seconds` has the times that events took, of all clients."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(GET)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for piece in data.split(b"data: ")[1:]:
            self._seconds.append((now - int(piece.partition(b"\n")[0])) / 1e9)


async def measure(port: int, clients: int, events: int) -> list[float]:
    """The seconds that each of so many events took to each client, the first ones left out."""
    loop, seconds = asyncio.get_running_loop(), list[float]()
    readers = []
    for _ in range(clients):
        _, reader = await loop.create_connection(lambda: Reader(seconds), "127.0.0.1", port)
        readers.append(reader)
    await asyncio.sleep(1)
    seconds.clear()
    while len(seconds) < clients * events:  # noqa: ASYNC110 - the clients' own work is measured, not this
        await asyncio.sleep(EVERY)
    for reader in readers:
        reader.transport.abort()
    await asyncio.sleep(0.5)
    return seconds[: clients * events]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def child(*arguments: str, port: int) -> Iterator[None]:
    """A process that listens on `port`."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(len(seconds) * share)] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if given.serve is not None:
        uvloop.run(serve(given.serve))
    bare, upstream, port = free_port(), free_port(), free_port()
    found: dict[str, list[float]] = {"bare": [], "gateway": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "gateway.yaml"
        file.write_text(CONFIGURATION.format(port=port, upstream=upstream))
        for each in (bare, upstream):
            stack.enter_context(child("benchmarks.streams", "--serve", str(each), port=each))
        stack.enter_context(child("gateway", "serve", "--config", str(file), port=port))
        for _ in range(given.turns):
            for name, at in (("bare", bare), ("gateway", port)):
                seconds = uvloop.run(measure(at, given.clients, given.events))
                found[name].append(percentile(seconds, 0.99))
                print(f"{name}: p50 {percentile(seconds, 0.5):.1f} ms, p99 {found[name][-1]:.1f} ms", flush=True)
    ratio = statistics.median(found["gateway"]) / statistics.median(found["bare"])
    print(f"{given.clients} clients: p99 of the gateway {ratio:.2f} x that of the bare server (goal: at most 2)")


if __name__ == "__main__":
    main()
