"""Purges by tag under load, while Redis is killed and comes back empty: what was acknowledged holds.

An answer tells when its origin made it, by the clock that all processes of a machine share. So for each answer it is
known whether it contains what was fetched before a purge.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.support.processes import GatewayProcess, MakeValkey, StartGateway, Valkey
from tests.support.scale import size

PURGES = size("purges")
AT_ONCE = 8
AWAY = (0.3, 2.5, 1.0)
"""Seconds that Redis is away each time: shorter and longer than a purge waits for it."""
ITEMS = 12
CLIENTS = 12
HOLDS_WITHIN = 2.0
TOKEN = "a token for the test"


@dataclass(frozen=True, slots=True)
class Purged:
    item: int
    issued: float
    answered: float
    complete: bool


@dataclass(frozen=True, slots=True)
class Asked:
    item: int
    began: float
    made: float
    """When the origin made what was answered."""


class Trial:
    def __init__(self, gateways: Sequence[GatewayProcess], valkey: Valkey) -> None:
        self.gateways = gateways
        self.valkey = valkey
        self.purged: list[Purged] = []
        self.asked: list[Asked] = []
        self.failed: list[str] = []
        self.returns: list[float] = []
        self._news = asyncio.Condition()
        self.stop = asyncio.Event()

    async def ask(self, session: aiohttp.ClientSession) -> None:
        while not self.stop.is_set():
            item = random.randrange(ITEMS)
            began = time.monotonic()
            try:
                async with session.get(f"{random.choice(self.gateways).url}/items/{item}") as response:
                    content = await response.json()
                    if response.status != 200:
                        self.failed.append(f"{response.status} {content}")
                    else:
                        self.asked.append(Asked(item, began, content["at"]))
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.failed.append(repr(error))
            await asyncio.sleep(random.uniform(0, 0.03))

    async def purge(self, client: httpx.AsyncClient) -> None:
        item, issued = random.randrange(ITEMS), time.monotonic()
        response = await client.post("/purge", json={"tags": [f"item:{item}"]})
        assert response.status_code in (200, 202), response.text
        self.purged.append(Purged(item, issued, time.monotonic(), response.status_code == 200))
        async with self._news:
            self._news.notify_all()

    async def purge_all(self, admins: Sequence[httpx.AsyncClient]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with room:
                await self.purge(admins[number % len(admins)])
                await asyncio.sleep(0.02)

        await asyncio.gather(*(one(number) for number in range(PURGES)))

    async def restart_redis(self) -> None:
        for turn, away in enumerate(AWAY):
            share = PURGES * (turn + 1) // (len(AWAY) + 1)
            async with self._news:
                await self._news.wait_for(lambda: len(self.purged) >= share)  # noqa: B023 - it is awaited here
            await asyncio.to_thread(self.valkey.kill)
            await asyncio.sleep(away)
            await asyncio.to_thread(self.valkey.start)
            self.returns.append(time.monotonic())

    def broken(self) -> list[str]:
        """Answers that contain what was purged before they were asked for."""
        found = []
        for purge in self.purged:
            holds_from = purge.answered
            if not purge.complete:
                back = [moment for moment in self.returns if moment >= purge.issued]
                holds_from = max(purge.answered, (min(back) if back else purge.answered) + HOLDS_WITHIN)
            found += [
                f"{purge} is not held by {asked}"
                for asked in self.asked
                if asked.item == purge.item and asked.began > holds_from and asked.made < purge.issued
            ]
        return found


def settings(origin: str, valkey: Valkey) -> dict[str, object]:
    route = {"upstream": "api", "path": "/items/{id}", "ttl": "1h", "tags": ["item:{id}"]}
    return {
        "redis_url": valkey.url,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {"items": route},
    }


@pytest.mark.timeout(600)
async def test_every_acknowledged_purge_holds_while_redis_is_killed_and_loses_all(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str, tmp_path: Path
) -> None:
    valkey = make_valkey(unix=False)
    environment = {"GATEWAY_ADMIN_TOKEN": TOKEN}
    gateways = [
        start_gateway(settings(origin, valkey), name=name, environment=environment) for name in ("one", "two", "three")
    ]
    trial = Trial(gateways, valkey)
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        asyncio.TaskGroup() as group,
    ):
        admins = [gateway.operator(TOKEN) for gateway in gateways]
        for _ in range(CLIENTS):
            group.create_task(trial.ask(session))
        restarts = group.create_task(trial.restart_redis())
        await trial.purge_all(admins)
        await restarts
        await asyncio.sleep(HOLDS_WITHIN + 1)
        trial.stop.set()
        for admin in admins:
            await admin.aclose()
    complete = [purge for purge in trial.purged if purge.complete]
    seconds = sorted(purge.answered - purge.issued for purge in complete)
    median, slowest = seconds[len(seconds) // 2] * 1000, seconds[-1] * 1000
    print(
        f"{len(trial.purged)} purges, {len(complete)} acknowledged (median {median:.1f} ms, slowest {slowest:.0f} ms), "
        f"{len(trial.purged) - len(complete)} answered 202; {len(AWAY)} restarts; "
        f"{len(trial.asked)} answers, {len(trial.failed)} failed"
    )
    assert trial.failed == []
    assert trial.broken() == []
    assert len(complete) > PURGES / 2
    assert len(complete) < PURGES  # Redis was away
