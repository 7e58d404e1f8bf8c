"""Purging: by key, tag, route and everything, hard and soft, in one process and in several on one Redis."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from gateway.admin.app import create_admin
from gateway.app.gateway import Gateway
from gateway.cache.purge_log import PurgeReport
from gateway.cache.redis.purge_log import RedisPurges
from gateway.cache.redis.record_stream import Beat
from gateway.cache.redis.store import RedisStore
from gateway.clock import SystemClock
from gateway.policy.epochs import ZERO, Epochs, Purge, PurgeState, tag_name
from gateway.routing.declared import report_of
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import contact, contacted, gateway, json_answer

ROUTES = {
    "item": {"path": "/items/{id}", "upstream": "api", "ttl": "10m", "tags": ["item:{id}", "items"]},
    "list": {"path": "/items", "upstream": "api", "ttl": "10m", "tags": ["items"]},
    "rest": {"path": "/{path:path}", "upstream": "api", "purge_from": ["127.0.0.0/8"]},
}


@pytest.mark.parametrize(
    ("purge", "survives"),
    [
        ({"keys": ["/items/1"]}, {"/items/2", "/items", "/other"}),
        ({"keys": ["https://api.example.com/items/%31?utm_source=x"]}, {"/items/2", "/items", "/other"}),
        ({"tags": ["item:2"]}, {"/items/1", "/items", "/other"}),
        ({"tags": ["items"]}, {"/other"}),
        ({"tags": ["from-upstream"]}, {"/items/1", "/items/2", "/items"}),
        ({"routes": ["item"]}, {"/items", "/other"}),
        ({"everything": True}, set()),
        ({"tags": ["nobody"]}, {"/items/1", "/items/2", "/items", "/other"}),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else str(sorted(each)),
)
async def test_a_purge_makes_void_what_it_names_and_nothing_else(
    clock: TurnedClock, purge: dict[str, object], survives: set[str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        tags = {"surrogate-key": "from-upstream other"} if request.url.path == "/other" else {}
        return httpx.Response(200, text="x", headers={"cache-control": "max-age=600", **tags})

    app = gateway(StubUpstream(answer), ROUTES, clock=clock)
    paths = ["/items/1", "/items/2", "/items", "/other"]
    async with running(app) as client:
        for path in paths:
            await client.get(path)
        report = await app.purge(**purge)  # type: ignore[arg-type]
        assert report.complete
        hits = {path for path in paths if (await client.get(path)).headers["cache-status"].startswith("gateway; hit")}
    assert hits == survives


async def test_a_soft_purge_ends_freshness_and_leaves_the_stale_windows(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    routes = {"item": {**ROUTES["item"], "stale_while_revalidate": "1m"}}
    app = gateway(upstream, routes, clock=clock)
    async with running(app) as client:
        await client.get("/items/1")
        clock.turn(5)
        await app.purge(tags=["items"], soft=True)
        clock.turn(1)
        stale = await client.get("/items/1")
        assert stale.json() == {"n": 1}
        assert "ttl=-1" in stale.headers["cache-status"]
        await app.engine.settle()
        assert (await client.get("/items/1")).json() == {"n": 2}


async def test_a_softly_purged_answer_stands_in_for_a_failing_upstream_and_a_hard_one_does_not(
    clock: TurnedClock,
) -> None:
    for soft, status in ((True, 200), (False, 503)):
        upstream = StubUpstream(json_answer())
        app = gateway(upstream, ROUTES, clock=clock)
        async with running(app) as client:
            await client.get("/items/1")
            clock.turn(1)
            await app.purge(tags=["items"], soft=soft)
            clock.turn(1)
            upstream.answer = lambda request: httpx.Response(503)
            assert (await client.get("/items/1")).status_code == status


async def test_a_purge_that_lands_during_a_fetch_wins(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, ROUTES, clock=clock)
    async with running(app) as client:
        upstream.gate.clear()
        before = asyncio.ensure_future(client.get("/items/1"))
        await upstream.came.acquire()
        await app.purge(tags=["items"])
        after = asyncio.ensure_future(client.get("/items/1"))
        await upstream.came.acquire()
        upstream.gate.set()
        assert ((await before).json(), (await after).json()) == ({"n": 1}, {"n": 2})
        assert (await client.get("/items/1")).json() == {"n": 2}


async def test_who_comes_after_a_purge_is_not_answered_by_a_fetch_before_it_whose_tags_came_with_the_answer(
    clock: TurnedClock,
) -> None:
    """When the second joins the first's fetch, nobody knows yet that it brings what was purged."""
    upstream = StubUpstream(json_answer(cache_control="max-age=600", surrogate_key="late"))
    app = gateway(upstream, ROUTES, clock=clock)
    async with running(app) as client:
        upstream.gate.clear()
        before = asyncio.ensure_future(client.get("/other"))
        await upstream.came.acquire()
        await app.purge(tags=["late"])
        after = asyncio.ensure_future(client.get("/other"))
        while not any(flight.waiting == 2 for flight in app.engine.flights.values()):
            await asyncio.sleep(0)
        upstream.gate.set()
        assert ((await before).json(), (await after).json()) == ({"n": 1}, {"n": 2})


async def test_a_304_does_not_confirm_what_was_purged_while_its_request_waited(
    clock: TurnedClock, valkey: Embedded
) -> None:
    """The second waits for the first's fetch; meanwhile what it would have validated is purged."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(304 if "if-none-match" in request.headers else 200, json={}, headers={"etag": '"x"'})

    prefix, upstream = f"{uuid4().hex}:", StubUpstream(answer)
    routes = {"item": {**ROUTES["item"], "ttl": "10s"}}
    stores = [RedisStore(valkey.url, prefix=prefix, budget=5.0) for _ in range(2)]
    one, two = (gateway(upstream, routes, clock=clock, store=store) for store in stores)
    async with running(one) as first, running(two) as second:
        await first.get("/items/1")
        await one.engine.settle()
        await second.get("/items/1")
        clock.turn(20)
        upstream.gate.clear()
        fetching = asyncio.ensure_future(first.get("/items/1"))
        await upstream.came.acquire()
        await upstream.came.acquire()
        waiting = asyncio.ensure_future(second.get("/items/1"))
        while not two.engine.flights:
            await asyncio.sleep(0)
        assert (await one.purge(tags=["items"])).complete
        upstream.gate.set()
        assert [(await each).status_code for each in (fetching, waiting)] == [200, 200]
    assert ["if-none-match" in request.headers for request in upstream.requests] == [False, True, False]


@pytest.mark.parametrize("directives", ["max-age=600", "max-age=600, must-revalidate", "s-maxage=600"])
async def test_a_soft_purge_ends_freshness_whatever_the_upstream_said(clock: TurnedClock, directives: str) -> None:
    app = gateway(StubUpstream(json_answer(cache_control=directives)), ROUTES, clock=clock)
    async with running(app) as client:
        await client.get("/other")
        clock.turn(1)
        await app.purge(keys=["/other"], soft=True)
        clock.turn(1)
        assert (await client.get("/other")).json() == {"n": 2}


async def test_further_soft_purges_do_not_lengthen_a_window(clock: TurnedClock) -> None:
    routes = {"item": {**ROUTES["item"], "stale_while_revalidate": "1m"}}
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, routes, clock=clock)
    async with running(app) as client:
        await client.get("/items/1")
        for _ in range(4):
            clock.turn(20)
            await app.purge(tags=["items"], soft=True)
        assert (await client.get("/items/1")).json() == {"n": 2}


async def test_a_worker_that_has_not_read_the_purges_believes_nothing_in_redis(
    valkey: Embedded, clock: TurnedClock
) -> None:
    prefix, upstream = f"{uuid4().hex}:", StubUpstream(json_answer())
    first = gateway(upstream, ROUTES, clock=clock, store=RedisStore(valkey.url, prefix=prefix, budget=5.0))
    async with running(first) as client:
        await client.get("/items/1")
        await first.engine.settle()
        second = gateway(upstream, ROUTES, clock=clock, store=RedisStore(valkey.url, prefix=prefix, budget=5.0))
        await contact(second.shared)  # but not the reading of the stream
        async with client_of(second) as other:
            assert (await other.get("/items/1")).json() == {"n": 2}
        await second.stop()


async def test_the_purge_method_is_for_the_networks_that_the_route_lists(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=600"))
    async with running(gateway(upstream, ROUTES, clock=clock)) as client:
        for path, status in (("/other", 200), ("/items/1", 403)):
            await client.get(path)
            assert (await client.request("PURGE", path)).status_code == status
        assert "hit" not in (await client.get("/other")).headers["cache-status"]
        assert "hit" in (await client.get("/items/1")).headers["cache-status"]


async def test_tags_of_the_upstream_are_hidden_unless_asked_for(clock: TurnedClock) -> None:
    for expose in (False, True):
        routes = {"rest": {"path": "/{path:path}", "upstream": "api", "expose_tags": expose}}
        app = gateway(StubUpstream(json_answer(cache_control="max-age=600", cache_tag="a,b")), routes, clock=clock)
        async with running(app) as client:
            seen = ["cache-tag" in (await client.get("/x")).headers for _ in range(2)]
        assert seen == [expose, expose]


async def test_an_unknown_route_is_refused_with_the_nearest(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ROUTES, clock=clock)
    with pytest.raises(ValueError, match="did you mean item"):
        await app.purge(routes=["itme"])


# --- the admin listener --------------------------------------------------------------------------------------


def admin_client(app: Gateway, token: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_admin(app, token)), base_url="http://admin.test")


@pytest.mark.parametrize(
    ("token", "header", "status"),
    [("secret", "Bearer secret", 200), ("secret", "Bearer wrong", 401), ("secret", None, 401), (None, "Bearer x", 403)],
)
async def test_purging_wants_the_admin_token(
    clock: TurnedClock, token: str | None, header: str | None, status: int
) -> None:
    app = gateway(StubUpstream(json_answer()), ROUTES, clock=clock)
    async with admin_client(app, token) as client:
        headers = {"authorization": header} if header else {}
        response = await client.post("/purge", json={"tags": ["x"]}, headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize(
    "order",
    [b"", b"{", b"[]", b"{}", b'{"tag": ["x"]}', b'{"tags": "x"}', b'{"routes": ["no"]}', b'{"keys": ["/%2f"]}'],
)
async def test_an_order_that_means_nothing_is_refused(clock: TurnedClock, order: bytes) -> None:
    app = gateway(StubUpstream(json_answer()), ROUTES, clock=clock)
    async with admin_client(app, "secret") as client:
        response = await client.post("/purge", content=order, headers={"authorization": "Bearer secret"})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_report_says_how_many_workers_confirmed(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ROUTES, clock=clock)
    async with admin_client(app, "secret") as client:
        response = await client.post("/purge", json={"all": True}, headers={"authorization": "Bearer secret"})
        assert 'gateway_purges_total{result="complete"} 1.0' in (await client.get("/metrics")).text
    assert response.json() == {"complete": True, "confirmed": 1, "workers": 1, "seconds": 0.0}
    silenced = PurgeReport(2, 2, 0.5, settled=False)
    assert report_of(silenced)["detail"] == silenced.detail


# --- several gateways on one Redis ---------------------------------------------------------------------------


@pytest.fixture
async def fleet(valkey: Embedded) -> AsyncIterator[tuple[list[Gateway], StubUpstream]]:
    """Three gateways that share a Redis and an upstream, all started."""
    prefix = f"{uuid4().hex}:"
    upstream = StubUpstream(json_answer())
    apps = []
    for _ in range(3):
        clock = SystemClock()
        store = RedisStore(valkey.url, prefix=prefix, budget=1.0, clock=clock)
        apps.append(gateway(upstream, ROUTES, clock=clock, store=store))
    for app in apps:
        await app.start()
        await contacted(app.shared)
    yield apps, upstream
    for app in apps:
        await app.stop()


def client_of(app: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test")


async def test_a_confirmed_purge_holds_in_every_gateway(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, upstream = fleet
    async with client_of(apps[0]) as one, client_of(apps[1]) as two, client_of(apps[2]) as three:
        for round_number in range(1, 4):
            for client in (one, two, three):
                assert (await client.get("/items/1")).json() == {"n": round_number}
                await apps[0].engine.settle()
            report = await apps[round_number - 1].purge(tags=["items"])
            assert (report.complete, report.confirmed, report.workers) == (True, 3, 3)
        assert upstream.asked == 3


async def test_a_cold_key_is_fetched_once_by_the_fleet(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, upstream = fleet
    upstream.gate.clear()
    clients = [client_of(app) for app in apps]
    waiting = [asyncio.ensure_future(client.get("/items/9")) for client in clients for _ in range(50)]
    await upstream.came.acquire()
    upstream.gate.set()
    responses = await asyncio.gather(*waiting)
    assert {response.text for response in responses} == {'{"n":1}'}
    assert upstream.asked == 1


async def test_an_uncacheable_answer_lets_the_whole_fleet_go_on(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, upstream = fleet
    upstream.answer = json_answer(cache_control="no-store")
    responses = await asyncio.gather(*(client_of(app).get("/live") for app in apps for _ in range(5)))
    assert sorted(response.json()["n"] for response in responses) == list(range(1, 16))


async def test_a_worker_whose_process_is_gone_holds_no_purge_up(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, _ = fleet
    log = apps[0].purges
    assert isinstance(log, RedisPurges)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    place = log.worker.partition(".")[0]
    for dead in (f"{place}.{process.pid}.x", "elsewhere.1.x"):
        await log._stream.turn(dead, Beat("g", ZERO))
    report = await log.purge(["t:items"])
    # Of the one elsewhere nobody knows: it may be cut off.
    assert (report.complete, report.confirmed, report.workers) == (False, 3, 4)
    await log._stream.leave("elsewhere.1.x")
    report = await log.purge(["t:items"])
    assert (report.complete, report.confirmed, report.workers) == (True, 3, 3)


async def test_a_gateway_that_starts_later_knows_the_purges_before(
    valkey: Embedded, fleet: tuple[list[Gateway], StubUpstream]
) -> None:
    apps, upstream = fleet
    async with client_of(apps[0]) as one:
        await one.get("/items/1")
        await apps[0].engine.settle()
        await apps[1].purge(tags=["items"])
        clock = SystemClock()
        prefix = apps[0].shared._prefix  # type: ignore[attr-defined]
        store = RedisStore(valkey.url, prefix=prefix, budget=1.0, clock=clock)
        late = gateway(upstream, ROUTES, clock=clock, store=store)
        async with running(late) as client:
            assert (await client.get("/items/1")).json() == {"n": 2}


async def test_a_redis_that_lost_everything_is_told_the_purges_again(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, upstream = fleet
    async with client_of(apps[0]) as one, client_of(apps[1]) as two:
        await one.get("/items/1")
        await apps[2].purge(tags=["items"])
        before = apps[0].purges.epochs.generation
        await apps[0].shared._client.flushall()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            while any(app.purges.epochs.generation == before for app in apps):
                await asyncio.sleep(0.01)
        assert (await one.get("/items/1")).json() == {"n": 2}
        assert (await two.get("/items/1")).json() == {"n": 2}
        assert (await apps[0].purge(tags=["items"])).complete
    assert upstream.asked == 2


async def test_an_unsafe_request_to_one_gateway_voids_what_the_others_have(
    fleet: tuple[list[Gateway], StubUpstream],
) -> None:
    apps, _ = fleet
    async with client_of(apps[0]) as one, client_of(apps[1]) as two:
        for client in (one, two):
            await client.get("/items/1")
            await apps[0].engine.settle()
        await one.put("/items/1", content=b"x")
        assert (await one.get("/items/1")).json() == {"n": 3}
        async with asyncio.timeout(5):
            while not any("k:" in name for _, purge in apps[1].purges.epochs.records.values() for name in purge.names):
                await asyncio.sleep(0.01)
        # Not what was there before: what the first fetched meanwhile, or, its stamp being early, a newer one.
        assert (await two.get("/items/1")).json()["n"] >= 3


async def test_a_purge_without_redis_is_not_complete_and_holds_here_at_once() -> None:
    clock = SystemClock()
    store = RedisStore("unix:///nonexistent/redis.sock", budget=0.05, clock=clock)
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, ROUTES, clock=clock, store=store)
    async with running(app) as client:
        await client.get("/items/1")
        report = await app.purge(tags=["items"])
        assert not report.complete
        assert b'gateway_purges_total{result="unconfirmed"} 1.0' in app.metrics.render()
        assert (await client.get("/items/1")).json() == {"n": 2}


async def test_a_worker_cut_off_too_long_no_longer_trusts_what_it_has(clock: TurnedClock) -> None:
    store = RedisStore("unix:///nonexistent/redis.sock", budget=0.05)
    upstream = StubUpstream(json_answer())
    for blind, hit in (("30s", False), ("forever", True)):
        app = gateway(upstream, ROUTES, clock=clock, store=store, purge_disconnect_grace=blind)
        async with running(app) as client:
            await client.get("/items/1")
            clock.turn(29)
            assert (await client.get("/items/1")).headers["cache-status"].startswith("gateway; hit")
            clock.turn(3)
            assert (await client.get("/items/1")).headers["cache-status"].startswith("gateway; hit") is hit


# --- epochs --------------------------------------------------------------------------------------------------


def test_a_stamp_before_the_floor_is_void() -> None:
    epochs = Epochs("g")
    stamp = epochs.stamp
    epochs.raise_floor((5, 0))
    assert epochs.judge(stamp, 0, ["t:x"])[0] is PurgeState.VOID
    epochs.applied = (5, 0)
    assert epochs.judge(epochs.stamp, 0, ["t:x"])[0] is PurgeState.VALID


def test_a_stamp_of_a_generation_lived_through_is_earlier_than_every_purge_of_this_one() -> None:
    epochs = Epochs("new", lineage=["old"])
    assert epochs.judge("old 9999-0", 0, ["t:x"])[0] is PurgeState.VALID
    epochs.apply((1, 0), Purge("p", (tag_name("x"),)))
    assert epochs.judge("old 9999-0", 0, ["t:x"])[0] is PurgeState.VOID
    assert epochs.judge("old 9999-0", 0, ["t:y"])[0] is PurgeState.VALID


def test_the_cost_of_a_purge_does_not_depend_on_what_carries_its_name() -> None:
    epochs = Epochs("g")
    epochs.apply((1, 0), Purge("p", ("t:everywhere",)))
    assert len(epochs.records) == len(epochs._hard) == 1


def test_a_stamp_of_a_generation_not_lived_through_is_void() -> None:
    assert Epochs("new", lineage=["old"]).judge("other 9999-0", 0, ["t:x"])[0] is PurgeState.VOID


@pytest.mark.parametrize("stamp", ["", "g", "g x-y", "nonsense", "g 1-2-3"])
def test_a_stamp_that_cannot_be_read_is_earlier_than_every_purge(stamp: str) -> None:
    epochs = Epochs("g")
    epochs.apply((1, 0), Purge("p", ("*",)))
    assert epochs.judge(stamp, 0, ["*"])[0] is PurgeState.VOID
