"""Active checks of an upstream's hosts: each is asked for a path now and then, and gets no requests while that fails.

The circuit breaker judges hosts by the requests of clients (passive); this judges them without any. A host is used
where both allow it (`Host.admit`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from gateway.config.upstream import HealthConfig
from gateway.errors import UpstreamError
from gateway.upstreams.failure_causes import cause_of
from gateway.upstreams.hosts import Host
from gateway.upstreams.httpx_api import httpx


class HealthChecks:
    """The checks of `hosts`; `ask` sends one and gives the status of its response."""

    def __init__(self, config: HealthConfig, hosts: Sequence[Host], ask: Callable[[Host], Awaitable[int]]) -> None:
        self._config = config
        self._hosts = hosts
        self._ask = ask
        self._every = config.every.total_seconds()
        self._timeout = config.timeout.total_seconds()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Check from now on; nothing where that is so already."""
        if not self._tasks:
            self._tasks = [asyncio.ensure_future(self._watch(host)) for host in self._hosts]

    async def aclose(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self, host: Host) -> None:
        in_a_row = 0
        while True:
            reason = await self._failure(host)
            in_a_row = in_a_row + 1 if (reason is None) is not host.healthy else 0
            if in_a_row >= (self._config.healthy_after if reason is None else self._config.unhealthy_after):
                host.judge(reason)
                in_a_row = 0
            await asyncio.sleep(self._every * random.uniform(0.9, 1.1))  # workers and replicas apart

    async def _failure(self, host: Host) -> str | None:
        """Why a check failed; None where it succeeded."""
        try:
            async with asyncio.timeout(self._timeout):
                status = await self._ask(host)
        except TimeoutError:
            return f"no response within {self._timeout:g} s"
        except httpx.TransportError as error:
            return ": ".join(cause_of(error))
        except UpstreamError as error:
            return error.reason
        return None if 200 <= status < 400 else f"status {status}"
