"""What is stored comes back as it was: every field, every byte, from memory, from Redis and through `@cached`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.gateways import served
from tests.support.identity import BODY, FIELDS, VARY
from tests.support.processes import MakeValkey, StartGateway


async def origin(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers 200, 404 at /missing, 201 to a POST: with 40 fields, two lines of Vary, and a binary body."""
    while (await receive()).get("more_body"):
        pass
    status = {"POST": 201}.get(scope["method"], 404 if scope["path"].endswith("missing") else 200)
    fields = [*FIELDS, *VARY, ("Content-Type", "application/octet-stream"), ("Content-Length", str(len(BODY)))]
    if status == 201:
        fields.append(("Location", "/things/9"))
    headers = [(name.lower().encode(), value.encode()) for name, value in fields]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async with served(origin) as url:
        yield url


def settings(upstream: str, redis_url: str) -> dict[str, Any]:
    return {
        "redis_url": redis_url,
        "upstreams": {"api": {"url": upstream, "timeout": "20s"}},
        "routes": {
            "timed": {"path": "/timed/{name}", "upstream": "api", "ttl": "10m", "negative_ttl": "10m"},
            "rest": {"path": "/{path:path}", "upstream": "api"},
        },
        "include": ["tests.support.identity_routes:router"],
    }


def same(response: httpx.Response) -> None:
    got = [(name.lower(), value) for name, value in response.headers.multi_items()]
    wanted = [(name.lower(), value) for name, value in FIELDS]
    assert [pair for pair in got if pair[0].startswith("x-field") or pair[0] == "x-twice"] == wanted
    # What the key holds is said after what the upstream says.
    said = response.headers.get_list("vary", split_commas=True)
    assert said[: len(VARY)] == [value for _, value in VARY]
    assert response.content == BODY
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(BODY))


@pytest.mark.parametrize(("name", "status"), [("thing", 200), ("missing", 404)])
@pytest.mark.parametrize("place", ["timed", "cached"])
async def test_an_answer_comes_back_whole_from_memory_and_from_redis(
    start_gateway: StartGateway, make_valkey: MakeValkey, upstream: str, place: str, name: str, status: int
) -> None:
    valkey = make_valkey()
    path = f"/{place}/{name}"
    first, second = (start_gateway(settings(upstream, valkey.url), name=each) for each in ("first", "second"))
    async with httpx.AsyncClient(timeout=20, headers={"Accept-Language": "de"}) as client:
        fetched = await client.get(first.url + path)
        from_memory = await client.get(first.url + path)
        # What is fetched is written to Redis behind its answer.
        with valkey.client() as redis:
            for _ in range(500):
                if any(key.startswith(b"gw:") and redis.strlen(key) > len(BODY) for key in _texts(redis)):
                    break
        from_redis = await client.get(second.url + path)
    said = [response.headers["cache-status"] for response in (fetched, from_memory, from_redis)]
    assert said[0].startswith("gateway; fwd=miss; stored")
    assert [each.startswith("gateway; hit") for each in said[1:]] == [True, True]
    for response in (fetched, from_memory, from_redis):
        assert response.status_code == status
        same(response)


def _texts(redis: Any) -> list[bytes]:
    return [key for key in redis.scan_iter() if redis.type(key) == b"string"]


async def test_a_201_keeps_its_status_and_fields(start_gateway: StartGateway, upstream: str) -> None:
    gateway = start_gateway(settings(upstream, "none"))
    async with httpx.AsyncClient(timeout=20) as client:
        response = await client.post(f"{gateway.url}/things", content=b"{}")
    assert response.status_code == 201
    assert response.headers["location"] == "/things/9"
    same(response)
