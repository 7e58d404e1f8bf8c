"""What live traffic tells the advisor: gathered by every worker, replayed by one, told by all."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from gateway.admin.app import create_admin
from gateway.advisor.advice import Advice, Changes, advise
from gateway.advisor.ttl_ladder import LADDER, Replay
from gateway.cli.commands import app as cli
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer
from tests.support.traffic import ITEM, rung


async def test_what_a_gateway_serves_is_advised_on(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ITEM, clock=clock)
    async with running(app) as client:
        for _ in range(200):
            await client.get("/items/1")
            clock.turn(1)
        await app.watch.turn()
        (advice,) = await app.advice()
    assert (advice.route, advice.today, advice.requests) == ("item", 10.0, 200)
    assert rung(advice, 10.0).hit_ratio == pytest.approx(0.9, abs=0.02)
    assert rung(advice, 60.0).hit_ratio > rung(advice, 10.0).hit_ratio
    # Every answer of that upstream is another: each of its fetches found a change.
    assert advice.changes.fetches == advice.changes.changed > 15
    assert rung(advice, 60.0).outdated > rung(advice, 3.0).outdated > 0


async def test_content_that_stays_the_same_is_seen_to_stay(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(lambda request: httpx.Response(200, text="same")), ITEM, clock=clock)
    async with running(app) as client:
        for _ in range(50):
            await client.get("/items/1")
            clock.turn(5)
        await app.watch.turn()
        (advice,) = await app.advice()
    assert advice.changes.fetches > 15
    assert advice.changes.changed == 0


async def test_what_passes_by_the_cache_is_not_counted(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ITEM, clock=clock)
    async with running(app) as client:
        await client.post("/items/1")
        await client.get("/items/1", headers={"authorization": "Bearer x"})
        await client.get("/items/1", headers={"cache-control": "no-store"})
        await app.watch.turn()
        assert await app.advice() == []


# --- the admin listener and the command --------------------------------------------------------------------


async def test_the_admin_listener_tells_the_advice_to_who_has_the_token(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ITEM, clock=clock)
    transport = httpx.ASGITransport(create_admin(app, "secret"))
    async with (
        running(app) as client,
        httpx.AsyncClient(transport=transport, base_url="http://admin.test") as admin,
    ):
        await client.get("/items/1")
        await app.watch.turn()
        assert (await admin.get("/advice")).status_code == 401
        body = (await admin.get("/advice", headers={"authorization": "Bearer secret"})).json()
    (advice,) = msgspec.convert(body["routes"], list[Advice])
    assert (advice.route, len(advice.rungs)) == ("item", len(LADDER))


async def test_an_aggregate_whose_parts_have_the_ttls_is_advised_on_by_its_parts(
    clock: TurnedClock, tmp_path: Path
) -> None:
    routes = {"home": {"path": "/home", "parts": {"user": {"upstream": "api", "path": "/user", "ttl": "10s"}}}}
    app = gateway(StubUpstream(json_answer()), routes, clock=clock)
    async with running(app) as client:
        for _ in range(5):
            await client.get("/home")
            clock.turn(1)
        await app.watch.turn()
        assert [each.route for each in await app.advice()] == ["home.user"]

    log, file = tmp_path / "access.jsonl", tmp_path / "gateway.yaml"
    line = {"outcome": "hit", "route": "home", "key": "1f"}
    log.write_text("".join(json.dumps({**line, "time": f"2026-01-01T00:00:0{n}+00:00"}) + "\n" for n in range(5)))
    file.write_text(json.dumps({"upstreams": {"api": {"url": "http://api.test"}}, "routes": routes}))
    result = CliRunner().invoke(cli, ["ttl", "advise", "--log", str(log), "-c", str(file)])
    assert (result.exit_code, "Nothing was seen of any route" in result.output) == (3, True)


def test_a_route_that_is_joined_of_parts_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = advise("home.user", 10.0, Replay(0.0), Changes().rate())
    answers = {"/advice": {"routes": msgspec.to_builtins([seen])}, "/routes": {"routes": [{"name": "home"}]}}
    monkeypatch.setattr("gateway.cli.options.request_admin", lambda path, *_, **__: answers[path])
    result = CliRunner().invoke(cli, ["ttl", "advise", "home"])
    assert result.exit_code == 3
    assert result.output == "home is an aggregate; each of its parts has its own TTL: home.user.\n"
