"""Several gateways on one Redis make one request of the upstream for all who ask at once, cold and expired."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import aiohttp
import httpx
import pytest
import redis

from gateway.cache.leases import STORED_LIFE
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


def socket_of(valkey: int) -> str:
    """The socket of the embedded Valkey, which its title names."""
    found = re.search(r"unixsocket[:\0\s]+([^\0\s]+)", Path(f"/proc/{valkey}/cmdline").read_text())
    assert found is not None
    return found[1]


def leases_at(valkey: redis.Redis) -> int:
    return len(list(valkey.scan_iter("gw:l:*")))


@pytest.mark.timeout(120)
async def test_a_single_worker_with_its_own_valkey_takes_leases_only_while_it_is_replaced(
    start_gateway: StartGateway, origin: str
) -> None:
    """A lease leaves a mark for two seconds, so one that was taken is seen."""
    settings = {
        "redis_url": "embedded",
        "workers": 1,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {"items": {"upstream": "api", "path": "/items/{id}", "ttl": "1h"}},
    }
    gateway = start_gateway(settings)
    numbers = count()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:

        async def miss() -> None:
            assert (await client.get(f"/items/{next(numbers)}")).status_code == 200

        with redis.Redis(unix_socket_path=socket_of(gateway.valkey)) as valkey:
            until = time.monotonic() + STORED_LIFE + 10
            while time.monotonic() < until:  # until the first worker knows that it is alone
                await miss()
                if not leases_at(valkey):
                    break
            for _ in range(20):
                await miss()
            assert leases_at(valkey) == 0
            (before,) = gateway.workers
            gateway.signal(signal.SIGUSR2)
            while not leases_at(valkey):
                await miss()
            await asyncio.to_thread(gateway.said, "all 1 workers were replaced", timeout=50)
            assert gateway.workers != [before]
            while leases_at(valkey):  # the marks expire
                await asyncio.sleep(0.05)
            for _ in range(20):
                await miss()
            assert leases_at(valkey) == 0
