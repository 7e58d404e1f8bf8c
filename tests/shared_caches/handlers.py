"""Handlers that answer with what they see of a request, each in another way; one row of the table each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Cookie, Depends, Header, Request, Security
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from gateway import cached
from tests.shared_caches.rows import ECHOED, LIVES, decorator_values, settings

router = APIRouter()
_made: list[tuple[str, str, str]] = []


def made() -> list[tuple[str, str, str]]:
    """Kind, name and path of each handler."""
    return list(_made)


class Tenant(BaseModel):
    x_tenant: str = ""


class Session(BaseModel):
    sid: str = ""


def _seen(**values: Any) -> JSONResponse:
    content = {name if name in ECHOED else name.replace("_", "-"): value for name, value in values.items() if value}
    return JSONResponse(content, headers={"Cache-Control": "max-age=60"})


async def undeclared(request: Request) -> JSONResponse:
    """Reads without declaring."""
    return _seen(
        authorization=request.headers.get("authorization"),
        cookie=f"sid={sid}" if (sid := request.cookies.get("sid")) else None,
        x_tenant=request.headers.get("x-tenant"),
        x_api_key=request.headers.get("x-api-key"),
        page=request.query_params.get("page"),
        utm_source=request.query_params.get("utm_source"),
    )


async def header(x_tenant: Annotated[str, Header()] = "") -> JSONResponse:
    return _seen(x_tenant=x_tenant)


async def header_model(fields: Annotated[Tenant, Header()]) -> JSONResponse:
    return _seen(x_tenant=fields.x_tenant)


async def cookie(sid: Annotated[str, Cookie()] = "") -> JSONResponse:
    return _seen(cookie=f"sid={sid}" if sid else None)


async def cookie_model(fields: Annotated[Session, Cookie()]) -> JSONResponse:
    return _seen(cookie=f"sid={fields.sid}" if fields.sid else None)


async def key_header(
    key: Annotated[str | None, Security(APIKeyHeader(name="X-Api-Key", auto_error=False))],
) -> JSONResponse:
    return _seen(x_api_key=key)


async def key_cookie(key: Annotated[str | None, Security(APIKeyCookie(name="sid", auto_error=False))]) -> JSONResponse:
    return _seen(cookie=f"sid={key}" if key else None)


async def key_query(key: Annotated[str | None, Security(APIKeyQuery(name="page", auto_error=False))]) -> JSONResponse:
    return _seen(page=key)


async def bearer(
    token: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> JSONResponse:
    return _seen(authorization=f"Bearer {token.credentials}" if token else None)


def _tenant(request: Request) -> str:
    return request.headers.get("x-tenant", "")


async def dependency(tenant: Annotated[str, Depends(_tenant)]) -> JSONResponse:
    return _seen(x_tenant=tenant)


async def host(request: Request) -> JSONResponse:
    return _seen(host=request.url.hostname)


async def base_url(request: Request) -> JSONResponse:
    return _seen(host=str(request.base_url).removeprefix("http://").rstrip("/"))


async def all_headers(request: Request) -> JSONResponse:
    kept = {name: value for name, value in request.headers.items() if name in ("x-tenant", "x-api-key")}
    return _seen(**{name.replace("-", "_"): value for name, value in kept.items()})


async def all_cookies(request: Request) -> JSONResponse:
    jar = dict(request.cookies)
    return _seen(cookie=f"sid={jar['sid']}" if "sid" in jar else None)


async def raw_scope(request: Request) -> JSONResponse:
    fields = dict(request.scope["headers"])
    return _seen(x_tenant=fields.get(b"x-tenant", b"").decode())


async def address(request: Request) -> JSONResponse:
    assert request.client is not None
    return _seen(x_tenant=request.headers.get("x-tenant"), address=request.client.host)


async def sometimes(request: Request) -> JSONResponse:
    """Reads the tenant only where there is an API key."""
    key = request.headers.get("x-api-key")
    return _seen(x_api_key=key, x_tenant=request.headers.get("x-tenant") if key else None)


def _user(request: Request) -> str:
    request.state.user = request.headers.get("x-api-key", "")
    return str(request.state.user)


async def kept_in_state(user: Annotated[str, Depends(_user)]) -> JSONResponse:
    return _seen(x_api_key=user)


def _add(kind: str, name: str, function: Callable[..., Any], **settings: Any) -> None:
    path = f"/handler{len(_made) + 1}"
    _made.append((kind, name, path))
    router.add_api_route(path, cached(**settings)(function))


_DECLARED = (
    (header, {}),
    (header_model, {}),
    (cookie, {"cookies": ["sid"]}),
    (cookie, {}),
    (cookie_model, {"cookies": ["sid"]}),
    (key_header, {}),
    (key_cookie, {"cookies": ["sid"]}),
    (key_query, {}),
    (bearer, {}),
    (bearer, {"authorization": "key"}),
)
_UNDECLARED = (
    (dependency, {}),
    (host, {}),
    (base_url, {}),
    (all_headers, {}),
    (all_cookies, {"cookies": ["sid"]}),
    (raw_scope, {}),
    (address, {}),
    (sometimes, {}),
    (kept_in_state, {}),
    (kept_in_state, {"key": ["user"]}),
)


def _named(function: Callable[..., Any], settings: dict[str, Any]) -> str:
    words = function.__name__.replace("_", " ")
    return words + "".join(f", {name}={value!r}" for name, value in settings.items())


for _ttl in LIVES:
    for _name, _given in settings(decorator_values()):
        _add(f"handler, ttl={_ttl!r}", f"undeclared, {_name}", undeclared, ttl=_ttl, **_given)
    for _function, _more in (*_DECLARED, *_UNDECLARED):
        _add(f"handler, ttl={_ttl!r}", _named(_function, _more), _function, ttl=_ttl, **_more)
