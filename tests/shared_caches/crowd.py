"""Many users at once, at two workers, over every row of docs/keys.md: Redis late and sliced, the upstream slow, clients
that hang up. Whatever of a request an answer shows must be the asker's own.

    python -m tests.shared_caches.crowd [requests]     10,000 requests of 1,000 users unless said otherwise
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.shared_caches import table
from tests.shared_caches.origin import echo
from tests.shared_caches.rows import INPUTS, Input, Row, rows
from tests.support.gateways import served
from tests.support.processes import GatewayProcess, Valkey
from tests.support.proxy import faulty_url

VALUES = {each.name.lower(): each for each in INPUTS}
AT_ONCE = 40
HANG_UP = 0.3


@dataclass
class Seen:
    asked: int = 0
    hung_up: int = 0
    answered: int = 0
    shared: int = 0
    """How many of the answers came out of the cache, or of another's fetch."""
    crossed: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)


def slow(app: Any, chance: random.Random) -> Any:
    async def late(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.sleep(chance.uniform(0, 0.02))  # the upstream's own slowness, which is what is tried
        await app(scope, receive, send)

    return late


def wrongly_shown(seen: dict[str, Any], user: str, sent: set[str]) -> dict[str, Any]:
    """What an answer shows of a request that is not this user's, or that this request did not send."""
    return {name: value for name, value in seen.items() if name in VALUES and not _own(name, str(value), user, sent)}


def _own(name: str, value: str, user: str, sent: set[str]) -> bool:
    others = "user" in value.replace(user, "")
    if name == "host":  # a gateway in front asks by its upstream's name
        return not others
    return not others and name in sent and user in value


async def crowd(directory: Path, *, requests: int, users: int, seed: int = 7) -> Seen:
    seen, chance = Seen(), random.Random(seed)
    valkey = Valkey(directory, unix=False)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, valkey.end)
        await asyncio.to_thread(valkey.start)
        proxy = await stack.enter_async_context(faulty_url(valkey.url))
        proxy.down.delay, proxy.down.jitter, proxy.down.slices = 0.002, 0.03, 700
        late = random.Random(seed + 1)
        upstreams = {
            name: {
                "breaker_failures": 0,
                "url": await stack.enter_async_context(served(slow(echo(honest=name == "honest"), late))),
            }
            for name in ("plain", "honest")
        }
        settings = {
            **table.settings(),
            "redis_url": proxy.url(valkey.url),
            "workers": 2,
            "memory": "1MiB",
            "upstreams": upstreams,
            "include": ["tests.shared_caches.handlers:router"],
        }
        gateway = await asyncio.to_thread(GatewayProcess, directory, settings)
        stack.push_async_callback(asyncio.to_thread, gateway.end)
        gate = asyncio.Semaphore(AT_ONCE)
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=30)
            )
        )
        every = rows()

        async def one(number: int) -> None:
            row = every[number % len(every)]
            user = f"user{chance.randrange(users)}x"
            given = [each for each in INPUTS if chance.random() < 0.4]
            hangs_up = chance.random() < HANG_UP
            after = chance.uniform(0, 0.03)
            async with gate:
                seen.asked += 1
                task = asyncio.ensure_future(_ask(session, gateway.url, row, user, given, seen))
                if hangs_up:
                    await asyncio.wait((task,), timeout=after)
                    if task.cancel():
                        seen.hung_up += 1
                        await asyncio.wait((task,))
                        return
                try:
                    await task
                except (aiohttp.ClientError, TimeoutError) as error:
                    seen.failed[repr(error)] += 1

        await asyncio.gather(*(one(number) for number in range(requests)))
    return seen


async def _ask(session: aiohttp.ClientSession, url: str, row: Row, user: str, given: list[Input], seen: Seen) -> None:
    headers = {name: value for each in given for name, value in each.headers(user).items()}
    query = "&".join(each.query.format(user=user) for each in given if each.query)
    async with session.get(f"{url}{row.path}?{query}", headers=headers) as response:
        body = await response.text()
        status = response.headers.get("Cache-Status", "")
        seen.answered += 1
        seen.shared += "; hit" in status or "collapsed" in status
        seen.rows[row.id] += 1
        if response.status != row.status:
            seen.failed[f"{row.id}: {response.status} {body}"] += 1
            return
        wrong = wrongly_shown(await response.json(), user, {each.name.lower() for each in given})
        if wrong:
            seen.crossed.append(f"{row.id}: {user} is given {wrong} ({status})")


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as directory:
        seen = asyncio.run(crowd(Path(directory), requests=requests, users=1000))
    for line in seen.crossed[:20]:
        print(line)
    print(f"{seen.asked} requests, {len(seen.rows)} rows, {seen.hung_up} hung up, {seen.answered} answered,")
    print(f"{seen.shared} of them shared; {len(seen.crossed)} crossed, {sum(seen.failed.values())} failed")
    print(*seen.failed.most_common(5), sep="\n")
    sys.exit(bool(seen.crossed or seen.failed))


if __name__ == "__main__":
    main()
