"""The way of single requests through the gateway: how many of its modules they enter, and by how many calls.

    python -m benchmarks.trace [--redis URL] [--calls ROW]

A gateway and an upstream run in this process; one connection sends phone requests. After 200 requests of a kind, one
more is traced: frames entered in `gateway/`, resumed ones once, until 20 ms after its response. The load monitor, which
runs by a timer, is left out. `--calls` lists the calls of a row in their order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

import gateway
from benchmarks.machine import free_port
from benchmarks.origin import Origin
from benchmarks.traffic import request
from gateway.app.gateway import create_app
from gateway.edge.protocol import GatewayProtocol

_PACKAGE = Path(gateway.__file__).parent
_BY_TIMER = frozenset(("LoopLag._tick", "LoopLag._next"))
_WARM_UP = 200
_AFTER = 0.02
ROWS = {
    "hit": "/cached/1KiB/{same}",
    "first repeated hit": "/cached/1KiB/{warmed}",
    "miss, stored": "/cached/1KiB/{new}",
    "uncached": "/uncached/1KiB/{new}",
    "aggregate of two parts, cold": "/both/{new}",
}


@dataclass(slots=True)
class Trace:
    """The frames that were entered, in order: (module, function)."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    _frames: dict[int, FrameType] = field(default_factory=dict)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or id(frame) in self._frames or not path.is_relative_to(_PACKAGE) or _is_by_timer(frame):
            return
        self._frames[id(frame)] = frame  # held, so that no other frame gets its id
        self.calls.append((str(path.relative_to(_PACKAGE)), frame.f_code.co_qualname))

    @property
    def modules(self) -> set[str]:
        return {module for module, _ in self.calls}


def _is_by_timer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_qualname not in _BY_TIMER:
        frame = frame.f_back
    return frame is not None


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._sent = 0

    async def get(self, path: str) -> None:
        self._sent += 1
        self._writer.write(request(path, self._sent))
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"{path} got {head.decode()}")
        await self._reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


@contextlib.asynccontextmanager
async def serving(redis: str) -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    port = free_port()
    upstream = await loop.create_server(Origin, "127.0.0.1", port)
    part = {"upstream": "origin", "ttl": "1h", "vary": []}
    app = create_app(
        {
            "redis_url": redis,
            "admin_listen": "none",
            "access_log": False,
            "upstreams": {"origin": {"url": f"http://127.0.0.1:{port}"}},
            "routes": {
                "cached": {"path": "/cached/{size}/{number}", "upstream": "origin", "ttl": "1h", "query": []},
                "uncached": {"path": "/uncached/{size}/{number}", "upstream": "origin"},
                "both": {
                    "path": "/both/{number}",
                    "parts": {
                        "a": {**part, "path": "/cached/1KiB/{number}"},
                        "b": {**part, "path": "/cached/1KiB/{number}1"},
                    },
                },
            },
        }
    )
    options: dict[str, Any] = {"http": GatewayProtocol, "log_level": "error", "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), loop="none", access_log=False, **options))
    running = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.config.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        server.should_exit = True
        await running
        upstream.close()


async def trace(redis: str) -> dict[str, Trace]:
    """The trace of each row."""
    found = {}
    async with serving(redis) as client:
        for row, path in ROWS.items():
            names = [path.format(same="same", warmed=number, new=f"{row[0]}{number}") for number in range(_WARM_UP + 1)]
            for name in (*names, *names[:-1]) if "warmed" in path else names[:-1]:
                await client.get(name)
            await asyncio.sleep(_AFTER)
            found[row] = Trace()
            sys.setprofile(found[row])
            await client.get(names[-1])
            await asyncio.sleep(_AFTER)
            sys.setprofile(None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__.partition("\n")[0])
    parser.add_argument("--redis", default="none", metavar="URL", help="as the setting redis_url; %(default)s")
    parser.add_argument("--calls", choices=ROWS, metavar="ROW", help="list its calls: " + ", ".join(ROWS))
    options = parser.parse_args()
    found = uvloop.run(trace(options.redis))
    print("| request | modules | calls |\n|---|---|---|")
    for row, traced in found.items():
        print(f"| {row} | {len(traced.modules)} | {len(traced.calls)} |")
    if options.calls:
        print("\n".join(f"{module} {name}" for module, name in found[options.calls].calls))


if __name__ == "__main__":
    main()
