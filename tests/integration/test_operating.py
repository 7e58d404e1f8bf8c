"""Operating real gateways: overrides on every worker of every replica, reloads without a signal, reloads under load."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import httpx
import yaml

from tests.support.load import load_of
from tests.support.processes import GatewayProcess, MakeValkey, StartGateway
from tests.support.proxy import faulty_url
from tests.support.scale import size

TOKEN = {"GATEWAY_ADMIN_TOKEN": "secret"}
CONNECTIONS = 12
"""Fresh connections asked of each gateway: each worker gets some of them."""


def settings(origin: str, **more: Any) -> dict[str, Any]:
    return {
        "workers": 2,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "100s"}},
        **more,
    }


async def promised(gateway: GatewayProcess) -> set[int]:
    """The `max-age`s that a gateway's workers promise, each asked on connections of its own."""

    async def ask(client: httpx.AsyncClient) -> int:
        control = (await client.get(f"{gateway.url}/items/1")).headers["cache-control"]
        return int(control.removeprefix("max-age="))

    async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)) as client:
        return set(await asyncio.gather(*(ask(client) for _ in range(CONNECTIONS))))


async def in_force(gateways: list[GatewayProcess], longest: int) -> float:
    """Seconds until no worker promises more than `longest`."""
    began = time.perf_counter()
    async with asyncio.timeout(20):
        for gateway in gateways:
            while max(await promised(gateway)) > longest:
                await asyncio.sleep(0.02)
    return time.perf_counter() - began


async def test_an_override_is_soon_in_force_on_every_worker_of_every_gateway(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey(unix=False)
    async with faulty_url(valkey.url) as proxy:
        workers, cut = size("override_workers"), float(size("cut_off_seconds"))
        here, there = (settings(origin, workers=workers, redis_url=url) for url in (valkey.url, proxy.url(valkey.url)))
        near = start_gateway(here, environment=TOKEN, name="near")
        far = start_gateway(there, environment=TOKEN, name="far")
        assert min(await promised(near) | await promised(far)) > 50
        async with near.operator("secret") as operator, far.operator("secret") as other:
            order = {"route": "item", "value": "20s", "for": "1h"}
            assert (await operator.post("/overrides", json=order)).status_code == 200
            print(f"in force on {workers} workers of each of 2 gateways after {await in_force([near, far], 20):.2f} s")

            await proxy.refuse()
            assert (await operator.post("/overrides", json={**order, "value": "10s"})).status_code == 200
            await in_force([near], 10)
            assert max(await promised(far)) > 10  # it can't know, and goes on as it was
            assert (await other.post("/overrides", json=order)).status_code == 503
            await asyncio.sleep(cut)
            await proxy.accept()
            print(f"in force on the gateway that was cut off {await in_force([far], 10):.2f} s after its return")

            assert (await other.delete("/overrides/item/ttl")).status_code == 200
            async with asyncio.timeout(20):
                while min(await promised(near) | await promised(far)) < 50:
                    await asyncio.sleep(0.02)


async def test_a_change_of_the_file_or_of_dotenv_is_taken_up_without_a_signal(
    start_gateway: StartGateway, origin: str
) -> None:
    gateway = start_gateway(settings(origin, workers=1, watch=True))
    given = yaml.safe_load(gateway.file.read_text())
    new = gateway.file.with_suffix(".new")
    new.write_text(yaml.safe_dump({**given, "routes": {"item": {**given["routes"]["item"], "ttl": "20s"}}}))
    new.rename(gateway.file)
    await asyncio.to_thread(gateway.said, r"routes\.item\.ttl: 100s -> 20s")
    assert max(await promised(gateway)) <= 20
    (gateway.file.parent / ".env").write_text("GATEWAY_ROUTES__ITEM__TTL=10s\n")
    await asyncio.to_thread(gateway.said, r"routes\.item\.ttl: 20s -> 10s")
    assert max(await promised(gateway)) <= 10
    gateway.file.write_text("routes: [nonsense")
    await asyncio.to_thread(gateway.said, "the new configuration is invalid")
    assert max(await promised(gateway)) <= 10


async def test_reload_after_reload_under_load_fails_no_request_and_mixes_no_two_configurations(
    start_gateway: StartGateway, origin: str
) -> None:
    """Each configuration gives two routes the same TTL: an answer never has another than the ones configured."""
    gateway = start_gateway(settings(origin, redis_url="embedded"))
    seen: set[int] = set()
    reloads, between = size("reloads"), size("reload_answers")
    async with load_of(gateway.url, lambda: f"/items/{time.monotonic_ns() % 50}", 20) as load:
        for number in range(reloads):
            given = yaml.safe_load(gateway.file.read_text())
            given["routes"]["item"]["ttl"] = f"{100 if number % 2 else 1000}s"
            gateway.file.write_text(yaml.safe_dump(given))
            lines = len(gateway.errors.splitlines())
            gateway.signal(signal.SIGHUP)
            await asyncio.to_thread(gateway.said, "configuration reloaded", after=lines)
            seen |= await promised(gateway)
            await load.answered(between)
    print(f"{reloads} reloads: {len(load.samples)} answered, {len(load.failed)} failed")
    assert load.failed == []
    assert all(90 <= each <= 100 or 900 <= each <= 1000 for each in seen)
