"""Aggregates that the edge splices beside an app that joins them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx

from gateway.testing import TurnedClock
from tests.support.edge_lines import Changing, Side


def _part(path: str, **more: Any) -> dict[str, Any]:
    return {"upstream": "api", "path": path, "ttl": "30s", "vary": [], **more}


ROUTES: dict[str, Any] = {
    "plain": {
        "path": "/plain/{id}",
        "tags": ["whole"],
        "parts": {
            "user": _part("/users/{id}", tags=["user:{id}"]),
            "offers": _part("/offers", ttl="6s", stale_while_revalidate="5s", tags=["offers"]),
            "news": {"upstream": "api", "path": "/news?page={query.page}"},
        },
    },
    "shaped": {
        "path": "/shaped/{id}",
        "selectable": True,
        "parts": {
            "user": _part("/users/{id}", deny=["v"]),
            "offers": _part("/offers", ttl="6s", group="promo", select="v"),
            "version": {"static": {"minimum": "2 %"}},
            "sorry": {"static": "gone", "static_if": "incomplete"},
            "flavour": _part("/flavour", ttl="10s", vary=["x-flavour", "accept"], optional=True),
        },
    },
    "product": {"path": "/offers", "upstream": "api", "ttl": "3s"},
    "through": {
        "path": "/through",
        "parts": {"offers": {"route": "product"}, "user": _part("/users/1", headers={"x-a": "1"})},
    },
    "chained": {
        "path": "/chained/{id}",
        "parts": {"user": _part("/users/{id}"), "more": _part("/more/{user.v}", optional=True)},
    },
    "rooted": {"path": "/rooted", "parts": {"user": _part("/users/1", group=None), "offers": _part("/offers")}},
    "enveloped": {"path": "/enveloped", "envelope": True, "parts": {"offers": _part("/offers", ttl="6s")}},
    "personal": {
        "path": "/personal",
        "parts": {
            "me": _part("/me", authorization="key", cookies=["a"], ttl="8s"),
            "device": _part("/device?d={header.x-flavour}", ttl="9s"),
        },
    },
    "refusing": {"path": "/refusing", "parts": {"user": _part("/users/{query.x}"), "offers": _part("/offers")}},
    "passing": {"path": "/passing", "parts": {"me": _part("/me", authorization="pass"), "offers": _part("/offers")}},
}


class Parts(Changing):
    """What the upstream says at the moment: JSON, of each path its own."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        seen = [request.headers.get(name) for name in ("x-flavour", "accept", "authorization", "cookie")]
        body: Any = {"v": self.version, "path": path, "seen": seen}
        if path in ("/offers", "/flavour") and self.status != 200:
            return httpx.Response(self.status, json={"status": self.status}, headers=self.headers)
        headers = dict(self.headers) if path != "/users/1" else {}
        if path == "/flavour":
            return httpx.Response(
                200, content=gzip.compress(json.dumps(body).encode()), headers={**headers, "content-encoding": "gzip"}
            )
        if path == "/me":
            return httpx.Response(200, content=b"\xef\xbb\xbf" + json.dumps(body).encode(), headers=headers)
        return httpx.Response(200, json=body, headers=headers)


class JoiningSide(Side):
    def __init__(self, clock: TurnedClock, changing: Changing, *, edge: bool, **settings: Any) -> None:
        api = {"url": "http://api.test", "timeout": "5s", "breaker_failures": 0}
        given = {
            "upstreams": {"api": api},
            "routes": ROUTES,
            "cors": {"allow_origins": ["https://app.test"]},
            **settings,
        }
        super().__init__(clock, changing, edge=edge, **given)

    def counts(self) -> list[str]:
        text = self.app.metrics.render().decode().splitlines()
        return [*super().counts(), *(line for line in text if line.startswith("gateway_parts_total"))]


UPSTREAM_HEADERS: tuple[dict[str, str], ...] = (
    {"cache-control": "max-age=7"},
    {"cache-control": "max-age=20", "age": "3", "surrogate-key": "upstreams"},
    {"cache-control": "max-age=20", "vary": "X-Flavour"},
    {"cache-control": "max-age=20", "vary": "Accept-Encoding, X-Request-ID"},
    {"cache-control": "max-age=5, stale-while-revalidate=9"},
    {"cache-control": "private, max-age=10"},
    {"cache-control": "no-store"},
    {},
)


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: gateway.test", *lines, "", ""]).encode()
