"""What a purge costs: of a tag that a million stored responses carry, and of one that none carries.

    python benchmarks/purge_cost.py [--entries 1000000] [--purges 300]

A Valkey of its own is filled with that many responses, each carrying the one tag, and a worker's memory with as many as
it holds. Then the two tags are purged in turn, each time until the worker has confirmed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence

from gateway.cache.memory import Memory
from gateway.cache.redis.purge_log import RedisPurges
from gateway.cache.redis.store import RedisStore
from gateway.cache.store import entry_name
from gateway.clock import SystemClock
from gateway.policy.entry import Entry, Life, encode
from gateway.policy.epochs import tag_name
from gateway.server.embedded_redis import Embedded

GIB = 1024**3
BATCH = 2000


def stored(number: int, stamp: str, now: float) -> Entry:
    key = f"catalog\n/items/{number}"
    return Entry(
        key=key,
        primary=key,
        born=now,
        started=now,
        initial_age=0.0,
        status=200,
        headers=((b"content-type", b"application/json"),),
        body=b'{"id":%d}' % number,
        life=Life(),
        tags=("everywhere",),
        stamp=stamp,
    )


async def fill(store: RedisStore, memory: Memory, purges: RedisPurges, clock: SystemClock, entries: int) -> None:
    for first in range(0, entries, BATCH):
        some = [stored(n, purges.epochs.stamp, clock.now()) for n in range(first, min(first + BATCH, entries))]
        done = await store.write([(entry_name(each.key), encode(each), 86_400.0) for each in some])
        assert done, "Redis did not take the responses"
        for each in some:
            memory.put(each)


async def measure(url: str, entries: int, purges: int) -> None:
    clock = SystemClock()
    store = RedisStore(url, budget=10.0, clock=clock)
    log = store.purge_log(clock, 30.0)
    memory = Memory(GIB // 4)
    await store.start()
    await log.start()
    await fill(store, memory, log, clock, entries)
    there = await store._client.dbsize()
    print(f"{there:,} keys in Redis, {len(memory):,} responses in memory")
    seconds: dict[str, list[float]] = {"everywhere": [], "nowhere": []}
    await log.purge([tag_name("warm-up")])
    for _ in range(purges):
        for tag, taken in seconds.items():
            report = await log.purge([tag_name(tag)])
            assert report.complete
            taken.append(report.seconds)
    for tag, taken in seconds.items():
        print(f"purge of the tag that {'all carry ' if tag == 'everywhere' else 'none carries'}: {figures(taken)}")
    await log.aclose()
    await store.aclose()


def figures(seconds: Sequence[float]) -> str:
    ranked = sorted(each * 1000 for each in seconds)
    return (
        f"median {statistics.median(ranked):.2f} ms, 90th percentile {ranked[len(ranked) * 9 // 10]:.2f} ms, "
        f"99th {ranked[len(ranked) * 99 // 100]:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--purges", type=int, default=300, help="of each tag")
    options = parser.parse_args()
    with Embedded(maxmemory=4 * GIB) as server:
        asyncio.run(measure(server.url, options.entries, options.purges))


if __name__ == "__main__":
    main()
