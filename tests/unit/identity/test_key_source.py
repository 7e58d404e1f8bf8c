"""Where an issuer's keys come from: how often they are fetched in a fleet, and what outlives an outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.errors import UpstreamUnreachable
from gateway.identity.key_set import InvalidKeySet
from gateway.identity.key_source import KeySource, Stored
from gateway.policy.identity_key import IdentityKey
from gateway.testing import TurnedClock
from tests.support.tokens import TestIssuer

KEY = IdentityKey(b"k" * 32)
OLD, NEW = TestIssuer(), TestIssuer()


class Documents:
    """The issuer's end: what it serves, and how often it was asked."""

    def __init__(self) -> None:
        self.document: bytes | Exception = OLD.jwks
        self.count = 0
        self.gate: asyncio.Event | None = None

    async def __call__(self) -> bytes:
        self.count += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


@pytest.fixture
def documents() -> Documents:
    return Documents()


def source(documents: Documents, clock: TurnedClock, store: SharedStore | None = None, **settings: Any) -> KeySource:
    return KeySource("shop", documents, store=store or NoShared(), clock=clock, seal=KEY, **settings)


@pytest.fixture
async def fleet(redis_store: RedisStore, documents: Documents, clock: TurnedClock) -> AsyncIterator[list[KeySource]]:
    sources = [source(documents, clock, redis_store) for _ in range(4)]
    yield sources
    for each in sources:
        await each.aclose()


async def test_keys_are_fetched_at_the_start_and_when_they_are_due(documents: Documents, clock: TurnedClock) -> None:
    keys = source(documents, clock, refresh=300.0)
    await keys.tick()
    assert keys.keys is not None
    clock.turn(299)
    await keys.tick()
    assert (documents.count, keys.age) == (1, 299)
    clock.turn(1)
    await keys.tick()
    assert (documents.count, keys.age, keys.version) == (2, 0, 1)


async def test_a_key_that_is_taken_out_is_gone_at_the_next_refresh(documents: Documents, clock: TurnedClock) -> None:
    keys = source(documents, clock)
    await keys.tick()
    documents.document = NEW.jwks
    clock.turn(299)
    await keys.tick()
    assert (keys.version, keys.epoch.version) == (1, 1)
    clock.turn(1)
    await keys.tick()
    assert (keys.version, keys.epoch.version) == (2, 2)
    assert keys.keys is not None
    (key,) = keys.keys.of("rsa")
    assert key.material.as_dict()["n"] == NEW.keys["RS256"].as_dict()["n"]


async def test_the_last_good_keys_outlive_the_issuers_outage_for_a_day(
    documents: Documents, clock: TurnedClock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = source(documents, clock)
    assert keys.until == float("-inf")
    await keys.tick()
    assert keys.until == clock.now() + 86_400
    documents.document = UpstreamUnreachable("shop", "connection refused")
    for _ in range(3):
        clock.turn(600)
        await keys.tick()
    assert keys.keys is not None
    assert len([each for each in caplog.records if "can't be fetched" in each.message]) == 1
    clock.turn(86_400 - 1801)
    assert keys.keys is not None
    clock.turn(1)
    assert keys.keys is None
    documents.document = OLD.jwks
    await keys.tick()
    assert keys.keys is not None
    assert keys.failure is None


@pytest.mark.parametrize("document", [InvalidKeySet("no keys"), b"<html>", b'{"keys": []}'])
async def test_a_document_without_keys_replaces_nothing(
    documents: Documents, clock: TurnedClock, document: bytes | Exception
) -> None:
    keys = source(documents, clock)
    await keys.tick()
    documents.document = document
    clock.turn(300)
    await keys.tick()
    assert keys.failure
    assert keys.keys is not None
    assert keys.version == 1


async def test_ten_thousand_unknown_names_cost_one_fetch_in_ten_seconds_in_the_fleet(
    fleet: list[KeySource], documents: Documents, clock: TurnedClock
) -> None:
    for each in fleet:
        await each.tick()
    assert documents.count == 1
    for period in range(1, 4):
        for _ in range(25):
            await asyncio.gather(*(each.look_for_unknown() for each in fleet for _ in range(100)))
        assert documents.count == 1 + period
        await fleet_time_passes(fleet, clock)


async def fleet_time_passes(fleet: list[KeySource], clock: TurnedClock) -> None:
    """Ten seconds, for the workers' clock and for the leases in Redis, which has its own."""
    clock.turn(10)
    store: Any = fleet[0]._store
    for name in ("unknown", "refresh"):
        await store.give_back(f"jwks-{name}:shop", (await store.peek(f"jwks-{name}:shop"))[1] or b"")


async def test_rotated_keys_reach_all_workers_by_one_fetch(
    fleet: list[KeySource], documents: Documents, clock: TurnedClock
) -> None:
    for each in fleet:
        await each.tick()
    documents.document = NEW.jwks
    documents.gate = asyncio.Event()
    clock.turn(5)  # seconds after a refresh, which nobody waits for
    looking = [asyncio.ensure_future(each.look_for_unknown()) for each in fleet]
    while documents.count < 2:
        await asyncio.sleep(0)
    documents.gate.set()
    await asyncio.gather(*looking)
    assert documents.count == 2
    assert [each.version for each in fleet] == [2] * 4


async def test_a_worker_that_starts_in_the_outage_takes_the_keys_of_the_others(
    fleet: list[KeySource], redis_store: RedisStore, documents: Documents, clock: TurnedClock
) -> None:
    await fleet[0].tick()
    documents.document = UpstreamUnreachable("shop", "connection refused")
    clock.turn(80_000)
    late = source(documents, clock, redis_store)
    await late.tick()
    assert late.keys is not None
    assert late.age == 80_000


@pytest.mark.parametrize("kind", ["forged", "of another issuer", "not sealed", "from the future", "no record"])
async def test_keys_that_are_planted_in_redis_are_not_used(
    redis_store: RedisStore, documents: Documents, clock: TurnedClock, kind: str
) -> None:
    documents.document = UpstreamUnreachable("shop", "connection refused")
    keys = source(documents, clock, redis_store)
    maker = (
        source(documents, clock)
        if kind != "forged"
        else KeySource("shop", documents, store=NoShared(), clock=clock, seal=IdentityKey(b"j" * 32))
    )
    maker.name = "other" if kind == "of another issuer" else "shop"
    planted = maker._sealed(Stored(clock.now() + (100 if kind == "from the future" else -1), OLD.jwks))
    planted = b"\x00" if kind == "no record" else planted
    if kind == "not sealed":
        planted = planted.replace(maker._seal_of(Stored(clock.now() - 1, OLD.jwks)).encode(), b"0" * 32)
    await redis_store.write([("jwks:shop", planted, 60.0)])
    await keys.tick()
    assert keys.keys is None
    # The same record with a true seal is used, so it was the seal that counted.
    await redis_store.write([("jwks:shop", keys._sealed(Stored(clock.now() - 1, OLD.jwks)), 60.0)])
    clock.turn(10)
    await keys.tick()
    assert keys.keys is not None


async def test_a_cancelled_request_ends_the_look_for_no_other(documents: Documents, clock: TurnedClock) -> None:
    keys = source(documents, clock)
    documents.gate = asyncio.Event()
    first, second = (asyncio.ensure_future(keys.look_for_unknown()) for _ in range(2))
    while not documents.count:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    documents.gate.set()
    await second
    assert (documents.count, first.cancelled()) == (1, True)
    assert keys.keys is not None


async def test_it_ends_with_what_it_was_doing(documents: Documents, clock: TurnedClock) -> None:
    keys = source(documents, clock)
    documents.gate = asyncio.Event()
    looking = asyncio.ensure_future(keys.look_for_unknown())
    while not documents.count:
        await asyncio.sleep(0)
    await keys.aclose()
    with pytest.raises(asyncio.CancelledError):
        await looking


async def test_keys_of_another_place_are_not_used(
    redis_store: RedisStore, documents: Documents, clock: TurnedClock
) -> None:
    await source(documents, clock, redis_store, shared_as="shop-old").tick()
    documents.document = NEW.jwks
    moved = source(documents, clock, redis_store, shared_as="shop-new")
    await moved.tick()
    assert documents.count == 2
    assert moved.keys is not None
    assert moved.keys.of("rsa")[0].material.as_dict()["n"] == NEW.keys["RS256"].as_dict()["n"]


async def test_a_worker_takes_what_another_has_fetched_late(
    fleet: list[KeySource], documents: Documents, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.key_source.WAIT", 0.0)  # the other needs longer than this one waits
    documents.gate = asyncio.Event()
    first = asyncio.ensure_future(fleet[0].tick())
    while not documents.count:
        await asyncio.sleep(0)
    await fleet[1].tick()
    assert fleet[1].keys is None
    documents.gate.set()
    await first
    await fleet[1].tick()
    assert fleet[1].keys is not None
    assert documents.count == 1


async def test_what_nobody_expected_ends_no_refresh(
    documents: Documents, clock: TurnedClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.key_source.TICK", 0.0)
    keys = source(documents, clock)
    documents.document = RuntimeError("of a library")
    await keys.start()
    assert keys.keys is None
    assert "RuntimeError: of a library" in caplog.text
    documents.document = OLD.jwks
    clock.turn(10)
    while keys.keys is None:
        await asyncio.sleep(0)
    await keys.aclose()


async def test_a_slow_issuer_holds_up_a_start_for_a_bounded_time(
    documents: Documents, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.key_source.FIRST", 0.0)
    documents.gate = asyncio.Event()
    keys = source(documents, clock)
    await keys.start()
    assert keys.keys is None
    monkeypatch.undo()
    waiting = asyncio.ensure_future(keys.begun())
    await asyncio.sleep(0)
    assert not waiting.done()
    documents.gate.set()
    await waiting
    assert keys.keys is not None
    await keys.aclose()


async def test_nothing_waits_for_keys_that_nobody_fetches(documents: Documents, clock: TurnedClock) -> None:
    await source(documents, clock).begun()
    assert documents.count == 0
