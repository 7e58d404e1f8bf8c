"""A shop of four upstreams, and aggregates of it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from gateway.app.gateway import Gateway, create_app
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock


class Shop:
    """An upstream whose answers a test sets by path; it counts what it was asked, by path."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.requests: list[httpx.Request] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.transport = _Transport(self)

    def set(self, path: str, answer: Any, **headers: str) -> None:
        self.answers[path] = answer
        self.headers[path] = {name.replace("_", "-"): value for name, value in headers.items()}

    def count(self, path: str) -> int:
        return self.asked.count(path)


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(request.stream, httpx.ByteStream):
            await request.aread()
        path = request.url.raw_path.decode()
        self._shop.asked.append(path)
        self._shop.requests.append(request)
        gate = self._shop.gates.get(path)
        if gate is not None:
            await gate.wait()
        answer = self._shop.answers.get(path, 404)
        headers = self._shop.headers.get(path, {})
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, int):
            return httpx.Response(answer, json={"status": answer}, headers=headers)
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer, headers={"content-type": "application/json"} | headers)
        return httpx.Response(200, json=answer, headers=headers)


def part(path: str, **settings: Any) -> dict[str, Any]:
    return {"upstream": "shop", "path": path, "ttl": "30s", "vary": [], **settings}


def home(shop: Shop, parts: dict[str, Any], clock: TurnedClock | None = None, **settings: Any) -> Gateway:
    outer = {name: settings.pop(name) for name in ("retry_after",) if name in settings}
    config = {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.test", "timeout": "5s", "breaker_failures": 0}},
        "routes": {
            "home": {"path": "/home/{user}", "parts": parts, **settings},
            "product": {"path": "/products/{id}", "upstream": "shop", "ttl": "30s", "vary": []},
        },
        **outer,
    }
    return create_app(config, transport=shop.transport, clock=clock, log=silent)


def said(response: httpx.Response) -> dict[str, str]:
    text = response.headers["gateway-parts"]
    return dict(item.split("=", 1) for item in text.split(", "))


def two() -> Shop:
    shop = Shop()
    shop.set("/users/7", b'{"id": 7}')
    shop.set("/offers", [1, 2])
    return shop


TWO = {"user": part("/users/{user}"), "offers": part("/offers", ttl="10s")}
