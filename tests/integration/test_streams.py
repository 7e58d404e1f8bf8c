"""docs/streams.md: clients share a stream of sse-starlette, through real workers, and over what interrupts it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from tests.support import scale
from tests.support.gateways import served
from tests.support.processes import GatewayProcess
from tests.support.scale import size

pytestmark = pytest.mark.timeout(180)
PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
CONFIGURATION = re.findall(r"^```yaml\n# gateway.yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
WORKERS = 2


class Prices:
    """Numbered events, kept: a stream begins behind `Last-Event-ID`. `interrupt` ends all streams in the middle."""

    def __init__(self) -> None:
        self.count = 0
        self.behind: list[str | None] = []
        self._news = asyncio.Condition()
        self._series = 0

    async def publish(self, number: int) -> None:
        async with self._news:
            self.count += number
            self._news.notify_all()

    async def interrupt(self) -> None:
        async with self._news:
            self._series += 1
            self._news.notify_all()

    async def _events(self, at: int) -> AsyncIterator[ServerSentEvent]:
        series = self._series
        while True:
            async with self._news:
                while self.count <= at and self._series == series:
                    await self._news.wait()
            if self._series > series:
                return
            at += 1
            yield ServerSentEvent(data=f"price {at}", id=str(at))

    async def stream(self, request: Request) -> EventSourceResponse:
        last = request.headers.get("last-event-id")
        self.behind.append(last)
        return EventSourceResponse(self._events(self.count if last is None else int(last)), ping=3600)


class Client:
    """A client that comes back as browsers do: with the id of the last event, after the time that it was told."""

    def __init__(self, port: int) -> None:
        self.ids: list[int] = []
        self.delays: list[int] = []
        self.opened = 0
        self._port = port
        self._news = asyncio.Condition()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._read()
            await asyncio.sleep((self.delays[-1] if self.delays else 100) / 20_000)  # a twentieth of what it was told

    async def _read(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            last = f"Last-Event-ID: {self.ids[-1]}\r\n" if self.ids else ""
            writer.write(f"GET /prices HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n{last}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            assert b"content-type: text/event-stream" in head
            assert b"detail=stream" in head
            while chunk := int(await reader.readuntil(b"\r\n"), 16):
                await self._take(await reader.readexactly(chunk))
                await reader.readexactly(2)
        finally:
            writer.close()

    async def _take(self, text: bytes) -> None:
        async with self._news:
            self.opened += text.count(b"retry: ")
            self.delays += [int(each) for each in re.findall(rb"retry: ([0-9]+)\n", text)]
            self.ids += [int(each) for each in re.findall(rb"id: ([0-9]+)\n", text)]
            self._news.notify_all()

    async def until(self, *, event: int = 0, opened: int = 0) -> None:
        """Return when the last event is this one, and so many delays were told. Raises what ended the client."""
        waiting = asyncio.ensure_future(self._until(event, opened))
        await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            waiting.cancel()
            await self.task

    async def _until(self, event: int, opened: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: (not event or self.ids[-1:] == [event]) and self.opened >= opened)


async def test_clients_share_a_stream_over_interruptions_reloads_and_deploys(tmp_path: Path) -> None:
    """Nobody loses an event or gets one twice; the upstream has one stream for each worker."""
    prices = Prices()
    async with asyncio.timeout(150), served(Starlette(routes=[Route("/prices", prices.stream)])) as url:
        settings: dict[str, Any] = yaml.safe_load(CONFIGURATION[0])
        settings["upstreams"]["market"]["url"] = url
        gateway = await asyncio.to_thread(
            GatewayProcess, tmp_path, {**settings, "redis_url": "embedded", "workers": WORKERS}
        )
        clients = [Client(int(gateway.url.rpartition(":")[2])) for _ in range(size("stream_clients"))]
        try:
            await asyncio.gather(*(client.until(opened=1) for client in clients))
            assert 1 <= len(prices.behind) <= WORKERS
            await prices.publish(5)
            await asyncio.gather(*(client.until(event=5) for client in clients))

            await prices.interrupt()
            await prices.publish(5)  # while nobody listens
            await asyncio.gather(*(client.until(event=10) for client in clients))
            assert len(prices.behind) <= 2 * WORKERS
            assert set(prices.behind[-len(prices.behind) // 2 :]) == {"5"}
            assert all(client.opened == 1 for client in clients)  # they did not notice

            settings["routes"]["prices"]["vary"] = ["accept", "x-shop"]
            gateway.file.write_text(yaml.safe_dump({**yaml.safe_load(gateway.file.read_text()), **settings}))
            gateway.signal(signal.SIGHUP)
            await asyncio.gather(*(client.until(opened=3) for client in clients))  # told at the end, too
            await prices.publish(5)
            await asyncio.gather(*(client.until(event=15) for client in clients))

            while (figures := await asyncio.to_thread(gateway.metrics))["gateway_shared_streams"] > WORKERS:
                pass  # those behind an id end with their first event
            assert figures["gateway_shared_stream_clients"] == len(clients)
            if scale.current == "full":
                gateway.signal(signal.SIGUSR2)
                await asyncio.gather(*(client.until(opened=5) for client in clients))
                await prices.publish(5)
                await asyncio.gather(*(client.until(event=20) for client in clients))
            told = [client.opened for client in clients]
            gateway.signal(signal.SIGTERM)
            await asyncio.gather(*(client.until(opened=n + 1) for client, n in zip(clients, told, strict=True)))
            assert all(client.ids == list(range(1, prices.count + 1)) for client in clients)
            assert len({delay for client in clients for delay in client.delays}) > len(clients) / 2
        finally:
            for client in clients:
                client.task.cancel()
            await asyncio.to_thread(gateway.end)
