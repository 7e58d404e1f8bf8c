"""A gateway with an issuer, and an upstream that says which claims it was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from gateway.app.gateway import Gateway, create_app
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, TurnedClock
from tests.support.tokens import ISSUER, TestIssuer

issuer = TestIssuer()
SHOP = {"issuer": ISSUER, "jwks": orjson.loads(issuer.jwks), "audience": ["shop-api"]}
FIELDS = {"sub": "x-user", "plan": "x-plan", "tenant": "x-tenant"}
"""The request fields that parts make of claims."""


def told(request: httpx.Request) -> httpx.Response:
    """What the upstream answers: the path, and each claim that it was sent."""
    claims = {claim: request.headers[name] for claim, name in FIELDS.items() if name in request.headers}
    headers = {"cache-control": "private, max-age=60"} if "sub" in claims else {}
    return httpx.Response(200, json={"path": request.url.path, **claims}, headers=headers)


def asked_for(upstream: StubUpstream) -> Counter[tuple[str, ...]]:
    """How often the upstream was asked, by path and claims."""
    return Counter(
        (request.url.path, *(request.headers.get(name, "") for name in FIELDS.values()))
        for request in upstream.requests
    )


def personal(claims: list[str], path: str, **settings: Any) -> dict[str, Any]:
    """A part for each value of the claims."""
    forward = {FIELDS[claim]: claim for claim in claims}
    return {"upstream": "shop", "path": path, "ttl": "30s", "per": claims, "forward": forward, **settings}


def shared(path: str, **settings: Any) -> dict[str, Any]:
    return {"upstream": "shop", "path": path, "ttl": "30s", **settings}


def settings_of(parts: Mapping[str, Any], routes: Mapping[str, Any] | None = None, **home: Any) -> dict[str, Any]:
    return {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.example.com"}},
        "identity": {"shop": SHOP},
        "routes": {"home": {"path": "/home", "identity": ["shop"], "parts": dict(parts), **home}, **(routes or {})},
    }


def gateway_of(
    parts: Mapping[str, Any], upstream: StubUpstream, routes: Mapping[str, Any] | None = None, **home: Any
) -> Gateway:
    settings = settings_of(parts, routes, **home)
    return create_app(settings, transport=upstream, clock=TurnedClock(), log=silent)


def bearer(**claims: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {issuer.sign('ES256', **claims).decode()}"}
