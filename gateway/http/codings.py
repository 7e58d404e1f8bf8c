"""Content codings: which coding a client accepts, and the fields of a coded response. Pure.

A representation in another coding is another representation (RFC 9110 §8.4.1, §8.8.3): it has its own entity tag, and
every form of it has `Vary: Accept-Encoding`, including the uncompressed one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import brotli
from xxhash import xxh3_64_hexdigest

from gateway.http.headers import Headers, combined, split_list

if TYPE_CHECKING:
    from backports import zstd
else:
    try:  # the standard library's, from Python 3.14 on
        from compression import zstd
    except ImportError:
        from backports import zstd

CODINGS = ("zstd", "br", "gzip")
"""The supported codings, the fastest to decode for its size first (RFC 9659, 7932, 1952)."""
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def wanted(request: Headers, offered: Sequence[str]) -> str | None:
    """The offered coding that a request prefers; None for identity (RFC 9110 §12.5.3).

    Equal weights follow the order of the offer; a coding takes precedence over identity of the same weight.
    """
    text = combined(request, b"accept-encoding")
    if text is None:
        return None
    return (_known_preference if len(text) <= _REMEMBERED else _preferred)(text, tuple(offered))


_REMEMBERED = 256  # characters of an Accept-Encoding: browsers and libraries send the same few


def _preferred(text: str, offered: tuple[str, ...]) -> str | None:
    weights = _weights(text)
    others = weights.get("*", 0.0)
    plain = weights.get("identity", others if "*" in weights else 0.0)
    best, most = None, max(plain, 0.0)
    for coding in offered:
        weight = weights.get(coding, weights.get("x-gzip", others) if coding == "gzip" else others)
        if weight > 0 and (weight > most or (best is None and weight == most)):
            best, most = coding, weight
    return best


_known_preference = lru_cache(maxsize=256)(_preferred)


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for item in split_list(text):
        coding, _, parameters = item.partition(";")
        match = _WEIGHT.fullmatch(parameters.strip())
        # A weight that can't be read is none that one should rely on.
        weights[coding.strip().lower()] = float(match[1]) if match else (0.0 if parameters.strip() else 1.0)
    return weights


_CODED_TAG = re.compile(rb"(.*)-(" + "|".join(CODINGS).encode("ascii") + rb')\.([0-9a-f]{8})"', re.DOTALL)


def tag_of(tag: bytes, coding: str) -> bytes:
    """The entity tag of a response in a coding, made from its plain tag: `"v1"` becomes `"v1-gzip.1b9a7a51"`.

    The digits are a checksum of the rest. They identify the suffix as the gateway's, in every worker and after every
    restart, without stored state: an upstream's own `"v1-gzip"` is unchanged.
    """
    return tag[:-1] + _suffix(tag, coding.encode("ascii")) if tag.endswith(b'"') else tag


def plain_tag(tag: bytes) -> bytes:
    """The entity tag from which `tag_of` made this one; the tag itself otherwise."""
    found = _CODED_TAG.fullmatch(tag)
    if found is None:
        return tag
    plain = found[1] + b'"'
    return plain if tag_of(plain, found[2].decode("ascii")) == tag else tag


def _suffix(tag: bytes, coding: bytes) -> bytes:
    # Without the mark of weakness, which caches in between may add.
    checksum = xxh3_64_hexdigest(tag.removeprefix(b"W/") + coding)[:8]
    return b'-%b.%b"' % (coding, checksum.encode("ascii"))


# --- decoding ----------------------------------------------------------------------------------------------

MOST_CODINGS = 4
"""Maximum number of content codings of one body: each is work, and may take the limit in memory."""
MOST_MEMBERS = 100
"""Maximum number of gzip members or zstd frames in one body: what follows each is copied."""
ZSTD_WINDOW_LOG = 23
"""Base-2 logarithm of the largest window of a zstd frame, 8 MiB (RFC 9659 §3)."""


class Undecodable(ValueError):
    """A body that can't be decoded; the message says why."""


def decoded(headers: Headers, body: bytes, limit: int) -> bytes:
    """`body` without its content codings (RFC 9110 §8.4): gzip, deflate, br and zstd. Raises Undecodable if it exceeds
    `limit` bytes at any step, is truncated or invalid, or has another coding."""
    text = combined(headers, b"content-encoding")
    if text is None or not body:
        return body
    codings = [each for each in map(str.lower, split_list(text)) if each != "identity"]
    if len(codings) > MOST_CODINGS:
        raise Undecodable(f"it is in more than {MOST_CODINGS} content codings")
    for coding in reversed(codings):
        decode = _DECODERS.get(coding)
        if decode is None:
            raise Undecodable("it is in a content coding that is not supported")
        try:
            body = decode(body, limit) if body else body
        except (zlib.error, brotli.error, zstd.ZstdError):
            raise Undecodable(f"it is not valid {coding}") from None
    return body


def _within(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise Undecodable(f"it is larger than {limit} bytes, decompressed")
    return body


_CUT = "its compressed body is cut"
_TOO_MANY = f"its compressed body has more than {MOST_MEMBERS} members"


def _gunzipped(body: bytes, limit: int) -> bytes:
    """One member or several (RFC 1952 §2.2), perhaps with zeros behind them."""
    plain = b""
    for _ in range(MOST_MEMBERS):
        inflate = zlib.decompressobj(31)
        plain = _within(plain + inflate.decompress(body, limit + 1 - len(plain)), limit)
        if not inflate.eof:
            raise Undecodable(_CUT)
        body = inflate.unused_data.lstrip(b"\0")
        if not body:
            return plain
    raise Undecodable(_TOO_MANY)


def _inflated(body: bytes, limit: int) -> bytes:
    """With the zlib header that RFC 9110 §8.4.1.2 requires, or without it, as some servers send it."""
    has_header = body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    inflate = zlib.decompressobj(15 if has_header else -15)
    plain = _within(inflate.decompress(body, limit + 1), limit)
    if not inflate.eof:
        raise Undecodable(_CUT)
    return plain


def _from_brotli(body: bytes, limit: int) -> bytes:
    decoder = brotli.Decompressor()
    plain = _within(decoder.process(body, output_buffer_limit=limit + 1), limit)
    if not decoder.is_finished():
        raise Undecodable(_CUT)
    return plain


def _from_zstd(body: bytes, limit: int) -> bytes:
    """One frame or several."""
    plain = b""
    for _ in range(MOST_MEMBERS):
        frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
        plain = _within(plain + frame.decompress(body, limit + 1 - len(plain)), limit)
        if not frame.eof:
            raise Undecodable(_CUT)
        body = frame.unused_data
        if not body:
            return plain
    raise Undecodable(_TOO_MANY)


def zstd_compressed(body: bytes, level: int) -> bytes:
    """`body` as one frame."""
    return zstd.compress(body, level)


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzipped,
    "x-gzip": _gunzipped,
    "deflate": _inflated,
    "br": _from_brotli,
    "zstd": _from_zstd,
}
