"""The fields for downstream caches: `Vary`, and `private` for responses of one client. Pure.

A response whose key holds request fields leaves with all of them in `Vary` (RFC 9110 §12.5.5), and with `Cache-Control:
private` (RFC 9111 §5.2.2.7) if one of them identifies the client: otherwise a CDN serves one client's response to
another. A route's fields are computed once (`Downstream`) and added to every response that leaves, stored, collapsed,
streamed or bypassed, except those that no cache may store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter

from gateway.http.field_changes import NO_CHANGES, FieldChanges
from gateway.http.headers import CacheControl, Headers, has, values, vary_names, without
from gateway.policy.keys import Keying
from gateway.policy.vary import Names, field_of

Field = tuple[bytes, bytes]

_SAID = frozenset((b"cache-control", b"vary"))
_VALUE = itemgetter(1)
_SHORT = 512
"""Bytes of a response's own fields up to which the result is kept: an upstream sends the same few over and over."""
_OVERRULING = frozenset((b"surrogate-control", b"x-accel-expires"))
"""Fields that caches obey before `Cache-Control`, beside the targeted ones (RFC 9213): nginx, and surrogates."""


@dataclass(frozen=True, slots=True)
class Downstream:
    """The fields of a route's responses for all clients: `vary` are the request fields that select among them;
    `is_private` is whether one of those identifies the client.

    On a route with a duration, requests with Authorization or a cookie bypass the cache by default: so responses differ
    by these fields, which are in `vary`, but stored responses belong to no client. A bypassed response is made of
    everything that the client sent, of which the key would hold a part: it is private, whatever the upstream says.
    """

    keying: Keying
    made: bool
    vary: Names
    is_private: bool
    changes: FieldChanges = NO_CHANGES
    """Changes by settings to the fields of responses, applied before other fields are added."""
    spares_public: bool = False
    """Whether a response that says `public` itself is left so."""

    @classmethod
    def of(cls, keying: Keying, *, made: bool, changes: FieldChanges = NO_CHANGES) -> Downstream:
        """`made`: the responses are joined from parts, so their own `Vary` has the fields in the keys of those."""
        held = set(keying.vary or ())
        held.update(["authorization"] if keying.authorization == "key" else [], ["cookie"] if keying.cookies else [])
        passed = set()
        if keying.vary is not None:
            passed.update(["authorization"] if keying.authorization == "pass" else [])
            passed.update(["cookie"] if keying.cookies is None else [])
        is_private = any(map(keying.identifies, held))
        if keying.credentials:
            held.update(field for name in keying.credentials if (field := field_of(name)))
            is_private = is_private or not keying.shared
        return cls(keying, made, tuple(sorted(held | passed)), is_private, changes)

    def varying(self, names: Iterable[str], *, private: bool) -> Downstream:
        """The fields of a response that is not stored and depends on the fields `names` as well."""
        fields = [field for name in names if (field := field_of(name))]
        is_private = private or self.is_private or any(map(self.keying.identifies, fields))
        return replace(self, vary=tuple(sorted({*self.vary, *fields})), is_private=is_private)

    def told(
        self, headers: Headers, selecting: Names = (), *, passed: bool = False, stored: bool = True
    ) -> list[Field]:
        """An answer's `headers` as settings change them, with what this route adds; `selecting` are the fields that the
        `stored` response varies on, `passed` is whether the request bypassed the cache. Of a route with `ttl: origin`,
        what the upstream's own `Vary` names is the upstream's to call private."""
        plain = self.changes is NO_CHANGES and not (selecting or passed or self.is_private)
        if plain and not self.vary and not (self.made and has(headers, b"vary")):
            return [*headers]  # it adds nothing
        said = [pair for pair in headers if pair[0] in _SAID]
        if plain and not self.made and sum(map(len, map(_VALUE, said))) <= _SHORT:
            vary = _vary_of(tuple(said), self.vary)
            return [*headers] if vary is None else [*without(headers, b"vary"), (b"vary", vary)]
        unstorable = [value for name, value in said if name == b"cache-control"] == [b"no-store"]
        if self.changes is not NO_CHANGES:
            headers = said = self._changed(headers, stored=stored)
        if unstorable:
            return [*headers]
        own = vary_names(said)
        fields = (*self.vary, *map(field_of, selecting)) if selecting else self.vary
        told = [*headers] if own is None else _varying(headers, own, dict.fromkeys(filter(None, fields)))
        if self.spares_public and "public" in CacheControl.of(said):
            return told
        unkeyed = passed and self.keying.vary is not None
        return with_private(told) if unkeyed or self._is_private(own or (), selecting) else told

    def _changed(self, headers: Headers, *, stored: bool) -> list[Field]:
        """The fields after changes by settings. Fields that protect them in other caches remain: the directives of
        `Cache-Control` that forbid storing, sharing or reuse; `Vary` if its fields are not in the gateway's key, as
        they are for a stored response."""
        changed = self.changes.applied(headers)
        names = self.changes.names
        if b"vary" in self.changes.removed:
            changed += _needed(headers, stored=stored)
        given = CacheControl.of(headers)
        forbids = [each for each in ("no-store", "no-cache", "private") if each in given]
        if not forbids:
            return changed
        changed = [pair for pair in changed if pair in headers or not _relaxes(pair[0])]
        if b"cache-control" in names:
            kept = {each: given.directives[each] for each in forbids}
            rest = {each: value for each, value in CacheControl.of(changed).directives.items() if each != "public"}
            only = kept if "no-store" in kept else kept | {name: rest[name] for name in rest if name not in kept}
            value = CacheControl(only).render().encode("latin-1")
            changed = [*without(changed, b"cache-control"), (b"cache-control", value)]
        return changed

    def interim(self, headers: Headers) -> list[Field]:
        """The fields of an interim response: without those that are taken out of final ones."""
        return [pair for pair in headers if pair[0] not in self.changes.removed]

    def holds_identity(self, selecting: Names) -> bool:
        """Whether the key of a response that varies on `selecting` identifies the client."""
        return self.is_private or any(map(self.keying.identifies, selecting))

    def _is_private(self, own: Names, selecting: Names) -> bool:
        if self.made:
            return self.holds_identity((*selecting, *own))
        if not selecting:
            return self.is_private
        upstreams = own if self.keying.vary is None else ()
        return self.holds_identity(tuple(name for name in selecting if name not in upstreams))


NOTHING = Downstream(Keying(vary=None), made=False, vary=(), is_private=False)
"""For answers that no route has given."""


@lru_cache(maxsize=64)
def for_users(sources: tuple[str, ...]) -> Downstream:
    """For answers of an app's own code to a user whose credential is in one of `sources`: a request field's name, or
    `cookie:NAME`. The code may call them public."""
    return replace(Downstream.of(Keying(vary=None, credentials=sources), made=False), spares_public=True)


@lru_cache(maxsize=512)
def _vary_of(said: tuple[Field, ...], fields: Names) -> bytes | None:
    """`Vary` of a response with the fields `said` of a route that adds `fields`; None if it is what it was."""
    own = vary_names(said)
    if own is None or [value for name, value in said if name == b"cache-control"] == [b"no-store"]:
        return None
    told = _varying(said, own, fields)
    return None if told == [*said] else told[-1][1]


def _varying(headers: Headers, own: Names, fields: Iterable[str]) -> list[Field]:
    missing = ", ".join([name for name in fields if name not in own]).encode("latin-1")
    if not missing:
        return [*headers]
    lines = [*values(headers, b"vary"), missing]
    return [*without(headers, b"vary"), (b"vary", b", ".join(lines))]


def with_private(headers: Headers) -> list[Field]:
    """A response's `headers`, changed so that no shared cache stores it. `public` is removed, and so are the fields
    that override it for shared caches."""
    at = next((place for place, (name, _) in enumerate(headers) if name == b"cache-control"), len(headers))
    kept = [[pair for pair in some if not _overrules(pair[0])] for some in (headers[:at], headers[at:])]
    return [*kept[0], (b"cache-control", _private(CacheControl.of(headers))), *kept[1]]


def _private(directives: CacheControl) -> bytes:
    rest = {name: value for name, value in directives.directives.items() if name not in ("private", "public")}
    return CacheControl({"private": None, **rest}).render().encode("latin-1")


_BY_THE_GATEWAY = ("origin", "accept-encoding")
"""What CORS and compression select by: the gateway adds them to `Vary`."""


def _needed(headers: Headers, *, stored: bool) -> list[Field]:
    """The lines of `Vary` that no setting takes out."""
    own = vary_names(headers)
    if not stored or own is None:
        return [(b"vary", value) for value in values(headers, b"vary")]
    kept = [name for name in _BY_THE_GATEWAY if name in own]
    return [(b"vary", ", ".join(kept).encode("ascii"))] if kept else []


def _relaxes(name: bytes) -> bool:
    """Whether a field gives some caches a longer lifetime than `Cache-Control` does."""
    return (name != b"cache-control" and _overrules(name)) or name == b"expires"


def _overrules(name: bytes) -> bool:
    return name.endswith(b"cache-control") or name in _OVERRULING
