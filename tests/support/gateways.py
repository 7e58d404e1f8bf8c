"""A gateway of one upstream, its answers, and any ASGI app on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
import uvicorn

from gateway.app.gateway import Gateway, create_app
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import SharedStore
from gateway.observability.access_log import silent
from gateway.testing import Answer, StubUpstream


def json_answer(**headers: str) -> Answer:
    """Answers every request with its own number, and these headers (`_` stands for `-`)."""
    count = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(200, json={"n": count}, headers=fields)

    return answer


def gateway(
    upstream: httpx.AsyncBaseTransport | None = None,
    routes: Mapping[str, Any] | None = None,
    *,
    clock: Any = None,
    store: Any = None,
    **settings: Any,
) -> Gateway:
    """A gateway with one upstream, `api`, and a catch-all route unless `routes` are given."""
    config = {
        "redis_url": "none",
        "upstreams": {"api": {"url": "http://api.test", "timeout": "5s"}},
        "routes": routes if routes is not None else {"rest": {"path": "/{path:path}", "upstream": "api"}},
        **settings,
    }
    return create_app(config, transport=upstream, clock=clock, store=store, log=silent)


async def contact(store: SharedStore) -> None:
    """Start a store, and return once it has reached Redis: `start` itself waits 0.1 s at most."""
    await store.start()
    await contacted(store)


async def contacted(store: SharedStore) -> None:
    """Return once a store that was started has reached Redis."""
    assert isinstance(store, RedisStore)
    assert store._probe is not None
    await store._probe
    assert store.available


@contextlib.asynccontextmanager
async def served(app: Any, *, sock: socket.socket | None = None, **settings: Any) -> AsyncIterator[str]:
    """An ASGI app on a real server in this event loop, on `sock` or a free port; gives its URL. As in production,
    uvicorn does not wrap the app, or nothing would go past ASGI."""
    if sock is None:
        sock = socket.socket()
        # As the gateway's own listener; accepted sockets inherit it. Without it a body that is written after its head
        # waits 40 ms for the client's acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(("127.0.0.1", 0))
    lifespan: Any = "on" if isinstance(app, Gateway) else "off"
    defaults = {"log_level": "critical", "lifespan": lifespan, "proxy_headers": False, "ws": "none"}
    config = uvicorn.Config(app, **{**defaults, **settings})
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        await server.up.wait()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
        await server.lifespan.shutdown()  # which uvicorn leaves out where it is forced to exit
        sock.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


def status_of(response: httpx.Response) -> str:
    return response.headers["cache-status"]


def lose_wholes(app: Gateway) -> None:
    memory = app.engine.memory
    for shard in memory._responses._shards:
        for key in [key for key in shard if key.startswith("+")]:
            memory.remove(key)


THIRTY = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "30s"}}


def seen(upstream: StubUpstream, number: int = -1) -> httpx.Headers:
    return upstream.requests[number].headers
