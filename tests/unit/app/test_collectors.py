"""Metrics of what is kept elsewhere: read on scrape."""

from __future__ import annotations

import pytest

from gateway.admin.figures import Reading
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer
from tests.support.traffic import ITEM, rung


async def test_the_metrics_tell_what_is_expected_at_todays_ttl(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ITEM | {"rest": {"path": "/{p:path}", "upstream": "api"}}, clock=clock)
    async with running(app) as client:
        for _ in range(200):
            await client.get("/items/1")
            await client.get("/other")
            clock.turn(1)
        await app.watch.turn()
        (advice,) = (each for each in await app.advice() if each.route == "item")
        reading = Reading(app.metrics.render().decode(), 0.0)
        assert reading.values("gateway_predicted_hit_ratio", "route") == ["item"]
        assert reading.sum("gateway_predicted_hit_ratio", route="item") == pytest.approx(rung(advice, 10.0).hit_ratio)
        assert reading.sum("gateway_predicted_upstream_requests") == pytest.approx(rung(advice, 10.0).upstream)
        assert reading.sum("gateway_predicted_outdated_ratio") == pytest.approx(rung(advice, 10.0).outdated)
        clock.turn(60)  # nothing was worked out since
        assert "gateway_predicted_hit_ratio{" not in app.metrics.render().decode()
