"""Several gateways on one Redis make one request of the upstream for all who ask at once, cold and expired."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest

from tests.support.processes import MakeValkey, StartGateway

AT_ONCE = 500


async def ask_all(client: aiohttp.ClientSession, urls: Sequence[str]) -> set[int]:
    """500 requests at once, spread over the gateways; the numbers of the upstream's answers."""

    async def one(number: int) -> int:
        async with client.get(urls[number % len(urls)] + "/items/1") as response:
            assert response.status == 200
            return int((await response.json())["n"])

    return set(await asyncio.gather(*(one(number) for number in range(AT_ONCE))))


@pytest.mark.timeout(120)
async def test_500_at_once_over_four_gateways_make_one_request_cold_and_one_expired(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey()
    settings = {
        "redis_url": valkey.url,
        "redis_budget": "2s",  # what is shown is the lease, and not how fast a loaded machine is
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {"items": {"upstream": "api", "path": "/items/{id}", "ttl": "3s"}},
    }
    urls = [start_gateway(settings, name=name).url for name in ("one", "two", "three", "four")]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        assert await ask_all(client, urls) == {1}
        await asyncio.sleep(3.1)
        assert await ask_all(client, urls) == {2}
        async with client.get(f"{origin}/asked") as response:
            assert await response.json() == {"/items/1": 2}
