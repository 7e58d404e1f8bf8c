"""Handlers that know who sent a request: a `Principal` as a dependency, and what of it a `@cached` one may read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from gateway import Cache, ConfigError, Gateway, Principal, cached, identified, principal
from gateway.identity.principal import Principal as Who
from gateway.observability.access_log import silent
from gateway.routing.principal import UnkeyedClaim
from gateway.testing import TurnedClock, running
from tests.support.personal import SHOP, bearer

PARTNER = {**SHOP, "issuer": "https://partner.example.com"}
SETTINGS: dict[str, Any] = {"redis_url": "none", "identity": {"shop": SHOP, "partner": PARTNER}}
Add = Callable[[APIRouter, list[Any]], None]


def gateway(add: Add, **more: Any) -> tuple[Gateway, list[Any]]:
    """A gateway with the handlers that `add` adds to its router, and the list of their calls."""
    app = Gateway({**SETTINGS, **more}, clock=TurnedClock(), log=silent)
    calls: list[Any] = []
    add(app.router, calls)
    return app, calls


def add_me(router: APIRouter, calls: list[Any]) -> None:
    @router.get("/me")
    @cached(ttl="30s", identity=["shop"], per=["sub"])
    async def me(who: Principal) -> Any:
        calls.append(who.subject)
        return {"user": who.subject, "same": who.claim("sub"), "all": dict(who.claims)}


async def get(app: Any, path: str, *headers: dict[str, str]) -> list[httpx.Response]:
    async with running(app) as client:
        return [await client.get(path, headers=each) for each in headers]


async def test_a_cached_handler_is_called_once_for_each_user() -> None:
    app, calls = gateway(add_me)
    users = ("anna", "berta", "anna", "berta")
    responses = await get(app, "/me", *(bearer(sub=user, jti=str(n)) for n, user in enumerate(users)))
    assert [each.json()["user"] for each in responses] == list(users)
    assert responses[0].json()["all"] == {"sub": "anna"}
    assert calls == ["anna", "berta"]
    assert responses[2].headers["cache-status"].startswith("gateway; hit")
    assert "private" in responses[2].headers["cache-control"]
    assert "authorization" in responses[2].headers["vary"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer a.b.c"}, {"authorization": "Basic YTpi"}])
async def test_a_handler_with_identity_lets_nobody_in_without_a_valid_credential(headers: dict[str, str]) -> None:
    app, calls = gateway(add_me)
    hit, refused = await get(app, "/me", bearer(sub="anna"), headers)
    assert (hit.status_code, refused.status_code) == (200, 401)
    assert "resource_metadata" in refused.headers["www-authenticate"]
    assert refused.headers["cache-control"] == "no-store"
    assert calls == ["anna"]


async def test_a_refusal_is_counted_once() -> None:
    app, _ = gateway(add_me)
    await get(app, "/me", {})
    assert b'gateway_refused_requests_total{reason="identity-missing"} 1.0' in app.metrics.render()


@pytest.mark.parametrize("read", ["plan", "scopes", "expires_at", "provider", "claims"])
async def test_reading_what_is_not_in_the_key_fails(read: str) -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", per=["sub"])
        async def me(who: Principal) -> Any:
            if read == "claims":
                return who.claims["plan"]
            return who.claim(read) if read == "plan" else str(getattr(who, read))

    app, _ = gateway(add)
    (response,) = await get(app, "/me", bearer(sub="anna", plan="gold"))
    assert response.status_code == 500
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:
        with pytest.raises(UnkeyedClaim, match="which isn't part of its cache key") as error:
            await client.get("/me", headers=bearer(sub="anna", plan="gold"))
    assert ("write @cached(per=['sub', 'plan'])" in str(error.value)) == (read in ("plan", "claims"))


async def test_without_per_there_is_one_response_for_all_who_are_let_in() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/all")
        @cached(ttl="30s", identity=["shop"])
        async def everything(request: Request) -> Any:
            calls.append(request.headers.get("authorization"))
            return {}

    app, calls = gateway(add)
    responses = await get(app, "/all", bearer(sub="anna"), bearer(sub="berta"), {})
    assert [each.status_code for each in responses] == [200, 200, 401]
    assert calls == [None]


async def test_a_handler_without_a_cache_sees_the_whole_principal() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        async def me(who: Principal) -> Any:
            return {"user": who.subject, "plan": who.claim("plan"), "scopes": sorted(who.scopes)}

    app, _ = gateway(add)
    found, refused = await get(app, "/me", bearer(sub="anna", plan="gold", scope="a b"), {})
    assert found.json() == {"user": "anna", "plan": "gold", "scopes": ["a", "b"]}
    assert refused.status_code == 401


async def test_no_cache_in_front_has_what_a_handler_without_a_cache_answered_its_user() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me", dependencies=[identified("partner", "shop", optional=True)])
        async def me(response: Response, life: str = "") -> Any:
            if life:
                response.headers["cache-control"] = life
            return {}

        @router.get("/page")
        async def page(who: Principal) -> Response:
            return PlainTextResponse("for " + str(who.subject))

    app, _ = gateway(add, identity={"shop": {**SHOP, "from": ["cookie:session"]}, "partner": PARTNER})
    cookie = {"cookie": "session=" + bearer(sub="anna")["authorization"].removeprefix("Bearer ")}
    for path, life in (
        ("/page", "private"),
        ("/me", "private"),
        ("/me?life=max-age=5", "private, max-age=5"),
        ("/me?life=public,max-age=5", "public,max-age=5"),
    ):
        (response,) = await get(app, path, cookie)
        assert (response.status_code, response.headers["cache-control"]) == (200, life)
        assert response.headers["vary"].split(", ") == ["authorization", "cookie"]
    (anonymous,) = await get(app, "/me", {})
    assert (anonymous.status_code, anonymous.headers["cache-control"]) == (200, "private")


async def test_a_router_may_require_a_credential_for_all_its_handlers() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        users = APIRouter(dependencies=[identified("shop", scopes=["users:read"], claims={"tenant": "a"})])

        @users.get("/plain")
        async def plain() -> Any:
            return {}

        @users.get("/cached")
        @cached(ttl="30s", per=["sub"])
        async def kept(who: Principal) -> Any:
            calls.append(who.subject)
            return {"user": who.subject}

        router.include_router(users)

    good = bearer(sub="anna", scope="users:read", tenant="a")
    other = {**bearer(sub="anna", iss=PARTNER["issuer"], scope="users:read", tenant="a")}
    for path in ("/plain", "/cached"):
        app, calls = gateway(add)
        refused = [bearer(sub="anna"), bearer(sub="anna", scope="users:read", tenant="b"), other, {}]
        responses = await get(app, path, good, good, *refused)
        assert [each.status_code for each in responses] == [200, 200, 403, 403, 401, 401]
        assert calls == (["anna"] if path == "/cached" else [])


async def test_a_router_of_one_provider_refuses_who_another_has_verified() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me", dependencies=[identified("partner")])
        @cached(ttl="30s", identity=["shop"], per=["sub"])
        async def me(who: Principal) -> Any:
            return {}

    app, _ = gateway(add)
    (response,) = await get(app, "/me", bearer(sub="anna"))
    assert response.status_code == 401


async def test_optional_lets_in_anonymous_requests_with_a_response_of_their_own() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", identity=["shop"], per=["sub"], optional=True)
        async def me(who: Principal) -> Any:
            calls.append(1)
            return {"user": None if who is None else who.subject}

    app, calls = gateway(add)
    responses = await get(app, "/me", {}, bearer(sub="anna"), {}, {"authorization": "Bearer x"})
    assert [each.json().get("user") for each in responses] == [None, "anna", None, None]
    assert responses[3].status_code == 401
    assert len(calls) == 2


async def user(who: Principal) -> str:
    return f"user {who.subject}"


async def test_a_dependency_of_the_app_gets_the_principal_and_its_value_is_of_the_user() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", per=["sub"])
        async def me(name: Annotated[str, Depends(user)]) -> Any:
            calls.append(name)
            return {"name": name}

    app, calls = gateway(add)
    responses = await get(app, "/me", *(bearer(sub=user) for user in ("anna", "berta", "anna")))
    assert [each.json()["name"] for each in responses] == ["user anna", "user berta", "user anna"]
    assert calls == ["user anna", "user berta"]


async def test_writes_need_the_credential_too() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.api_route("/me", methods=["GET", "POST"])
        @cached(ttl="30s", identity=["shop"], per=["sub"])
        async def me(who: Principal) -> Any:
            return {"user": who.subject}

    app, _ = gateway(add)
    async with running(app) as client:
        assert (await client.post("/me")).status_code == 401
        assert (await client.post("/me", headers=bearer(sub="anna"))).json() == {"user": "anna"}
        assert (await client.head("/me")).status_code == 401


async def test_a_stale_response_is_refreshed_behind_for_its_user() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", stale_while_revalidate="60s", per=["sub"])
        async def me(who: Principal) -> Any:
            calls.append(who.subject)
            return {"user": who.subject}

    app, calls = gateway(add)
    async with running(app) as client:
        for user in ("anna", "berta"):
            await client.get("/me", headers=bearer(sub=user))
        app.engine.clock.turn(40)  # type: ignore[attr-defined]
        stale = await client.get("/me", headers=bearer(sub="anna"))
        await app.engine.background.settle()
    assert stale.json() == {"user": "anna"}
    assert calls == ["anna", "berta", "anna"]


async def test_tests_may_replace_the_principal() -> None:
    app, calls = gateway(add_me)
    app.dependency_overrides[principal] = lambda: Who(provider="test", issuer="test", claims={"sub": "carla"})
    found, again = await get(app, "/me", {}, {})
    assert found.json()["user"] == "carla"
    assert "hit" in again.headers["cache-status"]
    assert calls == ["carla"]


async def test_tests_may_replace_the_principal_behind_a_router_that_requires_one() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/plain", dependencies=[identified("shop", scopes=["a"])])
        async def plain(who: Principal) -> Any:
            return {"user": who.subject}

        @router.get("/cached", dependencies=[identified("shop")])
        @cached(ttl="30s", per=["sub"])
        async def kept(who: Principal) -> Any:
            return {"user": who.subject}

    app, _ = gateway(add)
    scopes = frozenset({"a"})
    app.dependency_overrides[principal] = lambda: Who(provider="t", issuer="t", claims={"sub": "carla"}, scopes=scopes)
    for path in ("/plain", "/cached"):
        assert (await get(app, path, {}))[0].json() == {"user": "carla"}


async def test_an_app_with_a_cache_has_principals() -> None:
    app = FastAPI()
    cache = Cache(app, clock=TurnedClock(), **SETTINGS)
    calls: list[Any] = []
    add_me(app.router, calls)
    responses = await get(cache, "/me", bearer(sub="anna"), bearer(sub="anna"), {})
    assert [each.status_code for each in responses] == [200, 200, 401]
    metadata = "http://gateway.test/.well-known/oauth-protected-resource/me"
    assert responses[2].headers["www-authenticate"] == f'Bearer resource_metadata="{metadata}"'
    assert calls == ["anna"]


async def test_a_target_that_the_cache_does_not_read_needs_the_credential() -> None:
    app = FastAPI()
    cache = Cache(app, clock=TurnedClock(), **SETTINGS)
    add_me(app.router, [])
    refused, found = await get(cache, "/%6De/../me", {}, bearer(sub="anna"))
    assert refused.status_code in (401, 404)
    assert found.status_code in (200, 404)


async def test_without_a_gateway_a_handler_with_identity_answers_nobody() -> None:
    app = FastAPI()
    add_me(app.router, [])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app.test") as client:
        assert (await client.get("/me", headers=bearer(sub="anna"))).status_code == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity": ["shpo"]}, "names the identity 'shpo', which is not configured; did you mean shop?"),
        ({"identity": ["shop"], "authorization": "key"}, "authorization can't be combined with identity"),
        ({"per": ["sub"], "edge": True}, "edge=True can't be combined with identity"),
        ({"require": {"scopes": ["a"]}}, "require requires identity=[...] or per=[...]"),
        ({"optional": True}, "optional requires identity=[...] or per=[...]"),
        ({"per": "sub"}, "must be a list, such as ['sub']"),
    ],
)
def test_arguments_that_can_not_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", **arguments)
        async def me() -> Any:
            return {}

    with pytest.raises((ValueError, ConfigError), match=_literally(message)):
        gateway(add)[0].rebind()


def test_identity_has_to_be_configured() -> None:
    with pytest.raises(ConfigError, match="requires the setting `identity`"):
        gateway(add_me, identity={})[0].rebind()


def test_the_edge_answers_no_handler_that_verifies_credentials() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me", dependencies=[identified()])
        @cached(ttl="30s", edge=True)
        async def me() -> Any:
            return {}

    with pytest.raises(ConfigError, match="verifies credentials, which would be skipped"):
        gateway(add)[0].rebind()


async def test_the_documentation_has_what_handlers_require() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        add_me(router, calls)

        @router.get("/open")
        async def everything() -> Any:
            return {}

    app, _ = gateway(add)
    app.rebind()
    paths = app.openapi()["paths"]
    assert paths["/me"]["get"]["security"] == [{"shop": []}]
    assert {"401", "403"} <= set(paths["/me"]["get"]["responses"])
    assert "parameters" not in paths["/me"]["get"]
    assert "security" not in paths["/open"]["get"]
    (found,) = await get(app, "/.well-known/oauth-protected-resource/me", {})
    assert found.json()["authorization_servers"] == [SHOP["issuer"]]


async def test_an_explanation_admits_the_request_as_the_handler_does() -> None:
    app, _ = gateway(add_me)
    headers = [(b"accept", b"*/*"), *((name.encode(), value.encode()) for name, value in bearer(sub="anna").items())]
    async with running(app) as client:
        await client.get("/me", headers=bearer(sub="anna"))
        found, refused = await app.explain("GET", "/me", headers), await app.explain("GET", "/me")
    assert (found.decision, refused.decision) == ("hit", "401")
    assert found.identity == (f"verified by shop, issuer {SHOP['issuer']}", "one response for each value of sub")
    assert "anna" not in repr(found)


def _literally(text: str) -> str:
    import re

    return re.escape(text)


async def test_a_handlers_tag_may_name_a_claim_in_its_key() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", per=["sub"], tags=["user:{claim.sub}"])
        async def me(who: Principal) -> Any:
            calls.append(who.subject)
            return {}

    app, calls = gateway(add)
    async with running(app) as client:
        for user in ("anna", "berta"):
            await client.get("/me", headers=bearer(sub=user))
        await app.purge(tags=["user:anna"])
        for user in ("anna", "berta"):
            await client.get("/me", headers=bearer(sub=user))
    assert calls == ["anna", "berta", "anna"]


def test_a_handlers_tag_can_not_name_another_claim() -> None:
    def add(router: APIRouter, calls: list[Any]) -> None:
        @router.get("/me")
        @cached(ttl="30s", per=["sub"], tags=["plan:{claim.plan}"])
        async def me(who: Principal) -> Any:
            return {}

    with pytest.raises(ConfigError, match="`plan` must be in `per` too"):
        gateway(add)[0].rebind()
