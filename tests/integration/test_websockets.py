"""WebSockets through real gateways: docs/websockets.md's configuration, a reload, a deploy, and what idle ones cost."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import yaml
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.processes import StartGateway
from tests.support.scale import size
from tests.support.snippets import Block, sections
from tests.support.websockets import echo

PAGE = Path(__file__).parents[2] / "docs/websockets.md"
BLOCKS: dict[str, list[Block]] = {section.title: section.blocks for section in sections(PAGE)}
MOST_MEMORY = 32 * 2**20 // 500
"""Bytes of the worker for each idle WebSocket."""


def settings(server: str, **more: Any) -> dict[str, Any]:
    """The page's configuration, for `server`."""
    [block] = BLOCKS["A route"]
    found: dict[str, Any] = yaml.safe_load(block.text)
    found["upstreams"]["chat"]["url"] = server
    return {**found, "access_log": False, **more}


async def talks(client: ClientConnection) -> None:
    await client.send("hello")
    assert await client.recv() == "hello"


async def code_of(client: ClientConnection) -> int | None:
    """The code by which the other end closes it."""
    try:
        while True:
            await client.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


async def test_one_survives_reloads_and_is_closed_1001_by_deploys(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with echo() as server, asyncio.timeout(50):
        gateway = await asyncio.to_thread(start_gateway, settings(server.url))
        url = gateway.url.replace("http", "ws") + "/rooms/7"
        client = await connect(url)
        await talks(client)
        config = yaml.safe_load(gateway.file.read_text())
        config["upstreams"]["chat"]["timeout"] = "3s"  # another upstream, whose connections are new
        gateway.file.write_text(yaml.safe_dump(config))
        gateway.signal(signal.SIGHUP)
        await asyncio.to_thread(gateway.said, "configuration reloaded, 1 change")
        await talks(client)
        other = await connect(url)
        await talks(other)
        gateway.signal(signal.SIGUSR2)  # rolling: the new worker serves before the old one ends
        assert await code_of(client) == 1001
        assert await code_of(other) == 1001
        third = await connect(url)
        await talks(third)
        gateway.signal(signal.SIGTERM)
        assert await code_of(third) == 1001
        assert await asyncio.to_thread(gateway.wait, 20) == 0
        assert [await server.ended.get() for _ in range(3)] == [(1001, "the gateway restarts")] * 3


async def test_idle_ones_cost_little(start_gateway: StartGateway) -> None:
    async with echo() as server, asyncio.timeout(50):
        number = size("idle_websockets")
        gateway = await asyncio.to_thread(start_gateway, settings(server.url, access_log=True))
        url = gateway.url.replace("http", "ws") + "/rooms/7"
        async with connect(url) as first:
            await talks(first)
            before = gateway.memory_now()
            clients = [await connect(url, compression=None) for _ in range(number)]
            assert gateway.memory_now() - before < number * MOST_MEMORY
            metrics = await asyncio.to_thread(gateway.metrics)
            assert metrics["gateway_websockets"] == number + 1
            await talks(clients[-1])
            await asyncio.gather(*(client.close() for client in clients))
        gateway.end()
        assert gateway.output.read_text().count('"close_code":1000') == number + 1
