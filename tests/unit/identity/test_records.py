"""Records of API keys and revocations: what they say together, whom they refuse, and how they are written."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from gateway.identity.principal import Principal
from gateway.identity.records import (
    KEPT,
    LONGEST_LEEWAY,
    ApiKey,
    Codec,
    CredentialRecords,
    Record,
    Revocation,
    Unusable,
    no_records,
)
from gateway.policy.epochs import Position
from gateway.policy.identity_key import IdentityKey
from tests.support.records import AT, api_key, token_of

SECRET = IdentityKey(b"k" * 32)
DAY = 86_400.0


def known(codec: Codec | None = None) -> CredentialRecords:
    records = CredentialRecords(codec or Codec(None), longest=30 * DAY)
    records.known = True
    return records


def revocation(
    records: CredentialRecords, kind: str, value: str = "", before: float = AT, issuer: str = ""
) -> Revocation:
    salt = records.salt() if value else ""
    digest = records.digest(kind, value, salt) if value else ""
    until = records.needed_until(before)
    return Revocation(kind=kind, digest=digest, salt=salt, issuer=issuer, before=before, until=until, at=AT)


def applied(records: CredentialRecords, *found: Record, start: int = 1) -> CredentialRecords:
    for number, record in enumerate(found, start):
        records.apply((number, 0), record, AT)
    return records


# --- keys ------------------------------------------------------------------------------------------------------


def test_what_records_say_of_a_key_does_not_depend_on_their_order() -> None:
    made = api_key("a")
    shorter = msgspec.structs.replace(made, expires=AT + 10)
    revoked = msgspec.structs.replace(made, revoked=AT + 5)
    longer = msgspec.structs.replace(made, expires=AT + 20)
    for order in itertools.permutations((made, shorter, revoked, longer)):
        (key,) = applied(known(), *order).keys.values()
        assert (key.expires, key.revoked, key.ends) == (AT + 10, AT + 5, AT + 5)


def test_a_record_that_says_less_takes_nothing_back_and_the_stream_gets_what_all_say_together() -> None:
    revoked = api_key("a", revoked=AT)
    records = applied(known(), revoked, api_key("a"))
    assert records.keys[revoked.key].revoked == AT
    assert not records.superseded
    assert [record for _, record in records.pending.values()] == [revoked]
    records.apply((3, 0), revoked, AT)
    assert not records.pending
    assert list(records.superseded) == [(2, 0)]


def test_what_another_stream_lacks_is_known() -> None:
    records = applied(known(), api_key("a"), api_key("b"), revocation(known(Codec(SECRET)), "all"))
    records.begin("another")
    assert records.applied == (0, 0)
    records.apply((1, 0), api_key("a"), AT)
    for number in (1, 2, 100):
        missing = [record.id for some in records.missing(number) for record in some]
        lacked = [api_key("b"), *records.revocations.values()]
        assert sorted(missing) == sorted(each.id for each in lacked)


def test_a_record_that_says_all_makes_the_one_before_needless() -> None:
    records = applied(known(), api_key("a"), api_key("a", revoked=AT))
    assert list(records.superseded) == [(1, 0)]


def test_a_key_whose_creation_failed_is_forgotten_and_one_that_the_stream_has_is_not() -> None:
    records = known()
    records.pend(api_key("a"), AT)
    records.withdraw(api_key("a"))
    assert not records.keys
    records.pend(api_key("a"), AT)
    records.apply((1, 0), api_key("a"))
    records.withdraw(api_key("a"))
    assert records.keys


def test_what_has_ended_is_forgotten_when_it_can_change_nothing_but_the_newest_record_stays() -> None:
    records = known()
    ended, running = api_key("a", expires=AT), api_key("b")
    applied(records, ended, revocation(records, "all"), running)
    records.expire(AT + KEPT - 1)
    assert len(records.keys) == 2
    records.expire(AT + KEPT + 1)
    assert list(records.keys) == [running.key]
    assert list(records.superseded) == [(1, 0)]
    records.expire(AT + 30 * DAY + LONGEST_LEEWAY + 1)
    assert not records.revocations
    last = applied(known(), api_key("a", expires=AT))
    last.expire(AT + KEPT + 1)
    assert last.keys  # by it, workers know the stream


def test_another_stream_takes_nothing_away() -> None:
    records = applied(known(), api_key("a"), api_key("b", revoked=AT))
    records.pend(api_key("c"), AT)
    records.begin("another")
    records.apply((7, 0), api_key("b"), AT)
    assert len(records.keys) == 3
    assert records.keys[api_key("b").key].revoked == AT
    assert {key.id for key in records.keys.values()} == {api_key("a").id, api_key("b", revoked=AT).id, api_key("c").id}
    assert (records.generation, records.applied) == ("another", (7, 0))


# --- revocations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "token", "refused"),
    [
        ("sub", "anna", token_of(), True),
        ("sub", "anna", token_of(issued=AT), False),  # issued at that instant, and not before it
        ("sub", "anna", token_of(issued=None), True),  # it may have been issued before
        ("sub", "berta", token_of(), False),
        ("sub", "42", token_of(sub=42), True),
        ("sub", "True", token_of(sub=True), False),
        ("jti", "anna", token_of(), False),
        ("jti", "7", token_of(jti="7"), True),
        ("client", "app", token_of(client_id="app"), True),
        ("client", "app", token_of(azp="app"), True),
        ("client", "app", token_of(client_id="other", cid="app"), True),
        ("all", "", token_of(), True),
        ("all", "", token_of(issued=AT + 1), False),
    ],
)
def test_a_token_is_refused_by_what_it_names_and_when_it_was_issued(
    kind: str, value: str, token: Principal, refused: bool
) -> None:
    for codec in (Codec(None), Codec(SECRET)):
        records = known(codec)
        assert records.revoked(token) is False
        applied(records, revocation(records, kind, value))
        assert records.revoked(token) is refused


def test_a_revocation_of_one_issuer_is_not_about_another() -> None:
    records = known()
    applied(records, revocation(records, "sub", "anna", issuer="https://other.example.com"))
    assert not records.revoked(token_of())
    assert records.revoked(token_of(issuer="https://other.example.com"))


def test_of_two_revocations_of_one_subject_the_later_counts_whatever_their_order() -> None:
    for befores in ((AT - 120, AT), (AT, AT - 120)):
        records = known(Codec(SECRET))
        applied(records, *(revocation(records, "sub", "anna", before) for before in befores))
        assert records.revoked(token_of())
        assert len(records.revocations) == 1


def test_salts_of_several_workers_are_all_looked_at() -> None:
    records, others = known(), [known() for _ in range(3)]
    names = ("anna", "berta", "carla")
    applied(records, *(revocation(other, "sub", name) for other, name in zip(others, names, strict=True)))
    assert all(records.revoked(token_of(sub=name)) for name in names)
    assert not records.revoked(token_of(sub="dora"))
    assert records.salt() in {revocation.salt for revocation in records.revocations.values()}


def test_a_revocation_is_kept_as_long_as_this_gateway_accepts_tokens_whatever_another_does() -> None:
    other = CredentialRecords(Codec(SECRET), longest=60.0)
    records = applied(known(Codec(SECRET)), revocation(other, "sub", "anna"))
    (kept,) = records.revocations.values()
    assert kept.until == AT + 30 * DAY + LONGEST_LEEWAY
    assert [record for _, record in records.pending.values()] == [kept]  # and so it comes to the stream
    assert not applied(other, kept).pending


def test_changed_is_called_once_for_what_may_end_something() -> None:
    records, calls = known(), []
    records.changed = lambda: calls.append(1)
    found = revocation(records, "sub", "anna")
    records.pend(found, AT)
    assert records.revoked(token_of())
    records.apply((1, 0), found, AT)
    assert calls == [1]


def test_where_nothing_is_revoked_nobody_is_refused() -> None:
    assert not no_records().revoked(token_of(issued=None))


def test_a_worker_knows_the_same_whatever_order_ten_workers_records_come_in() -> None:
    records = known(Codec(SECRET))
    some: list[Record] = [api_key(f"k{n % 7}", expires=AT + n) for n in range(30)]
    some += [api_key(f"k{n}", revoked=AT + n) for n in range(0, 7, 2)]
    some += [revocation(records, "sub", f"u{n % 5}", AT + n) for n in range(20)]
    results = []
    for seed in range(10):
        random.Random(seed).shuffle(some)
        one = applied(known(Codec(SECRET)), *some, *some[:10])
        results.append((one.keys, {about: each.before for about, each in one.revocations.items()}))
    assert all(result == results[0] for result in results)


# --- how they are written --------------------------------------------------------------------------------------

HERE: Position = (1, 0)


@pytest.mark.parametrize("codec", [Codec(None), Codec(SECRET)])
def test_a_record_is_read_as_it_was_written(codec: Codec) -> None:
    records = known(codec)
    for record in (api_key("a", scopes=("x", "y"), expires=AT, by="ann"), revocation(records, "sub", "anna")):
        assert codec.decode(HERE, codec.encode(record)) == record


def test_nothing_that_is_revoked_or_created_can_be_read_in_a_record() -> None:
    for codec in (Codec(None), Codec(SECRET)):
        records = known(codec)
        assert b"anna" not in codec.encode(revocation(records, "sub", "anna"))


def test_a_record_of_another_secret_is_unusable_and_is_one_that_should_be_known() -> None:
    written = Codec(IdentityKey(b"x" * 32)).encode(api_key("a"))
    for codec in (Codec(SECRET), Codec(None)):
        found = codec.decode(HERE, written)
        assert isinstance(found, Unusable)
        assert found.meant
    assert isinstance(Codec(SECRET).decode(HERE, Codec(None).encode(api_key("a"))), Unusable)


def planted() -> list[bytes | None]:
    key, about = msgspec.to_builtins(api_key("a")), {"kind": "sub", "before": AT, "until": AT, "at": AT}
    keys: list[dict[str, object]] = [
        *({"key": "0" * 16}, {"sha256": "x"}, {"owner": "x" * 300}, {"expires": 1e99}),
        *({"created": -1}, {"scopes": ["x"] * 1000}, {"owner": 7}),
    ]
    revocations = (
        {"kind": "owner"},
        {"digest": "x"},
        {"digest": "x", "salt": "zz"},
        {"until": -1},
        {"salt": "0" * 500},
    )
    return [
        *(b"1 - k" + msgspec.json.encode({**key, **change}) for change in keys),
        *(b"1 - r" + msgspec.json.encode({**about, **change}) for change in revocations),
        *(None, b"", b"1", b"1 -", b"1 - ", b"1 - x{}", b"1 - k[", b"garbage", b"\xff\xfe", b"1 - k" + b"[" * 100_000),
    ]


@pytest.mark.parametrize("data", planted(), ids=lambda data: repr(data)[:40])
def test_whatever_stands_in_the_stream_is_a_record_or_unusable(data: bytes | None) -> None:
    found = Codec(None).decode(HERE, data)
    assert isinstance(found, Unusable)
    assert not found.meant
    records = applied(known(), found)
    assert len(records.unusable) == 1
    assert not records.misses_some


def test_a_record_of_a_newer_version_is_one_that_should_be_known() -> None:
    records = applied(known(), Codec(None).decode(HERE, b"2 - k{}"))
    assert records.misses_some
    records.begin("another")
    assert not records.misses_some


def test_a_keys_record_has_another_id_whenever_it_says_something_else() -> None:
    both = {"expires": AT, "revoked": AT}
    keys = [api_key("a", **changes) for changes in ({}, {"expires": AT}, {"revoked": AT}, both)]
    assert len({each.id for each in keys}) == 4
    assert all(len(each.id) <= 64 for each in keys)
    assert isinstance(keys[0], ApiKey)
