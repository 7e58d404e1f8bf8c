"""Answers for one user: what an upstream calls private is stored where the key holds who asks, and is given to nobody
else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import gateway

ONE, TWO = {"authorization": "Bearer 1"}, {"authorization": "Bearer 2"}
SID, OTHER_SID = {"cookie": "sid=1; x=1"}, {"cookie": "sid=2; x=1"}
API_KEY, OTHER_KEY = {"x-api-key": "1"}, {"x-api-key": "2"}

ROUTES: dict[str, Any] = {
    "authorization": {"path": "/authorization", "upstream": "api", "ttl": "60s", "authorization": "key"},
    "cookies": {"path": "/cookies", "upstream": "api", "ttl": "60s", "cookies": ["sid"]},
    "header": {"path": "/header", "upstream": "api", "ttl": "60s", "vary": ["x-api-key"]},
    "follows": {"path": "/follows", "upstream": "api", "authorization": "key", "cookies": ["sid"]},
    "varies": {"path": "/varies", "upstream": "api", "authorization": "key"},
    "plain": {"path": "/plain", "upstream": "api", "ttl": "60s"},
    "origin": {"path": "/origin", "upstream": "api"},
}


class Personal(StubUpstream):
    """Answers with what it was told of who asks."""

    def __init__(self, **headers: str) -> None:
        self.headers = {"cache-control": "private, max-age=60", **headers}
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        who = [request.headers.get(name, "-") for name in ("authorization", "cookie", "x-api-key")]
        return httpx.Response(200, json=who, headers=self.headers)


@pytest.mark.parametrize(
    ("path", "one", "two"),
    [
        ("/authorization", ONE, TWO),
        ("/cookies", SID, OTHER_SID),
        ("/header", API_KEY, OTHER_KEY),
        ("/follows", ONE, TWO),
        ("/follows", SID, OTHER_SID),
        ("/follows", {**ONE, **SID}, {**ONE, **OTHER_SID}),
        ("/authorization", ONE, {}),
    ],
)
async def test_a_private_answer_is_stored_for_its_user_alone(
    path: str, one: dict[str, str], two: dict[str, str], clock: TurnedClock
) -> None:
    upstream = Personal()
    async with running(gateway(upstream, ROUTES, clock=clock)) as client:
        answers = [await client.get(path, headers=fields) for fields in (one, two, one)]
        assert answers[0].text == answers[2].text != answers[1].text
        assert answers[2].headers["cache-status"].startswith("gateway; hit")
        assert upstream.asked == 2
        assert all("private" in answer.headers["cache-control"] for answer in answers)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        pytest.param("/authorization", {}, id="nobody is named"),
        pytest.param("/cookies", {"cookie": "x=1"}, id="no cookie that counts"),
        pytest.param("/plain", {}, id="nothing in the key"),
        pytest.param("/plain", API_KEY, id="a key that does not reach the upstream"),
        pytest.param("/origin", ONE, id="authorization that no key holds"),
        pytest.param("/follows", {**ONE, **API_KEY}, id="one more identity that no key holds"),
        pytest.param("/varies", API_KEY, id="an identity that nothing names"),
    ],
)
async def test_a_private_answer_is_not_stored_where_the_key_does_not_hold_all_that_says_who_asks(
    path: str, fields: dict[str, str]
) -> None:
    upstream = Personal()
    async with running(gateway(upstream, ROUTES)) as client:
        for _ in range(3):
            await client.get(path, headers=fields)
    assert upstream.asked == 3


async def test_a_private_answer_that_varies_on_the_identity_is_stored_for_it() -> None:
    upstream = Personal(vary="X-API-Key")
    async with running(gateway(upstream, ROUTES)) as client:
        texts = [(await client.get("/varies", headers=fields)).text for fields in (API_KEY, OTHER_KEY, API_KEY)]
    assert texts[0] == texts[2] != texts[1]
    assert upstream.asked == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": "private, no-store"},
        {"cache-control": "no-store"},
        {"cache-control": "private, max-age=60", "set-cookie": "a=1"},
        {"cache-control": "private, max-age=60", "vary": "*"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/authorization", "/follows"])
async def test_what_may_not_be_stored_for_its_user_either_is_not(path: str, headers: dict[str, str]) -> None:
    upstream = Personal(**headers)
    async with running(gateway(upstream, ROUTES)) as client:
        answers = [await client.get(path, headers=ONE) for _ in range(3)]
    assert upstream.asked == 3
    assert [answer.headers.get("set-cookie") for answer in answers] == [headers.get("set-cookie")] * 3


async def test_fields_that_an_answer_calls_private_are_not_stored_even_for_their_user() -> None:
    upstream = Personal(**{"cache-control": 'private="x-secret", max-age=60', "x-secret": "1"})
    async with running(gateway(upstream, ROUTES)) as client:
        first, second = [await client.get("/authorization", headers=ONE) for _ in range(2)]
    assert second.headers["cache-status"].startswith("gateway; hit")
    assert "x-secret" not in second.headers
    assert first.text == second.text


async def test_with_authorization_in_the_key_an_answer_need_not_say_that_it_is_public() -> None:
    """RFC 9111 §3.5 forbids to give one user's answer to another; the key tells them apart."""
    upstream = Personal(**{"cache-control": "max-age=60"})
    async with running(gateway(upstream, ROUTES)) as client:
        texts = [(await client.get("/follows", headers=fields)).text for fields in (ONE, TWO, ONE, TWO)]
        await client.get("/origin", headers=ONE)
        await client.get("/origin", headers=ONE)
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]
    assert upstream.asked == 2 + 2


async def test_a_part_that_is_private_is_stored_for_its_user_and_its_whole_says_so() -> None:
    upstream = Personal()
    part = {"upstream": "api", "path": "/mine", "ttl": "60s", "authorization": "key"}
    parts = {"mine": part, "all": {**part, "path": "/all", "authorization": "ignore"}}
    async with running(gateway(upstream, {"whole": {"path": "/whole", "parts": parts}})) as client:
        answers = [await client.get("/whole", headers=fields) for fields in (ONE, TWO, ONE)]
    mine = [answer.json()["mine"][0] for answer in answers]
    assert mine == ["Bearer 1", "Bearer 2", "Bearer 1"]
    paths = [request.url.path for request in upstream.requests]
    assert paths.count("/mine") == 2
    assert paths.count("/all") == 3
    told = [answer.headers["cache-control"] for answer in answers]
    assert all("private" in each or "no-store" in each for each in told), told


async def test_the_edge_answers_each_user_with_its_own() -> None:
    upstream = Personal()
    app = gateway(upstream, ROUTES, clock=TurnedClock())
    async with running(app):
        counted = Counted(app)
        line = Line(counted)

        async def ask(user: int) -> bytes:
            head = f"GET /follows HTTP/1.1\r\nHost: g.test\r\nAuthorization: Bearer {user}\r\n\r\n"
            return await asked(line, head.encode())

        for _ in range(3):
            for user in (1, 2):
                assert f'"Bearer {user}"'.encode() in await ask(user)
        before = counted.asked
        assert b'"Bearer 1"' in await ask(1)
        assert (counted.asked, upstream.asked) == (before, 2)
