"""downstream: every response of a route says what selects it, fresh, stale, validated, collapsed or joined."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.edge.protocol import GatewayProtocol
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import Changing, Side
from tests.support.gateways import gateway, lose_wholes, served
from tests.support.kinds import ROUTES, ROWS, SESSION, SESSIONS, behind, handlers, part, route, said_of

# --- the kinds of routes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
async def test_every_answer_of_a_route_says_what_selects_it(name: str) -> None:
    row = ROWS[name]
    async with served(behind(), http=GatewayProtocol) as url, httpx.AsyncClient(base_url=url) as client:
        for user in (*row.users, *row.users):
            for method, more in (("GET", {}), ("GET", {}), ("HEAD", {}), ("GET", {"range": "bytes=0-3"})):
                response = await client.request(method, row.path, headers=user | more)
                if response.status_code == 405:  # FastAPI gives handlers no HEAD
                    continue
                vary, private = said_of(response)
                assert row.vary <= vary
                assert private == row.private or row.users[1] == {}
            again = await client.get(row.path, headers=user | {"if-none-match": response.headers.get("etag", "*")})
            assert row.vary <= said_of(again)[0]
            assert said_of(again)[1] == row.private or row.users[1] == {}


# --- whatever became of a request --------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("path", ["/session", "/whole/session"])
async def test_fresh_stale_revalidated_and_joined_answers_say_the_same(
    clock: TurnedClock, path: str, edge: bool
) -> None:
    changing = Changing()

    class Json(Changing):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.headers.get("if-none-match"):
                return httpx.Response(304)
            return httpx.Response(200, json=changing.version, headers={"etag": '"e"'})

    routes = {
        "session": route("/session", **SESSION, ttl="5s") | {"stale_while_revalidate": "5s", "stale_if_error": "60s"},
        "whole": {"path": "/whole/session", **part(**SESSION, ttl="5s", stale_while_revalidate="5s")},
    }
    side = Side(clock, Json(), edge=edge, routes=routes)
    request = f"GET {path} HTTP/1.1\r\nHost: gateway.test\r\nCookie: sid=ann\r\n\r\n".encode()
    seen: dict[bytes, tuple[bytes, bytes]] = {}
    for turned in (0.0, 0.0, 0.0, 6.0, 0.0, 60.0, 0.0):
        clock.turn(turned)
        if turned == 0.0:
            lose_wholes(side.app)
        answer, _ = await side.ask(request)
        fields = dict(line.split(b": ", 1) for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:])
        said = b"cache;desc=" + fields[b"server-timing"].partition(b"desc=")[2].partition(b",")[0].partition(b";")[0]
        seen[said] = (fields[b"vary"], fields[b"cache-control"].partition(b",")[0])
    assert set(seen.values()) == {(b"cookie", b"private")}
    assert len(seen) >= 3


async def test_a_collapsed_answer_says_what_the_others_do() -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200, json={}))
    upstream.gate.clear()
    app = gateway(upstream, {"session": route("/session", **SESSION)})
    async with running(app) as client:
        both = [asyncio.ensure_future(client.get("/session", headers=SESSIONS[0])) for _ in range(2)]
        await upstream.came.acquire()
        upstream.gate.set()
        answers = [await each for each in both]
    assert upstream.asked == 1
    assert any("collapsed" in answer.headers["cache-status"] for answer in answers)
    assert [said_of(answer) for answer in answers] == [({"cookie"}, True)] * 2


def test_every_kind_that_is_configured_is_a_row() -> None:
    configured = {settings["path"] for settings in ROUTES.values()} | {each.path for each in handlers().routes}
    assert configured == {row.path for row in ROWS.values()}
