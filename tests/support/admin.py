"""A worker with an admin listener and overrides."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from gateway.admin.app import create_admin
from gateway.admin.operations import operations_of
from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.cache.redis.store import RedisStore
from gateway.config.environment import SettingSource
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.testing import StubUpstream, TurnedClock

TOKEN = {"authorization": "Bearer secret"}
CONFIG: dict[str, Any] = {
    "redis_url": "none",
    "access_log": False,
    "upstreams": {"api": {"url": "http://api.test"}},
    "routes": {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "100s", "tags": ["items"]}},
}
LOADED = Loaded(
    Config.model_validate(CONFIG),
    {("routes", "item", "ttl"): (SettingSource("file", "gateway.yaml line 6", "100s"),)},
    (),
)


class Worker:
    """One worker as it runs: generations, operations, and its admin app."""

    def __init__(
        self,
        upstream: StubUpstream,
        clock: TurnedClock,
        store: RedisStore | None = None,
        routes: dict[str, Any] | None = None,
    ) -> None:
        loaded = LOADED if routes is None else Loaded(Config.model_validate({**CONFIG, "routes": routes}), {}, ())
        self.generations = Generations(create_app(loaded, transport=upstream, clock=clock, store=store))
        self.operations = operations_of(self.generations, loaded)
        self.admin = create_admin(lambda: self.generations.current, "secret", operations=self.operations)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.generations), base_url="http://gateway.test")

    def operator(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.admin)
        return httpx.AsyncClient(transport=transport, base_url="http://admin.test", headers=TOKEN)


@contextlib.asynccontextmanager
async def working(*workers: Worker) -> AsyncIterator[None]:
    for worker in workers:
        await worker.generations.current.start()
        await worker.operations.turn()
    try:
        yield
    finally:
        for worker in workers:
            await worker.operations.aclose()
            await worker.generations.current.stop()
