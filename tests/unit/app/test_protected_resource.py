"""Protected resource metadata (RFC 9728): where a client finds out which tokens a path takes."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway import Cache, Principal, cached
from gateway.app.gateway import create_app
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.personal import SHOP, bearer, settings_of, told
from tests.support.tokens import ISSUER

ROUTES: dict[str, Any] = {
    "user": {"path": "/users/{id}", "upstream": "shop", "identity": ["shop"], "require": {"scopes": ["users:read"]}},
    "open": {"path": "/open", "upstream": "shop"},
}


def app(**settings: Any) -> Any:
    config = {**settings_of({"all": {"upstream": "shop", "path": "/all"}}, ROUTES), **settings}
    config["identity"] = {"shop": SHOP, "local": {**SHOP, "issuer": "urn:local"}}
    return create_app(config, transport=StubUpstream(told), clock=TurnedClock(), log=silent)


def metadata_url(response: httpx.Response) -> str:
    found = re.search(r'resource_metadata="([^"]+)"', response.headers["www-authenticate"])
    assert found is not None
    return found[1]


async def test_a_401_leads_to_the_metadata_of_what_was_requested() -> None:
    async with running(app()) as client:
        refused = await client.get("/users/7?x=1")
        url = metadata_url(refused)
        assert url == "http://gateway.test/.well-known/oauth-protected-resource/users/7"
        found = await client.get(url)
    assert found.json() == {
        "resource": "http://gateway.test/users/7",
        "authorization_servers": [ISSUER],
        "scopes_supported": ["users:read"],
        "bearer_methods_supported": ["header"],
    }
    assert found.headers["cache-control"] == "max-age=300"


async def test_the_metadata_of_the_whole_have_what_any_route_takes() -> None:
    async with running(app()) as client:
        found = await client.get("/.well-known/oauth-protected-resource")
        head = await client.head("/.well-known/oauth-protected-resource")
    assert found.json()["resource"] == "http://gateway.test"
    assert found.json()["scopes_supported"] == ["users:read"]
    assert head.status_code == 200


@pytest.mark.parametrize("path", ["/open", "/nothing", "/.well-known/oauth-protected-resource"])
async def test_what_takes_no_credential_has_no_metadata(path: str) -> None:
    async with running(app()) as client:
        assert (await client.get(f"/.well-known/oauth-protected-resource{path}")).status_code == 404


async def test_urls_are_those_of_the_public_side() -> None:
    async with running(app(public_url="https://api.example.com/v1")) as client:
        url = metadata_url(await client.get("/v1/home"))
        assert url == "https://api.example.com/v1/.well-known/oauth-protected-resource/home"
        found = await client.get(url.removeprefix("https://api.example.com"))
    assert found.json()["resource"] == "https://api.example.com/v1/home"


async def test_only_a_401_names_the_metadata_and_all_refusals_have_the_fields_of_cors() -> None:
    cors = {"allow_origins": ["https://app.example.com"]}
    origin = {"origin": "https://app.example.com"}
    async with running(app(cors=cors)) as client:
        missing = await client.get("/users/7", headers=origin)
        scope = await client.get("/users/7", headers={**bearer(sub="anna"), **origin})
    assert (missing.status_code, scope.status_code) == (401, 403)
    assert "resource_metadata" not in scope.headers["www-authenticate"]
    for each in (missing, scope):
        assert each.headers["access-control-allow-origin"] == "https://app.example.com"
        assert each.headers["cache-control"] == "no-store"


async def test_an_app_with_a_cache_serves_the_metadata_of_its_handlers() -> None:
    app = FastAPI()
    cache = Cache(app, redis_url="none", identity={"shop": SHOP}, clock=TurnedClock())

    @app.get("/me/{id}")
    @cached(ttl="30s", per=["sub"], require={"scopes": ["me"]})
    async def me(id: int, who: Principal) -> Any:
        return who.subject

    async with running(cache) as client:
        found = await client.get(metadata_url(await client.get("/me/7")))
        other = await client.get("/.well-known/oauth-protected-resource/other")
    assert found.json() == {
        "resource": "http://gateway.test/me/7",
        "authorization_servers": [ISSUER],
        "scopes_supported": ["me"],
        "bearer_methods_supported": ["header"],
    }
    assert other.status_code == 404


async def test_a_401_of_a_mounted_app_leads_nowhere() -> None:
    app, mounted = FastAPI(), FastAPI()
    cache = Cache(app, redis_url="none", identity={"shop": SHOP}, clock=TurnedClock())
    app.mount("/below", mounted)

    @mounted.get("/me")
    @cached(ttl="30s", per=["sub"])
    async def me(who: Principal) -> Any:
        return who.subject

    async with running(cache) as client:
        refused = await client.get("/below/me")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


async def test_an_app_with_a_cache_and_no_identity_has_no_path_more() -> None:
    app = FastAPI()
    before = len(app.routes)
    Cache(app, redis_url="none")
    assert len(app.routes) == before


async def test_a_gateway_without_identity_leaves_the_paths_to_its_routes() -> None:
    routes = {"rest": {"path": "/{path:path}", "upstream": "shop"}}
    upstreams = {"shop": {"url": "http://shop.example.com"}}
    config = {"redis_url": "none", "upstreams": upstreams, "routes": routes}
    plain = create_app(config, transport=StubUpstream(told), log=silent)
    async with running(plain) as client:
        found = await client.get("/.well-known/oauth-protected-resource")
    assert found.json() == {"path": "/.well-known/oauth-protected-resource"}
