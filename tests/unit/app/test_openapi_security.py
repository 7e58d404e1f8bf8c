"""What routes ask of credentials, in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from gateway import Cache, Principal, cached
from gateway.app.gateway import create_app
from gateway.app.openapi_security import schemes_of, security_of
from gateway.identity.admission import Admission
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, TurnedClock
from tests.support.personal import SHOP as SHOP_SETTINGS
from tests.support.personal import settings_of, told


class Stub:
    def __init__(self, name: str, *sources: str) -> None:
        self.name, self.sources = name, sources

    def recognises(self, credential: bytes) -> bool:
        raise NotImplementedError

    async def verified(self, credential: bytes) -> Any:
        raise NotImplementedError


BASIC = HTTPBasic()
SHOP = Stub("shop", "authorization", "cookie:session")
PARTNER = Stub("partner", "x-api-key")


def test_each_field_of_a_credential_is_a_scheme() -> None:
    assert schemes_of([Admission((SHOP,)), Admission((PARTNER, SHOP))]) == {
        "shop": {"type": "http", "scheme": "bearer"},
        "shop_cookie_session": {"type": "apiKey", "in": "cookie", "name": "session"},
        "partner": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }


def test_the_schemes_of_a_route_are_alternatives_with_its_scopes() -> None:
    admission = Admission((SHOP, PARTNER), scopes=("home:read",), optional=True)
    assert security_of(admission) == [
        {"shop": ["home:read"]},
        {"shop_cookie_session": ["home:read"]},
        {"partner": ["home:read"]},
        {},
    ]


def test_the_document_has_the_schemes_and_the_refusals_of_routes_with_identity() -> None:
    routes = {
        "me": {"path": "/me", "upstream": "shop", "identity": ["shop"], "require": {"scopes": ["me"]}},
        "open": {"path": "/open", "upstream": "shop"},
    }
    settings = settings_of({"all": {"upstream": "shop", "path": "/all"}}, routes)
    app = create_app(settings, transport=StubUpstream(told), clock=TurnedClock(), log=silent)
    document = app.openapi()
    assert document["components"]["securitySchemes"] == {"shop": {"type": "http", "scheme": "bearer"}}
    me, home, plain = (document["paths"][path]["get"] for path in ("/me", "/home", "/open"))
    assert me["security"] == [{"shop": ["me"]}]
    assert home["security"] == [{"shop": []}]
    assert {"401", "403"} <= set(me["responses"]) & set(home["responses"])
    assert "security" not in plain
    assert "401" not in plain["responses"]
    assert not any("oauth" in path for path in document["paths"])


def test_a_route_with_limits_may_answer_429() -> None:
    limits = {"user": {"by": "sub", "rate": "10/s"}}
    me = {"path": "/me", "upstream": "shop", "identity": ["shop"], "rate_limits": ["user"]}
    settings = {**settings_of({"all": {"upstream": "shop", "path": "/all"}}, {"me": me}), "rate_limits": limits}
    paths = create_app(settings, transport=StubUpstream(told), clock=TurnedClock(), log=silent).openapi()["paths"]
    assert "429" in paths["/me"]["get"]["responses"]
    assert "429" not in paths["/home"]["get"]["responses"]


def test_the_document_of_an_app_with_a_cache_has_the_schemes_of_its_handlers() -> None:
    app = FastAPI()
    Cache(app, redis_url="none", identity={"shop": SHOP_SETTINGS})

    @app.get("/me")
    @cached(ttl="30s", per=["sub"])
    async def me(who: Principal) -> Any:
        return who.subject

    @app.get("/own")
    async def plain(who: Annotated[HTTPBasicCredentials, Depends(BASIC)]) -> Any:
        return who.username

    document = app.openapi()
    assert document["components"]["securitySchemes"] == {
        "shop": {"type": "http", "scheme": "bearer"},
        "HTTPBasic": {"type": "http", "scheme": "basic"},
    }
    me_, plain_ = (document["paths"][path]["get"] for path in ("/me", "/own"))
    assert me_["security"] == [{"shop": []}]
    assert {"401", "403"} <= set(me_["responses"])
    assert plain_["security"] == [{"HTTPBasic": []}]
    assert app.openapi() is document
