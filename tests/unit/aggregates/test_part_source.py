"""One client's failure of a part is not another's; what the client sent is its own fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.aggregates.part_source import Wanting
from gateway.config.part_values import Values
from gateway.context import RequestContext
from gateway.edge.entries import HeaderBlock
from gateway.policy.keys import plan
from gateway.policy.rules import PLAIN
from gateway.testing import TurnedClock, running
from tests.support.shop import Shop, home, part, said


class Judging(Shop):
    """Answers `/cart` by what `judge` says of the credentials that it was sent: a status."""

    def __init__(self, judge: Callable[[str], int]) -> None:
        super().__init__()
        self.judge = judge
        self.fresh = "max-age=0"
        self.vary = ""
        self.answers = _Judged(self)

    def judged(self) -> Any:
        request = self.requests[-1]
        names = ("authorization", "cookie", "x-api-key", "x-tenant")
        sent = " ".join(request.headers[name] for name in names if name in request.headers)
        status = self.judge(sent)
        fresh = {"cache-control": self.fresh if status == 200 else "no-store", "vary": self.vary}
        return httpx.Response(status, json=sent, headers={name: value for name, value in fresh.items() if value})


class _Judged(dict[str, Any]):
    def __init__(self, shop: Judging) -> None:
        self._shop = shop

    def get(self, path: str, default: Any = None) -> Any:
        return self._shop.judged()


def of_bad(status: int) -> Judging:
    return Judging(lambda sent: status if "bad" in sent else 200)


AUTHORIZATION = {"authorization": "Bearer {}"}
KINDS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("passed", {"authorization": "pass"}, AUTHORIZATION),
    ("part of the key", {"authorization": "key"}, AUTHORIZATION),
    ("passed, the upstream deciding", {"authorization": "pass", "ttl": "origin", "vary": None}, AUTHORIZATION),
    ("cookies passed", {"cookies": "pass"}, {"cookie": "sid={}"}),
    ("a cookie in the key", {"cookies": ["sid"]}, {"cookie": "sid={}"}),
    ("an API key, the upstream deciding", {"ttl": "origin", "vary": None}, {"x-api-key": "{}"}),
    ("a header of the key", {"vary": ["x-tenant"]}, {"x-tenant": "{}"}),
    ("a header from a template", {"headers": {"x-tenant": "{header.x-tenant}"}}, {"x-tenant": "{}"}),
    ("sent by POST", {"method": "POST", "authorization": "pass"}, AUTHORIZATION),
]
_IDS = [kind[0] for kind in KINDS]


def cart(settings: dict[str, Any]) -> dict[str, Any]:
    given = part("/cart", **settings)
    return {"cart": {name: value for name, value in given.items() if value is not None}}


def sent_by(who: str, fields: dict[str, str]) -> dict[str, str]:
    return {name: value.format(who) for name, value in fields.items()}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize(("settings", "fields"), [kind[1:] for kind in KINDS], ids=_IDS)
async def test_a_failure_of_one_clients_credentials_is_nobody_elses(
    settings: dict[str, Any], fields: dict[str, str], status: int, clock: TurnedClock
) -> None:
    async with running(home(of_bad(status), cart(settings), clock)) as client:
        for _ in range(3):
            assert (await client.get("/home/1", headers=sent_by("bad", fields))).status_code != 200
            response = await client.get("/home/1", headers=sent_by("good", fields))
            assert (response.status_code, "good" in response.json()["cart"]) == (200, True)
            clock.turn(0.3)


@pytest.mark.parametrize(("settings", "fields"), [kind[1:] for kind in KINDS], ids=_IDS)
async def test_a_client_whose_credentials_are_mended_is_answered_at_once(
    settings: dict[str, Any], fields: dict[str, str], clock: TurnedClock
) -> None:
    statuses = [401, 200]
    shop = Judging(lambda sent: statuses.pop(0))
    async with running(home(shop, cart(settings), clock)) as client:
        assert (await client.get("/home/1", headers=sent_by("me", fields))).status_code == 502
        assert (await client.get("/home/1", headers=sent_by("me", fields))).status_code == 200


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(("settings", "fields"), [kind[1:] for kind in KINDS], ids=_IDS)
async def test_an_upstream_that_fails_is_left_alone_by_whom_it_failed(
    settings: dict[str, Any], fields: dict[str, str], status: int, clock: TurnedClock
) -> None:
    shop = of_bad(status)
    app = home(shop, cart(settings), clock)
    async with running(app) as client:
        for _ in range(5):
            await client.get("/home/1", headers=sent_by("bad", fields))
        assert len(shop.asked) == 1
        clock.turn(1.1)
        await client.get("/home/1", headers=sent_by("bad", fields))
    assert len(shop.asked) == 2
    (source,) = app.aggregates[0].kit.sources.values()
    assert not any("Bearer" in key for key in source.back_off.failures) or settings.get("authorization") == "key"


@pytest.mark.parametrize(("settings", "fields"), [kind[1:] for kind in KINDS], ids=_IDS)
async def test_a_connection_that_fails_is_left_alone_by_all_for_whom_the_key_is_the_same(
    settings: dict[str, Any], fields: dict[str, str], clock: TurnedClock
) -> None:
    shop = Shop()
    shop.set("/cart", httpx.ConnectError("refused"))
    app = home(shop, cart({**settings, "optional": True}), clock)
    async with running(app) as client:
        for who in ("one", "two", "one"):
            assert said(await client.get("/home/1", headers=sent_by(who, fields))) == {"cart": "unreachable"}
        keyed = settings.get("authorization") == "key" or settings.get("cookies") == ["sid"] or "x-tenant" in fields
        assert len(shop.asked) == (2 if keyed else 1)
        shop.set("/cart", b"1")
        clock.turn(1.1)
        assert said(await client.get("/home/1", headers=sent_by("two", fields)))["cart"] in ("miss", "bypass")


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_who_waits_for_a_whole_does_not_get_the_failure_of_another_clients_credentials(
    status: int, clock: TurnedClock
) -> None:
    shop = of_bad(status)
    shop.gates["/cart"] = asyncio.Event()
    parts = cart({"ttl": "origin", "vary": None})
    async with running(home(shop, parts, clock)) as client:
        asked = [
            asyncio.ensure_future(client.get("/home/1", headers={"x-api-key": key})) for key in ("bad", "good", "good")
        ]
        while not shop.asked:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        shop.gates["/cart"].set()
        answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [502, 200, 200]


async def test_a_client_whose_upstream_answers_again_is_no_longer_kept_from_it(clock: TurnedClock) -> None:
    statuses = [500, 401, 200]
    shop = Judging(lambda sent: statuses.pop(0))
    async with running(home(shop, cart({"optional": True}), clock)) as client:
        assert said(await client.get("/home/1")) == {"cart": "status-500"}
        clock.turn(1.1)
        assert said(await client.get("/home/1")) == {"cart": "status-401"}
        assert said(await client.get("/home/1")) == {"cart": "miss"}


async def test_a_post_is_sent_the_credentials_that_it_passes(clock: TurnedClock) -> None:
    shop = of_bad(401)
    parts = cart({"method": "POST", "authorization": "pass", "cookies": "pass", "body": {"a": 1}})
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/1", headers={"authorization": "Bearer x", "cookie": "a=1"})
    assert response.json()["cart"] == "Bearer x a=1"
    assert (shop.requests[0].content, shop.requests[0].headers["content-length"]) == (b'{"a":1}', "7")


@pytest.mark.parametrize("status", [400, 401, 403, 410, 500, 503, 429])
@pytest.mark.parametrize(("settings", "fields"), [kind[1:] for kind in KINDS[:-1]], ids=_IDS[:-1])
async def test_a_stale_copy_stands_in_for_a_failure_alone_and_for_whom_it_was_alone(
    settings: dict[str, Any], fields: dict[str, str], status: int, clock: TurnedClock
) -> None:
    statuses = [200, 200, status]
    shop = Judging(lambda sent: statuses[0])
    shop.fresh = "max-age=1, stale-if-error=600"
    shop.vary = "x-api-key" if settings.get("ttl") == "origin" else ""
    parts = cart(
        {"stale_if_error": "10m", "optional": True, **settings, **({"ttl": "1s"} if "ttl" not in settings else {})}
    )
    async with running(home(shop, parts, clock)) as client:
        anonymous = await client.get("/home/1")
        mine = await client.get("/home/1", headers=sent_by("me", fields))
        assert (anonymous.json()["cart"], "me" in mine.json()["cart"]) == ("", True)
        clock.turn(5)
        statuses[0] = status
        response = await client.get("/home/1", headers=sent_by("me", fields))
    assert response.json()["cart"] in (None, mine.json()["cart"])
    assert (response.json()["cart"] is None) or status in (429, 500, 503)


# --- what the client sent ------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"path": "/a/{query.x}"}, "/home/1?x=.."),
    ({"path": "/a/{query.x}"}, "/home/1?x=a%2Fb"),
    ({"path": "/a/{query.x}"}, "/home/1?x=%09"),
    ({"path": "/a/.{query.x}"}, "/home/1?x=."),
    ({"path": "/a?y={query.x}"}, f"/home/1?x={'%C3%BC' * 1000}&x={'%C3%BC' * 1000}"),
    ({"path": "/a", "headers": {"x-x": "{query.x}"}}, "/home/1?x=a%0Ab"),
    ({"path": "/a/{query.x}", "for_each": "list[*]", "headers": {"i": "{item}"}}, "/home/1?x=.."),
]


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize(("settings", "target"), REFUSED)
async def test_a_value_of_the_client_that_a_required_part_can_not_take_is_a_400(
    settings: dict[str, Any], target: str, others: bool, clock: TurnedClock
) -> None:
    if "for_each" in settings:
        settings = settings | {"path": settings["path"] + "/{item}"}
    shop = Shop()
    shop.set("/list", [1])
    shop.set("/other", 1)
    parts = {"a": part(**settings), "list": part("/list"), **({"other": part("/other")} if others else {})}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get(target)
        assert response.status_code == 400, response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"].startswith("The part a: ")
        bypassing = await client.get(target, headers={"cache-control": "no-store"})
        assert bypassing.status_code == 400
    assert not [path for path in shop.asked if path.startswith("/a")]


async def test_a_value_of_a_part_that_another_can_not_take_is_a_502(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/a", {"id": ".."})
    async with running(home(shop, {"a": part("/a"), "b": part("/b/{query.x}/{a.id}")}, clock)) as client:
        assert (await client.get("/home/1?x=1")).status_code == 502
        assert (await client.get("/home/1?x=..")).status_code == 400


async def test_an_optional_part_that_can_not_take_a_clients_value_is_null(clock: TurnedClock) -> None:
    parts = {"a": part("/a/{query.x}", optional=True), "b": {"static": 1}}
    async with running(home(Shop(), parts, clock, errors=True)) as client:
        response = await client.get("/home/1?x=..")
    assert (response.status_code, response.json()["a"], said(response)["a"]) == (200, None, "refused")
    assert response.json()["_errors"]["a"]["status"] == 400


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (404, "absent"),
        (410, "absent"),
        (302, "status-302"),
        (500, "status-500"),
        (b'"' + b"x" * 3000 + b'"', "too-large"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_a_part_comes_to_is_the_same_by_get_and_post(
    answer: Any, text: str, method: str, clock: TurnedClock
) -> None:
    shop = Shop()
    shop.set("/a", answer)
    parts = {"a": part("/a", method=method, optional=True)}
    async with running(home(shop, parts, clock, max_body="2KiB")) as client:
        response = await client.get("/home/1")
    assert (said(response)["a"], response.headers["gateway-complete"]) == (text, "?1" if text == "absent" else "?0")


SEEN: list[list[tuple[bytes, bytes]]] = [
    [],
    [(b"accept", b"text/html"), (b"accept-encoding", b"gzip"), (b"if-none-match", b'"a"'), (b"range", b"bytes=0-")],
    [(b"authorization", b"Bearer a"), (b"cookie", b"sid=1; x=2")],
    [(b"x-api-key", b"k"), (b"if-match", b"*"), (b"content-type", b"a/b"), (b"x-forwarded-host", b"evil")],
]
KEYED: list[dict[str, Any]] = [
    *(
        {"vary": ["accept", "accept-encoding"]},
        {"vary": ["x-tenant", "x-api-key"]},
        {"ttl": "origin", "vary": None},
    ),
    *({"authorization": "pass"}, {"authorization": "key"}, {"cookies": ["sid"]}, {"cookies": "pass"}),
    {"headers": {"x-own": "{user}"}},
]


@pytest.mark.parametrize("fields", SEEN)
@pytest.mark.parametrize("settings", KEYED)
def test_a_part_is_planned_by_a_header_block_as_by_the_fields(
    settings: dict[str, Any], fields: list[tuple[bytes, bytes]]
) -> None:
    given = {name: value for name, value in part("/p", **settings).items() if value is not None}
    (source,) = home(Shop(), {"p": given}).aggregates[0].kit.sources.values()
    block, values = HeaderBlock(fields), Values({"user": "7"}, (), {})
    for request_id in (b"1", b"2"):
        headers = [*fields, (b"x-request-id", request_id)]
        exchange = RequestContext("", 0.0, "GET", "", "", headers=headers)
        direct, by_block = (
            source.ask(Wanting.of(exchange, PLAIN, values, 0.0, (), known), "/p", ()) for known in (None, block)
        )
        assert by_block.plan == direct.plan
        assert sorted(by_block.headers) == sorted(direct.headers)
        assert by_block.plan == plan(source.route.keying, "shop", "/p", direct.headers) or "headers" in settings
