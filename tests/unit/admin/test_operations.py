"""Operating a running gateway: overrides in force on every worker, the audit list, the admin listener and its page."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter

from gateway.admin.operations import NoSuchOverride
from gateway.aggregates.typed import aggregate, part
from gateway.cache.redis.store import RedisStore
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.errors import ConfigError
from gateway.routing.cached_decorator import cached
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock
from tests.support.admin import CONFIG, LOADED, Worker, working
from tests.support.gateways import json_answer


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
