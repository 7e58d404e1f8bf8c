"""Rate limits of Python handlers: what is counted, by whom, and what can't be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI

from gateway import Cache, ConfigError, Gateway, Principal, cached, identified, principal, rate_limited
from gateway.identity.principal import Principal as Who
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running
from tests.support.personal import SHOP, bearer

LIMITS: dict[str, Any] = {
    "each": {"by": "client", "rate": "2/m"},
    "user": {"by": "sub", "rate": "2/m"},
    "misses": {"by": "client", "rate": "2/m", "counts": "misses"},
    "bad": {"by": "client", "rate": "2/m", "counts": "refused"},
}
SETTINGS: dict[str, Any] = {"redis_url": "none", "identity": {"shop": SHOP}, "rate_limits": LIMITS}
Add = Callable[[APIRouter], None]


def gateway(add: Add, clock: TurnedClock | None = None) -> Gateway:
    app = Gateway(SETTINGS, clock=clock or TurnedClock(), log=silent)
    router = APIRouter()
    add(router)
    app.include_router(router)
    return app


async def statuses(app: Any, *paths: str, method: str = "GET", **headers: str) -> list[int]:
    async with running(app) as client:
        return [(await client.request(method, path, headers=headers)).status_code for path in paths]


def add_cached(**arguments: Any) -> Add:
    def add(router: APIRouter) -> None:
        @router.post("/cached/{number}")
        @router.get("/cached/{number}")
        @cached(ttl="30s", **arguments)
        async def numbered(number: int) -> dict[str, int]:
            return {"number": number}

    return add


def add_plain(*dependencies: Any) -> Add:
    def add(router: APIRouter) -> None:
        @router.get("/plain", dependencies=[*dependencies])
        async def plain() -> str:
            return "plain"

    return add


async def test_hits_of_a_cached_handler_count_by_a_limit_that_counts_all() -> None:
    app = gateway(add_cached(rate_limits=["each"]))
    assert await statuses(app, *["/cached/1"] * 4) == [200, 200, 429, 429]
    rendered = app.metrics.render()
    assert b'gateway_refused_requests_total{reason="rate-limit"} 2.0' in rendered
    assert b'gateway_rate_limit_refused_total{limit="each"} 2.0' in rendered


async def test_hits_of_a_cached_handler_count_for_nothing_by_a_limit_that_counts_misses() -> None:
    paths = ["/cached/1", "/cached/1", "/cached/1", "/cached/2", "/cached/1", "/cached/3"]
    app = gateway(add_cached(rate_limits=["misses"]))
    assert await statuses(app, *paths) == [200, 200, 200, 200, 200, 429]


async def test_a_method_that_the_cache_does_not_answer_counts_as_a_miss() -> None:
    app = gateway(add_cached(rate_limits=["misses"]))
    assert await statuses(app, *["/cached/1"] * 3, method="POST") == [200, 200, 429]


async def test_a_request_past_the_cache_counts_as_a_miss() -> None:
    app = gateway(add_cached(rate_limits=["misses"]))
    assert await statuses(app, *["/cached/1"] * 3, authorization="Basic YTpi") == [200, 200, 429]


async def test_a_429_of_a_handler_says_what_one_of_a_route_says() -> None:
    app = gateway(add_cached(rate_limits=["each"]))
    async with running(app) as client:
        first, _, refused = [await client.get("/cached/1") for _ in range(3)]
    assert first.headers["ratelimit-policy"] == '"each";q=2;w=60'
    assert refused.json()["violated-policies"] == ["each"]
    assert refused.headers["cache-control"] == "no-store"
    assert int(refused.headers["retry-after"]) <= 31


async def test_the_request_after_retry_after_passes() -> None:
    clock = TurnedClock()
    app = gateway(add_cached(rate_limits=["each"]), clock)
    async with running(app) as client:
        refused = [await client.get("/cached/1") for _ in range(3)][-1]
        clock.turn(float(refused.headers["retry-after"]))
        assert (await client.get("/cached/1")).status_code == 200


async def test_each_user_of_a_cached_handler_is_counted() -> None:
    app = gateway(add_cached(rate_limits=["user"], per=["sub"]))
    async with running(app) as client:
        users = ("anna", "anna", "berta", "anna", "berta")
        answers = [await client.get("/cached/1", headers=bearer(sub=user)) for user in users]
    assert [each.status_code for each in answers] == [200, 200, 200, 429, 200]


@pytest.mark.parametrize("order", [1, -1])
async def test_each_user_of_a_plain_handler_is_counted_once_the_credential_is_verified(order: int) -> None:
    app = gateway(add_plain(*[rate_limited("user"), identified("shop")][::order]))
    async with running(app) as client:
        for user, expected in (("anna", [200, 200, 429]), ("berta", [200])):
            answers = [await client.get("/plain", headers=bearer(sub=user)) for _ in expected]
            assert [each.status_code for each in answers] == expected
        refused = [await client.get("/plain") for _ in range(4)]
        assert [each.status_code for each in refused] == [401] * 4


async def test_a_limit_of_a_router_counts_a_request_once() -> None:
    def add(router: APIRouter) -> None:
        limited = APIRouter(dependencies=[rate_limited("each")])

        @limited.get("/plain", dependencies=[rate_limited("each", "misses")])
        async def plain() -> str:
            return "plain"

        router.include_router(limited)

    assert await statuses(gateway(add), *["/plain"] * 3) == [200, 200, 429]


async def test_a_principal_that_a_test_overrides_is_counted() -> None:
    def add(router: APIRouter) -> None:
        @router.get("/me", dependencies=[rate_limited("user")])
        async def me(who: Principal) -> Any:
            return who.subject

    app = gateway(add)
    app.dependency_overrides[principal] = lambda: Who(provider="shop", issuer="i", claims={"sub": "anna"})
    assert await statuses(app, *["/me"] * 3) == [200, 200, 429]


async def test_a_handler_of_an_app_that_exists_has_limits() -> None:
    app = FastAPI()
    add_cached(rate_limits=["each"])(app.router)
    add_plain(rate_limited("each"))(app.router)
    site = Cache(app, SETTINGS, clock=TurnedClock(), log=silent)
    assert await statuses(site, "/cached/1", "/plain", "/cached/1", "/plain") == [200, 200, 429, 429]


async def test_a_refresh_behind_a_stale_response_counts_for_nobody() -> None:
    clock = TurnedClock()
    app = gateway(add_cached(rate_limits=["misses"], stale_while_revalidate="1h"), clock)
    async with running(app) as client:
        for number in range(6):
            answer = await client.get("/cached/1")
            assert answer.status_code == 200
            assert "hit" in answer.headers["cache-status"] or not number
            await app.engine.settle()
            clock.turn(11.0 if number else 31.0)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (add_cached(rate_limits=["eahc"]), "there is no rate limit 'eahc'; did you mean each"),
        (add_cached(rate_limits=["user"]), "user counts by sub, which requires `identity`"),
        (
            add_cached(rate_limits=["bad"], per=["sub"]),
            "bad counts refused credentials, which only declared routes can",
        ),
        (add_plain(rate_limited("eahc")), "rate_limits of the handler plain: there is no rate limit 'eahc'"),
        (add_plain(Depends(rate_limited("user").dependency)), "user counts by sub, which requires `identity`"),
    ],
)
def test_a_limit_that_a_handler_cannot_have_is_refused_at_start(add: Add, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gateway(add)


def test_limits_are_refused_where_hits_are_not_counted() -> None:
    with pytest.raises(ValueError, match="edge=True can't be combined with rate_limits"):
        add_cached(rate_limits=["each"], edge=True)(APIRouter())
    with pytest.raises(ValueError, match=r"rate_limits='each'.*must be a list"):
        add_cached(rate_limits="each")(APIRouter())
    with pytest.raises(ValueError, match="requires names"):
        rate_limited()


def test_openapi_says_that_a_handler_with_limits_may_answer_429() -> None:
    def add(router: APIRouter) -> None:
        add_cached(rate_limits=["each"])(router)
        add_plain(rate_limited("each"))(router)
        router.add_api_route("/free", lambda: "free")

    paths = gateway(add).openapi()["paths"]
    assert "429" in paths["/cached/{number}"]["get"]["responses"]
    assert "429" in paths["/plain"]["get"]["responses"]
    assert "429" not in paths["/free"]["get"]["responses"]


def test_hits_are_not_answered_before_the_app() -> None:
    app = gateway(add_cached(rate_limits=["each"]))
    assert {each.against for each in app.handlers.edge.values()} == {"its rate limits count each request"}


async def test_an_explanation_says_how_full_a_limit_of_a_cached_handler_is() -> None:
    app = gateway(add_cached(rate_limits=["user"], per=["sub"]))
    headers = bearer(sub="anna")
    async with running(app) as client:
        await client.get("/cached/1", headers=headers)
        found = await app.explain("GET", "/cached/1", [(b"authorization", headers["authorization"].encode())])
    assert found.limits == ("user: 2 in 60 s by sub, counts all; 1 of 2 are used, as this worker knows",)
