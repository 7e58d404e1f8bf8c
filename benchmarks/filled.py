"""The gateway with so many entries in memory already, for how its latency grows with them.

python -m benchmarks.filled CONFIG ENTRIES STEP
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import uvicorn

from benchmarks.traffic import SIZES, body, path
from gateway.app.gateway import Gateway, create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.policy.entry import Entry, Life


def fill(app: Gateway, numbers: Iterable[int]) -> None:
    """Put small responses under the keys under which the route looks for them."""
    now = time.time()
    for number in numbers:
        app.engine.memory.put(_response(f"origin\n{path('64B', number)}", str(number), now))


def _response(key: str, number: str, now: float) -> Entry:
    return Entry(
        key=key,
        primary=key,
        born=now,
        started=now,
        initial_age=0.0,
        status=200,
        headers=((b"content-type", b"application/json"), (b"etag", b'"64B-%s"' % number.encode())),
        body=body(SIZES["64B"], number),
        life=Life(),
        route="cached",
    )


def serve(config: Path, entries: int, step: int) -> None:
    app = create_app(config)
    fill(app, range(0, entries * step, step))
    gc.collect()
    gc.freeze()
    run(app)


def run(app: Gateway) -> None:
    uvicorn.run(
        app,
        port=app.config.port,
        http=GatewayProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
