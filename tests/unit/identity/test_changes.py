"""Changes that an operator makes to API keys and revocations."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as redis

from gateway.cache.purge_log import PurgeReport
from gateway.cache.redis.record_stream import ADD_AT_ONCE
from gateway.clock import SystemClock
from gateway.config.identity import IssuerConfig
from gateway.identity.changes import ChangeRefused, Changes, ChangeUnavailable, Wanted
from gateway.identity.credential_log import LocalCredentials, RedisCredentials
from gateway.identity.records import Codec, Record
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.records import api_key, token_of

SHOP = IssuerConfig(issuer="https://id.example.com", audience=["a"], leeway="20s")
PARTNER = IssuerConfig(keys="redis")
DAY = 86_400.0


class Kept(LocalCredentials):
    """As if it were Redis that kept them."""

    keeps = True


@pytest.fixture
def log(clock: TurnedClock) -> Kept:
    return Kept(clock, Codec(None))


def changes(log: Any, clock: Any, **identity: IssuerConfig) -> Changes:
    return Changes(log, identity or {"shop": SHOP, "partner": PARTNER}, clock, longest=30 * DAY)


def digest(name: str) -> str:
    return api_key(name).sha256


async def test_a_key_is_created_with_what_was_asked_for(log: Kept, clock: TurnedClock) -> None:
    wanted = Wanted(sha256=digest("a"), owner="acme", plan="gold", scopes=["x", "x", "y"], expires=clock.now() + DAY)
    changed = await changes(log, clock).create(wanted, by="ann")
    (key,) = changed.keys
    assert changed.report.complete
    assert log.records.keys == {key.key: key}
    assert (key.provider, key.owner, key.plan, key.scopes, key.by) == ("partner", "acme", "gold", ("x", "y"), "ann")
    assert (key.created, key.expires) == (clock.now(), clock.now() + DAY)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"expires": 1.0}, "expires is in the past"),
        ({"expires": float("nan")}, "expires is in the past"),
        ({"owner": "x" * 300}, "owner must be text"),
        ({"scopes": ["a b"]}, "without spaces"),
        ({"provider": "shop"}, "there is no identity 'shop' with `keys: redis`"),
        ({"provider": "partne"}, "did you mean partner"),
    ],
)
async def test_a_key_that_can_not_be_is_refused(
    log: Kept, clock: TurnedClock, wanted: dict[str, Any], said: str
) -> None:
    with pytest.raises(ChangeRefused, match=said):
        await changes(log, clock).create(Wanted(sha256=digest("a"), **wanted))
    assert not log.records.keys


async def test_of_several_identities_with_keys_one_is_to_be_named(log: Kept, clock: TurnedClock) -> None:
    several = changes(log, clock, one=PARTNER, two=PARTNER)
    with pytest.raises(ChangeRefused, match="name one of one, two"):
        await several.create(Wanted(sha256=digest("a")))
    assert (await several.create(Wanted(sha256=digest("a"), provider="two"))).keys[0].provider == "two"
    with pytest.raises(ChangeRefused, match="created before"):
        await several.create(Wanted(sha256=digest("a"), provider="one"))
    with pytest.raises(ChangeRefused, match="no identity has `keys: redis`"):
        await changes(log, clock, shop=SHOP).create(Wanted(sha256=digest("b")))


async def test_without_a_redis_that_keeps_it_no_key_is_created(clock: TurnedClock) -> None:
    with pytest.raises(ChangeRefused, match="no Redis here that keeps keys"):
        await changes(LocalCredentials(clock, Codec(None)), clock).create(Wanted(sha256=digest("a")))


async def test_a_rotated_key_ends_after_the_overlap_and_the_new_one_has_all_it_had(
    log: Kept, clock: TurnedClock
) -> None:
    made = changes(log, clock)
    old = (
        await made.create(Wanted(sha256=digest("a"), owner="acme", scopes=["x"], expires=clock.now() + 10 * DAY))
    ).keys[0]
    clock.turn(DAY)
    new, ending = (await made.rotate(old.key[:6], digest("b"), 3600.0, by="ann")).keys
    assert (new.owner, new.scopes, new.provider) == ("acme", ("x",), "partner")
    assert (new.created, new.expires) == (clock.now(), clock.now() + 10 * DAY)
    assert (ending.key, ending.expires) == (old.key, clock.now() + 3600)
    assert log.records.keys == {new.key: new, old.key: ending}


async def test_a_rotation_never_lengthens_a_keys_life_and_none_is_of_an_ended_key(
    log: Kept, clock: TurnedClock
) -> None:
    made = changes(log, clock)
    old = (await made.create(Wanted(sha256=digest("a"), expires=clock.now() + 60))).keys[0]
    _, ending = (await made.rotate(old.key, digest("b"), DAY)).keys
    assert ending.expires == clock.now() + 60
    clock.turn(61)
    with pytest.raises(ChangeRefused, match="has ended"):
        await made.rotate(old.key, digest("c"), DAY)


async def test_rotations_at_once_each_make_a_key_and_the_old_one_ends_once(log: Kept, clock: TurnedClock) -> None:
    made = changes(log, clock)
    old = (await made.create(Wanted(sha256=digest("old")))).keys[0]
    await asyncio.gather(*(made.rotate(old.key, digest(f"new {n}"), 100.0 * (n + 1)) for n in range(5)))
    assert len(log.records.keys) == 6
    assert log.records.keys[old.key].expires == clock.now() + 100


async def test_a_key_is_revoked_by_its_id_and_all_of_an_owner_at_once(log: Kept, clock: TurnedClock) -> None:
    made = changes(log, clock)
    keys = [(await made.create(Wanted(sha256=digest(name), owner=name[0]))).keys[0] for name in ("a1", "a2", "b1")]
    assert (await made.revoke_key(keys[2].key)).keys[0].revoked == clock.now()
    assert {key.key for key in (await made.revoke_keys_of("a")).keys} == {keys[0].key, keys[1].key}
    assert all(key.revoked == clock.now() for key in log.records.keys.values())
    with pytest.raises(ChangeRefused, match="no key of that owner in force"):
        await made.revoke_keys_of("a")
    with pytest.raises(ChangeRefused, match="there is no key"):
        await made.revoke_key("nothing")
    with pytest.raises(ChangeRefused, match="there is no key"):
        await made.revoke_key("")


async def test_keys_of_an_owner_are_revoked_together_not_one_after_the_other(clock: TurnedClock) -> None:
    class Counting(Kept):
        published: list[int]

        async def publish(self, *records: Record) -> PurgeReport:
            self.published.append(len(records))
            return await super().publish(*records)

    log = Counting(clock, Codec(None))
    log.published = []
    made = changes(log, clock)
    for number in range(ADD_AT_ONCE + 50):
        await made.create(Wanted(sha256=digest(f"{number}"), owner="acme"))
    log.published.clear()
    changed = await made.revoke_keys_of("acme")
    assert log.published == [ADD_AT_ONCE, 50]
    assert len(changed.keys) == ADD_AT_ONCE + 50
    assert all(key.revoked == clock.now() for key in log.records.keys.values())


async def test_the_latest_keys_are_listed_first(log: Kept, clock: TurnedClock) -> None:
    made = changes(log, clock)
    for name in ("a", "b"):
        clock.turn(1)
        await made.create(Wanted(sha256=digest(name)))
    assert [key.sha256 for key in made.listed()] == [digest("b"), digest("a")]


async def test_tokens_are_revoked_up_to_where_the_issuers_clock_may_be(log: Kept, clock: TurnedClock) -> None:
    record, report = await changes(log, clock).revoke("sub", "anna", by="ann")
    assert report.complete
    assert (record.before, record.at, record.by) == (clock.now() + 20, clock.now(), "ann")
    assert log.records.revoked(token_of(issued=clock.now() + 19))
    assert not log.records.revoked(token_of(issued=clock.now() + 20))
    exact, _ = await changes(log, clock).revoke("jti", "7", before=clock.now())
    assert exact.before == clock.now()


async def test_a_revocation_of_one_identity_is_of_its_issuer(log: Kept, clock: TurnedClock) -> None:
    opaque = IssuerConfig(introspect={"upstream": "idp", "client_id": "g", "client_secret": "s"})
    made = changes(log, clock, shop=SHOP, opaque=opaque, partner=PARTNER)
    for name, text in (("shop", "https://id.example.com"), ("opaque", "introspection opaque")):
        record, _ = await made.revoke("all", "", issuer=name, before=clock.now())
        assert record.issuer == text
        assert log.records.revoked(token_of(issued=clock.now() - 1, issuer=text))
    for name, said in (("shp", "did you mean shop"), ("partner", "no identity 'partner' of tokens")):
        with pytest.raises(ChangeRefused, match=said):
            await made.revoke("sub", "anna", issuer=name)


@pytest.mark.parametrize(
    ("kind", "value", "before"),
    [("owner", "a", None), ("sub", "", None), ("all", "a", None), ("sub", "x" * 5000, None), ("sub", "a", 1e12)],
)
async def test_a_revocation_of_nothing_is_refused(
    log: Kept, clock: TurnedClock, kind: str, value: str, before: float | None
) -> None:
    with pytest.raises(ChangeRefused):
        await changes(log, clock).revoke(kind, value, before=before)


async def test_api_keys_alone_have_no_tokens_to_revoke(log: Kept, clock: TurnedClock) -> None:
    with pytest.raises(ChangeRefused, match="gateway keys revoke"):
        await changes(log, clock, partner=PARTNER).revoke("sub", "anna")


async def test_beyond_the_records_that_are_kept_nothing_is_added_but_what_is_there_can_be_revoked(
    log: Kept, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = changes(log, clock)
    key = (await made.create(Wanted(sha256=digest("a")))).keys[0]
    monkeypatch.setattr("gateway.identity.records.MOST_RECORDS", 1)
    with pytest.raises(ChangeRefused, match="no more are kept"):
        await made.create(Wanted(sha256=digest("b")))
    with pytest.raises(ChangeRefused, match="no more are kept"):
        await made.revoke("sub", "anna")
    assert (await made.revoke_key(key.key)).keys[0].revoked is not None


async def test_without_redis_no_key_is_created_and_a_revocation_waits_for_it(
    valkey: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cache.redis.record_log.CONFIRM_SECONDS", 0.05)
    clock, client = SystemClock(), redis.Redis.from_url(valkey.url)
    log = RedisCredentials(client, clock, Codec(None), prefix=f"{uuid4().hex}:", young=0.001)
    await log.start()
    made = changes(log, clock)
    key = (await made.create(Wanted(sha256=digest("a")))).keys[0]
    log._stream._client = redis.Redis.from_url("unix:///nonexistent/redis.sock")
    with pytest.raises(ChangeUnavailable):
        await made.create(Wanted(sha256=digest("b")))
    with pytest.raises(ChangeUnavailable):
        await made.rotate(key.key, digest("c"), 10.0)
    assert list(log.records.keys) == [key.key]
    assert log.records.keys[key.key].expires is None
    assert not (await made.revoke_key(key.key)).report.added
    assert log.records.keys[key.key].revoked is not None
    log._stream._client = client
    async with asyncio.timeout(10):
        while log.records.pending:
            await asyncio.sleep(0.01)
    await log.aclose()
