"""What live traffic tells the advisor: gathered by every worker, replayed by one, told by all."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from gateway.admin.app import create_admin
from gateway.admin.figures import Reading
from gateway.advisor.advice import Advice, Changes, advise
from gateway.advisor.traffic import LocalDesk, Traffic, key_hash
from gateway.advisor.ttl_ladder import LADDER, Replay
from gateway.app.gateway import create_app
from gateway.cache.redis.advice import RedisDesk
from gateway.cache.redis.connection import connect
from gateway.cli.commands import app as cli
from gateway.cli.ttl_report import LogError, TargetError, advice_of_log, duration, parse_rate, parse_share
from gateway.observability.access_log import JsonAccessLog
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer

ITEM: dict[str, Any] = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10s"}}


def rung(advice: Advice, ttl: float) -> Any:
    return advice.rungs[LADDER.index(ttl)]


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


# --- the fleet ---------------------------------------------------------------------------------------------


@pytest.fixture
async def desks(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[list[RedisDesk]]:
    prefix = f"{uuid4().hex}:"
    made = [RedisDesk(connect(valkey.url, 2.0), clock, prefix=prefix) for _ in range(3)]
    yield made
    for desk in made:
        await desk.aclose()


async def test_workers_together_are_advised_on_as_one_and_each_can_tell(
    desks: list[RedisDesk], clock: TurnedClock
) -> None:
    traffics = [Traffic(clock) for _ in desks]
    alone = Traffic(clock)
    local = LocalDesk(clock)
    for step in range(300):
        for traffic in (traffics[step % 3], alone):
            traffic.seen("item", key_hash("a key"))
        if step % 10 == 0:
            traffics[step % 3].fetched("item", 10.0, changed=step % 20 == 0)
        clock.turn(0.5)
        if step % 2:
            for desk, traffic in zip(desks, traffics, strict=True):
                await desk.deliver(traffic.take(), {"item": 10.0})
            await local.deliver(alone.take(), {"item": 10.0})
    for desk in desks:
        await desk.deliver({}, {"item": 10.0})
    await desks[0].deliver({}, {"item": 10.0})
    assert sum(desk.leads for desk in desks) == 1
    assert [bool(desk.told.advice) for desk in desks] == [desk.leads for desk in desks]
    (expected,) = await local.advice({"item": 10.0})
    for desk in desks:
        (advice,) = await desk.advice({"item": 10.0})
        assert advice.requests == 300
        assert advice.changes.fetches == 30
        for ttl in (1.0, 10.0, 60.0):
            assert rung(advice, ttl).hit_ratio == pytest.approx(rung(expected, ttl).hit_ratio, abs=0.01)


async def test_another_takes_over_when_the_leader_is_gone(desks: list[RedisDesk]) -> None:
    for desk in desks:
        await desk.deliver({}, {})
    leader = next(desk for desk in desks if desk.leads)
    others = [desk for desk in desks if desk is not leader]
    await others[0]._client.delete(leader._leader)  # as its time runs out
    await others[0].deliver({}, {})
    assert others[0].leads
    await leader.deliver({}, {})
    assert not leader.leads


async def test_a_delivery_that_cannot_be_read_is_passed_over(desks: list[RedisDesk], clock: TurnedClock) -> None:
    desk = desks[0]
    await desk._client.rpush(desk._list, b"nonsense", msgspec.msgpack.encode({"item": 5}))
    traffic = Traffic(clock)
    traffic.seen("item", 1)
    await desk.deliver(traffic.take(), {"item": None})
    assert [each.requests for each in await desk.advice({})] == [1]


async def test_without_redis_there_is_no_advice_and_no_error(clock: TurnedClock) -> None:
    desk = RedisDesk(connect("unix:///nonexistent/redis.sock", 0.1), clock)
    traffic = Traffic(clock)
    traffic.seen("item", 1)
    await desk.deliver(traffic.take(), {})
    assert await desk.advice({}) == []
    await desk.aclose()


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


async def test_an_access_log_gives_the_advice_that_the_live_traffic_gave(clock: TurnedClock, tmp_path: Path) -> None:
    file = io.BytesIO()
    log = JsonAccessLog(file)
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": ITEM}
    app = create_app(config, transport=StubUpstream(json_answer()), clock=clock, log=log)
    times = []
    async with running(app) as client:
        for _ in range(120):
            await client.get("/items/1", params={"token": "secret"})
            times.append(clock.now())
            clock.turn(1)
        await app.watch.turn()
        (live,) = await app.advice()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert "secret" not in file.getvalue().decode()
    from datetime import UTC, datetime

    path = tmp_path / "access.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({**line, "time": datetime.fromtimestamp(at, UTC).isoformat()})
            for line, at in zip(lines, times, strict=True)
        )
    )
    config_file = tmp_path / "gateway.yaml"
    config_file.write_text(json.dumps(config))
    arguments = ["ttl", "advise", "--log", str(path), "-c", str(config_file)]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (read,) = msgspec.json.decode(result.output, type=list[Advice])
    assert (read.route, read.today, read.requests) == ("item", 10.0, 120)
    assert read.changes.changed == live.changes.changed
    with path.open("a") as log:
        log.write('\n{"time": "2026-01-01T00:00:00+00:00", "outco')  # as the gateway writes it
    assert CliRunner().invoke(cli, [*arguments, "--json"]).output == result.output
    for mine, theirs in zip(read.rungs, live.rungs, strict=True):
        assert mine.hit_ratio == pytest.approx(theirs.hit_ratio, abs=0.01)
    shown = CliRunner().invoke(cli, [*arguments, "item", "--max-upstream", "1/m"]).output
    assert "item" in shown
    assert "meets the upstream target" in shown
    assert "12h" in shown
    assert max(map(len, shown.splitlines())) <= 80


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


def test_a_log_that_has_only_a_share_of_the_hits_gives_no_advice(tmp_path: Path) -> None:
    line = {"time": "2026-01-01T00:00:00+00:00", "outcome": "hit", "route": "item", "key": "1f", "share": 0.01}
    path = tmp_path / "access.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(LogError, match=r"only 0\.01 of the hits \(setting `log_hits`\)"):
        advice_of_log(path, {"item": 10.0})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense\n", "line 1 isn't a line"),
        ("{}\n", "line 1"),
        ("", "no line with a cache key"),
        (None, "can't be read"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "access.jsonl"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(cli, ["ttl", "advise", "--log", str(path)])
    assert result.exit_code == 1
    assert why in str(result.exception)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.02", 0.02), ("100 %", 1.0), ("0", 0.0)])
def test_a_share_is_read_in_percent_or_as_a_fraction(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50.0), ("50", 50.0), ("300/m", 5.0), ("3600/h", 1.0)])
def test_a_rate_is_read_with_its_unit(text: str, rate: float) -> None:
    assert parse_rate(text, "--rate") == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "x", "101%", "-1", "nan", "2"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="write a share"):
        parse_share(text)


@pytest.mark.parametrize("text", ["", "x/s", "5/d", "5/", "-1", "0", "inf", "nan"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match=r"--rate .*write requests a second"):
        parse_rate(text, "--rate")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1s"),
        (60, "1m"),
        (90, "90s"),
        (120, "2m"),
        (5400, "90m"),
        (86400, "1d"),
        (1e9, "a year or more"),
        (0.5, "0.5s"),
    ],
)
def test_durations_are_shown_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_changes_come_through_a_delivery_as_they_were() -> None:
    changes = Changes()
    changes.add(5.0, changed=True)
    changes.add(9.0, changed=False)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=Changes)
    assert again.rate() == changes.rate()
