"""A worker that reloads its configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock


def loaded(**settings: Any) -> Loaded:
    config = {
        "redis_url": "none",
        "upstreams": {"api": {"url": "http://api.test"}},
        "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}},
        **settings,
    }
    return Loaded(Config.model_validate(config), {}, ())


@asynccontextmanager
async def running(first: Loaded, upstream: Any, clock: TurnedClock) -> AsyncIterator[tuple[Generations, Any]]:
    generations = Generations(create_app(first, transport=upstream, clock=clock, log=silent))
    await generations.current.start()
    try:
        transport = httpx.ASGITransport(generations, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            yield generations, client
    finally:
        await generations.current.stop()
