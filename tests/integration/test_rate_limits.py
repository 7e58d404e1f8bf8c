"""Rate limits over two gateways of two workers each, on one Redis that is killed and comes back without its data."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from tests.support.processes import MakeValkey, StartGateway
from tests.support.scale import size

RATE, BURST = 20, 10
OVERLOAD = float(size("overload_seconds"))


class Load:
    """Asks the gateways in turn, and notes of each answer when it was asked for, when it came, and its status."""

    def __init__(self, client: aiohttp.ClientSession, urls: list[str]) -> None:
        self.client = client
        self.urls = urls
        self.answers: list[tuple[float, float, int]] = []

    async def ask(self, number: int) -> aiohttp.ClientResponse:
        began = time.monotonic()
        async with self.client.get(self.urls[number % len(self.urls)] + "/items/1") as response:
            await response.read()
        self.answers.append((began, time.monotonic(), response.status))
        return response

    async def overload(self, seconds: float) -> None:
        """Ten times the limit, as far as this machine can."""
        until = time.monotonic() + seconds

        async def one(number: int) -> None:
            while time.monotonic() < until:
                await self.ask(number)
                await asyncio.sleep(8 / (10 * RATE))

        await asyncio.gather(*(one(number) for number in range(8)))

    def assert_bounded(self) -> None:
        """In each span from the sending of one request to the answer to another, no more have passed than may."""
        passed = sorted((began, ended) for began, ended, status in self.answers if status == 200)
        for at, (began, _) in enumerate(passed):
            for within, until in enumerate(sorted(ended for _, ended in passed[at:]), 1):
                assert within <= BURST + 1.1 * RATE * max(0.0, until - began) + 1e-6


@pytest.mark.timeout(120)
async def test_two_gateways_of_two_workers_hold_a_limit_with_redis_without_it_and_after_it_lost_its_data(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str, tmp_path: Path
) -> None:
    valkey = make_valkey()
    settings = {
        "redis_url": valkey.url,
        "workers": 2,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "rate_limits": {"each": {"by": "client", "rate": f"{RATE}/s", "burst": BURST}},
        "routes": {"items": {"upstream": "api", "path": "/items/{id}", "ttl": "60s", "rate_limits": ["each"]}},
    }
    gateways = [start_gateway(settings, name=name) for name in ("one", "two")]
    # Each request on a connection of its own reaches any of the workers.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:
        load = Load(client, [gateway.url for gateway in gateways])
        await load.overload(OVERLOAD)
        assert sum(status == 200 for *_, status in load.answers) > BURST
        while (refused := await load.ask(0)).status != 429:
            pass
        await asyncio.sleep(int(refused.headers["retry-after"]))
        assert (await load.ask(1)).status == 200
        for number in range(20):  # nine tenths of the rate
            await asyncio.sleep(1 / (0.9 * RATE))
            assert (await load.ask(number)).status == 200
        valkey.kill()
        await load.overload(OVERLOAD)
        valkey.start()
        await load.overload(OVERLOAD)
        load.assert_bounded()
        assert {status for *_, status in load.answers} == {200, 429}
    passed = sum(status == 200 for *_, status in load.answers)
    print(f"{passed} of {len(load.answers)} requests passed, in {load.answers[-1][1] - load.answers[0][0]:.0f} s")
    refusals = sum(n for name, n in gateways[0].metrics().items() if name.startswith("gateway_rate_limit_refused"))
    assert refusals > 0
