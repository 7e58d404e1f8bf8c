"""Limits of routes through the whole app: in which order they are asked, who is counted, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import http_sf
import httpx
import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.config.rate_limits import RateLimitConfig
from gateway.identity.principal import Principal
from gateway.limits.limiter import Limiter
from gateway.limits.route_limits import Limit, RouteLimits, network_of
from gateway.observability.access_log import silent
from gateway.policy.identity_key import UNKEYED
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import served
from tests.support.tokens import ISSUER, TestIssuer, unsigned

issuer = TestIssuer()
SHOP = {"issuer": ISSUER, "jwks": f"{ISSUER}/keys", "audience": ["shop-api"]}
LIMITS: dict[str, Any] = {
    "all": {"by": "client", "rate": "3/m"},
    "misses": {"by": "client", "rate": "2/m", "counts": "misses"},
    "user": {"by": "sub", "rate": "2/m", "plans": {"claim": "plan", "gold": "4/m"}},
    "bad": {"by": "client", "rate": "2/m", "counts": "refused"},
}


def answer(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/keys":
        return httpx.Response(200, content=issuer.jwks)
    if request.url.path.startswith("/down"):
        return httpx.Response(500)
    return httpx.Response(200, json={"path": request.url.path}, headers={"cache-control": "max-age=60"})


class Stand:
    def __init__(self, clock: TurnedClock, route: dict[str, Any], **settings: Any) -> None:
        self.upstream = StubUpstream(answer)
        self.clock = clock
        routes = {"home": {"path": "/{path:path}", "upstream": "shop", "ttl": "30s", "methods": "any", **route}}
        config = {
            "redis_url": "none",
            "upstreams": {"shop": {"url": "http://shop.example.com"}},
            "identity": {"shop": SHOP},
            "rate_limits": LIMITS,
            "routes": routes,
            **settings,
        }
        self.app: Gateway = create_app(config, transport=self.upstream, clock=clock, log=silent)

    @property
    def asked(self) -> int:
        return len([request for request in self.upstream.requests if request.url.path != "/keys"])

    async def get(
        self, path: str = "/a", client: str = "192.0.2.1", method: str = "GET", **headers: str
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return await http.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def by(self, token: bytes, path: str = "/a", **more: str) -> httpx.Response:
        return await self.get(path, authorization=f"Bearer {token.decode()}", **more)


@pytest.fixture
async def stand(clock: TurnedClock) -> AsyncIterator[Any]:
    contexts: list[Any] = []

    async def made(limits: list[str] | None = None, settings: dict[str, Any] | None = None, **route: Any) -> Stand:
        found = Stand(clock, {**({"rate_limits": limits} if limits else {}), **route}, **(settings or {}))
        contexts.append(running(found.app))
        await contexts[-1].__aenter__()
        return found

    yield made
    for context in contexts:
        await context.__aexit__(None, None, None)


async def test_a_limit_of_all_requests_counts_hits_too(stand: Any) -> None:
    shop = await stand(["all"])
    assert [(await shop.get()).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert shop.asked == 1


async def test_a_limit_of_misses_counts_what_the_cache_can_not_answer(stand: Any) -> None:
    shop = await stand(["misses"])
    assert [(await shop.get("/a")).status_code for _ in range(5)] == [200] * 5
    assert (await shop.get("/b")).status_code == 200
    assert (await shop.get("/c")).status_code == 429
    assert (await shop.get("/a")).status_code == 200
    assert shop.asked == 2


async def test_a_refused_miss_is_answered_by_a_stale_response_where_one_may_be_used(stand: Any) -> None:
    shop = await stand(["misses"], stale_if_error="10m")
    await shop.get("/a")
    await shop.get("/b")
    shop.clock.turn(31.0)
    await shop.get("/c")
    stale = await shop.get("/a")
    assert (stale.status_code, shop.asked) == (200, 3)
    assert "fwd=stale" in stale.headers["cache-status"]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_method_that_bypasses_the_cache_is_a_miss(stand: Any, method: str) -> None:
    shop = await stand(["misses"])
    assert [(await shop.get(method=method)).status_code for _ in range(3)] == [200, 200, 429]
    assert shop.asked == 2


async def test_a_request_with_an_unkeyed_cookie_is_a_miss(stand: Any) -> None:
    shop = await stand(["misses"])
    assert [(await shop.get(cookie="a=1")).status_code for _ in range(3)] == [200, 200, 429]


async def test_requests_that_one_fetch_serves_count_once(stand: Any) -> None:
    shop = await stand(["misses"])
    shop.upstream.gate.clear()
    waiting = [asyncio.ensure_future(shop.get("/a")) for _ in range(10)]
    await shop.upstream.came.acquire()
    shop.upstream.gate.set()
    assert [each.status_code for each in await asyncio.gather(*waiting)] == [200] * 10
    assert (await shop.get("/b")).status_code == 200
    assert (await shop.get("/c")).status_code == 429


async def test_a_429_names_the_limit_and_when_the_next_request_passes(stand: Any) -> None:
    shop = await stand(["all"])
    for _ in range(3):
        await shop.get()
    refused = await shop.get()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["cache-control"] == "no-store"
    body = refused.json()
    assert body["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert (body["status"], body["violated-policies"]) == (429, ["all"])
    assert refused.headers["retry-after"] == "21"
    assert http_sf.parse(refused.headers["ratelimit-policy"].encode(), tltype="list") == [("all", {"q": 3, "w": 60})]
    assert http_sf.parse(refused.headers["ratelimit"].encode(), tltype="list") == [("all", {"r": 0, "t": 20})]
    shop.clock.turn(21.0)
    assert (await shop.get()).status_code == 200


async def test_a_head_gets_the_429_without_its_body(stand: Any) -> None:
    shop = await stand(["all"])
    answers = [await shop.get(method="HEAD") for _ in range(4)]
    assert (answers[-1].status_code, answers[-1].content) == (429, b"")


async def test_counted_answers_announce_the_limits_unless_they_are_hits(stand: Any) -> None:
    shop = await stand(["all", "misses"])
    miss, hit = await shop.get(), await shop.get()
    policies = http_sf.parse(miss.headers["ratelimit-policy"].encode(), tltype="list")
    assert policies == [("all", {"q": 3, "w": 60}), ("misses", {"q": 2, "w": 60})]
    assert http_sf.parse(miss.headers["ratelimit"].encode(), tltype="list") == [
        ("all", {"r": 2, "t": 20}),
        ("misses", {"r": 1, "t": 30}),
    ]
    assert "ratelimit" not in hit.headers
    assert "ratelimit-policy" not in hit.headers


async def test_a_page_of_another_origin_may_read_the_429(stand: Any) -> None:
    shop = await stand(["all"], {"cors": {"allow_origins": ["https://app.example.com"]}})
    for _ in range(3):
        await shop.get()
    refused = await shop.get(origin="https://app.example.com")
    assert refused.status_code == 429
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"


async def test_preflights_purges_and_health_are_outside(stand: Any) -> None:
    shop = await stand(["all"], {"cors": {"allow_origins": ["https://a.test"]}}, purge_from=["192.0.2.1"])
    asks = {"origin": "https://a.test", "access_control_request_method": "GET"}
    for _ in range(5):
        assert (await shop.get(method="OPTIONS", **asks)).status_code == 200
        assert (await shop.get(method="PURGE")).status_code == 200
        assert (await shop.get("/healthz")).status_code == 200
    assert [(await shop.get()).status_code for _ in range(4)] == [200, 200, 200, 429]


async def test_a_preflight_that_the_upstream_answers_is_outside_too(stand: Any) -> None:
    shop = await stand(["all"])
    asks = {"origin": "https://a.test", "access_control_request_method": "GET"}
    assert {(await shop.get(method="OPTIONS", **asks)).status_code for _ in range(5)} == {200}
    assert (await shop.get()).status_code == 200


async def test_each_client_has_a_limit_of_its_own_and_an_ipv6_subscriber_one(stand: Any) -> None:
    shop = await stand(["all"])
    for _ in range(3):
        await shop.get(client="2001:db8::1")
    assert (await shop.get(client="2001:db8::ffff")).status_code == 429
    assert (await shop.get(client="2001:db8:0:1::1")).status_code == 200
    assert (await shop.get(client="192.0.2.1")).status_code == 200


async def test_the_client_is_whom_a_trusted_proxy_names(stand: Any) -> None:
    shop = await stand(["all"], {"trusted_proxies": ["10.0.0.0/8"]})
    statuses = [
        (await shop.get(client="10.0.0.1", x_forwarded_for=f"198.51.100.{number}")).status_code for number in range(5)
    ]
    assert statuses == [200] * 5
    statuses = [(await shop.get(client="192.0.2.9", x_forwarded_for=f"198.51.100.{n}")).status_code for n in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_routes_that_name_a_limit_share_it(stand: Any) -> None:
    other = {"path": "/other", "upstream": "shop", "ttl": "30s", "rate_limits": ["all"]}
    shop = await stand(None, {"routes": {"one": {**other, "path": "/one"}, "other": other}})
    paths = ("/one", "/other", "/one", "/other")
    assert [(await shop.get(path)).status_code for path in paths] == [200, 200, 200, 429]


async def test_a_user_has_one_limit_with_all_tokens_and_devices_and_a_plan_its_own(stand: Any) -> None:
    shop = await stand(["user"], identity=["shop"], per=["sub"])
    first, second = issuer.sign(jti="1"), issuer.sign(jti="2")
    statuses = [
        (await shop.by(token, client=f"192.0.2.{n}")).status_code for n, token in enumerate((first, second, first))
    ]
    assert statuses == [200, 200, 429]
    assert (await shop.by(issuer.sign(sub="berta"))).status_code == 200
    gold = issuer.sign(sub="carla", plan="gold")
    assert [(await shop.by(gold)).status_code for _ in range(5)] == [200] * 4 + [429]


async def test_who_is_not_known_is_counted_by_address(stand: Any) -> None:
    shop = await stand(["user"], identity=["shop"], optional=True)
    assert [(await shop.get()).status_code for _ in range(3)] == [200, 200, 429]
    assert (await shop.by(issuer.sign())).status_code == 200
    assert (await shop.by(issuer.sign(sub=None))).status_code == 429
    assert (await shop.by(issuer.sign(sub=None), client="192.0.2.77")).status_code == 200


async def test_refused_credentials_are_limited_before_any_is_verified(stand: Any) -> None:
    shop = await stand(["bad"], identity=["shop"])
    forged = [unsigned({"alg": "RS256", "kid": "rsa"}, issuer.claims(jti=number)) for number in range(6)]
    statuses = [(await shop.by(token)).status_code for token in forged]
    assert statuses[:2] == [401, 401]
    assert statuses[3:] == [429] * 3
    assert (await shop.by(issuer.sign(), client="192.0.2.2")).status_code == 200


async def test_a_valid_credential_of_a_client_that_was_limited_passes_again_and_does_not_count(stand: Any) -> None:
    shop = await stand(["bad"], identity=["shop"])
    for number in range(4):
        await shop.by(unsigned({"alg": "RS256", "kid": "rsa"}, issuer.claims(jti=number)))
    assert (await shop.by(issuer.sign())).status_code == 429
    shop.clock.turn(31.0)
    assert [(await shop.by(issuer.sign())).status_code for _ in range(5)] == [200] * 5


async def test_a_lack_of_keys_is_no_refused_credential(stand: Any) -> None:
    identity = {"shop": {**SHOP, "jwks": f"{ISSUER}/down"}}
    shop = await stand(["bad"], {"identity": identity}, identity=["shop"])
    assert {(await shop.by(issuer.sign(jti=n))).status_code for n in range(4)} == {503}


async def test_an_aggregate_counts_once(stand: Any) -> None:
    parts = {name: {"upstream": "shop", "path": f"/{name}", "ttl": "30s"} for name in ("a", "b", "c")}
    routes = {name: {"path": f"/{name}-home", "parts": parts, "rate_limits": [name]} for name in ("all", "misses")}
    shop = await stand(None, {"routes": routes})
    assert [(await shop.get("/all-home")).status_code for _ in range(4)] == [200, 200, 200, 429]
    for number in range(3):
        shop.clock.turn(31.0 if number else 0.0)
        assert [(await shop.get("/misses-home")).status_code for _ in range(3)] == [200] * 3


async def test_an_aggregate_of_which_a_part_must_be_fetched_is_a_miss(stand: Any) -> None:
    parts = {"a": {"upstream": "shop", "path": "/a", "ttl": "1s"}}
    limits = {"misses": {"by": "client", "rate": "2/h", "counts": "misses"}}
    routes = {"home": {"path": "/home", "parts": parts, "rate_limits": ["misses"]}}
    shop = await stand(None, {"routes": routes, "rate_limits": limits})
    statuses = []
    for _ in range(3):
        statuses.append((await shop.get("/home")).status_code)
        shop.clock.turn(2000.0)
    assert statuses[:2] == [200, 200]
    shop.clock.turn(-3999.0)
    assert shop.asked == 3 or statuses[2] == 429


async def test_a_route_whose_limit_counts_all_is_never_answered_before_the_app(clock: TurnedClock) -> None:
    """On a real connection, with the edge: hits, misses, stale responses and 304s are all counted."""
    upstream = StubUpstream(answer)
    routes = {
        "limited": {"path": "/limited/{id}", "upstream": "shop", "ttl": "30s", "rate_limits": ["all"]},
        "whole": {
            "path": "/whole",
            "parts": {"a": {"upstream": "shop", "path": "/a", "ttl": "30s"}},
            "rate_limits": ["all"],
        },
    }
    config = {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.example.com"}},
        "rate_limits": {"all": {"by": "client", "rate": "12/h"}},
        "routes": routes,
    }
    app = create_app(config, transport=upstream, clock=clock, log=silent)
    async with served(app, http="gateway.edge:GatewayProtocol") as url, httpx.AsyncClient(base_url=url) as client:
        first = await client.get("/limited/1")
        answers = [first]
        for _ in range(3):
            answers.append(await client.get("/limited/1"))
            answers.append(await client.get("/limited/1", headers={"if-none-match": first.headers["etag"]}))
            answers.append(await client.get("/whole"))
        answers += [await client.head("/limited/1"), await client.get("/limited/2")]
        assert [each.status_code for each in answers] == [200, *[200, 304, 200] * 3, 200, 200]
        assert {(await client.get(path)).status_code for path in ("/limited/1", "/limited/3", "/whole")} == {429}


async def test_hits_of_a_route_whose_limit_counts_misses_cost_nothing_at_the_edge(clock: TurnedClock) -> None:
    upstream = StubUpstream(answer)
    routes = {"home": {"path": "/{id}", "upstream": "shop", "ttl": "30s", "rate_limits": ["misses"]}}
    config = {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.example.com"}},
        "rate_limits": LIMITS,
        "routes": routes,
    }
    app = create_app(config, transport=upstream, clock=clock, log=silent)
    async with served(app, http="gateway.edge:GatewayProtocol") as url, httpx.AsyncClient(base_url=url) as client:
        statuses = [(await client.get(path)).status_code for path in ("/a", "/a", "/a", "/b", "/c", "/a", "/b")]
        assert statuses == [200, 200, 200, 200, 429, 200, 200]
        assert (await client.get("/c")).json()["violated-policies"] == ["misses"]


def test_an_address_is_counted_as_ipv4_where_it_is_mapped() -> None:
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1")
    assert network_of("2001:db8::1") == network_of("2001:db8::2") != network_of("2001:db8:0:1::1")
    assert network_of("") == b""
    assert network_of("unix:") == b"unix:"


def test_users_of_two_issuers_and_values_of_two_types_are_counted_apart() -> None:
    limit = Limit.of("user", RateLimitConfig(by="sub", rate="1/s"))
    keys = {
        limit.counted(Principal(provider="a", issuer=who, claims={"sub": value}), "192.0.2.1")[1]
        for who in ("https://a", "https://b")
        for value in ("1", 1, True, "a b")
    }
    assert len(keys) == 8


def test_api_keys_are_counted_by_their_ids_and_tokens_have_none() -> None:
    limit = Limit.of("month", RateLimitConfig(by="key", quota="100000/month"))
    keys = [
        Principal(provider="partner", issuer="keys partner", claims={"sub": "acme", "key": name}) for name in ("1", "2")
    ]
    token = Principal(provider="shop", issuer=ISSUER, claims={"sub": "acme"})
    counted = [limit.counted(each, "192.0.2.1")[1] for each in (*keys, token, None)]
    assert len(set(counted)) == 3
    assert counted[2] == counted[3]


async def test_each_client_of_a_shared_stream_is_a_miss(stand: Any) -> None:
    shop = await stand(["misses"], stream="share", ttl="0s", methods=["GET"])
    assert [(await shop.get()).status_code for _ in range(3)] == [200, 200, 429]


async def test_an_explanation_says_how_full_each_limit_is(stand: Any) -> None:
    shop = await stand(["user", "misses"], identity=["shop"], per=["sub"])
    token = issuer.sign()
    await shop.by(token)
    headers = [(b"authorization", b"Bearer " + token)]
    for _ in range(2):
        limits = (await shop.app.explain("GET", "/a", headers)).limits
        assert limits[0] == "user: 2 in 60 s by sub, counts all; 1 of 2 are used, as this worker knows"
        assert limits[1] == "misses: 2 in 60 s by client, counts misses; this worker knows of none that was used"


def test_a_burst_of_a_plan_is_in_proportion_to_its_rate() -> None:
    plans = {"claim": "plan", "gold": "600/m", "slow": "1/m"}
    limit = Limit.of("user", RateLimitConfig(by="sub", rate="120/m", burst=30, plans=plans))
    assert limit.plans is not None
    assert [limit.policy.burst, limit.plans["gold"].burst, limit.plans["slow"].burst] == [30, 150, 1]
    unset = Limit.of("user", RateLimitConfig(by="sub", rate="120/m", plans=plans))
    assert unset.plans is not None
    assert [unset.policy.burst, unset.plans["gold"].burst] == [120, 600]


async def test_several_limits_let_a_hit_pass_at_once_only_together(clock: TurnedClock) -> None:
    limiter = Limiter(clock, UNKEYED)
    one, two = (Limit.of(name, RateLimitConfig(by="client", rate="1000/s")) for name in ("one", "two"))
    limits = RouteLimits(limiter, of_all=(one, two))
    subjects = limits.subjects(None, "192.0.2.1")
    for _ in range(9):
        await limiter.acquire(*one.counted(None, "192.0.2.1"))
    before = limiter._buckets[subjects[0]].credit
    assert before > 0
    assert not limits.admit(subjects, clock.now())
    assert limiter._buckets[subjects[0]].credit == before
    for _ in range(9):
        await limiter.acquire(*two.counted(None, "192.0.2.1"))
    assert limits.admit(subjects, clock.now())
    assert limiter._buckets[subjects[0]].credit == before - 1


async def test_each_hit_that_passes_at_once_uses_one_of_what_the_limiter_knows(clock: TurnedClock) -> None:
    limiter = Limiter(clock, UNKEYED)
    limit = Limit.of("user", RateLimitConfig(by="client", rate="100/m"))
    limits = RouteLimits(limiter, of_all=(limit,))
    passes = []
    for _ in range(150):
        at_once = limits.admits_hit(None, "192.0.2.1", clock.now())
        passes.append(at_once or (await limiter.acquire(*limit.counted(None, "192.0.2.1"))).admitted)
    assert passes == [True] * 100 + [False] * 50
    assert not limits.admits_hit(None, "192.0.2.1", clock.now())


async def test_hits_use_no_credit_of_a_subject_that_was_forgotten(clock: TurnedClock) -> None:
    limiter = Limiter(clock, UNKEYED, most=1)
    limit = Limit.of("user", RateLimitConfig(by="client", rate="1000/m"))
    limits = RouteLimits(limiter, of_all=(limit,))
    for _ in range(9):
        await limiter.acquire(*limit.counted(None, "192.0.2.1"))
    assert limits.admits_hit(None, "192.0.2.1", clock.now())
    await limiter.acquire(*limit.counted(None, "192.0.2.2"))
    assert not limits.admits_hit(None, "192.0.2.1", clock.now())
    for _ in range(9):
        await limiter.acquire(*limit.counted(None, "192.0.2.1"))
    assert limits.admits_hit(None, "192.0.2.1", clock.now())


async def test_credit_of_a_hit_is_void_with_its_time(clock: TurnedClock) -> None:
    limiter = Limiter(clock, UNKEYED)
    limit = Limit.of("user", RateLimitConfig(by="client", rate="1000/m"))
    limits = RouteLimits(limiter, of_all=(limit,))
    for _ in range(9):
        await limiter.acquire(*limit.counted(None, "192.0.2.1"))
    assert limits.admits_hit(None, "192.0.2.1", clock.now())
    assert not limits.admits_hit(None, "192.0.2.1", clock.now() + 2.0)
