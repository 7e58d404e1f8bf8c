"""What one client's failure is to the others: nothing, unless it says something of the upstream."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from gateway.http.headers import http_date
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support import waiting_routes
from tests.support.gateways import gateway, json_answer
from tests.support.waiting import Held, crowd, waiting

FOLLOWING = {"all": {"path": "/{path:path}", "upstream": "api"}}
N = 8


def stored(clock: TurnedClock, **route: Any) -> tuple[StubUpstream, Any]:
    upstream = StubUpstream(json_answer(cache_control="public, max-age=30"))
    return upstream, gateway(upstream, {"all": {**FOLLOWING["all"], **route}}, clock=clock)


def limited(status: int = 429, **fields: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return lambda request: httpx.Response(status, text="slow down", headers=headers)


# --- who gets a failure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("fields", "asked_with", "route"),
    [
        ({"set_cookie": "session=1"}, {}, {"ttl": "30s"}),
        ({"cache_control": "private"}, {}, {"ttl": "30s"}),
        ({"cache_control": "no-store"}, {}, {"ttl": "30s"}),
        ({}, {"authorization": "Bearer 1"}, {"ttl": "30s", "authorization": "key"}),
        ({}, {"cookie": "sid=1"}, {"ttl": "30s", "cookies": ["sid"]}),
        ({}, {"authorization": "Bearer 1"}, {}),
        ({}, {"x-api-key": str}, {}),
    ],
    ids=str,
)
async def test_a_personal_failure_answers_its_own_request_alone(
    status: int, fields: dict[str, str], asked_with: dict[str, Any], route: dict[str, Any], clock: TurnedClock
) -> None:
    upstream = Held()
    app = gateway(upstream, {"all": {**FOLLOWING["all"], **route}}, clock=clock)
    async with running(app) as client:
        asked = crowd(client, N, **asked_with)
        await upstream.have(1)
        await waiting(app, N)
        upstream.answer(0, status, b"0", **fields)
        await upstream.have(N)
        for index in range(1, N):
            upstream.answer(index, status, b"%d" % index, **fields)
        texts = [response.text for response in await asyncio.gather(*asked)]
        assert sorted(texts) == [f"{one}" for one in range(N)]
        if not callable(asked_with.get("x-api-key")):
            again = crowd(client, N, **asked_with)
            await upstream.have(2 * N)  # and the next ones do not queue
            upstream.answer_all(status, b"")
            await asyncio.gather(*again)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_of_nobody_is_shared_with_its_retry_after(status: int, clock: TurnedClock) -> None:
    upstream = Held()
    app = gateway(upstream, FOLLOWING, clock=clock)
    async with running(app) as client:
        asked = crowd(client, N)
        await upstream.have(1)
        await waiting(app, N)
        upstream.answer(0, status, b"sorry", retry_after="7")
        got = {(r.status_code, r.text, r.headers["retry-after"]) for r in await asyncio.gather(*asked)}
    assert (got, len(upstream.requests)) == ({(status, "sorry", "7")}, 1)


async def test_a_personal_failure_is_shared_with_nobody_where_a_stale_copy_exists(clock: TurnedClock) -> None:
    upstream = Held()
    app = gateway(upstream, {"all": {**FOLLOWING["all"], "ttl": "30s"}}, clock=clock)
    async with running(app) as client:
        first = crowd(client, 1)
        await upstream.have(1)
        upstream.answer(0, body=b"good")
        await asyncio.gather(*first)
        clock.turn(31)
        leads = crowd(client, 1)
        await upstream.have(2)
        waits = crowd(client, 2)
        wants_new = crowd(client, 2, **{"cache-control": "no-cache"})
        await waiting(app, 5)
        upstream.answer(1, 503, b"personal", set_cookie="session=1")
        await upstream.have(4)
        upstream.answer(2, 503, b"own", set_cookie="session=2")
        upstream.answer(3, 503, b"own", set_cookie="session=3")
        texts = [response.text for response in await asyncio.gather(*leads, *waits, *wants_new)]
    assert texts == ["good", "good", "good", "own", "own"]


# --- who is left alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_one_users_refusal_takes_no_answer_from_others(status: int, clock: TurnedClock) -> None:
    upstream, app = stored(clock)
    answered = upstream.answer

    def by_user(request: httpx.Request) -> httpx.Response:
        bad = request.headers.get("authorization") == "Bearer bad"
        return limited(status, retry_after="30")(request) if bad else answered(request)

    async with running(app) as client:
        upstream.answer = by_user
        assert (await client.get("/a", headers={"authorization": "Bearer good"})).json() == {"n": 1}
        clock.turn(31)
        await client.get("/a", headers={"authorization": "Bearer bad"})
        response = await client.get("/a", headers={"authorization": "Bearer good"})
        assert (response.status_code, response.json()) == (200, {"n": 2})


async def test_a_lost_connection_of_one_user_says_something_of_the_upstream(clock: TurnedClock) -> None:
    upstream, app = stored(clock)
    async with running(app) as client:
        await client.get("/a")
        clock.turn(31)
        upstream.answer = _refused
        for user in range(5):
            response = await client.get("/a", headers={"authorization": f"Bearer {user}"})
            assert response.json() == {"n": 1}
    assert upstream.asked == 2


def _refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_upstream_that_says_when_is_left_alone_until_then(status: int, form: str, clock: TurnedClock) -> None:
    upstream, app = stored(clock, ttl="30s")
    async with running(app) as client:
        await client.get("/a")
        clock.turn(31)
        after = "40" if form == "seconds" else http_date(clock.now() + 40).decode()
        upstream.answer = limited(status, retry_after=after)
        for _ in range(10):
            assert (await client.get("/a")).json() == {"n": 1}
            clock.turn(3)
        assert upstream.asked == 2
        clock.turn(11)
        await client.get("/a")
    assert upstream.asked == 3


@pytest.mark.parametrize("after", ["999999999999", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_an_upstream_is_left_alone_for_ten_minutes_at_most(after: str, clock: TurnedClock) -> None:
    upstream, app = stored(clock, ttl="30s", stale_if_error="1h")
    async with running(app) as client:
        await client.get("/a")
        clock.turn(31)
        upstream.answer = limited(retry_after=after)
        await client.get("/a")
        clock.turn(599)
        await client.get("/a")
        assert upstream.asked == 2
        clock.turn(2)
        await client.get("/a")
    assert upstream.asked == 3


@pytest.mark.parametrize("after", ["0", "-5", "soon", "1.5", "Thu, 01 Jan 1970 00:00:00 GMT", ""])
async def test_what_says_no_time_rests_for_retry_after(after: str, clock: TurnedClock) -> None:
    upstream, app = stored(clock, ttl="30s")
    async with running(app) as client:
        await client.get("/a")
        clock.turn(31)
        upstream.answer = limited(retry_after=after)
        for _ in range(2):
            assert (await client.get("/a")).status_code == 200
        assert upstream.asked == 2
        clock.turn(1.1)
        await client.get("/a")
    assert upstream.asked == 3


async def test_a_429_is_given_where_nothing_stale_may_be(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=30, must-revalidate"))
    async with running(gateway(upstream, FOLLOWING, clock=clock)) as client:
        await client.get("/a")
        clock.turn(31)
        upstream.answer = limited(retry_after="30", cache_control="max-age=60")
        for _ in range(2):
            response = await client.get("/a")
            assert (response.status_code, response.headers["retry-after"]) == (429, "30")
    assert upstream.asked == 3


async def test_a_429_of_a_handler_is_its_answer(clock: TurnedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    app = gateway(None, {}, clock=clock, include=["tests.support.waiting_routes:router"])
    async with running(app) as client:
        assert (await client.get("/limited")).json() == {"is": "good"}
        clock.turn(31)
        monkeypatch.setattr(waiting_routes, "limited", True)
        response = await client.get("/limited")
        assert (response.status_code, response.headers["retry-after"]) == (429, "30")
        monkeypatch.setattr(waiting_routes, "limited", False)
        assert (await client.get("/limited")).json() == {"is": "good"}
