"""A provider of `identity` that verifies an issuer's signed tokens, and remembers those that it has verified."""

from __future__ import annotations

import math
from collections import OrderedDict
from hashlib import blake2b
from secrets import token_bytes
from typing import Protocol

import msgspec

from gateway.clock import Clock
from gateway.identity.admission import Epoch, NotAdmitted
from gateway.identity.introspection import unknown_revocations
from gateway.identity.key_set import KeySet
from gateway.identity.principal import Principal
from gateway.identity.records import CredentialRecords, no_records
from gateway.identity.tokens import Issuer, TokenRefused, UnknownKey, Unverified, issuer_of, read, verify

REFUSED_FOR = 10.0
"""Seconds for which a token with an invalid signature is refused without being verified again."""
MOST_REFUSED = 1000
RETRY_AFTER = 10
"""Seconds, in a 503."""


class Keys(Protocol):
    """Where an issuer's keys come from: a KeySource, or a set that never changes."""

    @property
    def keys(self) -> KeySet | None: ...

    @property
    def epoch(self) -> Epoch:
        """Its version changes with `keys`; it is the epoch of what they verify."""

    @property
    def version(self) -> int:
        """Changes with `keys`."""

    @property
    def until(self) -> float:
        """Until when `keys` are in force unless they are replaced, in seconds since 1970."""

    async def begun(self) -> None: ...

    async def look_for_unknown(self) -> None: ...


class FixedKeys:
    """Keys of the configuration itself, or of a secret."""

    version = 1
    until = math.inf

    def __init__(self, keys: KeySet) -> None:
        self.keys: KeySet | None = keys
        self.epoch = Epoch()

    async def begun(self) -> None:
        return None

    async def look_for_unknown(self) -> None:
        return None


class TokenIssuer:
    """Verifies the tokens of `issuer`. Of verified tokens it remembers the last `remembered`, until they end or the
    issuer's keys change; it holds digests of them, never a token. `records` are the revocations."""

    def __init__(
        self,
        issuer: Issuer,
        keys: Keys,
        clock: Clock,
        *,
        sources: tuple[str, ...] = ("authorization",),
        remembered: int,
        records: CredentialRecords | None = None,
    ) -> None:
        self.issuer = issuer
        self._issuers = {issuer.issuer: issuer}
        self.sources = sources
        self.source = keys
        self._clock = clock
        self._records = records if records is not None else no_records()
        self._most = remembered
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, TokenRefused]] = OrderedDict()
        self._version = keys.version
        self._secret = token_bytes(32)

    def __repr__(self) -> str:
        return f"<TokenIssuer {self.name} known={len(self._known)} {self.source!r}>"

    @property
    def name(self) -> str:
        return self.issuer.provider

    @property
    def epoch(self) -> Epoch:
        return self.source.epoch

    def holds_until(self, principal: Principal) -> float:
        assert principal.expires_at is not None
        return min(principal.expires_at + self.issuer.leeway, self.source.until)

    @property
    def ready(self) -> bool:
        """Whether it can verify anything now."""
        return self.source.keys is not None

    def known(self, credential: bytes) -> Principal | None:
        """The principal of a token that was verified before; None for another, and for one that has ended, or is
        revoked."""
        return self._known_by(self._digest(credential))

    def _known_by(self, digest: bytes) -> Principal | None:
        if self._version != self.source.version or self.source.keys is None:
            self._known.clear()
            self._refused.clear()
            self._version = self.source.version
            return None
        principal = self._known.get(digest)
        if principal is None:
            return None
        assert principal.expires_at is not None
        if self._clock.now() >= principal.expires_at + self.issuer.leeway or self._records.revoked(principal):
            del self._known[digest]
            return None
        self._known.move_to_end(digest)
        return principal

    def recognises(self, credential: bytes) -> bool:
        return self.known(credential) is not None or issuer_of(credential) == self.issuer.issuer

    async def verified(self, credential: bytes) -> Principal:
        """Raises NotAdmitted."""
        digest = self._digest(credential)
        principal = self._known_by(digest)
        if principal is not None:
            return principal
        try:
            token = self._read(digest, credential)
            if self.source.keys is None:
                await self.source.begun()
            try:
                verify(token, self._keys().of(token.kid))
            except UnknownKey:
                await self.source.look_for_unknown()
                verify(token, self._keys().of(token.kid))
            return self._accepted(digest, token)
        except TokenRefused as refused:
            raise self._not_admitted(digest, refused) from None

    def verified_at_once(self, credential: bytes) -> Principal | None:
        """`verified` where that takes no wait; None where keys must be fetched first, and where nothing is remembered,
        as each request would then verify the token twice. Raises NotAdmitted."""
        digest = self._digest(credential)
        principal, keys = self._known_by(digest), self.source.keys
        if principal is not None or keys is None or not self._most:
            return principal
        try:
            token = self._read(digest, credential)
            verify(token, keys.of(token.kid))
            return self._accepted(digest, token)
        except UnknownKey:
            return None
        except TokenRefused as refused:
            raise self._not_admitted(digest, refused) from None

    def _read(self, digest: bytes, credential: bytes) -> Unverified:
        """What a token says, if all but its signature is well. Raises TokenRefused and NotAdmitted."""
        if not self._records.known:
            raise unknown_revocations()
        now = self._clock.now()
        self._refuse_again(digest, now)
        _, token = read(credential, self._issuers, now)
        return self._in_time(token, now)

    def _accepted(self, digest: bytes, token: Unverified) -> Principal:
        """The principal of a token whose signature is valid. Raises TokenRefused."""
        if self._records.revoked(token.principal):
            raise TokenRefused("revoked", "The token is revoked.")
        self._remember(digest, token.principal)
        return token.principal

    def _not_admitted(self, digest: bytes, refused: TokenRefused) -> NotAdmitted:
        if refused.reason == "signature":
            self._remember_refusal(digest, refused)
        return NotAdmitted(401, "invalid_token", refused.detail, refused.reason)

    def _in_time(self, token: Unverified, now: float) -> Unverified:
        """The token, whose principal ends with its greatest age at the latest: for longer no revocation is kept. Raises
        TokenRefused."""
        principal = token.principal
        assert principal.expires_at is not None
        assert principal.issued_at is not None
        last = principal.issued_at + self._records.longest
        if now >= last + self.issuer.leeway:
            raise TokenRefused("age", "The token was issued too long ago.")
        if principal.expires_at <= last:
            return token
        replace = msgspec.structs.replace
        return replace(token, principal=replace(principal, expires_at=last))

    def _keys(self) -> KeySet:
        keys = self.source.keys
        if keys is None:
            raise NotAdmitted(
                503, "", "Tokens can't be verified now: the issuer's keys are not available.", "keys", (), RETRY_AFTER
            )
        return keys

    def _remember(self, digest: bytes, principal: Principal) -> None:
        if self._most:
            self._known[digest] = principal
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def _refuse_again(self, digest: bytes, now: float) -> None:
        """Raises TokenRefused for a token whose signature was found invalid a moment ago."""
        found = self._refused.get(digest)
        if found is not None and now < found[0]:
            raise found[1]

    def _remember_refusal(self, digest: bytes, refused: TokenRefused) -> None:
        self._refused[digest] = (self._clock.now() + REFUSED_FOR, refused.with_traceback(None))
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)

    def _digest(self, credential: bytes) -> bytes:
        return blake2b(credential, digest_size=16, key=self._secret).digest()
