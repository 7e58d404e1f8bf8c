"""An older gateway and this one on one Redis, as during a deployment and a rollback: purges hold in both directions, no
request fails, nothing is answered wrongly."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateways import served
from tests.support.processes import ROOT, GatewayProcess, Valkey, clean_environment

BEFORE = "c84f8de"
"""The commit whose gateway stands for the version before."""
TOKEN = "0123456789abcdef0123456789abcdef"
ROUNDS = 10
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree of the version before."""
    folder = tmp_path_factory.mktemp("older")
    archive = subprocess.run(["git", "archive", BEFORE, "gateway"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the commit {BEFORE} is not in this clone: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    where = [sys.executable, "-c", "import gateway; print(gateway.__file__)"]
    environment = clean_environment({"PYTHONPATH": str(folder)})
    found = subprocess.run(where, cwd=folder, env=environment, capture_output=True, check=True)
    assert found.stdout.decode().startswith(str(folder))
    return folder


class Shop:
    """An upstream whose answers have a version."""

    def __init__(self) -> None:
        self.version = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = f"{scope['path']} {self.version}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.end()


def start(directory: Path, name: str, url: str, redis_url: str, source: Path) -> GatewayProcess:
    route = {"path": "/items/{id}", "upstream": "api", "ttl": "600s", "tags": ["item:{id}"]}
    settings = {"redis_url": redis_url, "upstreams": {"api": {"url": url}}, "routes": {"item": route}}
    environment = {"PYTHONPATH": str(source), "GATEWAY_ADMIN_TOKEN": TOKEN}
    return GatewayProcess(directory, {"access_log": False, **settings}, environment=environment, name=name)


async def ask(client: httpx.AsyncClient, number: int) -> int:
    """The version of an item."""
    response = await client.get(f"/items/{number}")
    assert response.status_code == 200
    path, _, version = response.text.partition(" ")
    assert path == f"/items/{number}"
    return int(version)


async def test_purges_hold_in_both_directions_under_load(tmp_path: Path, older: Path, valkey: Valkey) -> None:
    shop = Shop()
    async with served(shop) as url:
        gateways = [
            await asyncio.to_thread(start, tmp_path, name, url, valkey.url, source)
            for name, source in (("before", older), ("now", ROOT))
        ]
        load: list[asyncio.Task[None]] = []
        clients = [httpx.AsyncClient(base_url=each.url, timeout=10) for each in gateways]

        async def go_on(client: httpx.AsyncClient) -> None:
            while True:
                for number in range(5):
                    await ask(client, number)
                    await asyncio.sleep(0.001)

        orders: list[dict[str, Any]] = [
            {"tags": ["item:1"]},
            {"keys": ["/items/1"]},
            {"routes": ["item"]},
            {"all": True},
        ]
        try:
            load = [asyncio.ensure_future(go_on(client)) for client in clients]
            for turn in range(ROUNDS):
                order, issuer = orders[turn % len(orders)], gateways[turn // len(orders) % 2]
                for client in clients:
                    await ask(client, 1)
                shop.version += 1
                async with issuer.operator(TOKEN) as operator:
                    report = (await operator.post("/purge", json=order)).json()
                assert report["complete"], report
                assert report["workers"] == 2
                assert [await ask(client, 1) for client in clients] == [shop.version] * 2, (order, issuer)
            assert not [task for task in load if task.done()]
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
            for client in clients:
                await client.aclose()
            for each in gateways:
                each.end()


async def test_each_reads_or_skips_what_the_other_stored_and_overrides_hold_in_both(
    tmp_path: Path, older: Path, valkey: Valkey
) -> None:
    shop = Shop()
    async with served(shop) as url:
        first = await asyncio.to_thread(start, tmp_path, "before", url, valkey.url, older)
        second = None
        try:
            async with httpx.AsyncClient(base_url=first.url, timeout=10) as client:
                assert [await ask(client, number) for number in range(20)] == [0] * 20
            second = await asyncio.to_thread(start, tmp_path, "now", url, valkey.url, ROOT)
            async with httpx.AsyncClient(base_url=second.url, timeout=10) as client:
                assert [await ask(client, number) for number in range(40)] == [0] * 40
            async with second.operator(TOKEN) as operator:
                order = {"route": "item", "value": "300s", "setting": "ttl", "for": "1h", "by": "test"}
                assert (await operator.post("/overrides", json=order)).status_code == 200
            async with first.operator(TOKEN) as operator, asyncio.timeout(20):
                while not (await operator.get("/overrides")).json()["overrides"]:
                    await asyncio.sleep(0.05)
            async with httpx.AsyncClient(base_url=first.url, timeout=10) as client:
                assert [await ask(client, number) for number in range(40)] == [0] * 40
        finally:
            first.end()
            if second is not None:
                second.end()
