"""Upstreams with the limits that a test names."""

from __future__ import annotations

from typing import Any

import httpx

from gateway.config.upstream import UpstreamConfig
from gateway.upstreams.client import Upstream
from tests.support.raw import RawUpstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Turned:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def speaking_to(
    *raws: RawUpstream,
    path: str = "",
    transport: httpx.AsyncBaseTransport | None = None,
    monotonic: Turned | None = None,
    **settings: Any,
) -> Upstream:
    config = UpstreamConfig.model_validate({"urls": [raw.url + path for raw in raws], "timeout": "5s", **settings})
    return Upstream("raw", config, transport, **({"monotonic": monotonic} if monotonic else {}))


async def ask(upstream: Upstream, target: str = "/", method: str = "GET", **more: Any) -> tuple[int, bytes | None]:
    fetched = await upstream.fetch(method, target, [], **more)
    try:
        return fetched.status, await fetched.body.whole(1_000_000)
    finally:
        await fetched.body.aclose()
