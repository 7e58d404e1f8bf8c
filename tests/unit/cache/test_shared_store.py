"""The shared tier that isn't there: it answers every call at once, with nothing."""

from __future__ import annotations

import asyncio

from gateway.cache.shared_store import NoShared, Values


async def test_it_has_nothing_takes_nothing_and_grants_no_lease() -> None:
    store = NoShared()
    await store.start()
    assert (store.available, store.doubtful) == (False, False)
    assert await store.read(["a", "b"]) == [None, None]
    assert await store.write([("a", b"1", 60.0)]) is False
    assert await store.read(["a"]) == [None]
    assert await store.take("l:a", b"token", 60.0) is None
    assert await store.peek("l:a") == (False, None)
    await store.renew([("l:a", b"token")], 60.0)
    await store.give_back("l:a", b"token")
    await store.aclose()


async def test_a_read_is_answered_in_the_next_turn_of_the_loop_and_not_before() -> None:
    given: list[Values] = []
    NoShared().ask(["a", "b"], given.append)
    assert given == []
    await asyncio.sleep(0)
    assert given == [[None, None]]


async def test_a_cancelled_read_is_not_answered() -> None:
    given: list[Values] = []
    read = NoShared().ask(["a"], given.append)
    read.cancel()
    await asyncio.sleep(0)
    assert given == []
    assert read.names == ["a"]
