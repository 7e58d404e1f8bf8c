"""redis writes: they are stored in order, one pipeline at a time, each bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from gateway.cache.redis.writes import MAX_BATCH, MAX_BATCH_BYTES, MAX_WAITING_BYTES, Value, Writes


class Sent:
    """Pipelines, each of which is answered when the test says so."""

    def __init__(self) -> None:
        self.pipelines: list[list[str]] = []
        self.answers: list[asyncio.Future[bool]] = []
        self.tasks: list[asyncio.Future[None]] = []

    async def send(self, values: Sequence[Value]) -> bool:
        self.pipelines.append([name for name, _, _ in values])
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def spawn(self, work: Awaitable[None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def came(self, number: int) -> None:
        while len(self.pipelines) < number:
            await asyncio.sleep(0)


def add(writes: Writes, *names: str, size: int = 1) -> asyncio.Future[bool]:
    values = [(name, b"x" * size, 1.0) for name in names]
    return asyncio.ensure_future(writes.add(values, size * len(names)))


async def test_writes_of_a_turn_are_one_pipeline_and_later_ones_wait_for_it() -> None:
    sent = Sent()
    writes = Writes(sent.send, sent.spawn)
    first, second = add(writes, "a", "b"), add(writes, "c")
    await sent.came(1)
    third = add(writes, "d")
    await asyncio.sleep(0)
    assert sent.pipelines == [["a", "b", "c"]]
    assert not writes.idle
    sent.answers[0].set_result(True)
    await sent.came(2)
    sent.answers[1].set_result(False)
    assert [await first, await second, await third] == [True, True, False]
    assert sent.pipelines[1] == ["d"]
    assert writes.idle


async def test_a_pipeline_is_bounded_in_writes_and_bytes_but_a_large_one_goes_alone() -> None:
    sent = Sent()
    writes = Writes(sent.send, sent.spawn)
    waiting = [add(writes, *(f"{number}" for number in range(MAX_BATCH + 1)))]
    waiting.append(add(writes, "large", size=MAX_BATCH_BYTES + 1))
    for number, count in enumerate((MAX_BATCH, 1, 1), 1):
        await sent.came(number)
        assert len(sent.pipelines[-1]) == count
        sent.answers[-1].set_result(True)
    assert await asyncio.gather(*waiting) == [True, True]


async def test_room_is_what_waits_and_is_free_again_after_a_failure() -> None:
    sent = Sent()
    writes = Writes(sent.send, sent.spawn)
    waiting = add(writes, "a", size=10)
    await sent.came(1)
    assert not writes.has_room(MAX_WAITING_BYTES - 9)
    sent.answers[0].set_result(False)
    assert not await waiting
    assert writes.has_room(MAX_WAITING_BYTES)
