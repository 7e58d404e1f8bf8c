"""The provider of tokens: what it remembers, and for how long."""

from __future__ import annotations

import pytest

from gateway.config.identity import ASYMMETRIC
from gateway.identity.admission import NotAdmitted
from gateway.identity.issuer import MOST_REFUSED, FixedKeys, TokenIssuer
from gateway.identity.key_set import KeySet, parse_key_set
from gateway.identity.records import Codec, CredentialRecords, Revocation, no_records
from gateway.identity.tokens import Issuer
from gateway.testing import TurnedClock
from tests.support.tokens import ISSUER, TestIssuer, unsigned

issuer = TestIssuer()
SETTING = Issuer("shop", ISSUER, frozenset(["shop-api"]), frozenset(ASYMMETRIC))


class Source(FixedKeys):
    """Keys that a test replaces, with a count of looks for unknown ones."""

    def __init__(self, keys: KeySet | None) -> None:
        super().__init__(keys)  # type: ignore[arg-type]
        self.version = 1
        self.looks = 0
        self.next: KeySet | None = None

    async def look_for_unknown(self) -> None:
        self.looks += 1
        if self.next is not None:
            self.keys, self.version = self.next, self.version + 1


@pytest.fixture
def source() -> Source:
    return Source(parse_key_set(issuer.jwks))


def provider(source: Source, clock: TurnedClock, remembered: int = 3) -> TokenIssuer:
    return TokenIssuer(SETTING, source, clock, remembered=remembered)


async def refusal(shop: TokenIssuer, token: bytes) -> NotAdmitted:
    with pytest.raises(NotAdmitted) as refused:
        await shop.verified(token)
    return refused.value


async def test_a_verified_token_is_remembered_until_it_ends(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    token = issuer.sign(exp=clock.now() + 60)
    assert shop.known(token) is None
    principal = await shop.verified(token)
    source.keys = KeySet()  # what is remembered is not verified again
    assert await shop.verified(token) is principal
    clock.turn(89.9)
    assert shop.known(token) is principal
    clock.turn(0.2)
    assert shop.known(token) is None
    assert (await refusal(shop, token)).reason == "expired"


async def test_nothing_is_remembered_over_a_change_of_keys(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    token = issuer.sign()
    await shop.verified(token)
    source.keys, source.version = parse_key_set(TestIssuer().jwks), 2
    assert shop.known(token) is None
    assert (await refusal(shop, token)).reason == "signature"


async def test_nothing_is_remembered_when_the_keys_are_gone(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    token = issuer.sign()
    await shop.verified(token)
    source.keys = None
    refused = await refusal(shop, token)
    assert (refused.status, refused.retry_after) == (503, 10)


async def test_the_least_recent_token_is_forgotten(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock, remembered=2)
    first, second, third = (issuer.sign(jti=str(index)) for index in range(3))
    for token in (first, second, first, third):
        await shop.verified(token)
    assert shop.known(second) is None
    assert shop.known(first) is not None
    assert shop.known(third) is not None
    none = provider(source, clock, remembered=0)
    await none.verified(first)
    assert none.known(first) is None


async def test_only_a_token_that_is_well_but_for_its_key_looks_for_keys(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    for token in (
        unsigned({"alg": "none"}, issuer.claims()),
        unsigned({"alg": "RS256", "kid": "new"}, issuer.claims(exp=1)),
        unsigned({"alg": "RS256", "kid": "../new"}, issuer.claims()),
        unsigned({"alg": "RS256", "kid": "rsa"}, issuer.claims()),
    ):
        assert (await refusal(shop, token)).status == 401
    assert source.looks == 0
    assert (await refusal(shop, unsigned({"alg": "RS256", "kid": "new"}, issuer.claims()))).reason == "key"
    assert source.looks == 1


async def test_a_new_key_is_found_by_the_token_that_it_signed(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    source.keys, source.next = KeySet(), source.keys
    assert (await shop.verified(issuer.sign())).subject == "anna"


async def test_an_invalid_signature_is_refused_for_a_while_unverified(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    token = TestIssuer().sign()
    assert (await refusal(shop, token)).reason == "signature"
    source.keys = KeySet()
    assert (await refusal(shop, token)).reason == "signature"  # by its digest
    clock.turn(10)
    assert (await refusal(shop, token)).reason == "key"
    for index in range(MOST_REFUSED + 5):
        source.keys = parse_key_set(issuer.jwks)
        await refusal(shop, unsigned({"alg": "RS256", "kid": "rsa"}, issuer.claims(jti=str(index))))
    assert len(shop._refused) == MOST_REFUSED


async def test_a_token_is_verified_at_once_by_keys_that_are_there(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    token = issuer.sign()
    principal = shop.verified_at_once(token)
    assert principal is not None
    assert principal is shop.verified_at_once(token) is shop.known(token) is await shop.verified(token)
    for refused, reason in (
        (issuer.sign(exp=clock.now() - 31), "expired"),
        (issuer.sign(aud="other"), "audience"),
        (TestIssuer().sign(), "signature"),
    ):
        with pytest.raises(NotAdmitted) as raised:
            shop.verified_at_once(refused)
        assert (raised.value.status, raised.value.reason) == (401, reason)
        assert (await refusal(shop, refused)).reason == reason


async def test_what_would_wait_or_be_verified_again_is_not_verified_at_once(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    assert shop.verified_at_once(unsigned({"alg": "RS256", "kid": "new"}, issuer.claims())) is None
    assert source.looks == 0
    keys, source.keys = source.keys, None
    assert shop.verified_at_once(issuer.sign()) is None
    source.keys = keys
    assert provider(source, clock, remembered=0).verified_at_once(issuer.sign()) is None
    unknown = revoking(source, clock, CredentialRecords(Codec(None)))
    with pytest.raises(NotAdmitted) as raised:
        unknown.verified_at_once(issuer.sign())
    assert (raised.value.status, raised.value.reason) == (503, "records")


async def test_it_recognises_its_issuers_tokens(source: Source, clock: TurnedClock) -> None:
    shop = provider(source, clock)
    token = issuer.sign()
    await shop.verified(token)
    assert shop.recognises(token)
    assert shop.recognises(issuer.sign(jti="2"))
    assert not shop.recognises(TestIssuer("https://other.example.com").sign())
    assert not shop.recognises(b"gwk_abc")
    assert ISSUER not in repr(shop)


async def test_fixed_keys_never_change() -> None:
    keys = FixedKeys(parse_key_set(issuer.jwks))
    before = keys.keys, keys.version
    await keys.look_for_unknown()
    assert (keys.keys, keys.version) == before


async def test_a_principal_holds_until_its_token_and_the_leeway_or_the_keys_end(
    source: Source, clock: TurnedClock
) -> None:
    shop = provider(source, clock)
    principal = await shop.verified(issuer.sign(exp=clock.now() + 60))
    assert shop.holds_until(principal) == clock.now() + 90
    source.until = clock.now() + 5
    assert shop.holds_until(principal) == clock.now() + 5
    assert shop.epoch is source.epoch


# --- revocations -------------------------------------------------------------------------------------------------


def revoking(source: Source, clock: TurnedClock, records: CredentialRecords) -> TokenIssuer:
    return TokenIssuer(SETTING, source, clock, remembered=3, records=records)


def revoke(records: CredentialRecords, sub: str, before: float) -> None:
    salt = records.salt()
    digest = records.digest("sub", sub, salt)
    records.apply((1, 0), Revocation(kind="sub", digest=digest, salt=salt, before=before, until=before + 1e7, at=1.0))


async def test_a_revoked_token_is_refused_at_once_whether_remembered_or_not(source: Source, clock: TurnedClock) -> None:
    records = no_records()
    shop = revoking(source, clock, records)
    known, other = issuer.sign(), issuer.sign(sub="berta")
    await shop.verified(known)
    await shop.verified(other)
    revoke(records, "anna", clock.now())
    assert shop.known(known) is None
    for token in (known, issuer.sign(jti="2")):
        with pytest.raises(NotAdmitted, match="revoked"):
            shop.verified_at_once(token)
        assert (await refusal(shop, token)).reason == "revoked"
    assert shop.known(other) is not None
    assert (await shop.verified(issuer.sign(iat=clock.now()))).subject == "anna"


async def test_before_revocations_are_known_nobody_is_let_in(source: Source, clock: TurnedClock) -> None:
    refused = await refusal(revoking(source, clock, CredentialRecords(Codec(None))), issuer.sign())
    assert (refused.status, refused.reason, refused.retry_after) == (503, "records", 5)


async def test_a_token_ends_with_the_greatest_age_that_revocations_are_kept_for(
    source: Source, clock: TurnedClock
) -> None:
    records = no_records()
    records.longest = 100.0
    shop = revoking(source, clock, records)
    token = issuer.sign(iat=clock.now(), exp=clock.now() + 10_000)
    principal = await shop.verified(token)
    assert principal.expires_at == clock.now() + 100
    clock.turn(129)
    assert shop.known(token) is not None
    clock.turn(1)
    assert shop.known(token) is None
    assert (await refusal(shop, token)).reason == "age"
