"""Messages through the gateway, beside those to the server itself: an echo server of `websockets`, in the same run.

    python -m benchmarks.websockets [--seconds 1] [--rounds 9] [--connections 8] [--flight 8] [--size 100] [--idle 500]

Server and gateway share one core, the clients have the other. So many messages of each connection are in flight, so
that the rate is that of processor time: with one, it is that of the scheduler, and on a machine with other work
anything between 0.03 and 0.98 of the server's. Told are the medians of short rounds, in which both take turns, the
first one changing; and what so many idle WebSockets cost in the resident memory of the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.machine import cores, cpu_seconds, free_port, running


async def _echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def _serve(port: int) -> None:
    async with serve(_echo, "127.0.0.1", port, compression=None):
        await asyncio.Event().wait()


async def _client(connection: ClientConnection, message: bytes, flight: int, until: float) -> int:
    count = 0
    for _ in range(flight):
        await connection.send(message)
    while time.monotonic() < until:
        await connection.recv()
        await connection.send(message)
        count += 1
    return count


async def _rate(url: str, connections: int, flight: int, size: int, seconds: float) -> float:
    """Messages a second, each sent and received."""
    opened = [await connect(url, compression=None) for _ in range(connections)]
    until = time.monotonic() + seconds
    counts = await asyncio.gather(*(_client(each, b"x" * size, flight, until) for each in opened))
    await asyncio.gather(*(each.close() for each in opened))
    return sum(counts) / seconds


@contextlib.contextmanager
def _servers() -> Iterator[tuple[str, str, int]]:
    """The URLs of the echo server and of the gateway in front of it, and the gateway's pid."""
    served, load = cores()
    os.sched_setaffinity(0, {load})
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        echo, port = free_port(), free_port()
        settings = {
            "port": port,
            "redis_url": "none",
            "admin_listen": "none",
            "access_log": False,
            "upstreams": {"echo": {"url": f"http://127.0.0.1:{echo}"}},
            "routes": {"talk": {"path": "/talk", "upstream": "echo", "websocket": True}},
        }
        config = Path(folder, "gateway.yaml")
        config.write_text(json.dumps(settings))
        server = [sys.executable, "-m", "benchmarks.websockets", "--serve", str(echo)]
        stack.enter_context(running(server, cores={served}, port=echo, log=Path(folder, "echo.log")))
        gateway = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        child = stack.enter_context(running(gateway, cores={served}, port=port, log=Path(folder, "gateway.log")))
        yield f"ws://127.0.0.1:{echo}/talk", f"ws://127.0.0.1:{port}/talk", child.pid


def _resident(pid: int) -> int:
    """Bytes of the one worker."""
    [worker] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[:1]
    return int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _idle(url: str, pid: int, number: int) -> int:
    """Bytes that so many WebSockets cost, after one that made the worker import what it needs."""
    async with connect(url, compression=None):
        before = _resident(pid)
        opened = [await connect(url, compression=None) for _ in range(number)]
        cost = _resident(pid) - before
        await asyncio.gather(*(each.close() for each in opened))
    return cost


async def _measure(options: argparse.Namespace) -> None:
    with _servers() as (direct, through, pid):
        load = options.connections, options.flight, options.size, options.seconds
        await _rate(through, *load)
        before, rounds = cpu_seconds(pid), []
        for number in range(options.rounds):
            order = (direct, through) if number % 2 else (through, direct)
            rates = {url: await _rate(url, *load) for url in order}
            rounds.append((rates[direct], rates[through]))
        used = cpu_seconds(pid) - before
        alone, ours = (statistics.median(each) for each in zip(*rounds, strict=True))
        ratio = statistics.median(mine / other for other, mine in rounds)
        passed = sum(through for _, through in rounds) * options.seconds
        spread = sorted(mine / other for other, mine in rounds)
        print(f"messages a second: {ours:,.0f} through the gateway, {alone:,.0f} to the server")
        print(f"ratio: {ratio:.2f} ({spread[0]:.2f} to {spread[-1]:.2f})")
        print(f"processor time of the gateway for a message and its echo: {used / passed * 1e6:.1f} µs")
        cost = await _idle(through, pid, options.idle)
        print(f"{options.idle} idle WebSockets: {cost / 2**20:.1f} MiB in the worker")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.websockets", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--flight", type=int, default=8, help="messages of a connection on their way")
    parser.add_argument("--size", type=int, default=100, help="bytes of a message")
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    uvloop.run(_serve(options.serve) if options.serve else _measure(options))


if __name__ == "__main__":
    main()
