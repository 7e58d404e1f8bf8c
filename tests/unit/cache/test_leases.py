"""One fetch a key in the fleet: what becomes of it when its holder dies, is slow, or Redis is."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from gateway.app.gateway import Gateway
from gateway.cache.leases import LIFE, STORED, STORED_LIFE, Lease, Leases, Standing
from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import contacted, gateway, json_answer
from tests.support.proxy import faulty_url

ROUTES = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "10m"}}


@pytest.fixture
async def fleet(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[tuple[list[Gateway], StubUpstream]]:
    prefix, upstream = f"{uuid4().hex}:", StubUpstream(json_answer())
    stores = [RedisStore(valkey.url, prefix=prefix, budget=5.0) for _ in range(3)]
    upstreams = {"api": {"url": "http://api.test", "timeout": "20s"}}
    apps = [gateway(upstream, ROUTES, clock=clock, store=store, upstreams=upstreams) for store in stores]
    for app in apps:
        await app.start()
        await contacted(app.shared)
    yield apps, upstream
    for app in apps:
        await app.stop()


def client_of(app: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test")


async def ask(app: Gateway) -> httpx.Response:
    async with client_of(app) as client:
        return await client.get("/items/1")


async def leases_of(app: Gateway) -> list[bytes]:
    store = app.shared
    assert isinstance(store, RedisStore)
    found: list[bytes] = await store._client.keys(store._prefix + "l:*")
    return found


async def test_when_the_holder_dies_one_of_those_who_wait_gets_the_next_lease(
    fleet: tuple[list[Gateway], StubUpstream],
) -> None:
    apps, upstream = fleet
    upstream.gate.clear()
    dying = asyncio.ensure_future(ask(apps[0]))
    await upstream.came.acquire()
    others = [asyncio.ensure_future(ask(app)) for app in apps[1:]]
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    while not all(app.engine.flights for app in apps):
        await asyncio.sleep(0)
    await store._client.delete(*await leases_of(apps[0]))  # its time is over
    await upstream.came.acquire()
    upstream.gate.set()
    assert {(await other).status_code for other in others} == {200}
    await dying
    assert upstream.asked == 2


async def test_a_refresh_behind_does_nothing_while_another_refreshes(
    fleet: tuple[list[Gateway], StubUpstream], clock: TurnedClock
) -> None:
    apps, upstream = fleet
    for app in apps:
        await ask(app)
        await app.engine.settle()
    assert upstream.asked == 1
    clock.turn(20)
    upstream.gate.clear()
    assert (await ask(apps[0])).json() == {"n": 1}
    await upstream.came.acquire()
    await upstream.came.acquire()
    for app in apps[1:]:
        assert (await ask(app)).json() == {"n": 1}
        await app.engine.settle()
    assert upstream.asked == 2
    upstream.gate.set()
    await apps[0].engine.settle()


async def test_a_lease_is_renewed_while_it_is_held_and_ends_soon_after_its_holder_died(redis_store: RedisStore) -> None:
    holder, other = Leases(redis_store), Leases(redis_store)
    await holder.take("key", 60.0)
    held = await other.take("key", 60.0)
    loop = asyncio.get_running_loop()
    until = loop.time() + 2 * LIFE
    while loop.time() < until:
        assert await other.look(held) is Standing.BUSY
        await asyncio.sleep(0.02)
    holder.close()  # as one that is killed renews no more
    while await other.look(held) is not None:
        await asyncio.sleep(0.02)
    assert (await other.take("key", 60.0)).standing is Standing.HELD
    other.close()


async def test_who_takes_a_lease_is_told_that_the_last_holder_stored_what_it_fetched(redis_store: RedisStore) -> None:
    first, second = Leases(redis_store), Leases(redis_store)
    held = await first.take("key", 60.0)
    assert (held.standing, held.stored) == (Standing.HELD, False)
    await first.give_back(held, STORED, STORED_LIFE)
    assert await second.look(held) is None
    taken = await second.take("key", 60.0)
    assert (taken.standing, taken.stored) == (Standing.HELD, True)
    assert (await first.take("key", 60.0)).standing is Standing.BUSY
    await second.give_back(taken)
    assert not (await first.take("key", 60.0)).stored
    first.close()
    second.close()


async def test_what_another_stored_between_the_look_and_the_lease_is_not_fetched_again(
    fleet: tuple[list[Gateway], StubUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, upstream = fleet
    looked, go_on = asyncio.Event(), asyncio.Event()
    take = apps[1].engine._flying._leases.take

    async def late(key: str, deadline: float) -> Lease:
        looked.set()
        await go_on.wait()
        return await take(key, deadline)

    monkeypatch.setattr(apps[1].engine._flying._leases, "take", late)
    second = asyncio.ensure_future(ask(apps[1]))
    await looked.wait()
    await ask(apps[0])
    await apps[0].engine.settle()
    go_on.set()
    assert (await second).json() == {"n": 1}
    assert upstream.asked == 1


async def test_a_miss_is_one_look_and_one_lease(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, _ = fleet
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    await store._client.ping()
    before = store.statistics.reads
    await ask(apps[0])
    assert store.statistics.reads - before == 2  # the index, and the response


def commands_in(piece: bytes) -> list[bytes]:
    """The names of the commands that were sent together."""
    return re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n", piece)


MISS = [[b"GETRANGE", b"GETRANGE", b"EVAL", b"PING"], [b"SET", b"EVAL", b"PING"]]
"""Index, entry and lease in one round trip; then the entry and the end of the lease in another."""


async def test_a_cold_miss_is_two_round_trips_and_so_is_the_fetch_of_an_expired_response(
    valkey: Embedded, clock: TurnedClock
) -> None:
    async with faulty_url(valkey.url) as proxy:
        store = RedisStore(proxy.url("redis://x"), prefix=f"{uuid4().hex}:", budget=5.0)
        upstream, sent = StubUpstream(json_answer()), list[list[bytes]]()

        def noted(piece: bytes) -> bytes:
            if any(kind in piece for kind in (b":e:{", b":i:{", b":l:{")):
                sent.append(commands_in(piece))
            return piece

        async with running(gateway(upstream, ROUTES, clock=clock, store=store)) as client:
            await store.read(["open"])
            while store._keeper.pipe is None:
                await asyncio.sleep(0.01)
            proxy.up.corrupt = noted
            for number, turned in ((1, 0), (2, 0), (1, 1000)):
                clock.turn(turned)
                for mark in await store._client.keys(store._prefix + "l:*"):
                    await store._client.delete(mark)  # Redis's clock does not turn: the marks end now
                sent.clear()
                assert (await client.get(f"/items/{number}")).status_code == 200
                while len(sent) < len(MISS):
                    await asyncio.sleep(0.01)
                assert sent == MISS
        assert upstream.asked == 3


async def test_a_read_takes_the_lease_only_where_it_finds_nothing_new(redis_store: RedisStore) -> None:
    names, nothing = ["i:1", "e:1"], [b""]
    assert await redis_store.read_and_take(names, nothing, "l:1", b"first", 60.0) == ([None, None], b"first")
    assert await redis_store.read_and_take(names, nothing, "l:1", b"second", 60.0) == ([None, None], b"first")
    await redis_store.give_back("l:1", b"first", STORED, STORED_LIFE, after=[("e:1", b"record", 60.0)])
    assert await redis_store.read_and_take(names, nothing, "l:1", b"third", 60.0) == ([None, b"record"], b"")
    assert await redis_store.read_and_take(names, [b"other"], "l:1", b"third", 60.0) == ([None, b"record"], b"")
    assert await redis_store.read_and_take(names, [b"rec"], "l:1", b"third", 60.0) == ([None, b"record"], STORED)
    assert await redis_store.peek("l:1") == (True, b"third")


async def test_a_key_of_another_type_hides_neither_the_rest_nor_the_lease(redis_store: RedisStore) -> None:
    await redis_store._client.hset(redis_store._prefix + "i:1", "planted", "1")
    found = await redis_store.read_and_take(["i:1", "e:1"], [b""], "l:1", b"token", 60.0)
    assert found == ([None, None], b"token")
    await redis_store._client.hset(redis_store._prefix + "e:2", "planted", "1")
    found = await redis_store.read_and_take(["i:2", "e:2"], [b""], "l:2", b"token", 60.0)
    assert found == ([None, None], None)
    assert redis_store.statistics.failures == 0


async def test_a_lease_that_was_read_is_the_flights_and_renewed_as_any(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    claim = leases.claim("key")
    assert claim is not None
    assert await claim(["i:1", "e:1"], [b""]) == [None, None]
    assert leases.claim("key") is None  # it is here already
    before = redis_store.statistics.batches
    taken = await leases.take("key", 60.0)
    assert (taken.standing, redis_store.statistics.batches) == (Standing.HELD, before)
    await asyncio.sleep(LIFE * 1.5)
    assert (await redis_store.peek(taken.name))[1] == taken.token
    await leases.give_back(taken)
    assert await redis_store.peek(taken.name) == (True, None)
    leases.close()


async def test_a_lease_that_was_read_and_is_not_used_is_given_back_at_once_or_soon(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    for given_back in (lambda: leases.unclaim("key"), lambda: None):
        claim = leases.claim("key")
        assert claim is not None
        await claim(["i:1", "e:1"], [b""])
        (name,) = await redis_store._client.keys(redis_store._prefix + "l:*")
        given_back()
        began = time.monotonic()
        while await redis_store._client.exists(name):
            await asyncio.sleep(0.005)
        assert time.monotonic() - began < LIFE  # it did not expire
    leases.close()


async def test_the_mark_that_an_unused_lease_replaced_is_left_in_its_place(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    await leases.give_back(await leases.take("key", 60.0), STORED, STORED_LIFE)
    claim = leases.claim("key")
    assert claim is not None
    await claim(["i:1", "e:1"], [b""])
    leases.unclaim("key")
    await leases._ending.settle()
    assert (await leases.take("key", 60.0)).stored
    leases.close()


async def test_a_lease_whose_read_came_back_late_is_not_used_as_it_may_be_anothers_by_now(
    redis_store: RedisStore,
) -> None:
    moment = [0.0]
    late, other = Leases(redis_store, monotonic=lambda: moment[0]), Leases(redis_store)
    claim = late.claim("key")
    assert claim is not None
    await claim(["i:1", "e:1"], [b""])
    (name,) = await redis_store._client.keys(redis_store._prefix + "l:*")
    await redis_store._client.delete(name)  # its time is over
    taken = await other.take("key", 60.0)
    moment[0] = LIFE
    assert [taken.standing, (await late.take("key", 60.0)).standing] == [Standing.HELD, Standing.BUSY]
    await late._ending.settle()
    assert (await redis_store.peek(taken.name))[1] == taken.token  # what gave the late one back did not end it
    late.close()
    other.close()


@pytest.mark.parametrize(("late", "standing"), [(LIFE / 2, Standing.BUSY), (LIFE / 2 - 0.01, Standing.HELD)])
async def test_a_lease_whose_grant_was_read_late_is_given_back_and_can_be_taken_anew(
    redis_store: RedisStore, late: float, standing: Standing
) -> None:
    moments = iter((0.0, late, 1.0, 1.0))
    leases = Leases(redis_store, monotonic=lambda: next(moments))
    taken = await leases.take("key", 60.0)
    assert (taken.standing, len(leases._held)) == (standing, int(standing is Standing.HELD))
    if standing is Standing.BUSY:
        await leases._ending.settle()
        assert await leases.look(taken) is None
        assert (await leases.take("key", 60.0)).standing is Standing.HELD
    leases.close()


async def test_a_worker_that_was_blocked_while_it_took_a_lease_uses_what_another_stored_meanwhile(
    fleet: tuple[list[Gateway], StubUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, upstream = fleet
    blocked, leases = apps[0].shared, apps[0].engine._flying._leases
    assert isinstance(blocked, RedisStore)
    read_and_take, moment = blocked.read_and_take, [0.0]

    async def late(*asked: Any) -> tuple[list[bytes | None], bytes | None]:
        reply = await read_and_take(*asked)
        await blocked._client.delete(*await leases_of(apps[0]))  # its time is over
        await ask(apps[1])
        await apps[1].engine.settle()
        moment[0] = LIFE
        return reply

    monkeypatch.setattr(leases, "_monotonic", lambda: moment[0])
    monkeypatch.setattr(blocked, "read_and_take", late)
    assert (await ask(apps[0])).json() == {"n": 1}
    assert upstream.asked == 1


async def test_a_flight_that_found_its_own_process_to_hold_the_lease_gets_it(redis_store: RedisStore) -> None:
    leases, others = Leases(redis_store), Leases(redis_store)
    claim = leases.claim("key")
    assert claim is not None
    await claim(["i:1", "e:1"], [b""])
    flight = await others.take("key", 60.0)  # as one here finds it that began before that read came back
    assert flight.standing is Standing.BUSY
    assert await others.look(flight) is Standing.BUSY
    assert await leases.look(flight) is None
    assert (await leases.take("key", 60.0)).standing is Standing.HELD
    leases.close()


async def test_a_request_for_what_is_stored_alone_takes_no_lease(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, upstream = fleet
    async with client_of(apps[0]) as client:
        answer = await client.get("/items/1", headers={"cache-control": "only-if-cached"})
    assert (answer.status_code, upstream.asked) == (504, 0)
    assert await leases_of(apps[0]) == []


async def test_a_process_that_has_the_tier_to_itself_takes_no_lease(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    leases.needed = False
    before = redis_store.statistics.batches
    assert leases.claim("key") is None
    taken = await leases.take("key", 60.0)
    assert (taken.standing, redis_store.statistics.batches) == (Standing.AWAY, before)
    await leases.give_back(taken, STORED, STORED_LIFE, after=[("e:1", b"entry", 60.0)])
    assert await redis_store.read(["e:1"]) == [b"entry"]
    leases.needed = True
    assert (await leases.take("key", 60.0)).standing is Standing.HELD
    leases.close()


async def test_a_read_that_is_cut_off_gives_up_the_lease_that_it_may_have_got(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        prefix = f"{uuid4().hex}:"
        slow = RedisStore(proxy.url("redis://x"), prefix=prefix, budget=5.0)
        hearing = RedisStore(valkey.url, prefix=prefix, budget=5.0)
        await slow.read(["open"])
        claim = Leases(slow).claim("key")
        assert claim is not None
        proxy.down.delay = 0.2
        reading = asyncio.ensure_future(claim(["i:1", "e:1"], [b""]))
        while not await hearing._client.keys(f"{prefix}l*"):
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(LIFE / 2):
            while await hearing._client.keys(f"{prefix}l*"):
                await asyncio.sleep(0.01)
        await slow.aclose()
        await hearing.aclose()


async def test_a_read_that_is_cut_off_as_its_reply_comes_gives_the_lease_back(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    while redis_store._pipe is None:
        await asyncio.sleep(0.01)
    found, leases = redis_store._found, Leases(redis_store)

    def found_at_last(*reply: Any) -> tuple[list[bytes | None], bytes | None]:
        asyncio.get_running_loop().call_soon(reading.cancel)  # before the reply wakes the task
        return found(*reply)

    monkeypatch.setattr(redis_store, "_found", found_at_last)
    claim = leases.claim("key")
    assert claim is not None
    reading = asyncio.ensure_future(claim(["i:1", "e:1"], [b""]))
    with pytest.raises(asyncio.CancelledError):
        await reading
    await leases._ending.settle()
    assert (await Leases(redis_store).take("key", 60.0)).standing is Standing.HELD
    leases.close()


async def test_while_redis_fails_now_and_then_a_lease_that_nobody_knows_to_hold_holds_nobody_up(
    fleet: tuple[list[Gateway], StubUpstream],
) -> None:
    apps, _ = fleet
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    await ask(apps[0])
    (name,) = await leases_of(apps[0])
    await store.write([("e:", b"x", 1.0)])
    await apps[0].purge(everything=True)
    loop = asyncio.get_running_loop()
    await store._client.set(name, b"nobody's", px=60_000)
    store._failed_at = time.perf_counter()
    began = loop.time()
    assert (await ask(apps[0])).json() == {"n": 2}
    assert loop.time() - began < 5.0  # half of its upstream's 20 s otherwise


async def test_what_was_fetched_while_the_tier_was_away_is_shared_once_it_is_back(
    fleet: tuple[list[Gateway], StubUpstream],
) -> None:
    apps, upstream = fleet
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    upstream.gate.clear()
    store.available = False
    asked = asyncio.ensure_future(ask(apps[0]))
    await upstream.came.acquire()
    store.available = True
    upstream.gate.set()
    await asked
    await apps[0].engine.settle()
    assert (await ask(apps[1])).status_code == 200
    assert upstream.asked == 1
