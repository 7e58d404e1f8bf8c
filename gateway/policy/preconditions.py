"""Entity tags in forwarded preconditions: the gateway removes what it added to a validator. Pure.

Two kinds of tags are unknown to upstreams: those of compressed forms (`codings.tag_of`), whose suffix is removed; and
those that the gateway generates for responses without one (`validation.own_tag`), which only the gateway can compare
(RFC 9110 §13.1.1: the issuer of a validator evaluates the precondition).
"""

from __future__ import annotations

import re

from gateway.http.codings import plain_tag
from gateway.http.headers import Headers, values, without
from gateway.policy.validation import is_own

FIELDS = (b"if-match", b"if-none-match", b"if-range")
_OPAQUE = re.compile(rb'"[^"]*"')  # RFC 9110 §8.8.3: no escapes, and commas are allowed inside
_TAG = re.compile(rb'(?:W/)?"[^"]*"')
_WITHOUT_IT = {b"if-match": b"if-unmodified-since", b"if-none-match": b"if-modified-since"}
"""A date precondition that is ignored if there is one on tags (RFC 9110 §13.2.2)."""


def as_given(headers: Headers) -> Headers:
    """A request's fields with the tags as the upstream gave them: without the suffixes of codings, byte for byte the
    same otherwise.

    `Range` with an `If-Range` that names a compressed form, or a tag of the gateway's own, is left out: what the
    upstream would send a part of has another tag, so the condition is false and the whole is due (RFC 9110 §13.1.5,
    §14.2). With the plain tag it would send bytes of the plain form, which the client would join to those of the
    compressed one.
    """
    if not any(name in FIELDS for name, _ in headers):
        return headers
    if any(_plain(value) != value or is_own(value) for value in values(headers, b"if-range")):
        headers = without(headers, b"range", b"if-range")
    return [(name, _plain(value) if name in FIELDS else value) for name, value in headers]


def _plain(value: bytes) -> bytes:
    return _OPAQUE.sub(lambda found: plain_tag(found[0]), value)


def own_tags(headers: Headers, name: bytes) -> frozenset[bytes]:
    """The gateway's own tags that a condition lists, without marks of weakness."""
    listed = (tag for value in values(headers, name) for tag in _TAG.findall(value))
    return frozenset(tag.removeprefix(b"W/") for tag in listed if is_own(tag))


def without_own(headers: Headers, name: bytes) -> list[tuple[bytes, bytes]]:
    """The fields with a precondition that lists none of the gateway's own tags. If nothing is left of it, the
    precondition on dates that it overrides is removed too."""
    rest = [tag for value in values(headers, name) for tag in _TAG.findall(value) if not is_own(tag)]
    others = without(headers, name)
    return [*others, (name, b", ".join(rest))] if rest else without(others, _WITHOUT_IT[name])


def settled(headers: Headers, name: bytes, theirs: bytes | None, ours: bytes | None) -> Headers | None:
    """What remains of `If-Match` or `If-None-Match` for the upstream, after the gateway compared its own tags with the
    current representation: `theirs` is the upstream's tag of it, `ours` the gateway's, by its bytes, if the upstream
    sends none. None if the condition is false: 412 (RFC 9110 §13.1.1, §13.1.2)."""
    own = own_tags(headers, name)
    if theirs is not None and theirs.removeprefix(b"W/") in own:
        return headers  # an upstream with tags of our form, such as another gateway
    if ours in own:
        return without(headers, name, _WITHOUT_IT[name]) if name == b"if-match" else None
    rest = without_own(headers, name)
    return rest if name == b"if-none-match" or any(key == name for key, _ in rest) else None


def as_known(client: Headers, headers: Headers) -> list[tuple[bytes, bytes]]:
    """A 304's fields with the client's tag: the upstream validates the plain tag, and a client with another tag could
    not tell which response was validated (RFC 9111 §4.3.4)."""
    listed = [tag for value in values(client, b"if-none-match") for tag in _TAG.findall(value)]
    return [(name, _known(listed, value) if name == b"etag" else value) for name, value in headers]


def _known(listed: list[bytes], tag: bytes) -> bytes:
    opaque = tag.removeprefix(b"W/")
    if any(each.removeprefix(b"W/") == opaque for each in listed):
        return tag
    return next((each for each in listed if _plain(each).removeprefix(b"W/") == opaque), tag)
