"""The stored response of an explained request: where it is, and what made it void."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from gateway.app.gateway import create_app
from gateway.cache.redis.store import RedisStore
from gateway.config.loader import load
from gateway.explain.trace import render
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.explain import ANY, FILE, ROUTES, started
from tests.support.gateways import gateway, json_answer


async def test_what_lies_in_redis_alone_is_shown_and_left_there(valkey: Embedded, clock: TurnedClock) -> None:
    prefix = f"{uuid4().hex}:"
    upstream = StubUpstream(json_answer())
    one, two = (
        gateway(upstream, ROUTES, clock=clock, store=RedisStore(valkey.url, prefix=prefix, budget=1.0))
        for _ in range(2)
    )
    async with running(one) as client, running(two):
        await client.get("/items/7")
        await one.engine.settle()
        trace = await two.explain("GET", "/items/7", ANY)
        assert trace.entry is not None
        assert (trace.decision, trace.entry.tier) == ("hit", "redis")
        assert len(two.engine.memory) == 0


async def test_purges_are_shown_by_the_names_they_went_by(clock: TurnedClock) -> None:
    app, _ = started(clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(1)
        await app.purge(tags=["item:7"])
        trace = await app.explain("GET", "/items/7", ANY)
        assert trace.decision == "miss"
        epochs = {name.name: name.epoch for name in trace.names}
        assert epochs["key"] == epochs["route item"] == "-"
        assert epochs["tag item:7"] != "-"
        await app.purge(routes=["item"], soft=True)
        trace = await app.explain("GET", "/items/7", ANY)
        assert {name.name: name.epoch for name in trace.names}["route item"].endswith("(soft)")


async def test_of_a_negative_answer_its_own_ttl_is_told(clock: TurnedClock, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)
    loaded = load(file, environ={"GATEWAY_ROUTES__ITEM__NEGATIVE_TTL": "7s"}, dotenv=None)
    app = create_app(loaded, transport=StubUpstream(lambda request: httpx.Response(404, json={})), clock=clock)
    async with running(app) as client:
        await client.get("/items/7")
        trace = await app.explain("GET", "/items/7", ANY)
    assert (trace.decision, trace.status) == ("hit", 404)
    assert trace.ttl is not None
    assert (trace.ttl.setting, trace.ttl.value) == ("negative_ttl", "7s")
    assert trace.ttl.sources == ("environment GATEWAY_ROUTES__ITEM__NEGATIVE_TTL (7s)",)
    assert trace.ttl.notes[0] == "of a 404; that of other answers is 30s"
    assert "negative_ttl" in render(trace)


async def test_other_variants_are_told_of_a_miss(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer(vary="Accept-Language", cache_control="max-age=60")), ROUTES, clock=clock)
    async with running(app) as client:
        await client.get("/news", headers={"accept-language": "de"})
    trace = await app.explain("GET", "/news", (*ANY, (b"accept-language", b"fr")))
    assert trace.decision == "miss"
    assert trace.why.endswith("vary on accept-language")


async def test_what_memory_has_too_old_is_looked_for_in_redis(valkey: Embedded, clock: TurnedClock) -> None:
    prefix = f"{uuid4().hex}:"
    upstream = StubUpstream(json_answer())
    one, two = (
        gateway(upstream, ROUTES, clock=clock, store=RedisStore(valkey.url, prefix=prefix, budget=1.0))
        for _ in range(2)
    )
    async with running(one) as client, running(two) as other:
        await client.get("/items/7")
        await one.engine.settle()
        await other.get("/items/7")
        clock.turn(200)
        await client.get("/items/7")
        await one.engine.settle()
        trace = await two.explain("GET", "/items/7", ANY)
        assert trace.entry is not None
        assert (trace.decision, trace.entry.tier) == ("hit", "redis")
        assert (await other.get("/items/7")).headers["cache-status"].startswith("gateway; hit")


@pytest.mark.parametrize(("setting", "why"), [("cache: off", "cache: off"), ("ttl: 0s", "ttl: 0s")])
async def test_a_configuration_alone_decides_that_nothing_is_cached(tmp_path: Path, setting: str, why: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        f"upstreams: {{api: {{url: http://api.test}}}}\nroutes:\n  item: {{path: /items, upstream: api, {setting}}}\n"
    )
    explainer = create_app(load(file, environ={}, dotenv=None)).explainer(running=False)
    trace = await explainer.explain("GET", "/items", ANY)
    assert (trace.decision, why in trace.why) == ("bypass", True)


async def test_of_a_configuration_alone_no_purge_and_no_entry_is_told(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)
    explainer = create_app(load(file, environ={}, dotenv=None)).explainer(running=False)
    for headers, decision in ((ANY, "unknown"), (((b"authorization", b"x"),), "bypass")):
        trace = await explainer.explain("GET", "/items/7", headers)
        assert trace.decision == decision
        assert "route item" in render(trace)
        assert "purged" not in render(trace)
        assert "stored  " not in render(trace)
