"""The kinds of routes, handlers and aggregates by what is in their keys, for the tests of what is said downstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Cookie, Depends, Header, Request, Response, Security
from fastapi.security import APIKeyHeader

from gateway import cached
from gateway.app.gateway import Gateway, create_app
from gateway.http.headers import CacheControl, vary_names
from gateway.testing import StubUpstream


@dataclass(frozen=True)
class Row:
    """A kind of route: what two users send who must not get each other's answer, and what is said downstream."""

    path: str
    users: tuple[dict[str, str], dict[str, str]]
    vary: set[str]
    private: bool


TENANTS = ({"x-tenant": "ann"}, {"x-tenant": "bob"})
API_KEYS = ({"x-api-key": "ann"}, {"x-api-key": "bob"})
BEARERS = ({"authorization": "Bearer ann"}, {"authorization": "Bearer bob"})
SESSIONS = ({"cookie": "sid=ann"}, {"cookie": "sid=bob"})
USERS = ({"x-user": "ann"}, {"x-user": "bob"})
LANGUAGES = ({"accept-language": "de"}, {"accept-language": "fr"})

ROWS = {
    "vary": Row("/vary", TENANTS, {"x-tenant"}, False),
    "vary by default": Row("/default", LANGUAGES, {"accept", "accept-language"}, False),
    "vary on an API key": Row("/api-key", API_KEYS, {"x-api-key"}, True),
    "authorization: key": Row("/bearer", BEARERS, {"authorization"}, True),
    "authorization: pass": Row("/default", (BEARERS[0], {}), {"authorization"}, True),
    "cookies: names": Row("/session", SESSIONS, {"cookie"}, True),
    "cookies: pass": Row("/default", (SESSIONS[0], {}), {"cookie"}, True),
    "origin, its Vary": Row("/origin/vary", TENANTS, {"x-tenant"}, False),
    "origin, authorization: key": Row("/origin/bearer", BEARERS, {"authorization"}, True),
    "origin, cookies: names": Row("/origin/session", SESSIONS, {"cookie"}, True),
    "too large to keep": Row("/session/large", SESSIONS, {"cookie"}, True),
    "a failure": Row("/session/failure", SESSIONS, {"cookie"}, True),
    "a whole, its parts' vary": Row("/whole/vary", TENANTS, {"x-tenant"}, False),
    "a whole, its parts' Vary": Row("/whole/origin", TENANTS, {"x-tenant"}, False),
    "a whole, a part's identity": Row("/whole/bearer", BEARERS, {"authorization"}, True),
    "a whole, a part's cookies": Row("/whole/session", SESSIONS, {"cookie"}, True),
    "a whole, authorization: pass": Row("/whole/passed", (BEARERS[0], {}), {"authorization"}, False),
    "a whole, a part's value": Row("/whole/value", TENANTS, {"x-tenant"}, False),
    "a whole, a part's header": Row("/whole/header", API_KEYS, {"x-api-key"}, True),
    "a handler's header": Row("/handler/header", TENANTS, {"x-tenant"}, False),
    "a handler's API key": Row("/handler/api-key", API_KEYS, {"x-api-key"}, True),
    "a handler's cookie": Row("/handler/session", SESSIONS, {"cookie"}, True),
    "a handler, what it reads": Row("/handler/read", TENANTS, {"x-tenant"}, False),
    "a handler, too large to keep": Row("/handler/large", API_KEYS, {"x-api-key"}, True),
    "a handler's key=": Row("/handler/key", USERS, {"x-user"}, True),
    "a handler by the edge": Row("/handler/edge", TENANTS, {"x-tenant"}, False),
    "a handler, passed": Row("/handler/passed", (SESSIONS[0], {}), {"cookie"}, True),
}

IGNORED = {"authorization": "ignore", "cookies": "ignore"}
BEARER = {"authorization": "key", "cookies": "ignore"}
SESSION = {"authorization": "ignore", "cookies": ["sid"]}


def route(path: str, **settings: Any) -> dict[str, Any]:
    return {"path": path, "upstream": "api", "ttl": "30s", "vary": [], **settings}


def part(**settings: Any) -> dict[str, Any]:
    return {"parts": {"one": route("/part", **IGNORED) | settings, "two": route("/other", **IGNORED)}}


ROUTES: dict[str, Any] = {
    "vary": route("/vary", **IGNORED, vary=["x-tenant"]),
    "default": {"path": "/default", "upstream": "api", "ttl": "30s"},
    "api_key": route("/api-key", **IGNORED, vary=["x-api-key"]),
    "bearer": route("/bearer", **BEARER),
    "session": route("/session", **SESSION),
    "large": route("/session/large", **SESSION, max_body=10),
    "failure": route("/session/failure", **SESSION),
    "origin_vary": {"path": "/origin/vary", "upstream": "api", **IGNORED},
    "origin_bearer": {"path": "/origin/bearer", "upstream": "api", **BEARER},
    "origin_session": {"path": "/origin/session", "upstream": "api", **SESSION},
    "whole_vary": {"path": "/whole/vary", **part(vary=["x-tenant"])},
    "whole_origin": {"path": "/whole/origin", "parts": {"one": {"path": "/origin/vary", "upstream": "api", **IGNORED}}},
    "whole_bearer": {"path": "/whole/bearer", **part(**BEARER)},
    "whole_session": {"path": "/whole/session", **part(**SESSION)},
    "whole_passed": {"path": "/whole/passed", **part(authorization="pass")},
    "whole_value": {"path": "/whole/value", **part(path="/part?of={header.x-tenant}")},
    "whole_header": {"path": "/whole/header", **part(headers={"x-api-key": "{header.x-api-key}"})},
}
ECHOED = ("x-tenant", "x-api-key", "authorization", "cookie", "accept-language")


def echo(request: httpx.Request) -> httpx.Response:
    """What the upstream saw of who asks; and what it says of it where it is asked for that."""
    seen = {name: request.headers[name] for name in ECHOED if name in request.headers}
    said = {"cache-control": "max-age=30"}
    match request.url.path:
        case "/origin/vary":
            said["vary"] = "X-Tenant"
        case "/origin/bearer" | "/origin/session":
            said["cache-control"] = "public, s-maxage=30, max-age=30"
    status = 500 if request.url.path == "/session/failure" else 200
    return httpx.Response(status, json={"seen": seen, "query": request.url.query.decode()}, headers=said)


API_KEY = APIKeyHeader(name="X-API-Key")


def current_user(request: Request) -> str:
    return request.headers["x-user"] if request.client else "nobody"


def handlers() -> APIRouter:
    router = APIRouter(prefix="/handler")

    @router.get("/header")
    @cached(ttl="30s", vary=[])
    async def by_header(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant

    @router.get("/api-key")
    @cached(ttl="30s", vary=[])
    async def by_key(given: Annotated[str, Security(API_KEY)]) -> str:
        return given

    @router.get("/session")
    @cached(ttl="30s", vary=[], cookies=["sid"])
    async def by_cookie(sid: Annotated[str, Cookie()]) -> str:
        return sid

    @router.get("/read")
    @cached(ttl="30s", vary=[])
    async def reading(request: Request) -> str | None:
        return request.headers.get("x-tenant")

    @router.get("/large")
    @cached(ttl="origin", max_body=10, authorization="ignore", cookies="ignore")
    async def large(request: Request, response: Response) -> str:
        response.headers["cache-control"] = "max-age=30"
        return f"much too large to keep: {request.headers.get('x-api-key')}"

    @router.get("/key")
    @cached(ttl="30s", vary=[], key=["user"])
    async def by_value(user: Annotated[str, Depends(current_user)]) -> str:
        return user

    @router.get("/edge")
    @cached(ttl="30s", vary=[], edge=True)
    async def by_edge(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant

    @router.get("/passed")
    @cached(ttl="30s", vary=[])
    async def passed(sid: Annotated[str, Cookie()] = "nobody") -> str:
        return sid

    return router


def behind() -> Gateway:
    """The gateway that is asked through other caches."""
    api = {"url": "http://api.test", "timeout": "5s", "breaker_failures": 0}
    config = {"redis_url": "none", "access_log": False, "upstreams": {"api": api}, "routes": ROUTES}
    app = create_app(config, transport=StubUpstream(echo))
    app.include_router(handlers())
    return app


def said_of(response: httpx.Response) -> tuple[set[str], bool]:
    """The fields of its Vary, and whether it is private."""
    headers = [(name.lower(), value) for name, value in response.headers.raw]
    return set(vary_names(headers) or ()), CacheControl.of(headers).unqualified("private")
