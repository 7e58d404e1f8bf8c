"""Validation in both directions (RFC 9111 §4.3): conditional requests to an upstream, what a 304 changes, and whether a
client has the response already. Pure."""

from __future__ import annotations

import re

from xxhash import xxh3_128_hexdigest

from gateway.http.headers import (
    DIGESTS,
    Headers,
    combined,
    connection_named,
    end_to_end,
    first,
    is_strong,
    opaque_tag,
    parse_date,
    split_list,
    values,
    vary_names,
)
from gateway.policy.entry import Entry
from gateway.policy.storability import FOR_US, NOT_STORED, ReceivedResponse

_OWN_TAG = re.compile(rb'"gw-[0-9a-f]{32}"')


def own_tag(body: bytes) -> bytes:
    """The strong tag that the gateway generates for a response without one; upstreams don't know it."""
    return b'"gw-%b"' % xxh3_128_hexdigest(body).encode("ascii")


def is_own(tag: bytes) -> bool:
    """Whether a tag, weak or not, has the form of one that the gateway made."""
    return _OWN_TAG.fullmatch(tag.removeprefix(b"W/")) is not None


def validators(stored: Entry) -> list[tuple[bytes, bytes]]:
    """The request fields that validate `stored` (RFC 9111 §4.3.1)."""
    tags = [value for value in values(stored.headers, b"etag")[:1] if not is_own(value)]
    fields = [(b"if-none-match", value) for value in tags]
    fields += [(b"if-modified-since", value) for value in values(stored.headers, b"last-modified")[:1]]
    return fields


# RFC 9111 §3.2: a 304 updates the stored fields, except those that describe the stored bytes.
_NOT_UPDATED = frozenset((b"content-encoding", b"content-range", b"content-length", b"etag", *DIGESTS))


def freshened(stored: Entry, received: ReceivedResponse) -> tuple[tuple[bytes, bytes], ...]:
    """The stored fields as a 304 to their validation updates them (RFC 9111 §3.2, §4.3.4)."""
    named = connection_named(received.headers)
    new = [
        pair
        for pair in end_to_end(received.headers)
        if pair[0] not in _NOT_UPDATED
        and pair[0] not in NOT_STORED
        and pair[0] not in named
        and pair[0] not in FOR_US
        and pair[0] != b"set-cookie"
    ]
    replaced = {name for name, _ in new}
    return tuple(pair for pair in stored.headers if pair[0] not in replaced) + tuple(new)


def confirms(stored: Entry, received: ReceivedResponse) -> bool:
    """Whether a 304 applies to `stored` (RFC 9111 §4.3.4): it must not have a different strong validator."""
    tag = first(received.headers, b"etag")
    known = first(stored.headers, b"etag")
    if tag is None or known is None:
        return True
    return tag == known if is_strong(tag) else opaque_tag(tag) == opaque_tag(known)


def proves(stale: Entry, received: ReceivedResponse) -> bool:
    """Whether a 304, or a HEAD response, shows that the stored bytes are those that this request would get,
    whatever request they were sent to: one strong tag names one representation of a resource (RFC 9110 §8.8.3). A 304
    need not repeat it."""
    known, tag = first(stale.headers, b"etag"), first(received.headers, b"etag")
    if known is None or not is_strong(known) or is_own(known.encode("latin-1")):
        return False
    return tag == known or (tag is None and received.status == 304)


def selection_changes(stale: Entry, headers: Headers, *, follows_origin: bool) -> bool:
    """Whether updated `headers` select by other request fields than the stored response was selected by."""
    names = vary_names(headers)
    return names is None or (follows_origin and names != stale.vary)


def same_representation(stored: Entry, received: ReceivedResponse) -> bool:
    """Whether a HEAD response matches the stored response: all its validators and its length agree (RFC 9111
    §4.3.5)."""
    for name in (b"etag", b"last-modified"):
        said, known = first(received.headers, name), first(stored.headers, name)
        if said is not None and said != known:
            return False
    length = first(received.headers, b"content-length")
    return length is None or length == str(len(stored.body))


def not_modified(request: Headers, headers: Headers, born: float) -> bool:
    """Whether a request's precondition shows that the client has this response already (RFC 9110 §13.2.2, RFC 9111
    §4.3.2).

    If there is an `If-None-Match`, only it counts; its comparison is weak.
    """
    if_none_match = combined(request, b"if-none-match")
    if if_none_match is not None:
        if if_none_match.strip() == "*":
            return True
        tag = first(headers, b"etag")
        return tag is not None and opaque_tag(tag) in {opaque_tag(item) for item in split_list(if_none_match)}
    since = parse_date(first(request, b"if-modified-since"), born)
    if since is None:
        return False
    modified = parse_date(first(headers, b"last-modified"), born)
    if modified is None:
        modified = parse_date(first(headers, b"date"), born)
    return modified is not None and modified <= since


# RFC 9110 §15.4.5: the fields of a 304.
_KEPT_IN_304 = frozenset(
    (b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"last-modified", b"age")
)


def fields_of_304(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [
        pair
        for pair in headers
        if pair[0] in _KEPT_IN_304 or not (pair[0].startswith(b"content-") or pair[0] == b"set-cookie")
    ]
