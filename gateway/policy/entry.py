"""Stored responses, and their storage format.

Pure. A record is two bytes of magic, one of version, a seal, then MessagePack (msgspec): compact and typed. Nothing in
it is executed, and no length is trusted before its bytes are there. The seal is an eight-byte checksum (xxh3), which
detects damage; or, with a secret, 32 bytes of HMAC-SHA-256, which also rejects records made without the secret:
otherwise write access to Redis is enough to plant responses. A record contains the key it was stored under, so that a
reply to another command, or a colliding digest, is detected when it is read. An unreadable record is None, which the
caller counts.
"""

from __future__ import annotations

import hmac
import re
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta, structs
from xxhash import xxh3_64_digest

from gateway.http.headers import HOP_BY_HOP, WITHOUT_CONTENT
from gateway.http.request_parser import BAD_IN_VALUE
from gateway.policy.epochs import LONGEST_NAME, LONGEST_STAMP
from gateway.policy.vary import MAX_VARY_SETS, VaryIndex, are_names

MAGIC = b"GW"
VERSION = 3
SEALED_VERSION = 4
_PREFIX = MAGIC + bytes((VERSION,))
_SEALED_PREFIX = MAGIC + bytes((SEALED_VERSION,))
_CHECKSUM_LENGTH = 8
_HMAC_LENGTH = 32
_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+(?:\n[!#$%&'*+\-.^_`|~0-9a-z]+)*")
_NEVER_STORED = HOP_BY_HOP | {b"content-length", b"set-cookie", b"set-cookie2", b"age"}
"""Fields that no record contains: with framing fields, write access to Redis would allow response splitting."""
NEVER_STORED_STATUS = frozenset((206, 304, 429))  # 429: RFC 6585 §4
MOST_FIELDS = 10_000
"""Fields of a stored response; upstreams' are bounded to fewer."""
_YEAR_10000 = 253_402_300_800.0  # HTTP dates have four digits for the year (RFC 9110 §5.6.7)
_LONGEST_KNOWN = 512
"""Bytes of the names of a response's fields up to which it is remembered whether they may be stored."""

# The bounds of a record's numbers and texts. Decoding checks them; what is written has them by its making.
Seconds = Annotated[float, Meta(ge=0, lt=_YEAR_10000)]
Status = Annotated[int, Meta(ge=200, le=599)]
Fields = Annotated[tuple[tuple[bytes, bytes], ...], Meta(max_length=MOST_FIELDS)]
Stamp = Annotated[str, Meta(max_length=LONGEST_STAMP)]
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]


class Life(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The upstream's own fields about a response's life, in seconds; read once, when it is stored.

    `lifetime` is the explicit lifetime (RFC 9111 §4.2.1), None if there is none; `heuristic` is the one to assume then
    (§4.2.2). `strict` forbids stale responses (must-revalidate, proxy-revalidate, s-maxage), `no_cache` any response
    without validation; `shared` allows reuse for a request with Authorization (§3.5).
    """

    lifetime: Seconds | None = None
    heuristic: Seconds = 0.0
    stale_while_revalidate: Seconds | None = None
    stale_if_error: Seconds | None = None
    strict: bool = False
    no_cache: bool = False
    shared: bool = False
    promised: bool = False
    """Whether clients got `no-cache` semantics: it was stored while its route followed the upstream. A longer TTL that
    is configured later does not revive it."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """A stored response.

    `born` is the time, in seconds since 1970 on the gateway's clock, at which it was received (or last
    validated); `initial_age` its corrected initial age then (RFC 9111 §4.2.3); `started` when its fetch began.
    `jitter` is a fraction in [0, 1) that shortens a lifetime of ours. `vary` names the request fields that
    selected it. `stamp` is the purge stream's position before the fetch (empty: none known).
    """

    key: str
    primary: str
    born: Seconds
    started: Seconds
    initial_age: Seconds
    status: Status
    headers: Fields
    body: bytes
    life: Life
    jitter: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    tags: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    route: str = ""
    stamp: Stamp = ""
    softened: float | None = None
    """When a soft purge made it stale; set by the reader, never stored."""
    distrusted: bool = False
    """Whether a purge of it could have been missed; set by the reader, never stored."""

    names: tuple[Name, ...] = ()
    """Names besides its own by whose purges it is judged: those of the parts it was joined from."""


class DerivedFrom(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a derived response inherits from stored responses: their least stamp, the earliest start of their fetches
    (seconds since 1970), the greatest age, its own lifetime counted from that age, their names, and the fields that
    select it. `personal`: one of them is stored for its user alone."""

    stamp: str
    started: float
    age: float
    lifetime: float
    names: tuple[str, ...]
    vary: tuple[str, ...] = ()
    personal: bool = False


MOST_HEAD = 1024 * 1024
"""Bytes of a stored response's header fields; upstreams' are bounded to less (`max_response_headers`)."""

_BEHIND_BODY = Entry.__struct_fields__.index("body") + 1
_stored_encoder = msgspec.msgpack.Encoder()
_stored_decoder = msgspec.msgpack.Decoder(Entry)
_index_decoder = msgspec.msgpack.Decoder(VaryIndex)


def encode(record: Entry | VaryIndex, secret: bytes = b"") -> bytes:
    """`record` in its storage format; sealed with an HMAC if there is a `secret`."""
    payload = _stored_encoder.encode(record)
    return _prefix(secret) + _seal(payload, secret) + payload


def _prefix(secret: bytes) -> bytes:
    return _SEALED_PREFIX if secret else _PREFIX


def _seal(payload: bytes | memoryview, secret: bytes) -> bytes:
    return hmac.digest(secret, payload, "sha256") if secret else xxh3_64_digest(payload)


def _payload(data: bytes, secret: bytes) -> memoryview | None:
    """The inverse of `encode`; None if it is truncated, damaged, of another version, or sealed otherwise."""
    prefix = _prefix(secret)
    head = len(prefix) + (_HMAC_LENGTH if secret else _CHECKSUM_LENGTH)
    payload = memoryview(data)[head:]
    if data[: len(prefix)] != prefix or len(data) < head:
        return None
    return payload if hmac.compare_digest(data[len(prefix) : head], _seal(payload, secret)) else None


def beginning_of(record: Entry, secret: bytes = b"") -> bytes:
    """The first bytes of a record, which differ from those of any other: with the seal."""
    return encode(record, secret)[: len(_prefix(secret)) + (_HMAC_LENGTH if secret else _CHECKSUM_LENGTH)]


def is_sealed(data: bytes, secret: bytes = b"") -> bool:
    """Whether `data` is whole, of this version, and sealed as `encode` seals it."""
    return _payload(data, secret) is not None


def tail_of(stored: Entry) -> bytes:
    """The bytes behind the body in a response's record."""
    return _stored_encoder.encode(structs.astuple(stored)[_BEHIND_BODY:])[1:]  # without the array's own first byte


def decode_stored(data: bytes, key: str, secret: bytes = b"") -> Entry | None:
    """The response stored under `key`; None where `data` is cut, corrupt, of another version, another key's, or not
    sealed with `secret`."""
    payload = _payload(data, secret)
    if payload is None:
        return None
    try:
        stored = _stored_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return stored if stored.key == key and may_be_shared(stored) else None


def may_be_shared(stored: Entry) -> bool:
    """Whether a response may stand in the shared tier, as far as the types of its fields do not say it: the one check
    for what is written there and what is read."""
    return (
        stored.status not in NEVER_STORED_STATUS
        and not (stored.body and stored.status in WITHOUT_CONTENT)  # a client would take it for the next response
        and stored.softened is None
        and not stored.distrusted
        and (not stored.headers or _may_be_stored(*zip(*stored.headers, strict=True)))
        and (not stored.vary or are_names(stored.vary))
        and sum(map(len, (stored.key, stored.primary, stored.route, *stored.tags))) <= MOST_HEAD
    )


def _may_be_stored(names: tuple[bytes, ...], values: tuple[bytes, ...]) -> bool:
    """Whether fields with these names and values may be stored; looked at together, as every fetch needs it."""
    joined, value = b"\n".join(names), b"".join(values)
    may_be_stored = _known_names if len(joined) <= _LONGEST_KNOWN else _are_field_names
    return (
        may_be_stored(joined, len(names))
        and not BAD_IN_VALUE.search(value)
        and len(joined) + len(value) < MOST_HEAD + len(names)
    )


def _are_field_names(joined: bytes, number: int) -> bool:
    """Whether so many fields, whose names are given with line feeds between them, may be stored."""
    names = joined.split(b"\n")
    return len(names) == number and bool(_NAMES.fullmatch(joined)) and _NEVER_STORED.isdisjoint(names)


_known_names = lru_cache(maxsize=256)(_are_field_names)


def decode_index(data: bytes, primary: str, secret: bytes = b"") -> VaryIndex | None:
    """The index of `primary`; None where `data` can't be read, is another key's, or not sealed with `secret`."""
    payload = _payload(data, secret)
    if payload is None:
        return None
    try:
        index = _index_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return index if index.primary == primary and may_be_index(index) else None


def may_be_index(index: VaryIndex) -> bool:
    """Whether an index may stand in the shared tier, as `may_be_shared` of a response."""
    return len(index.names) <= MAX_VARY_SETS and all(map(are_names, index.names))
