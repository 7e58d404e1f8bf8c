"""What tests share: a clock that the test turns, real servers on free ports, a gateway to ask."""

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

Answer = Callable[[httpx.Request], httpx.Response]


class TurnedClock:
    """A clock that stands still until a test turns it. It begins at a whole second."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def now(self) -> float:
        return self.at

    def when(self, counted: float) -> float:
        return self.at

    def turn(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


class Upstream(httpx.AsyncBaseTransport):
    """An upstream handed in as a transport: answers by a function, remembers what it was asked.

    While `gate` is cleared, requests wait for it; `asked` counts those that came.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Semaphore(0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(request.stream, httpx.ByteStream):
            await request.aread()
        self.requests.append(request)
        self.came.release()
        await self.gate.wait()
        return self.answer(request)

    @property
    def asked(self) -> int:
        return len(self.requests)


def json_answer(**headers: str) -> Answer:
    """Answers every request with its own number, and these headers (`_` stands for `-`)."""
    count = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(200, json={"n": count}, headers=fields)

    return answer


@contextlib.asynccontextmanager
async def asking(app: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that has started."""
    await app.start()
    try:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            yield client
    finally:
        await app.stop()


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
