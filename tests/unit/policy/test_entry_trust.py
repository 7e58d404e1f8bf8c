"""What lies in Redis is not believed because it lies there: damaged, foreign or planted records are counted misses."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import httpx
import msgspec
import pytest

from gateway.app.gateway import Gateway
from gateway.cache.redis.store import RedisStore
from gateway.policy.entry import Entry, decode_stored, encode
from gateway.testing import StubUpstream, running
from tests.support.gateways import gateway, json_answer

SECRET = "a secret of the replicas"
Spoil = Callable[[bytes, Entry], bytes]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('what lay in Redis was executed')",))


def planted(stored: Entry, secret: bytes = b"") -> bytes:
    return encode(msgspec.structs.replace(stored, body=b'{"n":"planted"}'), secret)


SPOILED: dict[str, Spoil] = {
    "a bit flipped": lambda data, stored: data[:-5] + bytes((data[-5] ^ 4,)) + data[-4:],
    "cut": lambda data, stored: data[: len(data) // 2],
    "cut to its head": lambda data, stored: data[:3],
    "empty": lambda data, stored: b"",
    "with more behind it": lambda data, stored: data + b"more",
    "pickled": lambda data, stored: pickle.dumps(Bomb()),
    "of a later version": lambda data, stored: b"GW\x63" + data[3:],
    "of another key": lambda data, stored: encode(msgspec.structs.replace(stored, key="api\n/other"), SECRET.encode()),
    "planted without the secret": lambda data, stored: planted(stored),
    "planted with a guessed secret": lambda data, stored: planted(stored, b"a guess of an attacker"),
    "text": lambda data, stored: b"<html>",
}


def made(upstream: StubUpstream, store: RedisStore) -> Gateway:
    routes = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "60s"}}
    return gateway(upstream, routes, store=store, redis_secret=SECRET, redis_budget="2s")


async def asked(app: Gateway) -> httpx.Response:
    async with running(app) as client:
        answer = await client.get("/item/1")
        await app.engine.settle()
        return answer


def store_of(like: RedisStore) -> RedisStore:
    return RedisStore(like._url, prefix=like._prefix, budget=2.0)


async def the_record(store: RedisStore) -> str:
    names = [name.decode() async for name in store._client.scan_iter(f"{store._prefix}e:*")]
    assert len(names) == 1
    return names[0]


async def test_a_sealed_record_is_read_by_another_replica(redis_store: RedisStore) -> None:
    upstream = StubUpstream(json_answer())
    await asked(made(upstream, store_of(redis_store)))
    data = await redis_store._client.get(await the_record(redis_store))
    assert decode_stored(data, "api\n/item/1\naccept:*/*", SECRET.encode()) is not None
    answer = await asked(made(upstream, store_of(redis_store)))
    assert (upstream.asked, answer.json()) == (1, {"n": 1})


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
@pytest.mark.parametrize("life", [60_000, None], ids=["expiring", "without expiry"])
async def test_a_record_that_is_not_ours_is_a_counted_miss(
    redis_store: RedisStore, spoil: Spoil, life: int | None
) -> None:
    upstream = StubUpstream(json_answer())
    await asked(made(upstream, store_of(redis_store)))
    name = await the_record(redis_store)
    data = await redis_store._client.get(name)
    stored = decode_stored(data, "api\n/item/1\naccept:*/*", SECRET.encode())
    assert stored is not None
    await redis_store._client.set(name, spoil(data, stored), px=life)
    app = made(upstream, store_of(redis_store))
    answer = await asked(app)
    assert (answer.status_code, answer.json(), upstream.asked) == (200, {"n": 2}, 2)
    assert "fwd=miss" in answer.headers["cache-status"]
    # An empty value is what GETRANGE reads where there is none.
    assert app.engine.tiers.unreadable >= (spoil(data, stored) != b"")
    assert "gateway_unreadable_records_total" in app.metrics.render().decode()


async def test_a_value_of_another_type_is_a_miss_too(redis_store: RedisStore) -> None:
    upstream = StubUpstream(json_answer())
    await asked(made(upstream, store_of(redis_store)))
    name = await the_record(redis_store)
    await redis_store._client.delete(name)
    await redis_store._client.lpush(name, "a", "list")
    answer = await asked(made(upstream, store_of(redis_store)))
    assert (answer.status_code, answer.json()) == (200, {"n": 2})


async def test_an_old_record_kept_for_ever_by_redis_is_judged_by_its_own_age(redis_store: RedisStore) -> None:
    upstream = StubUpstream(json_answer())
    await asked(made(upstream, store_of(redis_store)))
    name = await the_record(redis_store)
    stored = decode_stored(await redis_store._client.get(name), "api\n/item/1\naccept:*/*", SECRET.encode())
    assert stored is not None
    old = msgspec.structs.replace(stored, born=stored.born - 61, started=stored.started - 61)
    await redis_store._client.set(name, encode(old, SECRET.encode()))
    assert (await asked(made(upstream, store_of(redis_store)))).json() == {"n": 2}
