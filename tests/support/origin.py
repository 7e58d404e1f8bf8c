"""An upstream in a process of its own, for load: a catalogue whose answers name what was asked.

    python -m tests.support.origin

It counts what it is asked, and tells at `/asked`. An answer says when it was made, by the clock of all processes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from typing import Any

import uvicorn

PADDING = "x" * 900


def make_app() -> Any:
    asked: Counter[str] = Counter()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/asked":
            content: dict[str, Any] = dict(asked)
        else:
            asked[path] += 1
            content = {"path": path, "n": asked[path], "at": time.monotonic(), "padding": PADDING}
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def main() -> None:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    print(f"listening on http://127.0.0.1:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(make_app(), lifespan="off", log_level="critical", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[sock])


if __name__ == "__main__":
    asyncio.run(main())
