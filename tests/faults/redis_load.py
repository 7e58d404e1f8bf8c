"""Redis in trouble for a minute under load: a hundred clients, some 450 requests a second of hits, stale answers and
misses (`tests/support/load.py`), and what they notice in the first second, and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.load import Load, load_of, p99
from tests.support.mixed_load import mixed, settings
from tests.support.processes import LISTENING, Child, GatewayProcess, Valkey
from tests.support.proxy import FaultProxy, faulty


@dataclass
class Ground:
    gateway: GatewayProcess
    valkey: Valkey
    proxy: FaultProxy
    load: Load

    async def available(self, within: float = 20.0) -> float:
        """Seconds until `/readyz` says so. It is another process: there is nothing to wait on."""
        began = time.monotonic()
        async with self.gateway.operator() as admin, asyncio.timeout(within):
            while (await admin.get("/readyz")).json()["redis"] != "available":
                await asyncio.sleep(0.01)
        return time.monotonic() - began


Act = Callable[[Ground], Awaitable[object]]


def _command(text: str) -> Act:
    async def act(ground: Ground) -> None:
        with ground.valkey.client() as client:
            client.execute_command(*text.split())

    return act


async def _heal(ground: Ground) -> None:
    ground.proxy.clear()
    await ground.proxy.accept()


async def _kill(ground: Ground) -> None:
    await asyncio.to_thread(ground.valkey.kill)


async def _start(ground: Ground) -> None:
    await asyncio.to_thread(ground.valkey.start)


async def _stop(ground: Ground) -> None:
    ground.valkey.child.signal(signal.SIGSTOP)


async def _go_on(ground: Ground) -> None:
    ground.valkey.child.signal(signal.SIGCONT)


async def _cut(ground: Ground) -> None:
    ground.proxy.down.cut_after = 400


async def _slow(ground: Ground) -> None:
    ground.proxy.down.delay = 0.5


async def _load_slowly(ground: Ground) -> None:
    with ground.valkey.client() as client:
        client.execute_command("DEBUG", "POPULATE", "200000")
        client.save()
    await asyncio.to_thread(ground.valkey.kill)
    ground.valkey.launch("--key-load-delay", "400", "--loading-process-events-interval-bytes", "1024")


async def _stop_loading(ground: Ground) -> None:
    """A Valkey that has loaded: what it loads slowly may take minutes."""
    await asyncio.to_thread(ground.valkey.kill)
    (ground.valkey.directory / "dump.rdb").unlink()
    await asyncio.to_thread(ground.valkey.start)


KINDS: dict[str, tuple[Act, Act]] = {
    "refused (killed)": (_kill, _start),
    "stalled (stopped)": (_stop, _go_on),
    "cut (after 400 bytes, again and again)": (_cut, _heal),
    "slow (by 500 ms)": (_slow, _heal),
    "full": (_command("CONFIG SET maxmemory 1mb"), _command("CONFIG SET maxmemory 0")),
    "read-only": (_command("REPLICAOF 127.0.0.1 1"), _command("REPLICAOF NO ONE")),
    "loading": (_load_slowly, _stop_loading),
}


@dataclass
class Noticed:
    asked: int
    failed: list[str]
    before: float
    noise: float
    """How far the undisturbed 99th percentile differs from itself, from one second to another: the largest less the
    least of five."""
    first: float
    """Seconds: the 99th percentile in the first second, then in all that follows."""
    then: float
    back_after: float


async def noticed(directory: Path, kind: str, *, seconds: float) -> Noticed:
    spoil, mend = KINDS[kind]
    async with _ground(directory) as ground:
        load = ground.load
        await load.window(2.0)
        parts = [await load.window(1.0) for _ in range(5)]
        ranks = [p99(part) for part in parts]
        await spoil(ground)
        first = await load.window(1.0)
        then = await load.window(seconds - 1.0)
        await mend(ground)
        back_after = await ground.available()
        await load.window(1.0)
        return Noticed(
            len(load.samples),
            load.failed,
            p99([each for part in parts for each in part]),
            max(ranks) - min(ranks),
            p99(first),
            p99(then),
            back_after,
        )


@contextlib.asynccontextmanager
async def _ground(directory: Path) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        valkey = Valkey(directory, "--maxmemory-policy", "noeviction", unix=False)
        stack.callback(valkey.end)
        await asyncio.to_thread(valkey.start)
        proxy = await stack.enter_async_context(faulty("127.0.0.1", valkey.port))
        origin = Child([sys.executable, "-m", "tests.support.origin"], output=directory / "origin.out", cwd=Path.cwd())
        stack.callback(origin.end)
        url = (await asyncio.to_thread(origin.said, LISTENING))[1]
        given = settings(url, valkey) | {"redis_url": proxy.url(valkey.url)}
        gateway = await asyncio.to_thread(GatewayProcess, directory, given, name="redis")
        stack.push_async_callback(asyncio.to_thread, gateway.end)
        load = await stack.enter_async_context(load_of(gateway.url, mixed()))
        yield Ground(gateway, valkey, proxy, load)
