"""The upstream that all peers ask: as fast as Python can be, so that it is never what is measured.

    python -m benchmarks.origin PORT

`/cached/SIZE/N` may be kept for an hour, `/uncached/SIZE/N` not at all; `/count` says how many were asked for.
`no-transform` keeps peers that compress comparable with those that don't.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from email.utils import formatdate
from functools import lru_cache
from typing import cast

import uvloop

from benchmarks.traffic import SIZES, body


@lru_cache(maxsize=1)
def _head(second: int) -> bytes:
    date = formatdate(second, usegmt=True).encode()
    return b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: " + date + b"\r\nContent-Type: application/json\r\n"


class Origin(asyncio.Protocol):
    asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        *heads, self.buffer = self.buffer.split(b"\r\n\r\n")
        for head in heads:
            self.transport.write(_answer(head.split(b" ", 2)[1].decode()))


def _answer(target: str) -> bytes:
    if target == "/count":
        return _with_length(str(Origin.asked).encode(), b"Cache-Control: no-store\r\n")
    Origin.asked += 1
    _, kind, size, number = target.split("/")
    content = body(SIZES[size], number)
    if kind == "uncached":
        return _with_length(content, b"Cache-Control: no-store\r\n")
    etag = f'ETag: "{size}-{number}"\r\n'.encode()
    return _with_length(content, b"Cache-Control: public, max-age=3600, no-transform\r\n" + etag)


def _with_length(content: bytes, fields: bytes) -> bytes:
    return _head(int(time.time())) + fields + b"Content-Length: %d\r\n\r\n" % len(content) + content


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", port)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
