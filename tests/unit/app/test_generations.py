"""Reloading: the next generation of routes behind a stable app, and what it leaves as it is."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request

from gateway.cache.background import Background
from gateway.config.loader import Loaded
from gateway.errors import ConfigError
from gateway.routing.cached_decorator import cached
from gateway.server.reload import Change, difference, merged
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import GET, Line, asked
from tests.support.gateways import json_answer
from tests.support.generations import loaded, running
from tests.support.tls import Authority


class Closing(StubUpstream):
    def __init__(self, answer: Any = None) -> None:
        super().__init__(answer or json_answer())
        self.closed = asyncio.Event()

    async def aclose(self) -> None:
        self.closed.set()


async def test_what_is_stored_is_judged_by_the_new_ttl(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(loaded(), upstream, clock) as (generations, client):
        assert (await client.get("/a")).headers["cache-status"].startswith("gateway; fwd=miss; stored")
        clock.turn(20)
        assert "hit" in (await client.get("/a")).headers["cache-status"]
        short = {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "10s"}}
        generations.reload(loaded(routes=short))
        assert "fwd=stale" in (await client.get("/a")).headers["cache-status"]
        generations.reload(loaded())
        assert "hit" in (await client.get("/a")).headers["cache-status"]
        assert upstream.asked == 2


SHAPED = {"upstream": "api", "path": "/a", "ttl": "60s", "vary": []}


@pytest.mark.parametrize(
    ("parts", "settings", "told"),
    [
        ({"a": {**SHAPED, "rename": {"path": "name"}}}, {}, {"a": {"name": "/a", "n": 1}}),
        ({"a": {**SHAPED, "deny": ["path"]}}, {}, {"a": {"n": 1}}),
        ({"a": {**SHAPED, "allow": ["path"]}}, {}, {"a": {"path": "/a"}}),
        ({"a": {**SHAPED, "select": "n"}}, {}, {"a": 1}),
        ({"a": {**SHAPED, "group": "b"}}, {}, {"b": {"path": "/a", "n": 1}}),
        ({"a": {**SHAPED, "group": None}}, {}, {"path": "/a", "n": 1}),
        ({"a": {**SHAPED, "decode": "text"}}, {}, {"a": '{"path":"/a","n":1}'}),
        ({"a": SHAPED, "c": {"static": 2}}, {}, {"a": {"path": "/a", "n": 1}, "c": 2}),
        ({"a": SHAPED}, {"envelope": True}, {"a": {"path": "/a", "n": 1}, "_meta": ...}),
        ({"a": {"route": "rest", "path": "/b"}}, {}, {"a": {"path": "/b", "n": 1}}),
    ],
)
async def test_a_whole_is_joined_anew_where_a_reload_changed_the_shape_of_a_part(
    parts: dict[str, Any], settings: dict[str, Any], told: dict[str, Any], clock: TurnedClock
) -> None:
    def home(parts: dict[str, Any], **settings: Any) -> Loaded:
        rest = {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}
        return loaded(routes={"rest": rest, "home": {"path": "/home", "parts": parts, **settings}})

    upstream = StubUpstream(lambda request: httpx.Response(200, json={"path": request.url.path, "n": 1}))
    async with running(home({"a": SHAPED}), upstream, clock) as (generations, client):
        first = await client.get("/home")
        assert first.json() == {"a": {"path": "/a", "n": 1}}
        generations.reload(home(parts, **settings))
        changed = await client.get("/home")
        assert {**changed.json(), **{name: ... for name in told if told[name] is ...}} == told
        assert changed.headers["etag"] != first.headers["etag"]
        generations.reload(home({"a": SHAPED}))
        again = await client.get("/home")
        assert again.content == first.content
        assert again.headers["cache-status"].startswith("gateway; hit; ttl=")


async def test_routes_come_and_go_with_a_reload(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    one = loaded(routes={"a": {"path": "/a", "upstream": "api"}})
    other = loaded(routes={"b": {"path": "/b", "upstream": "api"}})
    async with running(one, upstream, clock) as (generations, client):
        assert [(await client.get(path)).status_code for path in ("/a", "/b")] == [200, 404]
        generations.reload(other)
        assert [(await client.get(path)).status_code for path in ("/a", "/b")] == [404, 200]
        assert "/b" in (await client.get("/openapi.json")).json()["paths"]


async def test_a_request_in_flight_ends_on_the_generation_it_began_on(clock: TurnedClock) -> None:
    upstreams = [Closing(), Closing()]
    given = iter(upstreams)
    async with running(loaded(), lambda name: next(given), clock) as (generations, client):
        upstreams[0].gate.clear()
        asked = asyncio.ensure_future(client.get("/a"))
        await upstreams[0].came.acquire()
        generations.reload(loaded(upstreams={"api": {"url": "http://other.test"}}))
        assert (await client.get("/b")).status_code == 200
        assert upstreams[1].requests[0].url == "http://other.test/b"
        assert not upstreams[0].closed.is_set()
        upstreams[0].gate.set()
        assert (await asked).status_code == 200
        await asyncio.wait_for(upstreams[0].closed.wait(), 5)
        assert not upstreams[1].closed.is_set()


async def test_so_does_one_that_came_past_asgi(clock: TurnedClock) -> None:
    first = Closing(json_answer(**{"cache-control": "no-store"}))
    given = iter([first, Closing()])
    routes = {"rest": {"path": "/{path:path}", "upstream": "api"}}
    async with running(loaded(routes=routes), lambda name: next(given), clock) as (generations, _):
        line = Line(generations)
        assert b" 200 OK" in await asked(line, GET % b"")  # so that the next waits for its own fetch, and no flight
        first.gate.clear()
        line.send(GET % b"")
        for _ in range(2):
            await first.came.acquire()
        assert generations.current.underway.count == 1
        generations.reload(loaded(routes=routes, upstreams={"api": {"url": "http://other.test"}}))
        assert (await asked(Line(generations), GET % b"")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert not first.closed.is_set()
        first.gate.set()
        assert b" 200 OK" in await line.answer()
        await asyncio.wait_for(first.closed.wait(), 5)


async def test_closing_does_not_wait_for_what_begins_later() -> None:
    background, ends = Background(), [asyncio.Event(), asyncio.Event()]

    async def work(end: asyncio.Event) -> None:
        await end.wait()

    background.spawn(work(ends[0]))
    outlasting = asyncio.ensure_future(background.outlast())
    await asyncio.sleep(0)
    background.spawn(work(ends[1]))
    ends[0].set()
    await asyncio.wait_for(outlasting, 5)
    assert len(background) == 1
    ends[1].set()
    await background.settle()


async def test_an_upstream_that_did_not_change_keeps_its_connections(clock: TurnedClock) -> None:
    upstream = Closing()
    async with running(loaded(), lambda name: upstream, clock) as (generations, client):
        await client.get("/a")
        before = generations.current.upstreams["api"]
        generations.reload(loaded(routes={"a": {"path": "/a", "upstream": "api"}}))
        assert generations.current.upstreams["api"] is before
        assert not upstream.closed.is_set()


async def test_a_refused_configuration_changes_nothing(clock: TurnedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = StubUpstream(json_answer())
    async with running(loaded(), upstream, clock) as (generations, client):
        before = generations.current
        with pytest.raises(ConfigError, match="no_such_module"):
            generations.reload(loaded(include=["no_such_module:router"]))
        assert generations.current is before
        assert (await client.get("/a")).status_code == 200


async def test_a_generation_is_freed_once_others_have_taken_its_place(clock: TurnedClock) -> None:
    async with running(loaded(), StubUpstream(json_answer()), clock) as (generations, client):
        seen = []
        for _ in range(4):
            seen.append(weakref.ref(generations.current))
            assert (await client.get("/a")).status_code == 200
            line = Line(generations)  # what the edge learns refers to the generation, past the garbage collector
            for _ in range(2):
                assert (await asked(line, GET % b"")).startswith(b"HTTP/1.1 200 OK\r\n")
            line.hang_up()
            del line
            generations.reload(loaded())
        await generations.current.engine.settle()
        for _ in seen:  # a generation is garbage once the edge that referred to it is freed
            gc.collect()
        # The first is the application's own object. The last may still end what it began.
        assert [each() for each in seen[1:-1]] == [None, None]


async def test_functions_use_no_app_whose_latest_generation_has_stopped(clock: TurnedClock) -> None:
    @cached(ttl="30s")
    async def number() -> int:
        numbers.append(len(numbers))
        return numbers[-1]

    numbers: list[int] = []
    async with running(loaded(), StubUpstream(json_answer()), clock) as (generations, _):
        assert [await number() for _ in range(2)] == [0, 0]
        generations.reload(loaded())
        assert await number() == 0
    assert [await number() for _ in range(2)] == [1, 2]


async def test_state_and_routers_of_the_application_outlast_a_reload(clock: TurnedClock) -> None:
    router = APIRouter()

    @router.get("/mine")
    @cached(ttl="30s")
    async def mine(request: Request) -> dict[str, str]:
        return {"database": request.app.state.database}

    async with running(loaded(routes={}), StubUpstream(json_answer()), clock) as (generations, client):
        generations.current.state.database = "connected"
        generations.current.include_router(router)
        for _ in range(3):
            assert (await client.get("/mine")).json() == {"database": "connected"}
            generations.reload(loaded(routes={}))
        clock.turn(31)
        assert (await client.get("/mine")).json() == {"database": "connected"}


async def test_limits_of_the_door_are_the_new_ones_on_open_connections(clock: TurnedClock) -> None:
    async with running(loaded(), StubUpstream(json_answer()), clock) as (generations, _):
        door = generations.guard
        generations.reload(loaded(limits={"request_headers": 7}))
        assert generations.guard is door
        assert door.limits.headers == 7


async def test_who_is_stopping_is_not_ready(clock: TurnedClock) -> None:
    async with running(loaded(), StubUpstream(json_answer()), clock) as (generations, client):
        assert (await client.get("/readyz")).status_code == 200
        generations.current.stopping = True
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "stopping")


# --- what a reload changes -----------------------------------------------------------------------------------


def test_a_change_tells_what_was_and_what_is() -> None:
    after = loaded(
        upstreams={"api": {"url": "http://api.test", "headers": {"x-key": "new"}}, "b": {"url": "http://b.test"}},
        routes={"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "10s"}},
    )
    before = loaded(
        upstreams={"api": {"url": "http://api.test", "headers": {"x-key": "old"}}},
        routes={"gone": {"path": "/gone", "upstream": "api"}, **loaded().config.model_dump(mode="json")["routes"]},
    )
    assert [str(change) for change in difference(before, after)] == [
        "upstreams.b: http://b.test is new",
        "routes.gone: /gone is removed",
        "upstreams.api.headers.x-key: *** -> ***",
        "routes.rest.ttl: 1m -> 10s",
    ]


def test_nothing_changed_is_no_change() -> None:
    assert difference(loaded(), loaded()) == []


def test_what_wants_a_restart_says_so_and_stays() -> None:
    before, after = loaded(memory="64MiB"), loaded(memory="1GiB", retry_after="2s")
    changes = difference(before, after)
    assert changes == [
        Change("memory", "64MiB", "1GiB", requires_restart=True),
        Change("retry_after", "1s", "2s"),
    ]
    assert str(changes[0]) == "memory: 64MiB -> 1GiB requires a restart; it stays 64MiB"
    kept = merged(before, after).config
    assert kept.memory == before.config.memory
    assert kept.retry_after == after.config.retry_after


@pytest.mark.parametrize("tls", [{"cert": "a.pem"}, None])
def test_a_listener_goes_on_as_it_began_until_a_restart(tls: dict[str, str] | None) -> None:
    before, after = loaded(listen={"tls": tls}), loaded(listen={"tls": None if tls else {"cert": "a.pem"}})
    assert all(change.requires_restart for change in difference(before, after))
    assert merged(before, after).config.listen == before.config.listen


def test_a_listener_that_speaks_tls_gets_other_files_by_a_reload() -> None:
    before, after = loaded(listen={"tls": {"cert": "a.pem"}}), loaded(listen={"tls": {"cert": "b.pem"}})
    assert difference(before, after) == [Change("listen.tls.cert", "a.pem", "b.pem")]
    assert merged(before, after).config.listen == after.config.listen


async def test_changed_files_of_an_upstream_are_used_for_new_connections_once(
    ours: Authority, tmp_path: Path, clock: TurnedClock
) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(ours.certificate.read_bytes())
    secure = {"url": "https://api.test", "ca_file": str(authority)}
    async with running(loaded(upstreams={"api": secure}), None, clock) as (generations, _):
        first = generations.current.upstreams["api"]
        assert not generations.renew_certificates()
        authority.write_text("no certificate")
        with pytest.raises(ConfigError, match="contains no certificates"):
            generations.renew_certificates()
        assert not generations.renew_certificates()
        assert generations.current.upstreams["api"] is first
        authority.write_bytes(ours.certificate.read_bytes() + b"\n")
        assert generations.renew_certificates()
        assert generations.current.upstreams["api"] is not first
