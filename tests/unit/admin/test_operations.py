"""Operating a running gateway: overrides in force on every worker, the audit list, the admin listener and its page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from fastapi import APIRouter

from gateway.admin.app import create_admin
from gateway.admin.figures import Between, Figures, Reading
from gateway.admin.operations import NoSuchOverride, operations_of
from gateway.aggregates.typed import aggregate, part
from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.cache.redis.store import RedisStore
from gateway.config.environment import SettingSource
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.config.overrides import Override
from gateway.errors import ConfigError
from gateway.routing.cached_decorator import cached
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import gateway, json_answer, served

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


async def status(client: httpx.AsyncClient) -> str:
    return str((await client.get("/items/1")).headers["cache-status"])


async def test_an_override_acts_on_what_is_stored_and_ends_by_its_time(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.client() as client:
        await client.get("/items/1")
        clock.turn(20)
        assert "hit" in await status(client)
        await worker.operations.override("item", "ttl", "10s", "1h", by="ops")
        assert "fwd=stale" in await status(client)
        clock.turn(3601)
        await worker.operations.turn()
        await client.get("/items/1")
        clock.turn(50)
        assert "hit" in await status(client)


async def test_explain_names_the_override_that_won_and_what_it_stands_over(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker):
        await worker.operations.override("item", "ttl", "10s", "1h", by="ops")
        trace = await worker.generations.current.explain("GET", "/items/1")
    assert trace.ttl is not None
    assert trace.ttl.value == "10s"
    assert trace.ttl.sources[0].startswith("live override by ops until 2027-")
    assert trace.ttl.sources[1] == "gateway.yaml line 6 (100s)"


def sums() -> tuple[APIRouter, list[int]]:
    """A router with a handler of a TTL of its own, once at the app and once at the edge, and what it was called for."""
    router, calls = APIRouter(), []

    @router.get("/sums/{a}")
    @cached(ttl="100s")
    async def at_app(a: int) -> int:
        calls.append(a)
        return a + 1

    @router.get("/edge-sums/{a}")
    @cached(ttl="100s", edge=True)
    async def at_edge(a: int) -> int:
        calls.append(a)
        return a + 1

    return router, calls


@pytest.mark.parametrize(("path", "which"), [("/sums/1", "at_app"), ("/edge-sums/1", "at_edge")])
async def test_an_override_acts_on_a_python_handler_and_the_console_and_explain_name_both_sources(
    clock: TurnedClock, path: str, which: str
) -> None:
    worker, (router, calls) = Worker(StubUpstream(json_answer()), clock), sums()
    worker.generations.current.include_router(router)
    name = f"{__name__}.sums.<locals>.{which}"
    async with working(worker), worker.client() as client, worker.operator() as operator:
        await client.get(path)
        clock.turn(20)
        assert "hit" in (await client.get(path)).headers["cache-status"]
        order = {"route": name, "value": "10s", "for": "1h", "by": "ann"}
        assert (await operator.post("/overrides", json=order)).status_code == 200
        assert "fwd=stale" in (await client.get(path)).headers["cache-status"]
        rows = {row["name"]: row for row in (await operator.get("/routes")).json()["routes"]}
        assert (rows[name]["path"], rows[name]["shown"], rows[name]["overridden"]) == (path[:-1] + "{a}", "10s", True)
        assert [source.split(" until")[0] for source in rows[name]["sources"]] == [
            "live override by ann (127.0.0.1)",
            "@cached",
        ]
        trace = await worker.generations.current.explain("GET", path)
        assert trace.ttl is not None
        assert trace.ttl.value == "10s"
        assert trace.ttl.sources[1] == f"@cached of {name} (100s)"
        assert calls == [1, 1]
        assert (await operator.delete(f"/overrides/{name}/ttl")).status_code == 200
        clock.turn(50)
        assert "hit" in (await client.get(path)).headers["cache-status"]


async def test_the_console_lists_the_parts_of_an_aggregate_and_an_override_acts_on_one(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    worker = Worker(upstream, clock, routes={"home": {"path": "/home", "parts": {
        "offers": {"upstream": "api", "path": "/offers", "ttl": "100s"}}}})  # fmt: skip
    async with working(worker), worker.client() as client, worker.operator() as operator:
        await client.get("/home")
        clock.turn(20)
        await client.get("/home")
        assert len(upstream.requests) == 1
        order = {"route": "home.offers", "value": "10s"}
        assert (await operator.post("/overrides", json=order)).status_code == 200
        (row,) = (await operator.get("/routes")).json()["routes"]
        assert (row["name"], row["path"], row["ttl"], row["overridden"]) == (
            "home.offers",
            "part of /home",
            10.0,
            True,
        )
        assert row["sources"][0].startswith("live override by")
        await client.get("/home")
        assert len(upstream.requests) == 2


async def test_an_override_acts_on_a_part_of_an_aggregate_in_python_and_explain_names_both_sources(
    clock: TurnedClock,
) -> None:
    upstream, router = StubUpstream(json_answer()), APIRouter()
    parts = {"offers": part(Any, upstream="api", path="/offers", ttl="100s", vary=[])}
    aggregate(router, "/home", name="home", parts=parts)
    worker = Worker(upstream, clock)
    worker.generations.current.include_router(router)
    async with working(worker), worker.client() as client, worker.operator() as operator:
        await client.get("/home")
        clock.turn(20)
        await client.get("/home")
        assert len(upstream.requests) == 1
        order = {"route": "home.offers", "value": "10s", "for": "1h", "by": "ann"}
        assert (await operator.post("/overrides", json=order)).status_code == 200
        rows = {row["name"]: row for row in (await operator.get("/routes")).json()["routes"]}
        row = rows["home.offers"]
        assert (row["path"], row["shown"], row["overridden"]) == ("part of /home", "10s", True)
        assert [source.split(" until")[0] for source in row["sources"]] == [
            "live override by ann (127.0.0.1)",
            "aggregate()",
        ]
        trace = await worker.generations.current.explain("GET", "/home")
        assert trace.parts[0].ttl is not None
        assert trace.parts[0].ttl.value == "10s"
        assert trace.parts[0].ttl.sources[1] == "aggregate() of home (100s)"
        assert ("routes.home.parts.offers.ttl", "10s") in [
            (each.key, each.value) for each in worker.operations.settings()
        ]
        await client.get("/home")
        assert len(upstream.requests) == 2
        refused = await operator.post("/overrides", json={**order, "route": "home.ofers"})
        assert "did you mean home.offers?" in refused.text
        assert (await operator.delete("/overrides/home.offers/ttl")).status_code == 200
        clock.turn(50)
        assert "hit" in (await client.get("/home")).headers["cache-status"]
        assert len(upstream.requests) == 2


async def test_a_reload_keeps_the_overrides_on_the_new_configuration(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker):
        await worker.operations.override("item", "ttl", "10s", "1h", by="ops")
        routes = {"item": {**CONFIG["routes"]["item"], "ttl": "200s", "stale_if_error": "7m"}}
        reloaded = Loaded(Config.model_validate({**CONFIG, "routes": routes}), {}, ())
        worker.generations.reload(worker.operations.on(reloaded))
        worker.operations.rebase(reloaded)
        assert worker.generations.current.ttls() == {"item": 10.0}
        await worker.operations.end("item", "ttl", by="ops")
        assert worker.generations.current.ttls() == {"item": 200.0}


async def test_an_override_that_comes_while_a_reload_is_prepared_is_not_lost(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker):
        prepared = worker.generations.prepare(worker.operations.on(LOADED))
        await worker.operations.override("item", "ttl", "10s", "1h", by="ops")
        worker.operations.rebase(LOADED)
        worker.generations.switch(prepared)
        await worker.operations.turn()
        assert worker.generations.current.ttls() == {"item": 10.0}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("itme", "ttl", "10s", "1h"), "did you mean item"),
        (("item", "path", "/x", "1h"), "can't be overridden live"),
        (("item", "ttl", "fast", "1h"), "'fast' is refused"),
        (("item", "ttl", "10s", "8d"), "at most 7d"),
        (("item", "ttl", "10s", "soon"), "for: "),
    ],
)
async def test_what_is_wrong_is_refused_and_nothing_changes(
    clock: TurnedClock, arguments: tuple[str, str, str, str], why: str
) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker):
        with pytest.raises(ConfigError) as refused:
            await worker.operations.override(*arguments, by="ops")
        assert why in str(refused.value.problems[0])
        assert worker.operations.overrides == {}
        assert await worker.operations.live.audit() == []


async def test_ending_what_is_not_there_says_what_is(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker):
        await worker.operations.override("item", "ttl", "10s", "1h", by="ops")
        with pytest.raises(NoSuchOverride, match=r"there are: item\.ttl"):
            await worker.operations.end("item", "stale_if_error", by="ops")


# --- the fleet ---------------------------------------------------------------------------------------------


async def test_an_override_set_at_one_worker_is_in_force_at_the_others(valkey: Embedded, clock: TurnedClock) -> None:
    prefix = f"{uuid4().hex}:"
    upstream = StubUpstream(json_answer())
    workers = [Worker(upstream, clock, RedisStore(valkey.url, prefix=prefix, budget=1.0)) for _ in range(3)]
    async with working(*workers):
        await workers[0].operations.override("item", "ttl", "10s", "1h", by="ops")
        for worker in workers[1:]:
            await worker.operations.turn()
        assert [worker.generations.current.ttls() for worker in workers] == [{"item": 10.0}] * 3
        await workers[2].operations.end("item", "ttl", by="ops")
        for worker in workers:
            await worker.operations.turn()
        assert [worker.generations.current.ttls() for worker in workers] == [{"item": 100.0}] * 3


async def test_a_worker_looks_by_itself_several_times_a_second(valkey: Embedded, clock: TurnedClock) -> None:
    prefix = f"{uuid4().hex}:"
    one, two = (
        Worker(StubUpstream(json_answer()), clock, RedisStore(valkey.url, prefix=prefix, budget=1.0)) for _ in range(2)
    )
    async with working(one, two):
        await two.operations.start()
        await one.operations.override("item", "ttl", "10s", "1h", by="ops")
        async with asyncio.timeout(10):
            while two.generations.current.ttls() != {"item": 10.0}:
                await asyncio.sleep(0.01)


# --- the admin listener ------------------------------------------------------------------------------------


async def test_overrides_come_and_go_over_http_and_all_of_it_is_audited(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        order = {"route": "item", "value": "10s", "for": "1h", "by": "ann\n\x1b[31m"}
        made = (await operator.post("/overrides", json=order)).json()
        assert (made["setting"], made["until"]) == ("ttl", clock.at + 3600)
        listed = (await operator.get("/overrides")).json()["overrides"]
        assert [each["value"] for each in listed] == ["10s"]
        (row,) = (await operator.get("/routes")).json()["routes"]
        assert (row["shown"], row["overridden"], row["ttl"]) == ("10s", True, 10.0)
        assert row["sources"][0].startswith("live override by ann")
        assert (await operator.delete("/overrides/item/ttl?by=ben")).status_code == 200
        assert (await operator.delete("/overrides/item/ttl")).status_code == 404
        await operator.post("/purge", json={"tags": ["items"], "soft": True})
        events = (await operator.get("/audit")).json()["events"]
    assert [(each["what"], each["by"]) for each in events] == [
        ("purge", "127.0.0.1"),
        ("ttl reset", "ben (127.0.0.1)"),
        ("ttl set", "ann[31m (127.0.0.1)"),
    ]
    assert events[0]["detail"] == "tag items, softly"


@pytest.mark.parametrize(
    "order",
    [{}, {"route": "item"}, {"route": "item", "value": 5}, {"route": "item", "value": "1x"}, {"rout": "item"}, []],
)
async def test_an_override_order_that_means_nothing_is_refused(clock: TurnedClock, order: Any) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        answer = await operator.post("/overrides", json=order)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


PROTECTED = [
    *(("GET", path) for path in ("/overrides", "/routes", "/audit", "/live", "/advice")),
    *(("POST", path) for path in ("/overrides", "/purge", "/explain")),
    ("DELETE", "/overrides/item/ttl"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_without_the_token_nothing_is_shown_or_changed(clock: TurnedClock, method: str, path: str) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        del operator.headers["authorization"]
        assert (await operator.request(method, path)).status_code == 401
        # What a browser would send along with another page's request is no token.
        forged = await operator.request(method, path, headers={"cookie": "token=secret", "origin": "https://evil.test"})
        assert forged.status_code == 401


async def test_who_tries_tokens_is_answered_no_more_for_a_while(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        wrong = [await operator.get("/audit", headers={"authorization": f"Bearer {n}"}) for n in range(12)]
        assert [each.status_code for each in wrong] == [401] * 10 + [429] * 2
        assert (await operator.get("/audit")).status_code == 429
        assert "retry-after" in wrong[-1].headers


async def test_who_tries_tokens_does_not_lock_out_their_owner_behind_the_same_address(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        assert (await operator.get("/audit")).status_code == 200
        wrong = [await operator.get("/audit", headers={"authorization": f"Bearer {n}"}) for n in range(12)]
        assert [each.status_code for each in wrong] == [401] * 10 + [429] * 2
        assert (await operator.get("/audit")).status_code == 200


async def test_a_name_that_was_made_to_lead_to_loopback_is_not_answered() -> None:
    admin = create_admin(gateway(StubUpstream(json_answer()), {}, admin_listen="ops.internal:9000"))
    async with served(admin) as url:
        port = url.rpartition(":")[2]
        async with httpx.AsyncClient(base_url=url) as client:
            for host in (f"127.0.0.1:{port}", "localhost", "LOCALHOST.:1", "[::1]:9000", "ops.internal:9000"):
                assert (await client.get("/metrics", headers={"host": host})).status_code == 200
            for host in (f"rebound.evil.test:{port}", "127.0.0.1.evil.test", "localhost.evil.test", "evil.test:127"):
                for path in ("/metrics", "/healthz", "/console"):
                    refused = await client.get(path, headers={"host": host})
                    assert (refused.status_code, "gateway_" in refused.text) == (421, False)


async def test_control_characters_that_stand_in_redis_reach_no_log(
    clock: TurnedClock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    planted = Override(
        route="item", setting="ttl", value="5s", by="me\n2026 ERROR all is lost\x1b[2J", at=0.0, until=9e9
    )
    with caplog.at_level("INFO", logger="gateway"):
        worker.operations._tell({planted.key: planted})
    assert r"by 'me\n2026 ERROR all is lost\x1b[2J'" in caplog.text


# --- the page ----------------------------------------------------------------------------------------------


async def test_the_page_brings_all_it_needs_and_lets_nothing_else_in(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        page = await operator.get("/console")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert "https://" not in page.text
        for name, kind in (
            ("console.js", "text/javascript"),
            ("console.css", "text/css"),
            ("uplot.js", "text/javascript"),
        ):
            assert f"console/{name}" in page.text
            found = await operator.get(f"/console/{name}")
            assert (found.status_code, found.headers["content-type"].split(";")[0]) == (200, kind)
        for name in ("nothing.js", "..%2fapp.py", "index.html.bak", "uplot"):
            assert (await operator.get(f"/console/{name}")).status_code == 404


async def test_figures_are_streamed_until_the_worker_ends(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with (
        working(worker),
        worker.client() as client,
        served(worker.admin) as url,
        httpx.AsyncClient(base_url=url, headers=TOKEN) as operator,
        operator.stream("GET", "/live") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        await client.get("/items/1")
        await client.get("/items/1")
        while not (line := await anext(lines)).startswith("data: "):
            pass
        figures = msgspec.json.decode(line.removeprefix("data: "), type=Figures)
        worker.operations.closing.set()
        assert [line async for line in lines if line] == []
    assert figures.memory_entries == 1
    assert figures.redis_available is None  # no Redis is configured, which is not one that is away


# --- figures -----------------------------------------------------------------------------------------------

BEFORE = """\
gateway_requests_total{route="item",outcome="hit",status="2xx"} 10.0
gateway_request_seconds_bucket{outcome="hit",le="0.001"} 10.0
gateway_request_seconds_bucket{outcome="hit",le="0.1"} 10.0
gateway_request_seconds_bucket{outcome="hit",le="+Inf"} 10.0
"""
AFTER = """\
gateway_requests_total{route="item",outcome="hit",status="2xx"} 100.0
gateway_requests_total{route="item",outcome="miss",status="2xx"} 10.0
gateway_requests_total{route="",outcome="local",status="4xx"} 20.0
gateway_request_seconds_bucket{outcome="hit",le="0.001"} 80.0
gateway_request_seconds_bucket{outcome="hit",le="0.1"} 100.0
gateway_request_seconds_bucket{outcome="hit",le="+Inf"} 100.0
gateway_upstream_requests_total{upstream="api",result="2xx"} 10.0
gateway_upstream_requests_total{upstream="api",result="timeout"} 4.0
gateway_breaker_state{upstream="api",host="a"} 0.0
gateway_breaker_state{upstream="api",host="b"} 2.0
gateway_breaker_state{upstream="other",host="c"} 0.0
gateway_upstream_healthy{upstream="api",host="a"} 1.0
gateway_upstream_healthy{upstream="api",host="b"} 0.0
gateway_upstream_healthy{upstream="other",host="c"} 1.0
gateway_memory_bytes 1000.0
gateway_redis_available 1.0
gateway_redis_batches_total 20.0
gateway_redis_seconds_total 0.04
"""


def test_figures_tell_what_happened_between_two_readings() -> None:
    figures = Between(Reading(BEFORE, 100.0), Reading(AFTER, 102.0)).figures()
    assert figures.rate == 60.0
    assert figures.hit_ratio == 0.9
    hit = figures.outcomes["hit"]
    assert (hit.rate, hit.p50, hit.p99) == (45.0, 0.001, 0.1)
    assert (figures.routes["item"].rate, figures.routes["item"].hit_ratio) == (50.0, 0.9)
    api, other = figures.upstreams["api"], figures.upstreams["other"]
    assert (api.rate, api.failed, api.breaker, api.unhealthy) == (7.0, 2.0, 2, 1)
    assert (other.rate, other.breaker, other.unhealthy) == (0.0, 0, 0)
    assert (figures.memory_bytes, figures.redis_available, figures.redis_milliseconds) == (1000.0, True, 2.0)


def test_a_worker_that_took_its_figures_with_it_makes_no_negative_rate() -> None:
    figures = Between(Reading(AFTER, 100.0), Reading(BEFORE, 101.0)).figures()
    assert figures.rate == 0.0
    assert figures.hit_ratio is None
