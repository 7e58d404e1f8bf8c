"""Health: alive, and ready."""

from __future__ import annotations

from gateway.testing import StubUpstream, running
from tests.support.gateways import THIRTY, gateway, json_answer


async def test_health_says_alive_and_ready_says_whether_redis_is_there() -> None:
    async with running(gateway(StubUpstream(json_answer()), THIRTY)) as client:
        assert (await client.get("/healthz")).json() == {"status": "alive"}
        assert (await client.get("/readyz")).json() == {"status": "ready", "redis": "none", "routes": 1}
