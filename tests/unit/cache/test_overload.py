"""A process that is behind gives up refreshes first, then misses, never a hit; and it comes back."""

from __future__ import annotations

import asyncio

from gateway.cache.overload import Governor, LoopLag
from gateway.cache.shared_store import NoShared
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer


def behind(governor: Governor, lag: float, *, ticks: int = 6, under_way: int = 1000) -> None:
    for _ in range(ticks):
        governor.observe(lag, under_way)


def test_a_peak_changes_nothing() -> None:
    governor = Governor(0.025)
    for lag in (0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0):
        governor.observe(lag, 1000)
    assert governor.admits_refresh(0)
    assert governor.admits_miss(5000)


def test_a_standing_lag_ends_refreshes_at_half_of_what_ends_misses() -> None:
    governor = Governor(0.025)
    behind(governor, 0.020)
    assert not governor.admits_refresh(0)
    assert governor.admits_miss(5000)
    behind(governor, 0.030)
    assert not governor.admits_miss(800)
    assert governor.admits_miss(799)
    assert (governor.refreshes_shed, governor.misses_shed) == (1, 1)


def test_some_misses_are_always_admitted() -> None:
    governor = Governor(0.025, least=32)
    behind(governor, 5.0, ticks=200)
    assert governor.admits_miss(31)
    assert not governor.admits_miss(32)


def test_it_is_itself_again_within_four_seconds() -> None:
    governor = Governor(0.025)
    behind(governor, 1.0, ticks=200)
    behind(governor, 0.0, ticks=4 * 20)
    assert governor.limit == 10_000


def test_a_target_of_nothing_gives_up_nothing() -> None:
    governor = Governor(0.0)
    behind(governor, 9.0, ticks=100)
    assert governor.admits_miss(9999)
    assert governor.admits_refresh(0)


def test_it_shows_its_lag_and_how_many_fetches_it_allows() -> None:
    governor = Governor(0.025, least=32)
    behind(governor, 0.04, ticks=200)
    assert repr(governor) == "<Governor lag=40 ms, at most 32 fetches>"


async def test_the_lag_of_a_loop_that_is_blocked_is_seen() -> None:
    lags: list[float] = []
    seen = asyncio.Event()

    def observe(lag: float) -> None:
        lags.append(lag)
        seen.set()

    lag = LoopLag(observe)
    lag.start()
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.2
    while loop.time() < until:
        pass
    await seen.wait()
    lag.stop()
    assert lags[0] > 0.1


ROUTES = {
    "item": {"path": "/item/{id}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "1h"},
    "rest": {"path": "/{path:path}", "upstream": "api"},
}


async def test_under_overload_hits_and_stale_answers_are_served_misses_told_503_and_nothing_is_refreshed(
    clock: TurnedClock,
) -> None:
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, ROUTES, clock=clock)
    async with running(app) as client:
        await client.get("/item/1")
        app.worker_state.lag.stop()
        governor = Governor(0.025, least=0)
        app.engine._flying.governor = governor
        behind(governor, 1.0, ticks=40, under_way=0)

        assert "hit" in (await client.get("/item/1")).headers["cache-status"]
        clock.turn(11)
        stale = await client.get("/item/1")
        assert (stale.status_code, stale.json()) == (200, {"n": 1})
        await app.engine.settle()
        for ask in (client.get("/item/2"), client.get("/x", headers={"range": "bytes=0-1"}), client.post("/orders")):
            shed = await ask
            assert (shed.status_code, shed.headers["retry-after"]) == (503, "1")
            assert shed.json()["title"] == "Gateway overloaded"
        assert upstream.asked == 1
        assert (governor.refreshes_shed, governor.misses_shed) == (1, 3)

        behind(governor, 0.0, ticks=200)
        assert (await client.get("/item/2")).status_code == 200
        text = app.metrics.render().decode()
    assert "gateway_shed_refreshes_total 1.0" in text
    assert "gateway_shed_misses_total 3.0" in text
    assert "gateway_loop_lag_seconds_count" in text


async def test_an_entry_that_may_be_stale_on_error_is_served_where_its_fetch_is_given_up(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    routes = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "10s", "stale_if_error": "1h"}}
    app = gateway(upstream, routes, clock=clock)
    async with running(app) as client:
        await client.get("/item/1")
        app.worker_state.lag.stop()
        app.engine._flying.governor = Governor(0.025, least=0)
        behind(app.engine.governor, 1.0, ticks=40, under_way=0)
        clock.turn(11)
        assert (await client.get("/item/1")).json() == {"n": 1}
    assert upstream.asked == 1


class CountingStore(NoShared):
    """A shared tier that is empty, gives every lease and counts them."""

    available = True

    def __init__(self) -> None:
        self.taken = 0

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        self.taken += 1
        return token


async def test_a_miss_that_its_upstream_would_refuse_is_told_so_before_a_lease_is_taken(clock: TurnedClock) -> None:
    store, upstream = CountingStore(), StubUpstream(json_answer())
    app = gateway(upstream, ROUTES, clock=clock, store=store)
    async with running(app) as client:
        places = app.upstreams["api"].places
        places.queue = 0
        entered = [await places.enter() for _ in range(places.places)]
        shed = await client.get("/item/1")
        assert (shed.status_code, shed.json()["title"]) == (503, "Upstream busy (connection queue full)")
        assert int(shed.headers["retry-after"]) >= 1
        assert (store.taken, upstream.asked, places.shed) == (0, 0, 1)
        for each in entered:
            places.leave(each)
        assert (await client.get("/item/1")).status_code == 200
        assert (store.taken, upstream.asked) == (1, 1)
