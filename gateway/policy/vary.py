"""Selects, by `Vary`, the stored response of a target that matches a request (RFC 9111 §4.1).

Pure. A response is stored under its base key and its request's values of the fields that it varies on. A `VaryIndex`
holds the sets of fields that the responses of a target vary on; a request selects one key per set, and of the entries
under these keys the newest. Entries are looked up by the caller.

A field name is a request field's in lower case, `cookie:NAME` for the value of one cookie, or a pseudo-field: `:host`
or `:scheme`, as a handler read them. Pseudo-fields are among the request's headers under that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from gateway.http.headers import Headers, connection_named, cookie_pairs, sent_value
from gateway.policy.identity_key import UNKEYED, IdentityKey

Names = tuple[str, ...]
"""The fields that a response varies on."""

MAX_VARY_SETS = 8
MOST_SUFFIXES = 256
"""Sets of fields whose suffix is kept with one header block."""
MOST_NAMES = 256
"""Fields of one set that an entry in the shared tier may vary on."""
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+|:[a-z]+|cookie:[\x21-\x3a\x3c\x3e-\x7e\xa1-\xff]+")
COOKIE = "cookie:"


class VaryIndex(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """The index of a primary key: the sets of fields its responses vary on, newest first."""

    primary: str
    names: tuple[Names, ...] = ()


def are_names(names: Names) -> bool:
    """Whether all of `names` name something that a response may vary on, and they are not too many."""
    return len(names) <= MOST_NAMES and all(map(_NAME.fullmatch, names))


def with_vary(index: VaryIndex | None, primary: str, names: Names) -> VaryIndex:
    """`index` with `names` as its newest set, older ones kept up to eight."""
    if index is None:
        return VaryIndex(primary=primary, names=(names,))
    kept = tuple(known for known in index.names if known != names)[: MAX_VARY_SETS - 1]
    return VaryIndex(primary=primary, names=(names, *kept))


def latest(index: VaryIndex | None) -> Names:
    """The fields that the newest response of a target varies on."""
    return index.names[0] if index is not None and index.names else ()


# --- keys --------------------------------------------------------------------------------------------------


def selecting_value(headers: Headers, name: str) -> str | None:
    """A request's value of a field on which responses vary; None if it is absent."""
    if name.startswith(COOKIE):
        return cookie_pairs(headers, name.removeprefix(COOKIE))
    return sent_value(headers, name)


def field_of(name: str) -> str:
    """The request field of `name`; empty for a pseudo-field, which is part of the URI."""
    return "cookie" if name.startswith(COOKIE) else "" if name.startswith(":") else name


def variant_suffix(names: Names, headers: Headers, identity_key: IdentityKey = UNKEYED) -> str:
    """What a request adds to its base key for the fields `names`. A field that `Connection` names does not reach the
    upstream, so it counts as absent."""
    unsent = connection_named(headers) if names else ()
    lines = []
    for name in names:
        value = None if field_of(name).encode("latin-1") in unsent else selecting_value(headers, name)
        lines.append(f"\nvary {name}" if value is None else f"\nvary {name}:{identity_key.of_field(name, value)}")
    return "".join(lines)


def variant_key(base: str, names: Names, headers: Headers, identity_key: IdentityKey = UNKEYED) -> str:
    """The key of the variant that a request with `headers` selects, by the fields `names` (RFC 9111 §4.1)."""
    return base + variant_suffix(names, headers, identity_key)


def _all_seen(name: str) -> bool:
    return False


class Suffixes(dict[Names, str | None]):
    """What a request adds to its base key for each set of fields, computed on first use; None if the origin does not
    see one of the fields (`unseen`)."""

    __slots__ = ("_headers", "_identity_key", "_unseen")

    def __init__(
        self, headers: Headers, unseen: Callable[[str], bool] = _all_seen, identity_key: IdentityKey = UNKEYED
    ) -> None:
        self._headers = headers
        self._identity_key = identity_key
        self._unseen = unseen

    def __missing__(self, names: Names) -> str | None:
        suffix = None if any(map(self._unseen, names)) else self._suffix(names)
        if len(self) >= MOST_SUFFIXES:
            self.clear()
        self[names] = suffix
        return suffix

    def _suffix(self, names: Names) -> str:
        return variant_suffix(names, self._headers, self._identity_key)


# --- selection ---------------------------------------------------------------------------------------------


class Dated(Protocol):
    """Selects the newest of several responses."""

    @property
    def born(self) -> float: ...


Response = TypeVar("Response", bound=Dated)


def newest(
    index: VaryIndex | None, base: str, suffixes: Suffixes, get: Callable[[str], Response | None]
) -> Response | None:
    """The newest response that a request selects, with `get` for lookups by key; None also if an unseen field takes
    part."""
    found = get(base)
    for names in index.names if index is not None else ():
        suffix = suffixes[names]
        if suffix is None:
            return None
        other = get(base + suffix) if suffix else None
        if other is not None and (found is None or other.born > found.born):
            found = other
    return found


def selected_keys(index: VaryIndex | None, base: str, suffixes: Suffixes) -> list[str] | None:
    """All keys that a request selects, its base key first; None if an unseen field takes part."""
    keys = {base: None}
    for names in index.names if index is not None else ():
        suffix = suffixes[names]
        if suffix is None:
            return None
        keys[base + suffix] = None
    return list(keys)


def likely_key(index: VaryIndex | None, base: str, suffixes: Suffixes) -> str:
    """The key of the variant that a request will most likely get, by what the newest response varied on."""
    return base + (suffixes[latest(index)] or "")
