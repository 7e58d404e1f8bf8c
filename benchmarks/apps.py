"""What one would write in Python instead of using the gateway: each peer an app that uvicorn serves.

They are told where the upstream and Redis are by the environment: ORIGIN and REDIS, both URLs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis
from starlette.middleware.base import RequestResponseEndpoint
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks import handlers
from benchmarks.traffic import KIB, body

STORED_KEYS = 1000
_CACHED = "/cached/{size}/{number}"
_LIFE = 3600


def _redis() -> Redis:
    return Redis.from_url(os.environ["REDIS"])


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=os.environ["ORIGIN"])


def fastapi_cache2() -> FastAPI:
    """What one writes first: FastAPI, fastapi-cache2 on Redis, and a middleware that tells the time taken."""
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.redis import RedisBackend
    from fastapi_cache.decorator import cache

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        FastAPICache.init(RedisBackend(_redis()))
        yield

    app, client = FastAPI(lifespan=life), _client()

    @app.middleware("http")
    async def timed(request: Request, call_next: RequestResponseEndpoint) -> Response:
        start = perf_counter()
        response = await call_next(request)
        response.headers["X-Process-Time"] = f"{perf_counter() - start:.6f}"
        return response

    @app.get(_CACHED)
    @cache(expire=_LIFE)
    async def cached(size: str, number: str) -> Any:
        return (await client.get(f"/cached/{size}/{number}")).json()

    return app


def cachex() -> FastAPI:
    """FastAPI-CacheX, in the process's memory."""
    from fastapi_cachex import BackendProxy, cache
    from fastapi_cachex.backends import MemoryBackend

    BackendProxy.set(MemoryBackend())
    app, client = FastAPI(), _client()

    @app.get(_CACHED)
    @cache(ttl=_LIFE)
    async def cached(size: str, number: str) -> Any:
        return (await client.get(f"/cached/{size}/{number}")).json()

    return app


def hishel() -> ASGIApp:
    """Hishel's ASGI middleware, on Redis."""
    from hishel import AsyncRedisStorage
    from hishel.asgi import ASGICacheMiddleware

    app, client = FastAPI(), _client()

    @app.get(_CACHED)
    async def cached(size: str, number: str) -> Response:
        return _as_received(await client.get(f"/cached/{size}/{number}"))

    whole: ASGIApp = ASGICacheMiddleware(app, storage=AsyncRedisStorage(client=_redis()))
    return whole


def passing() -> FastAPI:
    """A handler that asks the upstream each time."""
    app, client = FastAPI(), _client()

    @app.get("/uncached/{size}/{number}")
    async def uncached(size: str, number: str) -> Response:
        return _as_received(await client.get(f"/uncached/{size}/{number}"))

    return app


def _as_received(response: httpx.Response) -> Response:
    kept = {name: response.headers[name] for name in ("cache-control", "etag") if name in response.headers}
    return Response(response.content, response.status_code, kept, response.headers["content-type"])


def handler() -> FastAPI:
    """A handler without a cache."""
    app = FastAPI()
    app.get(handlers.PATH)(handlers.plain)
    return app


def dependent_handler() -> FastAPI:
    """The same with one dependency."""
    app = FastAPI()
    app.get(handlers.PATH)(handlers.dependent)
    return app


def redis_get() -> ASGIApp:
    """The smallest ASGI app that answers from Redis, with one GET a request."""
    redis = _redis()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % KIB)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _fill(redis, receive, send)
            return
        content = await redis.get(scope["path"])
        await send({"type": "http.response.start", "status": 200 if content else 404, "headers": headers})
        await send({"type": "http.response.body", "body": content or b""})

    return app


async def _fill(redis: Redis, receive: Receive, send: Send) -> None:
    await receive()
    await redis.mset({f"/cached/1KiB/{number}": body(KIB, str(number)) for number in range(STORED_KEYS)})
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await redis.aclose()
    await send({"type": "lifespan.shutdown.complete"})
