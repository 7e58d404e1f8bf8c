"""The state of a worker: kept by reloads, and divided among workers."""

from __future__ import annotations

import pytest

from gateway.app.gateway import create_app
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import json_answer
from tests.support.generations import loaded, running


async def test_counters_go_on_over_reloads(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(loaded(), upstream, clock) as (generations, client):
        for url in ("http://b.test", "http://c.test"):
            await client.get("/a")
            generations.current.upstreams["api"].places.shed += 2
            generations.reload(loaded(upstreams={"api": {"url": url}}))
        text = generations.current.metrics.render().decode()
    assert 'gateway_requests_total{outcome="hit",route="rest",status="2xx"} 1.0' in text
    assert 'gateway_upstream_shed_total{upstream="api"} 4.0' in text
    assert text.count("# TYPE gateway_upstream_in_flight ") == 1


def test_many_workers_without_a_shared_tier_are_refused() -> None:
    with pytest.raises(ValueError, match="would share neither a cache nor purges"):
        loaded(workers=2)


def test_the_memory_is_divided_among_the_workers() -> None:
    app = create_app(loaded(workers=4, redis_url="embedded", memory="64MiB"))
    assert app.engine.memory.capacity == 16 * 1024**2
