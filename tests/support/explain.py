"""A gateway whose requests are explained."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from gateway.app.gateway import Gateway
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import gateway, json_answer

ROUTES: dict[str, Any] = {
    "item": {
        "path": "/items/{id}",
        "upstream": "api",
        "upstream_path": "/v2/{id}",
        "ttl": "30s",
        "stale_while_revalidate": "1m",
        "stale_if_error": "5m",
        "query": ["a", "b"],
        "tags": ["item:{id}"],
    },
    "rest": {"path": "/{path:path}", "upstream": "api"},
}
ANY = ((b"accept", b"*/*"),)
"""What the tests' client sends with each request, as curl does."""


def started(clock: TurnedClock, **headers: str) -> tuple[Gateway, StubUpstream]:
    upstream = StubUpstream(json_answer(**headers))
    return gateway(upstream, ROUTES, clock=clock), upstream


FILE = """\
redis_url: none
upstreams:
  api: {url: "http://api.test"}
routes:
  item: {path: "/items/{id}", upstream: api, ttl: 30s}
"""


SUMS = APIRouter()
