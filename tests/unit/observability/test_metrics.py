"""Metrics: what is counted of requests."""

from __future__ import annotations

from gateway.testing import StubUpstream, running
from tests.support.gateways import THIRTY, gateway, json_answer


async def test_metrics_count_what_was_answered() -> None:
    app = gateway(StubUpstream(json_answer()), THIRTY)
    async with running(app) as client:
        for _ in range(3):
            await client.get("/items/7")
        await client.get("/a%252fb")
    text = app.metrics.render().decode()
    assert 'gateway_requests_total{outcome="hit",route="item",status="2xx"} 2.0' in text
    assert 'gateway_requests_total{outcome="miss",route="item",status="2xx"} 1.0' in text
    assert 'gateway_upstream_requests_total{result="2xx",upstream="api"} 1.0' in text
    assert 'gateway_refused_requests_total{reason="target"} 1.0' in text
    assert "gateway_memory_entries 1.0" in text
