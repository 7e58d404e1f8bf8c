"""One request upstream for all who want the same at once, over real sockets; and nobody gets another's answer."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.processes import READY_SECONDS, ROOT, Child, GatewayProcess, StartGateway, free_port

AT_ONCE = 500


@pytest.fixture
def slow_shop(tmp_path: Path) -> Iterator[str]:
    """The demo's shop, half a second slow."""
    port = free_port()
    command = [sys.executable, "-m", "gateway.demo.shop", "--port", str(port), "--delay", "500ms"]
    shop = Child(command, output=tmp_path / "shop.out", cwd=ROOT)
    try:
        until = time.monotonic() + READY_SECONDS
        while not listens(port):
            assert time.monotonic() < until, shop.errors
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        shop.end()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def behind(start_gateway: StartGateway, shop: str, **route: object) -> GatewayProcess:
    return start_gateway(
        {
            "upstreams": {"shop": {"url": shop, "timeout": "20s", "max_queue": 1000, "max_connections": 500}},
            "routes": {
                "item": {"path": "/v2/items/{id}", "upstream": "shop", **route},
                "rest": {"path": "/{path:path}", "upstream": "shop"},
            },
        }
    )


@asynccontextmanager
async def clients() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def ask(session: aiohttp.ClientSession, url: str) -> tuple[str, bytes, str]:
    """What the cache said, the body, and the shop's own number of the request that it answers."""
    async with session.get(url) as response:
        assert response.status == 200
        return response.headers["Cache-Status"], await response.read(), response.headers["X-Shop-Request"]


async def asked(session: aiohttp.ClientSession, shop: str) -> int:
    async with session.get(f"{shop}/_demo") as response:
        return int((await response.json())["requests"].get("/v2/items/{id}", 0))


async def test_500_requests_at_once_for_a_cold_key_are_one_request_upstream(
    start_gateway: StartGateway, slow_shop: str
) -> None:
    gateway = behind(start_gateway, slow_shop, ttl="1m")
    async with clients() as session:
        answers = await asyncio.gather(*(ask(session, f"{gateway.url}/v2/items/7") for _ in range(AT_ONCE)))
        assert await asked(session, slow_shop) == 1
    assert len({body for _, body, _ in answers}) == 1
    asked_for = [said for said, _, _ in answers if "fwd=miss" in said]
    assert sum("collapsed" not in said for said in asked_for) == 1


async def test_500_requests_at_once_for_an_expired_key_get_the_stale_answer_and_are_one_request_upstream(
    start_gateway: StartGateway, slow_shop: str
) -> None:
    gateway = behind(start_gateway, slow_shop, ttl="1s", stale_while_revalidate="10m")
    async with clients() as session:
        url = f"{gateway.url}/v2/items/7"
        await ask(session, url)
        # Whoever waited for the shop from now on would wait for 15 s.
        async with session.post(f"{slow_shop}/_demo?delay=15s") as response:
            assert response.status == 200
        await asyncio.sleep(1.1)
        began = time.monotonic()
        answers = await asyncio.gather(*(ask(session, url) for _ in range(AT_ONCE)))
        assert time.monotonic() - began < 15
        assert {number for _, _, number in answers} == {"1"}
        assert all(said.startswith("gateway; hit; ttl=") for said, _, _ in answers)
        assert await asked(session, slow_shop) == 2


async def test_the_carts_of_many_users_at_once_never_cross(start_gateway: StartGateway, slow_shop: str) -> None:
    gateway = behind(start_gateway, slow_shop)
    users = [1 + number % 50 for number in range(200)]

    async def cart(session: aiohttp.ClientSession, user: int) -> tuple[int, str]:
        async with session.get(f"{gateway.url}/users/{user}/cart") as response:
            assert response.status == 200, await response.text()
            return int((await response.json())["user_id"]), response.headers["Cache-Status"]

    async with clients() as session:
        answers = await asyncio.gather(*(cart(session, user) for user in users))
    assert [owner for owner, _ in answers] == users
    assert not [said for _, said in answers if "hit" in said or "stored" in said]
