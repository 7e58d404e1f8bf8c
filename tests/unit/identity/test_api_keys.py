"""API keys: their form, files of them, and who sent a request that has one."""

from __future__ import annotations

import asyncio
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.config.yaml_document import read_document
from gateway.errors import ConfigError
from gateway.identity.admission import Epoch, NotAdmitted
from gateway.identity.api_keys import (
    FileKeys,
    KeyProvider,
    RedisKeys,
    digest_of,
    is_well_formed,
    keys_of,
    new_key,
    parse_instant,
    principal_of,
)
from gateway.identity.principal import partition
from gateway.identity.records import ApiKey, Codec, CredentialRecords, key_id, no_records
from gateway.policy.identity_key import UNKEYED
from gateway.testing import TurnedClock
from tests.support.records import api_key

# --- the form ------------------------------------------------------------------------------------------------------


def test_a_key_is_known_by_its_form_and_is_never_made_twice() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch("gwk_[0-9A-Za-z]{36}", key) and is_well_formed(key.encode()) for key in keys)


def test_the_checksum_is_crc_32_in_base62() -> None:
    assert is_well_formed(b"gwk_" + b"0" * 30 + checksum(b"gwk_" + b"0" * 30))


def checksum(text: bytes) -> bytes:
    """The checksum, worked out another way."""
    from zlib import crc32

    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return "".join(digits[crc32(text) // 62**place % 62] for place in range(5, -1, -1)).encode()


def test_a_mistyped_key_is_malformed_whatever_the_mistake() -> None:
    key = new_key()
    for place in range(len(key)):
        other = "a" if key[place] != "a" else "b"
        assert not is_well_formed((key[:place] + other + key[place + 1 :]).encode())
        swapped = key[:place] + key[place + 1 : place + 2] + key[place] + key[place + 2 :]
        assert swapped == key or not is_well_formed(swapped.encode())
    for wrong in (b"", key[:-1].encode(), (key + "0").encode(), key.upper().encode(), b"gwk_" + b"\xff" * 36):
        assert not is_well_formed(wrong)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-02", 86_400.0), ("1970-01-01T00:01:00Z", 60.0), ("1970-01-01T01:00:00+01:00", 0.0)],
)
def test_an_instant_is_as_iso_8601_has_it(text: str, seconds: float) -> None:
    assert parse_instant(text) == seconds


def test_an_instant_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="isn't a date, such as 2027-01-31"):
        parse_instant("tomorrow")


# --- who has a key -------------------------------------------------------------------------------------------------

KEY = new_key()


def stored(**changes: Any) -> ApiKey:
    digest = digest_of(KEY.encode())
    return ApiKey(**{"key": key_id(digest), "sha256": digest, "provider": "partner", "created": 1.0, **changes})


def provider_of(clock: TurnedClock, *keys: ApiKey, name: str = "partner") -> KeyProvider:
    records = no_records()
    for number, key in enumerate(keys, 1):
        records.apply((number, 0), key)
    return KeyProvider(name, "x-api-key", RedisKeys(name, records), clock, Epoch())


async def refusal(provider: KeyProvider, credential: bytes) -> tuple[int, str]:
    with pytest.raises(NotAdmitted) as refused:
        await provider.verified(credential)
    assert credential.decode() not in str(refused.value) or not credential
    assert provider.known(credential) is None
    return refused.value.status, refused.value.reason


async def test_a_keys_claims_are_those_of_its_owner(clock: TurnedClock) -> None:
    provider = provider_of(clock, stored(owner="acme", plan="gold", scopes=("home:read", "x")))
    principal = await provider.verified(KEY.encode())
    assert provider.known(KEY.encode()) is principal
    assert dict(principal.claims) == {"sub": "acme", "plan": "gold", "key": stored().key, "scope": "home:read x"}
    assert principal.scopes == {"home:read", "x"}
    assert provider.holds_until(principal) == math.inf
    assert provider.recognises(KEY.encode())
    assert not provider.recognises(b"eyJ.e30.x")


async def test_a_key_without_owner_has_its_id_as_subject(clock: TurnedClock) -> None:
    principal = await provider_of(clock, stored()).verified(KEY.encode())
    assert principal.subject == stored().key
    assert "plan" not in principal.claims


async def test_keys_that_are_not_accepted_are_refused_each_for_its_reason(clock: TurnedClock) -> None:
    now = clock.now()
    assert await refusal(provider_of(clock, stored()), new_key().encode()) == (401, "unknown")
    assert await refusal(provider_of(clock, stored()), KEY[:-1].encode()) == (401, "form")
    assert await refusal(provider_of(clock, stored(expires=now)), KEY.encode()) == (401, "expired")
    for revoked in (now, now + 60):  # the clock of who revoked it may be ahead
        assert await refusal(provider_of(clock, stored(revoked=revoked)), KEY.encode()) == (401, "revoked")
    assert await refusal(provider_of(clock, stored(provider="other")), KEY.encode()) == (401, "unknown")
    by_hand = digest_of(b"hunter2")  # no key of a gateway, whatever a file says
    of_file = ApiKey(key=key_id(by_hand), provider="partner", sha256=by_hand, created=0.0)
    assert await refusal(provider_of(clock, of_file), b"hunter2") == (401, "form")
    unread = RedisKeys("partner", CredentialRecords(Codec(None)))
    assert await refusal(KeyProvider("partner", "x", unread, clock, Epoch()), KEY.encode()) == (503, "keys")


async def test_the_principals_of_ended_keys_do_not_pile_up(clock: TurnedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.identity.api_keys.MOST_PRINCIPALS", 2)
    keys = [new_key().encode() for _ in range(5)]
    stored_keys = [ApiKey(key=key_id(d), provider="partner", sha256=d, created=0.0) for d in map(digest_of, keys)]
    provider = provider_of(clock, *stored_keys)
    subjects = [(await provider.verified(key)).subject for key in keys]
    assert subjects == [each.key for each in stored_keys]
    assert len(provider._principals) == 2
    assert provider.known(keys[0]) is provider.known(keys[0])


async def test_a_key_ends_at_its_time(clock: TurnedClock) -> None:
    provider = provider_of(clock, stored(expires=clock.now() + 10))
    principal = await provider.verified(KEY.encode())
    assert provider.holds_until(principal) == clock.now() + 10
    clock.turn(10)
    assert await refusal(provider, KEY.encode()) == (401, "expired")


async def test_a_change_of_a_key_is_a_change_of_its_principal(clock: TurnedClock) -> None:
    records = no_records()
    provider = KeyProvider("partner", "x-api-key", RedisKeys("partner", records), clock, Epoch())
    records.apply((1, 0), stored())
    first = await provider.verified(KEY.encode())
    records.apply((2, 0), stored(expires=clock.now() + 5))
    assert provider.holds_until(await provider.verified(KEY.encode())) == clock.now() + 5
    assert provider.holds_until(first) == math.inf


def test_an_owner_is_another_user_than_a_subject_of_tokens_or_of_another_provider() -> None:
    one, other = principal_of(api_key("a", owner="anna")), principal_of(api_key("b", owner="anna", provider="b2b"))
    assert partition(one, ("sub",), UNKEYED) != partition(other, ("sub",), UNKEYED)
    assert " " in one.issuer  # which no issuer of tokens has


# --- files ---------------------------------------------------------------------------------------------------------

GOOD = f"keys:\n  - sha256: {digest_of(KEY.encode()).upper()}\n    owner: acme\n    scopes: [home:read]\n"
X = "0" * 64


def read(tmp_path: Path, text: str) -> dict[str, ApiKey]:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    return keys_of("partner", read_document(path))


def test_a_file_has_keys_by_their_digests(tmp_path: Path) -> None:
    (key,) = read(tmp_path, GOOD + "    plan: gold\n    expires: 2027-01-31T00:00:00Z\n").values()
    assert (key.sha256, key.owner, key.plan, key.scopes) == (digest_of(KEY.encode()), "acme", "gold", ("home:read",))
    assert key.expires == parse_instant("2027-01-31")
    assert read(tmp_path, "keys: []\n") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys:\n  - sha256: gwk_abc\n", "line 2: keys.0: sha256 must be the key's SHA-256"),
        (f"keys:\n  - sha256: '{X}'\n  - sha256: '{X}'\n", "line 3: keys.1: stands twice"),
        (f"keys:\n  - sha256: '{X}'\n    scope: [a]\n", "line 2: keys.0: scope is unknown; allowed here: sha256"),
        (f"keys:\n  - sha256: '{X}'\n    owner: 7\n", "owner must be text"),
        (f"keys:\n  - sha256: '{X}'\n    scopes: a b\n", "scopes must be a list"),
        (f"keys:\n  - sha256: '{X}'\n    scopes: [a b]\n", "scopes must be at most 100 names without spaces"),
        (f"keys:\n  - sha256: '{X}'\n    expires: soon\n", "isn't a date"),
        (f"keys:\n  - sha256: '{X}'\n    expires: 12\n", "expires must be a date"),
        ("keys:\n  - x\n", "must be a mapping with sha256"),
        (f"keys: [{'x, ' * 2001}]\n", "has more than 2000 keys: use `keys: redis`"),
        ("key: []\n", "must be a list of keys"),
        ("- a\n", "must be a mapping"),
        ("keys: [\n", "line 2"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert said in "; ".join(map(str, refused.value.problems))
    assert "keys.yaml" in str(refused.value.problems[0])


async def test_a_file_is_read_again_when_it_changes_and_one_that_is_wrong_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.api_keys.LOOK_EVERY", 0.01)
    path, epoch, digest = tmp_path / "keys.yaml", Epoch(), digest_of(KEY.encode())
    path.write_text("keys: []\n")
    keys = FileKeys("partner", path, epoch)
    assert not keys.ready
    keys.read()
    assert keys.ready
    await keys.start()
    async with asyncio.timeout(10):
        (tmp_path / "next").write_text(GOOD)
        os.replace(tmp_path / "next", path)
        while keys.find(digest) is None:
            await asyncio.sleep(0.01)
        version = epoch.version
        path.write_text("keys: 7\n")
        while keys.failure is None:
            await asyncio.sleep(0.01)
        assert keys.find(digest) is not None
        assert epoch.version == version
        assert "The last keys stay in force" in caplog.text
        path.unlink()
        while "does not exist" not in str(keys.failure):
            await asyncio.sleep(0.01)
        assert keys.find(digest) is not None
        path.write_text("keys: []\n")
        while keys.find(digest) is not None:
            await asyncio.sleep(0.01)
    assert epoch.version == version + 1
    assert keys.failure is None
    await keys.aclose()
