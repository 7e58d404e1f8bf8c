"""A refresh behind a `@cached` handler: the request is replayed, so that its dependencies live."""

from __future__ import annotations

from gateway.testing import TurnedClock, running
from tests.support import shop_routes
from tests.support.shop_routes import shop


async def test_a_refresh_behind_replays_the_request_so_that_its_dependencies_live(clock: TurnedClock) -> None:
    app = shop(clock)
    async with running(app) as client:
        assert (await client.get("/session")).json() == {"open": True}
        clock.turn(2)
        await client.get("/session")
        await app.engine.settle()  # type: ignore[attr-defined]
        assert (await client.get("/session")).json() == {"open": True}
    assert shop_routes.calls["session"] == 2


async def test_a_refresh_that_a_dependency_refuses_keeps_the_old_answer(clock: TurnedClock) -> None:
    app = shop(clock)
    async with running(app) as client:
        await client.get("/guarded", headers={"x-token": "good"})
        clock.turn(31)
        assert (await client.get("/guarded", headers={"x-token": "good"})).json() == {"token": "good"}
        await app.engine.settle()  # type: ignore[attr-defined]
        assert shop_routes.calls["guarded"] == 2
