"""Aggregates in a fleet: two gateways of two workers each, on one Redis. A part is fetched once for all of them, and a
purge of its tag through one of them reaches what the others have joined, while a worker is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import pytest

from tests.support.processes import GatewayProcess, MakeValkey, StartGateway, Valkey

AT_ONCE = 100
CLIENTS = 8
PURGES = 12
KILLED_AFTER = 4
TOKEN = "a token for the test"
SCREENS = ("/home/1", "/home/2", "/other")


def settings(origin: str, valkey: Valkey) -> dict[str, Any]:
    offers = {"upstream": "api", "path": "/offers", "ttl": "1h", "vary": [], "tags": ["offers"]}
    return {
        "redis_url": valkey.url,
        "redis_budget": "2s",  # what is shown is that a part is shared, and not how fast a loaded machine is
        "workers": 2,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {
            "home": {
                "path": "/home/{id}",
                "parts": {
                    "user": {"upstream": "api", "path": "/users/{id}", "ttl": "1h", "vary": []},
                    "offers": offers,
                    "more": {"upstream": "api", "path": "/more/{user.n}", "ttl": "1h", "vary": []},
                },
            },
            "other": {"path": "/other", "parts": {"promotions": offers}},
        },
    }


@dataclass(frozen=True, slots=True)
class Seen:
    began: float
    made: float
    """When the origin made the offers in it."""
    status: str


class Fleet:
    def __init__(self, gateways: Sequence[GatewayProcess]) -> None:
        self.gateways = gateways
        self.stop = asyncio.Event()
        self.seen: list[Seen] = []
        self.broken: list[str] = []

    def url(self, number: int) -> str:
        return self.gateways[number % 2].url + SCREENS[number // 2 % len(SCREENS)]

    async def ask(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self.stop.is_set():
            number += 1
            began = time.monotonic()
            try:
                async with session.get(self.url(number)) as response:
                    assert response.status == 200, await response.text()
                    assert response.headers["gateway-complete"] == "?1", response.headers
                    content = await response.json()
                    offers = content.get("offers") or content["promotions"]
                    self.seen.append(Seen(began, offers["at"], response.headers["cache-status"]))
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                self.broken.append(repr(error))
            await asyncio.sleep(0.002)

    async def purge(self, times: int) -> list[tuple[float, float]]:
        """Purges of the offers' tag, through the first gateway: when each was issued, and when it was confirmed."""
        told = []
        transport = httpx.AsyncHTTPTransport(uds=str(self.gateways[0].admin_socket))
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin.test", headers=headers) as admin:
            for _ in range(times):
                issued = time.monotonic()
                response = await admin.post("/purge", json={"tags": ["offers"]}, timeout=20)
                if response.status_code == 200:
                    told.append((issued, time.monotonic()))
                await asyncio.sleep(0.1)
        return told


async def asked_of(session: aiohttp.ClientSession, origin: str) -> dict[str, int]:
    async with session.get(f"{origin}/asked") as response:
        return dict(await response.json())


@pytest.mark.timeout(180)
async def test_a_part_is_fetched_once_for_all_and_its_purge_reaches_all_while_a_worker_is_killed(
    make_valkey: MakeValkey, start_gateway: StartGateway, origin: str
) -> None:
    valkey = make_valkey()
    environment = {"GATEWAY_ADMIN_TOKEN": TOKEN}
    fleet = Fleet(
        [start_gateway(settings(origin, valkey), name=name, environment=environment) for name in ("one", "two")]
    )
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # so that each worker gets some
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(number: int) -> bytes:
            async with session.get(fleet.gateways[number % 2].url + "/home/1") as response:
                return await response.read()

        answers = set(await asyncio.gather(*(one(number) for number in range(AT_ONCE))))
        assert len(answers) == 1
        assert await asked_of(session, origin) == {"/users/1": 1, "/offers": 1, "/more/1": 1}

        clients = [asyncio.ensure_future(fleet.ask(session, number)) for number in range(CLIENTS)]
        purged = await fleet.purge(KILLED_AFTER)
        victim = fleet.gateways[1].workers[0]
        os.kill(victim, signal.SIGKILL)
        purged += await fleet.purge(PURGES - KILLED_AFTER)
        fleet.stop.set()
        await asyncio.gather(*clients)
        asked = await asked_of(session, origin)

    slowest = max(confirmed - issued for issued, confirmed in purged)
    print(
        f"{len(fleet.seen)} answers, {len(purged)} purges confirmed (the slowest in {slowest:.2f} s), "
        f"{len(fleet.broken)} connections lost, {asked}"
    )
    assert victim not in fleet.gateways[1].workers
    assert len(fleet.broken) <= CLIENTS
    assert len(purged) > KILLED_AFTER
    for issued, confirmed in purged:
        held = [each for each in fleet.seen if each.began > confirmed and each.made < issued]
        assert held == []
    # Hits on what was joined; and for each purge a fetch, or two where one was under way: not one for each worker.
    assert sum("; hit" in each.status for each in fleet.seen) > len(fleet.seen) / 2
    assert asked["/users/1"] == asked["/users/2"] == 1
    assert asked["/offers"] <= 2 * PURGES
