"""Cache keys, and which parts of a request may reach the upstream: one decision, made once.

Pure. The invariant: *the party that decides the lifetime must know the inputs*. On a route with a duration the gateway
decides, so everything that the upstream can see is in the key: the target, the listed headers (by `headers.sent_value`,
in the form in which they are sent), and credentials if the route includes them. On a route with `ttl: origin` the
upstream decides by its `Cache-Control` and `Vary`; it gets every end-to-end header except the dangerous ones, each in
the single line by which variants are compared.

A key is text, one component per line. No component can contain a line feed: targets are normalised, and the parser
refuses it in header values. Keys leave the process: values that identify the client are digests (`identity_key`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import msgspec
from xxhash import xxh3_64_intdigest

from gateway.http.headers import Headers, connection_named, end_to_end, has, in_one_line, is_dangerous, sent_value
from gateway.http.target import credentials_in, without_credentials
from gateway.policy.content import CONTENT_FIELDS, Content
from gateway.policy.identity_key import UNKEYED, IdentityKey

# A request's own conditions are the cache's to answer; what goes upstream are our validators.
_CONDITIONS = frozenset((b"if-none-match", b"if-modified-since", b"range", b"if-range"))
_NEVER_FORWARDED = frozenset((b"host", b"content-length", b"expect", b"x-request-id", b"via", b":principal"))


PRINCIPAL = b":principal"
"""The pseudo-field in a request's headers that holds the partition of a verified credential (`identity.admission`). It
is in the key of a route with `identity`, and never sent."""
FOLLOWING = "\norigin"
"""A line in the keys of responses that follow their upstream. They were fetched with all of a client's fields, and the
upstream's `Vary` selects among them; those with a route's own duration were fetched with the keyed fields only,
whatever the upstream would vary on. Neither may replace the other."""


@dataclass(frozen=True, slots=True)
class Keying:
    """Which inputs of a request are part of the key on a route.

    `vary` is None on a route with `ttl: origin`. `authorization` is `pass` (with a duration: bypass; with `origin`: RFC
    9111 §3.5), `ignore` or `key`. `cookies` is None (bypass), an empty tuple (ignored) or the keyed names. `marks` are
    additional lines of the key, for settings that change the stored response itself; they are not in the primary key,
    so that the purge of a URL applies whatever they were. `identities` names request fields in lower case that identify
    the client although their names don't show it: those of security schemes that a handler declares. With `host` the
    upstream gets the client's `Host`, whatever decides the lifetime: no `Vary` names it, as it is part of the URL.
    `claims` names the request fields whose values are claims of the partition that `:principal` has: they are sent, and
    the partition is in the key in their place. `per` has the claims of that partition; with `one_user` it is of one
    user. `credentials` names the fields in which a route with `identity` takes credentials; with `shared` a cache in
    front checks them itself. `sent` is what settings change in the requests of a route; a digest of it is in the key,
    because other routes may request the same target without it. `identity_key` makes the digests.
    """

    vary: tuple[str, ...] | None
    authorization: str = "pass"
    cookies: tuple[str, ...] | None = None
    constants: tuple[tuple[bytes, bytes], ...] = ()
    marks: tuple[tuple[bytes, bytes], ...] = ()
    identities: frozenset[str] = frozenset()
    host: bool = False
    sent: str = ""
    claims: tuple[str, ...] = ()
    per: tuple[str, ...] = ()
    one_user: bool = False
    credentials: tuple[str, ...] = ()
    shared: bool = False
    identity_key: IdentityKey = field(default=UNKEYED, compare=False, repr=False)

    def identifies(self, name: str) -> bool:
        """Whether the request field `name` identifies the client, by its name or by the route's declaration."""
        return name in self.identities or is_identity(name)


LONGEST_SHORT = 64
"""Characters of a name or a key that is remembered as it is."""

# --- identity ----------------------------------------------------------------------------------------------

_IDENTITY_WORDS = frozenset(
    (
        *("auth", "authentication", "authorization", "oauth", "sso", "saml", "jwt", "dpop", "bearer", "principal"),
        *("token", "apikey", "secret", "credential", "credentials", "password", "passwd", "signature", "cert"),
        *("cookie", "cookie2", "session", "sessionid", "sid", "user", "userid", "username", "login", "email"),
    )
)
_PERSONS = frozenset(("account", "customer", "client", "member", "person", "subject", "identity", "device"))
_KEYS_OF_NOBODY = frozenset(("idempotency", "surrogate", "websocket", "cache", "partition"))


def is_identity(name: str) -> bool:
    """Whether a request field identifies the client, by its name in lower case; `cookie:NAME` always does.

    Names are split into words: `x-auth-token`, `x-session-id`, `x-rapidapi-key`, `x-customer-id`, `remote-user`. A
    false positive makes responses `private` downstream; a false negative lets a shared cache serve one client's
    response to another, so doubtful names count.
    """
    return (_known_identity if len(name) <= LONGEST_SHORT else _is_identity)(name)


def _is_identity(name: str) -> bool:
    if name.startswith(("cookie:", ":")):
        return name.startswith("cookie:")
    words = [word for word in re.split(r"[-_.]", name.replace("user-agent", "")) if word]
    return bool(_IDENTITY_WORDS.intersection(words)) or _ends_as_identity(words) or name == "from"


_known_identity = lru_cache(maxsize=4096)(_is_identity)


def _ends_as_identity(words: list[str]) -> bool:
    *before, last = words or [""]
    if last == "key":
        return bool(before) and before[-1] not in _KEYS_OF_NOBODY
    return last == "id" and bool(_PERSONS.intersection(before))


# --- plans -------------------------------------------------------------------------------------------------


class Plan(msgspec.Struct, frozen=True):
    """The cache plan of one request.

    `primary` names all the stored responses of a target; `base` those that the keyed inputs select, before an
    upstream's `Vary`. `bypass` is the reason for a bypass; None if there is none. `forward` holds the request fields of
    a fetch whose response may be stored. Of the fields that identify the client, `keyed` names those in the base key,
    `unkeyed` the others.
    """

    primary: str
    base: str
    forward: tuple[tuple[bytes, bytes], ...]
    bypass: str | None = None
    keyed: tuple[str, ...] = ()
    unkeyed: tuple[str, ...] = ()


NO_PLAN = Plan("", "", ())


class PlannedFields(msgspec.Struct, frozen=True):
    """What the fields of a request determine of its plan on a route, whatever its target: `suffix` is what they add to
    the stem of its base key."""

    suffix: str
    forward: tuple[tuple[bytes, bytes], ...]
    bypass: str | None
    keyed: tuple[str, ...]
    unkeyed: tuple[str, ...]
    identity_key: IdentityKey

    @classmethod
    def of(cls, keying: Keying, headers: Headers) -> PlannedFields:
        """Those of a request without content."""
        made, stem = plan(keying, "", "", headers), stem_of("", "", keying.identity_key)
        return cls(made.base[len(stem) :], made.forward, made.bypass, made.keyed, made.unkeyed, keying.identity_key)

    def plan(self, origin: str, target: str) -> Plan:
        """The plan for a read of `target`, as from `plan`."""
        primary, stem = primary_and_stem(origin, target, self.identity_key)
        base = stem + self.suffix if self.bypass is None else primary
        return Plan(primary, base, self.forward, self.bypass, self.keyed, self.unkeyed)


def holds_identity(keyed: tuple[str, ...], unkeyed: tuple[str, ...], vary: tuple[str, ...]) -> bool:
    """Whether a response that varies on the fields `vary` is stored for its user only: the request identifies the
    client, and all of its identifying fields select the response. `keyed` and `unkeyed` are those of a Plan."""
    return bool(keyed or unkeyed) and set(vary).issuperset(unkeyed)


def plan(
    keying: Keying,
    origin: str,
    target: str,
    headers: Headers,
    *,
    has_body: bool = False,
    content: Content | None = None,
) -> Plan:
    """The plan for a read of `target` at `origin` (an upstream's or a handler's name). `content` is that of a read
    which has some; with `has_body` it has a body that is not part of the key."""
    primary, stem = primary_and_stem(origin, target, keying.identity_key)
    bypass = _bypass(keying, headers, has_body=has_body)
    if bypass:
        return Plan(primary, primary, (), bypass)
    described: tuple[tuple[bytes, bytes], ...] = ()
    if content is not None:
        headers = [pair for pair in headers if pair[0] not in CONTENT_FIELDS]
        stem, described = stem + content.line(keying.identity_key), content.fields
    identity = [*_authorization(keying, headers), *_cookies(keying, headers)]
    host = sent_host(keying, headers)
    if host:
        stem += f"\n:host:{host[0][1].decode('latin-1')}"
    if keying.sent:
        stem += f"\n:headers:{keying.identity_key.digest('headers', keying.sent)}"
    partition = [value for name, value in headers if name == PRINCIPAL] if keying.credentials else []
    if partition:
        stem += f"\n:principal:{partition[0].decode('latin-1')}"
    user = ("authorization",) if partition and keying.one_user else ()
    if keying.vary is None:
        apart = {b"authorization", b"cookie", *(name.encode("latin-1") for name in keying.claims)}
        seen = in_one_line([pair for pair in _visible(headers) if pair[0] not in apart])
        if keying.authorization == "pass" and b"authorization" not in connection_named(headers):
            seen += _field(headers, "authorization")
        base = _with_fields(stem + FOLLOWING, identity, keying.identity_key)
        forward = (*host, *seen, *_claims(keying, headers), *identity, *described, *keying.constants)
        return Plan(primary, base, forward, None, (*_identities(keying, identity), *user), _identities(keying, seen))
    listed = [pair for name in keying.vary if name not in keying.claims for pair in _field(headers, name)]
    counted = [*listed, *identity]
    base = _with_fields(stem, counted, keying.identity_key) + "".join(f"\n{_text(mark)}" for mark in keying.marks)
    forward = (*host, *counted, *_claims(keying, headers), *described, *keying.constants)
    return Plan(primary, base, forward, None, (*_identities(keying, counted), *user))


def _claims(keying: Keying, headers: Headers) -> list[tuple[bytes, bytes]]:
    """The fields made of claims, as they were made: a comma in a user's name parts no list."""
    names = {name.encode("latin-1") for name in keying.claims}
    return [pair for pair in headers if pair[0] in names] if names else []


def _identities(keying: Keying, fields: list[tuple[bytes, bytes]]) -> tuple[str, ...]:
    return tuple(name for name in (pair[0].decode("latin-1") for pair in fields) if keying.identifies(name))


def primary_key(origin: str, target: str) -> str:
    """Common to all stored responses of a target, and named by purges: credentials in its query are hidden, so that a
    purge applies to all of them."""
    return f"{origin}\n{without_credentials(target)}"


def stem_of(origin: str, target: str, identity_key: IdentityKey) -> str:
    """The primary key, and a digest of the credentials in the query, if any: the beginning of base keys."""
    primary, credentials = primary_key(origin, target), credentials_in(target)
    return f"{primary}\n?{identity_key.digest('?', credentials)}" if credentials else primary


def primary_and_stem(origin: str, target: str, identity_key: IdentityKey) -> tuple[str, str]:
    """`primary_key` and `stem_of`, which are the same text without a query."""
    if "?" not in target:
        plain = f"{origin}\n{target}"
        return plain, plain
    return primary_key(origin, target), stem_of(origin, target, identity_key)


def field_line(name: str, value: str, identity_key: IdentityKey) -> str:
    """A line of a key: a request field and the value or digest."""
    return f"{name}:{identity_key.of_field(name, value)}"


def _with_fields(stem: str, fields: list[tuple[bytes, bytes]], identity_key: IdentityKey) -> str:
    lines = (field_line(name.decode("latin-1"), value.decode("latin-1"), identity_key) for name, value in fields)
    return "\n".join((stem, *lines))


def _text(mark: tuple[bytes, bytes]) -> str:
    return b":".join(mark).decode("latin-1")


def _bypass(keying: Keying, headers: Headers, *, has_body: bool) -> str | None:
    if has_body:
        return "body"
    if keying.vary is not None and keying.authorization == "pass" and has(headers, b"authorization"):
        return "authorization"
    if keying.cookies is None and has(headers, b"cookie"):
        return "cookie"
    if has(headers, b"if-match") or has(headers, b"if-unmodified-since"):
        return "precondition"
    return None


def _authorization(keying: Keying, headers: Headers) -> list[tuple[bytes, bytes]]:
    return _field(headers, "authorization") if keying.authorization == "key" else []


def _field(headers: Headers, name: str) -> list[tuple[bytes, bytes]]:
    """The single line of a request field, in keys and in upstream requests; none if it is absent."""
    value = sent_value(headers, name)
    return [] if value is None else [(name.encode("latin-1"), value.encode("latin-1"))]


def _cookies(keying: Keying, headers: Headers) -> list[tuple[bytes, bytes]]:
    if not keying.cookies:
        return []
    jar: dict[str, str] = {}
    for line in (value for name, value in headers if name == b"cookie"):
        for crumb in line.decode("latin-1").split(";"):
            name, equals, value = crumb.strip().partition("=")
            if equals and name in keying.cookies:
                jar.setdefault(name, value)
    text = "; ".join(f"{name}={jar[name]}" for name in sorted(jar))
    return [(b"cookie", text.encode("latin-1"))] if jar else []


def _visible(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [
        pair
        for pair in end_to_end(headers)
        if pair[0] not in _NEVER_FORWARDED and pair[0] not in _CONDITIONS and not is_dangerous(pair[0])
    ]


def without_ignored(keying: Keying, headers: Headers) -> Headers:
    """A request's fields without the credentials and cookies that the route keeps from its upstream."""
    if keying.authorization == "ignore":
        headers = [pair for pair in headers if pair[0] != b"authorization"]
    if keying.cookies is not None:
        headers = [*(pair for pair in headers if pair[0] != b"cookie"), *_cookies(keying, headers)]
    return headers


def sent_host(keying: Keying, headers: Headers) -> list[tuple[bytes, bytes]]:
    """The client's `Host`, in lower case, if it is forwarded to the upstream; otherwise nothing."""
    if not keying.host:
        return []
    return [(name, value.lower()) for name, value in headers if name == b"host"][:1]


def passed_through(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The forwarded fields of a request that bypasses the cache, including its preconditions."""
    return [pair for pair in end_to_end(headers) if pair[0] not in _NEVER_FORWARDED and not is_dangerous(pair[0])]


def short_key(key: str) -> str:
    """A key as it is remembered apart from what is stored for it: itself if it is short, else its digest, as clients
    choose keys, of up to several KiB."""
    return key if len(key) <= LONGEST_SHORT else digest(key)


def key_hash(key: str) -> int:
    """The number by which a key is sampled: the same in every worker; it may appear in logs."""
    return xxh3_64_intdigest(key.encode("latin-1", "backslashreplace"))


def shared_name(kind: str, key: str) -> str:
    """A key's name in the shared tier. The names of all keys of a target have one hash tag, so that they are in one
    slot of a cluster, and one command may use them."""
    return kind + (_known_place if len(key) <= LONGEST_PLACED else _place)(key)


TAG_LENGTH = 16
"""Hexadecimal digits. Targets with the same tag only share a slot."""
LONGEST_PLACED = 512
"""Characters of a key whose digests are kept for the next names: a miss needs those of its index, entry and lease."""


def _place(key: str) -> str:
    """A name in the shared tier, behind its kind. All keys of a target begin with two lines: its origin, and itself."""
    end, own = key.find("\n", key.find("\n") + 1), digest(key)
    tag = f":{{{own[:TAG_LENGTH]}}}" if end < 0 else shared_name("", key[:end])[: TAG_LENGTH + 3]
    return tag + own


_known_place = lru_cache(maxsize=1024)(_place)


def digest(key: str) -> str:
    """A key's digest in names: 128 bits of BLAKE2b, which no client can make collide."""
    return blake2b(key.encode("latin-1", "backslashreplace"), digest_size=16).hexdigest()
