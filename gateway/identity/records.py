"""API keys and revocations, as every worker knows them. Pure.

Both are truth, not cache: a record is in force at every worker, is added again by each of them after Redis lost it, and
is forgotten only once it can change nothing: an API key some time after its end, a revocation when the last token that
it is about has ended. So a worker's view only grows: records may come in any order, and twice. Those of one key, or of
one revoked subject, are joined, and can only narrow what is accepted: a key's end may come nearer, a revocation may
take in later tokens.

In Redis an API key is its SHA-256, which says nothing of a random key, and what a revocation names is a keyed digest.
With a secret (`redis_secret`) each record carries a seal, so write access to Redis is not enough to plant a key.
Without it, the digests of revocations are made with a salt that stands beside them.
"""

from __future__ import annotations

import hmac
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from gateway.identity.principal import Principal, is_subject
from gateway.policy.epochs import ZERO, Position, show_position
from gateway.policy.identity_key import IdentityKey

KEPT = 30 * 24 * 3600.0
"""Seconds for which a key that has ended is listed, and its end is known."""
LONGEST_LEEWAY = 600.0
"""Seconds of `leeway`, at most: so much longer than its age a token may be accepted."""
MOST_RECORDS = 500_000
"""Keys and revocations, at most; a further one is refused. A worker needs about 0.7 KB for each."""
MOST_UNUSABLE = 1000
"""Entries of the stream that are no records, and are remembered."""
LONGEST_TEXT = 256
"""Characters of an owner, plan, scope or name in a record."""
MOST_SCOPES = 100
KINDS: Mapping[str, tuple[str, ...]] = {
    "sub": ("sub",),
    "jti": ("jti",),
    "client": ("client_id", "azp", "cid"),
    "all": (),
}
"""What a revocation may name, and the claims that have it: a subject, a token (RFC 7519), a client (RFC 9068, OpenID
Connect, Okta), or every token of an issuer."""
_VERSION = b"1"
_ID = 16


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An API key of the provider `provider`. `key` is its ID, the beginning of its digest; times are in seconds since
    1970."""

    key: str
    provider: str
    sha256: str
    created: float
    owner: str = ""
    plan: str = ""
    scopes: tuple[str, ...] = ()
    expires: float | None = None
    revoked: float | None = None
    by: str = ""

    @property
    def id(self) -> str:
        """The record's: another one whenever what the record says is another."""
        return f"k{self.key}-{_milliseconds(self.expires)}-{_milliseconds(self.revoked)}"

    @property
    def ends(self) -> float:
        """When it is accepted no more; infinity for never."""
        return min(math.inf if each is None else each for each in (self.expires, self.revoked))

    @property
    def accepted_until(self) -> float:
        """The same, but before all time for a revoked key: the clock of who revoked it may be ahead."""
        return -math.inf if self.revoked is not None else self.ends

    def joined(self, other: ApiKey) -> ApiKey:
        """What both say of one key."""
        first = min(self, other, key=lambda each: (each.created, each.owner, each.plan, each.scopes, each.by))
        return msgspec.structs.replace(
            first, expires=_earlier(self.expires, other.expires), revoked=_earlier(self.revoked, other.revoked)
        )


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Refuses tokens that were issued before `before`, and belong to what `digest` is of; until `until` there may be
    such tokens. `issuer` is that of the tokens, all for none. `at` is when it was made, by `by`."""

    kind: str
    before: float
    until: float
    at: float
    digest: str = ""
    salt: str = ""
    issuer: str = ""
    by: str = ""

    @property
    def id(self) -> str:
        name = blake2b("\n".join(self.about).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return f"r{name}-{_milliseconds(self.before)}-{_milliseconds(self.until)}"

    @property
    def about(self) -> About:
        return (self.salt, self.kind, self.digest, self.issuer)

    def joined(self, other: Revocation) -> Revocation:
        """What both say about the same."""
        later = max(self, other, key=lambda each: (each.before, each.at, each.by))
        return msgspec.structs.replace(later, until=max(self.until, other.until))


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record that can't be used. `meant`: it has the form of one, but is of another version, or of another secret; so
    this worker does not know what every worker must."""

    id: str
    meant: bool


def key_id(sha256: str) -> str:
    """The ID of the key of that digest."""
    return sha256[:_ID]


Record = ApiKey | Revocation | Unusable
About = tuple[str, str, str, str]
"""Salt, kind, digest and issuer."""


def _milliseconds(instant: float | None) -> str:
    return "" if instant is None else f"{instant * 1000:.0f}"


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


class Codec:
    """How records are written. `key` seals them, and makes digests; None without a secret."""

    def __init__(self, key: IdentityKey | None) -> None:
        self._key = key

    @property
    def is_sealed(self) -> bool:
        return self._key is not None

    def encode(self, record: Record) -> bytes:
        assert not isinstance(record, Unusable), "it is never written"
        kind = b"k" if isinstance(record, ApiKey) else b"r"
        payload = kind + msgspec.json.encode(record)
        return b" ".join((_VERSION, self._seal(payload), payload))

    def decode(self, position: Position, data: bytes | None) -> Record:
        name = f"unusable {show_position(position)}"
        version, _, rest = (data or b"").partition(b" ")
        seal, _, payload = rest.partition(b" ")
        if not version.isdigit() or not payload:
            return Unusable(name, meant=False)
        if version != _VERSION or not hmac.compare_digest(seal, self._seal(payload)):
            return Unusable(name, meant=True)
        try:
            return self._checked(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return Unusable(name, meant=False)

    def _checked(self, payload: bytes) -> Record:
        """Raises ValueError and msgspec's DecodeError."""
        if payload[:1] == b"k":
            key = msgspec.json.decode(payload[1:], type=ApiKey)
            texts = (key.provider, key.owner, key.plan, key.by, *key.scopes)
            if key.key != key_id(key.sha256) or len(key.sha256) != 64 or len(key.scopes) > MOST_SCOPES:
                raise ValueError("no digest of a key")
            _check(texts, (key.created, key.expires, key.revoked))
            return key
        if payload[:1] != b"r":
            raise ValueError("a record of another kind")
        found = msgspec.json.decode(payload[1:], type=Revocation)
        _check((found.digest, found.salt, found.issuer, found.by), (found.before, found.until, found.at))
        if found.kind not in KINDS or (found.digest and not self._digests(found.salt)):
            raise ValueError("a revocation of nothing that is known")
        return found

    def _seal(self, payload: bytes) -> bytes:
        return self._key.digest_bytes("credential record", payload).encode() if self._key is not None else b"-"

    def new_salt(self) -> str:
        """A salt for digests; empty with a secret, which makes them itself."""
        return "" if self._key is not None else secrets.token_hex(_ID)

    def digester(self, salt: str) -> IdentityKey:
        """What makes the digests of a salt."""
        if salt:
            return IdentityKey(bytes.fromhex(salt))
        assert self._key is not None, "a digest without salt is of a secret"
        return self._key

    def _digests(self, salt: str) -> bool:
        """Whether digests of that salt can be made here. Raises ValueError."""
        return 0 < len(bytes.fromhex(salt)) <= 64 if salt else self._key is not None


LATEST = 32_503_680_000.0
"""The year 3000: a later instant is none that a gateway wrote."""


def _check(texts: Iterable[str], instants: Iterable[float | None]) -> None:
    if any(len(text) > LONGEST_TEXT for text in texts):
        raise ValueError("a text that is too long")
    if not all(each is None or 0 <= each <= LATEST for each in instants):
        raise ValueError("no instant")


class CredentialRecords:
    """A worker's view. Not thread-safe; it lives in one event loop.

    `changed` is called with everything that may end what was accepted. `known` says that all records of the fleet are
    known: until then nothing can be accepted. `longest` is how old (seconds) a token may be that this worker accepts:
    it lets revocations be kept as long, also those of a gateway that accepts none so old.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        generation: str = "",
        longest: float = 30 * 24 * 3600.0,
    ) -> None:
        self.generation = generation
        self.longest = longest
        self.applied: Position = ZERO
        self.pending: dict[str, tuple[float, Record]] = {}
        self.superseded: deque[Position] = deque()
        self.known = False
        self.keys: dict[str, ApiKey] = {}
        self.revocations: dict[About, Revocation] = {}
        self.unusable: dict[Position, Unusable] = {}
        self.codec = codec
        self.changed: Callable[[], None] = lambda: None
        self._places: dict[str | About, Position] = {}
        """The position of the last record of each."""
        self._digesters: dict[str, IdentityKey] = {}
        self._kinds: dict[tuple[str, str], int] = {}
        """How many revocations there are by salt and kind."""

    def __repr__(self) -> str:
        return (
            f"<CredentialRecords keys={len(self.keys)} revocations={len(self.revocations)}"
            f" unusable={len(self.unusable)} known={self.known}>"
        )

    # --- records ------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[ApiKey | Revocation]:
        yield from self.keys.values()
        yield from self.revocations.values()

    @property
    def is_full(self) -> bool:
        return len(self.keys) + len(self.revocations) >= MOST_RECORDS

    @property
    def misses_some(self) -> bool:
        """Whether there are records that this worker should know, and can't read."""
        return any(each.meant for each in self.unusable.values())

    def pend(self, record: Record, now: float) -> None:
        """Take a record that was made here, before the stream has it; it is in force here."""
        self.pending[record.id] = (now, record)
        self._learn(record)

    def withdraw(self, key: ApiKey) -> None:
        """Forget a key that was made here, and that no stream has accepted."""
        if self.pending.pop(key.id, None) is not None and key.key not in self._places:
            self.keys.pop(key.key, None)
            self.changed()

    def apply(self, position: Position, record: Record, now: float = math.inf) -> None:
        self.applied = max(self.applied, position)
        self.pending.pop(record.id, None)
        if isinstance(record, Unusable):
            if len(self.unusable) < MOST_UNUSABLE or record.meant:
                self.unusable[position] = record
            return
        before = self._places.get(_own(record))
        self._places[_own(record)] = position
        known = self._learn(record)
        if isinstance(known, Revocation) and known.until < self.needed_until(known.before):
            known = msgspec.structs.replace(known, until=self.needed_until(known.before))
        if known != record:
            self.pend(known, now)  # the stream is to have what all of its records say together
        elif before is not None and before != position:
            self.superseded.append(before)

    def needed_until(self, before: float) -> float:
        """Until when there may be tokens that were issued before an instant."""
        return before + self.longest + LONGEST_LEEWAY

    def begin(self, generation: str) -> None:
        """Go on with another stream, of which nothing is applied yet. What was known is known still."""
        self.generation = generation
        self.applied = ZERO
        self.superseded.clear()
        self._places.clear()
        self.unusable.clear()

    def missing(self, number: int) -> Iterator[list[Record]]:
        """What is known, and in no record of the stream that was applied: of so many at a time those that are. They may
        change meanwhile."""
        known = [*self._all()]
        for start in range(0, len(known), number):
            yield [each for each in known[start : start + number] if _own(each) not in self._places]

    def raise_floor(self, floor: Position) -> None:
        """No record is removed before its time; a floor is only where the stream begins."""
        self.applied = max(self.applied, floor)

    def expire(self, now: float) -> None:
        """Forget what can change nothing any more. The newest record stays, as workers know a stream by it."""
        for each in [each for each in self._all() if _last(each) < now]:
            place = self._places.get(_own(each), self.applied)
            if place >= self.applied or each.id in self.pending:
                continue
            self.superseded.append(place)
            del self._places[_own(each)]
            if isinstance(each, ApiKey):
                del self.keys[each.key]
            else:
                self._forget(each)

    def _learn(self, record: Record) -> Record:
        """What is known of the record's subject from now on."""
        if isinstance(record, ApiKey):
            key = self.keys.get(record.key)
            known = record if key is None or key == record else key.joined(record)
            self.keys[record.key] = known
            if known != key:
                self.changed()
            return known
        return self._revoke(record) if isinstance(record, Revocation) else record

    def _revoke(self, record: Revocation) -> Revocation:
        other = self.revocations.get(record.about)
        known = record if other is None or other == record else other.joined(record)
        self.revocations[record.about] = known
        if other is None:
            self._kinds[record.salt, record.kind] = self._kinds.get((record.salt, record.kind), 0) + 1
        if known != other:
            self.changed()
        return known

    def _forget(self, record: Revocation) -> None:
        del self.revocations[record.about]
        group = (record.salt, record.kind)
        self._kinds[group] -= 1
        if not self._kinds[group]:
            del self._kinds[group]

    # --- what they mean -------------------------------------------------------------------------------------------

    def salt(self) -> str:
        """The salt for another revocation: one that there is."""
        return next((salt for salt, kind in self._kinds if kind != "all"), None) or self.codec.new_salt()

    def digest(self, kind: str, value: str, salt: str) -> str:
        digester = self._digesters.get(salt)
        if digester is None:
            digester = self._digesters[salt] = self.codec.digester(salt)
        return digester.digest_bytes(f"revoked {kind}", value.encode("utf-8", "surrogatepass"))

    def revoked(self, principal: Principal) -> bool:
        """Whether a token of this principal is refused. One that does not say when it was issued may have been issued
        before any revocation."""
        return any(self._is_about(principal, *group) for group in self._kinds)

    def _is_about(self, principal: Principal, salt: str, kind: str) -> bool:
        digests = [self.digest(kind, value, salt) for value in _values(principal, kind)] if KINDS[kind] else [""]
        found = [
            self.revocations.get((salt, kind, digest, issuer))
            for digest in digests
            for issuer in ("", principal.issuer)
        ]
        issued = principal.issued_at
        return any(each is not None and (issued is None or issued < each.before) for each in found)


def no_records() -> CredentialRecords:
    """The view of a worker for which nothing is ever revoked."""
    records = CredentialRecords(Codec(None))
    records.known = True
    return records


def _values(principal: Principal, kind: str) -> list[str]:
    """The claims of a principal that a revocation of that kind may name, as text: an operator writes no types."""
    found = [principal.claims.get(name) for name in KINDS[kind]]
    return [str(each) for each in found if is_subject(each)]


def _own(record: ApiKey | Revocation) -> str | About:
    return record.key if isinstance(record, ApiKey) else record.about


def _last(record: ApiKey | Revocation) -> float:
    """When it can change nothing any more."""
    return record.ends + KEPT if isinstance(record, ApiKey) else record.until
