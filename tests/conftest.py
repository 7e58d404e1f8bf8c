"""What tests share besides `gateway.testing`: fixtures, real servers on free ports, a gateway of one upstream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn

from gateway.app.gateway import Gateway, create_app
from gateway.cache.redis.store import RedisStore
from gateway.observability.access_log import silent
from gateway.server.embedded_redis import Embedded
from gateway.testing import Answer, TurnedClock


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


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


@contextlib.asynccontextmanager
async def served(app: Any, *, sock: socket.socket | None = None, **settings: Any) -> AsyncIterator[str]:
    """An ASGI app on a real server in this event loop, on `sock` or a free port; gives its URL. As in production,
    uvicorn does not wrap the app, or nothing would go past ASGI."""
    if sock is None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    lifespan: Any = "on" if isinstance(app, Gateway) else "off"
    config = uvicorn.Config(app, **{"log_level": "critical", "lifespan": lifespan, "proxy_headers": False, **settings})
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        await server.up.wait()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
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


Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture(scope="session")
def valkey() -> Iterator[Embedded]:
    """A real Valkey for the whole session; a test takes a prefix of its own."""
    with Embedded(maxmemory=64 * 1024 * 1024) as server:
        yield server


@pytest.fixture
async def redis_store(valkey: Embedded) -> AsyncIterator[RedisStore]:
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=1.0)
    yield store
    await store.aclose()
