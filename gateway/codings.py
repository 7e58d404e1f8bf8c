"""Content codings: which of them a client wants, and what an answer says of the one it gets. Pure.

A representation in another coding is another representation (RFC 9110 §8.4.1, §8.8.3): it has an entity tag of its
own, and every form of it says `Vary: Accept-Encoding`, the plain one too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .headers import CacheControl, Headers, combined, first, has, split_list, vary_names, without
from .policy import Rules
from .record import Stored

CODINGS = ("zstd", "br", "gzip")
"""What can be made, what is decoded fastest for its size first (RFC 9659, 7932, 1952)."""
LEAST = 1024
"""Smaller bodies fit in one packet as they are."""
_TEXT = re.compile(
    r"text/.*|.*\+(?:json|xml|yaml)"
    r"|application/(?:json|xml|javascript|x-javascript|graphql|yaml|ndjson|geo\+json|manifest\+json|wasm)"
)
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def is_compressible(stored: Stored, rules: Rules) -> bool:
    """Whether a stored response may be given in another coding.

    It may where the gateway itself asked for it plain, which it does on routes with a duration, and where nobody said
    `no-transform` (RFC 9111 §5.2.2.6).
    """
    if rules.ttl is None or stored.status != 200 or len(stored.body) < LEAST:
        return False
    headers = stored.headers
    media = (first(headers, b"content-type") or "").partition(";")[0].strip().lower()
    return (
        _TEXT.fullmatch(media) is not None
        and not has(headers, b"content-encoding")
        and "no-transform" not in CacheControl.of(headers)
    )


def wanted(request: Headers, offered: Sequence[str]) -> str | None:
    """The coding of those offered that a request prefers; None for none (RFC 9110 §12.5.3).

    What weighs the same goes by the order of the offer; a coding goes before no coding, where both weigh the same.
    """
    text = combined(request, b"accept-encoding")
    if text is None:
        return None
    weights = _weights(text)
    others = weights.get("*", 0.0)
    plain = weights.get("identity", others if "*" in weights else 0.0)
    best, most = None, max(plain, 0.0)
    for coding in offered:
        weight = weights.get(coding, weights.get("x-gzip", others) if coding == "gzip" else others)
        if weight > 0 and (weight > most or (best is None and weight == most)):
            best, most = coding, weight
    return best


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for item in split_list(text):
        coding, _, parameters = item.partition(";")
        match = _WEIGHT.fullmatch(parameters.strip())
        # A weight that can't be read is none that one should rely on.
        weights[coding.strip().lower()] = float(match[1]) if match else (0.0 if parameters.strip() else 1.0)
    return weights


def tag_of(tag: bytes, coding: str) -> bytes:
    """The entity tag of a response in a coding, made of its plain tag."""
    return tag[:-1] + b"-" + coding.encode("ascii") + b'"' if tag.endswith(b'"') else tag


@dataclass(frozen=True, slots=True)
class Coded:
    """The form in which a stored response that may be given in several is given: `coding` None is the plain one.

    `pending`: a better one is being made. `key` is the one under which the body lies in memory.
    """

    coding: str | None
    body: bytes
    pending: bool = False
    key: str = ""

    def told(self, headers: list[tuple[bytes, bytes]], coding: str | None) -> list[tuple[bytes, bytes]]:
        """A response's headers as they are in a coding."""
        names = vary_names(headers)
        told = headers
        if names is not None and "accept-encoding" not in names:
            told = [*without(headers, b"vary"), (b"vary", ", ".join([*names, "accept-encoding"]).encode("latin-1"))]
        if coding is None:
            return told
        told = [(name, tag_of(value, coding) if name == b"etag" else value) for name, value in told]
        return [*told, (b"content-encoding", coding.encode("ascii"))]
