"""The content of a read: whether it can be part of a cache key, and in which form it is sent.

Pure. A QUERY (RFC 10008), or a method that a route declares as a read, has its question in its content. The key
contains the method with which it is sent, and a digest of the content and of the fields that describe it, as they are
sent: what the upstream sees is a function of the key (RFC 10008 §2.7). The content itself is in no key, since it may be
personal.

A normalised form (`normalise: json`) is sent in place of the original. A request that forbids that, by `no-transform`
or because a digest or signature covers its bytes, is keyed and sent as it came.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from gateway.http.headers import DIGESTS, CacheControl, Headers, first, has, sent_value, values
from gateway.http.json_text import canonical
from gateway.policy.identity_key import IdentityKey

CONTENT_FIELDS = (b"content-type", b"content-encoding", b"content-language")
"""Fields that describe the content of a request, each part of the key."""
QUERY = "QUERY"
NOT_ITS_TYPE = "content-type"
TOO_LARGE = "content-too-large"
"""Why a read with content bypasses the cache, as `detail` of `Cache-Status`."""
_OF_ITS_BYTES = (*DIGESTS, b"signature", b"content-encoding")
DECIDING = frozenset((*CONTENT_FIELDS, *_OF_ITS_BYTES, b"cache-control"))
"""The request fields by which the form of the content is decided."""


class Content(msgspec.Struct, frozen=True):
    """The content of one read as it is sent: the method, the fields that describe it, and its bytes."""

    method: str
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def line(self, identity_key: IdentityKey) -> str:
        """The line of a base key, after those of the target."""
        described = b"".join(name + b":" + value + b"\n" for name, value in self.fields)
        digest = identity_key.digest_bytes("content", described + b"\n" + self.body)
        return f"\n:content:{self.method}:{digest}"


@dataclass(frozen=True, slots=True)
class ContentRules:
    """Which requests with content a route reads through the cache.

    `types` are media ranges in lower case; `largest` is in bytes; `sent_as` is the method that upstreams get, if it is
    not the client's.
    """

    methods: frozenset[str]
    types: tuple[str, ...]
    largest: int
    normalise: bool = False
    sent_as: str | None = None

    def method(self, given: str) -> str:
        """The method that the upstream gets."""
        return self.sent_as or given

    def refusal(self, headers: Headers) -> str | None:
        """Why the request bypasses the cache, by its head alone; None if its content decides."""
        if not self._takes(headers):
            return NOT_ITS_TYPE
        length = first(headers, b"content-length")
        return TOO_LARGE if length is not None and length.isdigit() and int(length) > self.largest else None

    def content(self, method: str, headers: Headers, body: bytes) -> Content:
        """The content in the form in which it is sent; `body` is complete."""
        normal = canonical(body) if self.normalise and _may_be_changed(headers) else None
        fields = {name: sent_value(headers, name.decode("ascii")) for name in CONTENT_FIELDS}
        if normal is not None:
            fields[b"content-type"] = media_type(headers)
        sent = tuple((name, value.encode("latin-1")) for name, value in fields.items() if value is not None)
        return Content(self.method(method), sent, body if normal is None else normal)

    def _takes(self, headers: Headers) -> bool:
        if len(values(headers, b"content-type")) != 1:
            return False
        kind = media_type(headers)
        return any(kind == each or each == "*/*" or _is_within(kind, each) for each in self.types)


def media_type(headers: Headers) -> str:
    """The type and subtype of the content in lower case, without parameters; empty if there is none."""
    return (first(headers, b"content-type") or "").partition(";")[0].strip(" \t").lower()


def _is_within(kind: str, media_range: str) -> bool:
    return media_range.endswith("/*") and kind.startswith(media_range[:-1])


def _may_be_changed(headers: Headers) -> bool:
    """Whether the content is JSON in UTF-8 that may be sent in another form (RFC 9110 §7.7)."""
    kind = media_type(headers)
    if not kind.isascii() or (kind != "application/json" and not kind.endswith("+json")):
        return False
    parameters = (first(headers, b"content-type") or "").partition(";")[2].replace('"', "").strip(" \t").lower()
    if parameters not in ("", "charset=utf-8", "charset=utf8"):
        return False
    return not any(has(headers, name) for name in _OF_ITS_BYTES) and "no-transform" not in CacheControl.of(headers)
