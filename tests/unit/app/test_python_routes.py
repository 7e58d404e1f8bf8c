"""Routes in Python: their place among declared ones, and what is refused at start."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigError
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer
from tests.support.shop_routes import shop


async def test_the_more_specific_path_wins_between_python_and_configuration(clock: TurnedClock) -> None:
    routes = {
        "one": {"path": "/special/one", "upstream": "api", "ttl": "30s"},
        "rest": {"path": "/{path:path}", "upstream": "api"},
    }
    app = gateway(StubUpstream(json_answer()), routes, clock=clock, include=["tests.support.shop_routes:router"])
    async with running(app) as client:
        assert (await client.get("/special/one")).json() == {"n": 1}
        assert (await client.get("/special/two")).text == "python two"
        assert (await client.get("/elsewhere")).json() == {"n": 2}


async def test_an_unknown_upstream_of_a_handler_is_refused_at_start(clock: TurnedClock) -> None:
    with pytest.raises(ConfigError, match="did you mean apis"):
        shop(clock, upstreams={"apis": {"url": "http://api.test"}})


@pytest.mark.parametrize(
    "place", ["tests.nowhere:router", "tests.support.shop_routes:nothing", "tests.support.shop_routes:Summary"]
)
async def test_an_include_that_is_no_router_is_refused_at_start(clock: TurnedClock, place: str) -> None:
    with pytest.raises(ConfigError, match=place.replace(".", r"\.")):
        shop(clock, include=[place])
