"""downstream: what answers say to the caches behind the gateway, and that such caches give nobody another's answer."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.edge.protocol import GatewayProtocol
from gateway.policy.downstream import NOTHING, Downstream, with_private
from gateway.policy.keys import Keying
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import Changing, Side
from tests.support.gateways import gateway, lose_wholes, served
from tests.support.kinds import ROUTES, ROWS, SESSION, SESSIONS, behind, handlers, part, route, said_of

Fields = list[tuple[bytes, bytes]]


# --- what a route adds -------------------------------------------------------------------------------------


def told(keying: Keying, *own: tuple[bytes, bytes], selecting: tuple[str, ...] = (), made: bool = False) -> Fields:
    return Downstream.of(keying, made=made).told(list(own), selecting)


AGE = (b"cache-control", b"max-age=5")
TYPE = (b"content-type", b"text/plain")
TENANT = Keying(vary=("x-tenant",), authorization="ignore", cookies=())
FOLLOWING = Keying(vary=None, authorization="ignore", cookies=())


@pytest.mark.parametrize(
    ("keying", "vary", "private"),
    [
        (TENANT, "x-tenant", False),
        (Keying(vary=(), authorization="ignore", cookies=()), "", False),
        (Keying(vary=("x-tenant",)), "authorization, cookie, x-tenant", False),
        (Keying(vary=(), authorization="key", cookies=()), "authorization", True),
        (Keying(vary=(), authorization="ignore", cookies=("sid",)), "cookie", True),
        (Keying(vary=("x-api-key",), authorization="ignore", cookies=()), "x-api-key", True),
        (Keying(("x-who",), "ignore", (), identities=frozenset({"x-who"})), "x-who", True),
        (FOLLOWING, "", False),
        (Keying(vary=None), "", False),
        (Keying(vary=None, authorization="key", cookies=("sid",)), "authorization, cookie", True),
    ],
)
def test_a_key_is_told_field_by_field_and_is_private_where_it_says_who_asks(
    keying: Keying, vary: str, private: bool
) -> None:
    expected = [(b"cache-control", b"private, max-age=5" if private else b"max-age=5")]
    expected += [(b"vary", vary.encode())] if vary else []
    assert told(keying, AGE) == expected


def test_what_an_upstream_varies_on_stays_before_what_the_key_adds() -> None:
    assert told(TENANT, AGE, (b"vary", b"Accept"), (b"vary", b"X-B")) == [AGE, (b"vary", b"Accept, X-B, x-tenant")]
    assert told(TENANT, AGE, (b"vary", b"X-Tenant")) == [AGE, (b"vary", b"X-Tenant")]
    assert told(TENANT, AGE, (b"vary", b"*")) == [AGE, (b"vary", b"*")]


def test_what_nobody_may_store_needs_no_more() -> None:
    assert told(TENANT, (b"cache-control", b"no-store")) == [(b"cache-control", b"no-store")]
    assert NOTHING.told([AGE]) == [AGE]


def test_fields_that_a_stored_response_varies_on_are_told_by_the_fields_they_are_of() -> None:
    selecting = ("cookie:sid", ":host", ":scheme", "x-b")
    assert told(FOLLOWING, AGE, selecting=selecting) == [
        (b"cache-control", b"private, max-age=5"),
        (b"vary", b"cookie, x-b"),
    ]


def test_an_upstream_that_varies_on_an_identity_says_itself_whether_that_is_private() -> None:
    public = (b"cache-control", b"public, max-age=5")
    own = (b"vary", b"Authorization")
    assert told(FOLLOWING, public, own, selecting=("authorization",)) == [public, own]
    assert told(TENANT, AGE, own, selecting=("authorization",))[0] == (b"cache-control", b"private, max-age=5")
    assert told(TENANT, AGE, own)[0] == AGE


def test_what_passed_by_the_cache_is_private_where_the_route_decides_the_life() -> None:
    said = Downstream.of(Keying(vary=("x-tenant",)), made=False).told([AGE], passed=True)
    assert said[0] == (b"cache-control", b"private, max-age=5")
    assert Downstream.of(Keying(vary=None), made=False).told([AGE], passed=True) == [AGE]


def test_of_a_joined_answer_its_own_vary_counts_as_it_is_that_of_its_parts() -> None:
    whole = [AGE, (b"vary", b"authorization")]
    assert told(TENANT, *whole, made=True)[0] == (b"cache-control", b"private, max-age=5")
    assert told(TENANT, AGE, (b"vary", b"accept"), made=True)[0] == AGE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [(b"cache-control", b"private")]),
        ([AGE], [(b"cache-control", b"private, max-age=5")]),
        ([(b"cache-control", b"public, max-age=5")], [(b"cache-control", b"private, max-age=5")]),
        ([(b"cache-control", b'private="set-cookie", max-age=5')], [(b"cache-control", b"private, max-age=5")]),
        ([(b"cache-control", b"public"), AGE], [(b"cache-control", b"private, max-age=5")]),
        ([AGE, (b"cdn-cache-control", b"max-age=9"), TYPE], [(b"cache-control", b"private, max-age=5"), TYPE]),
        ([(b"x-accel-expires", b"9"), AGE, (b"surrogate-control", b"a")], [(b"cache-control", b"private, max-age=5")]),
    ],
)  # fmt: skip
def test_private_answers_say_so_to_every_kind_of_cache(before: Fields, after: Fields) -> None:
    assert with_private(before) == after


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
