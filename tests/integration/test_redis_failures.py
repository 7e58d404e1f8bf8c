"""What a load of a hundred clients notices of Redis dying, stalling, filling up, turning read-only or loading: nothing.

Of the requests some are hits, some are stale (and refreshed behind), some are new, so that Redis is read and written
all the time.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.load import Load, Sample, load_of, p99
from tests.support.mixed_load import HOT, mixed, settings
from tests.support.processes import GatewayProcess, MakeValkey, StartGateway, Valkey, totals

ADDED_P99 = 0.050
RETURNS_WITHIN = 1.0


@dataclass
class Trial:
    gateway: GatewayProcess
    valkey: Valkey
    load: Load
    admin: httpx.AsyncClient

    async def redis(self) -> str:
        return str((await self.admin.get("/readyz")).json()["redis"])

    async def metrics(self) -> dict[str, float]:
        return totals((await self.admin.get("/metrics")).text)

    async def until(self, state: str, within: float) -> float:
        """Seconds until `/readyz` says `state` of Redis. It is another process: there is nothing to wait on."""
        began = time.monotonic()
        while await self.redis() != state:
            assert time.monotonic() - began < within, f"Redis is not {state} within {within} s"
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def undisturbed(self) -> list[list[Sample]]:
        return [await self.load.window(0.6) for _ in range(3)]

    async def held(self, before: list[list[Sample]], samples: list[Sample]) -> None:
        """The 99th percentile of `samples` is not much above what it is undisturbed, before and after; by how much that
        differs from itself is the machine's noise."""
        parts = [*before, *await self.undisturbed()]
        ranks = [p99(part) for part in parts]
        usual, noise = p99([sample for part in parts for sample in part]), max(ranks) - min(ranks)
        added = p99(samples) - usual
        print(f"p99 {usual * 1000:.1f} ms (noise {noise * 1000:.1f}), added {added * 1000:+.1f} ms")
        assert added < ADDED_P99 + noise


@asynccontextmanager
async def under_load(gateway: GatewayProcess, valkey: Valkey) -> Any:
    async with gateway.operator(timeout=5) as admin:
        async with load_of(gateway.url, mixed()) as load:
            await load.window(0.8)  # all connections open, all hot keys stored
            yield Trial(gateway, valkey, load, admin)
        assert load.failed == []


def hot(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.path.startswith("/hot/")]


def assert_all_hits(samples: list[Sample]) -> None:
    assert [sample for sample in hot(samples) if not sample.cache_status.startswith("gateway; hit")] == []
    assert len(hot(samples)) > 100


async def assert_used(trial: Trial) -> None:
    """Redis is read and written again, without a failure."""
    before = await trial.metrics()
    await trial.load.window(0.4)
    after = await trial.metrics()
    assert after["gateway_redis_reads_total"] > before["gateway_redis_reads_total"]
    assert after["gateway_redis_writes_total"] > before["gateway_redis_writes_total"]
    assert after["gateway_redis_failures_total"] == before["gateway_redis_failures_total"]
    with trial.valkey.client() as client:
        assert client.dbsize() > 0


@pytest.mark.alone
async def test_redis_killed_under_load_fails_no_request_and_is_used_within_a_second_of_its_return(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey(unix=False)
    gateway = start_gateway(settings(origin, valkey))
    async with under_load(gateway, valkey) as trial:
        before = await trial.undisturbed()
        assert await trial.redis() == "available"

        await asyncio.to_thread(valkey.kill)
        during = await trial.load.window(1.5)
        assert await trial.redis() == "away"
        assert (await trial.metrics())["gateway_redis_available"] == 0
        assert_all_hits(during)

        await asyncio.to_thread(valkey.start)
        seconds = await trial.until("available", RETURNS_WITHIN)
        print(f"back after {seconds:.3f} s")
        await assert_used(trial)
        await trial.held(before, during)
        assert (await trial.metrics())["gateway_redis_available"] == 1
    async with httpx.AsyncClient() as client:
        asked = (await client.get(f"{origin}/asked")).json()
    assert [asked[f"/hot/{n}"] for n in range(HOT)] == [1] * HOT


@pytest.mark.alone
async def test_a_stalled_redis_fails_no_request_and_is_used_within_a_second_of_its_waking(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey()
    gateway = start_gateway(settings(origin, valkey))
    async with under_load(gateway, valkey) as trial:
        before = await trial.undisturbed()

        valkey.child.signal(signal.SIGSTOP)
        during = await trial.load.window(1.5)
        assert await trial.redis() == "away"
        assert_all_hits(during)

        valkey.child.signal(signal.SIGCONT)
        seconds = await trial.until("available", RETURNS_WITHIN)
        print(f"back after {seconds:.3f} s")
        await assert_used(trial)
        await trial.held(before, during)


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        pytest.param("CONFIG SET maxmemory 1mb", "CONFIG SET maxmemory 0", id="full"),
        pytest.param("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", id="a read-only replica"),
    ],
)
async def test_a_redis_that_refuses_writes_fails_no_request_and_is_used_once_it_takes_them(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str, spoil: str, mend: str
) -> None:
    valkey = make_valkey("--maxmemory-policy", "noeviction")
    gateway = start_gateway(settings(origin, valkey))
    async with under_load(gateway, valkey) as trial:
        before = await trial.undisturbed()
        with valkey.client() as client:
            client.execute_command(*spoil.split())
            with pytest.raises(Exception, match=r"maxmemory|read only"):
                client.set("one", "more")

            during = await trial.load.window(1.5)
            assert (await trial.metrics())["gateway_redis_failures_total"] > 0
            assert_all_hits(during)

            client.execute_command(*mend.split())
        await trial.until("available", RETURNS_WITHIN)
        await assert_used(trial)
        await trial.held(before, during)


async def test_a_redis_that_is_loading_fails_no_request_and_is_used_once_it_has_loaded(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey()
    gateway = start_gateway(settings(origin, valkey))
    with valkey.client() as client:
        client.execute_command("DEBUG", "POPULATE", "5000")
        client.save()
    async with under_load(gateway, valkey) as trial:
        before = await trial.undisturbed()

        await asyncio.to_thread(valkey.kill)
        valkey.launch("--key-load-delay", "400", "--loading-process-events-interval-bytes", "1024")
        await asyncio.to_thread(valkey.child.said, "DB loaded|Loading RDB produced")
        during = await trial.load.window(1.5)
        with valkey.client() as client:
            assert client.info("persistence")["loading"] == 1
        assert_all_hits(during)

        await asyncio.to_thread(valkey.ready)
        await trial.until("available", RETURNS_WITHIN)
        await assert_used(trial)
        await trial.held(before, during)
