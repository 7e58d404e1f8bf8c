"""SIGTERM under load: a client that heeds `/readyz`, as load balancers do, loses no request."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.faults import outside
from tests.faults.held import running
from tests.faults.scenarios import answering, path_of, response
from tests.support.raw import raw_upstream

STOP_DELAY, STOP_TIMEOUT = 1.0, 10.0


@dataclass
class Ended:
    made: int = 0
    failed: int = 0
    said_no_after: float = 0.0
    gone_after: float = 0.0
    status: int = -1


async def terminated(directory: Path, *, seconds: float, rate: float = 200.0) -> Ended:
    """A gateway of two workers, asked `rate` times a second, gets SIGTERM after `seconds`; from then on `/readyz` is
    asked every 50 ms, and nobody sends anything after it said no."""
    seen = Ended()
    async with raw_upstream(
        answering(
            lambda head: response(path_of(head).encode(), "200 OK", "Cache-Control: max-age=1"), delay=lambda: 0.05
        )
    ) as raw:
        settings = {
            "workers": 2,
            "redis_url": "embedded",
            "shutdown_delay": f"{STOP_DELAY}s",
            "shutdown_timeout": f"{STOP_TIMEOUT}s",
            "upstreams": {"api": {"url": raw.url}},
            "routes": {"rest": {"path": "/{path:path}", "upstream": "api"}},
        }
        async with running(directory, settings, "ending") as gateway, outside.clients(limit=40) as session:
            loop, tasks = asyncio.get_running_loop(), []
            began, stopping = loop.time(), asyncio.Event()
            probe: asyncio.Task[float] | None = None
            while not stopping.is_set():
                await asyncio.sleep(max(0.0, began + len(tasks) / rate - loop.time()))
                tasks.append(asyncio.ensure_future(outside.status_of(session, f"{gateway.url}/load/{len(tasks) % 50}")))
                if probe is None and loop.time() - began >= seconds:
                    gateway.signal(signal.SIGTERM)
                    signalled = time.monotonic()
                    probe = asyncio.ensure_future(_said_no(gateway.url, stopping))
            statuses = await asyncio.gather(*tasks)
            assert probe is not None
            seen.said_no_after = await probe - signalled
            seen.status = await asyncio.to_thread(gateway.wait, STOP_DELAY + STOP_TIMEOUT + 10)
            seen.gone_after = time.monotonic() - signalled
    seen.made, seen.failed = len(statuses), sum(status != 200 for status in statuses)
    return seen


async def _said_no(url: str, stopping: asyncio.Event) -> float:
    """When `/readyz` was first heard to say 503, or not at all."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        while await outside.status_of(session, f"{url}/readyz") == 200:
            await asyncio.sleep(0.05)
    stopping.set()
    return time.monotonic()
