"""Signed tokens (JWT, RFC 7519): what is refused, and what a verified one says. Pure.

Checks are ordered by their cost: size and form, header, claims, and the signature last, so that a token that is refused
for anything else costs a fraction of a signature and no request for keys. What is refused follows RFC 8725: `none`,
algorithms that the issuer's setting doesn't list, keys of another type than the algorithm's, header fields that bring
or name a key (`jwk`, `jku`, `x5u`, `x5c`), extensions that must be understood (`crit`), doubled names.

It does not know where keys come from; `key_set` does.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from joserfc.jws import JWSRegistry

from gateway.config.identity import ASYMMETRIC, SYMMETRIC
from gateway.identity.key_set import Key
from gateway.identity.principal import Principal, is_subject

LONGEST_TOKEN = 8 * 1024
"""Bytes of a token, at most."""
MOST_TRIED = 4
"""Keys that a token is tried with, at most: each costs a check of a signature, for any client that sends tokens."""
_BRINGS_A_KEY = ("jwk", "jku", "x5u", "x5c", "crit", "b64", "zip")
_TYPES = frozenset(("jwt", "at+jwt", "application/jwt", "application/at+jwt"))
"""Kinds of tokens that authorize requests (RFC 9068 §2.1); others are for other uses (RFC 8725 §3.11)."""
_KID = re.compile(r"[A-Za-z0-9._~+=:@-]{1,256}|[A-Za-z0-9_=+-][A-Za-z0-9._~+=:@/-]{0,255}")
_COMPACT = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
"""Header, claims and signature in base64url (RFC 7515 §7.1)."""
_STANDARD = bytes.maketrans(b"-_", b"+/")
_ENDS = (
    (b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", b""),
    (b"", b""),
    (b"AQgw", b"=="),
    (b"AEIMQUYcgkosw048", b"="),
)
"""By the length of a text in base64url, modulo 4: its last characters without bits that stand for nothing (RFC 4648
§3.5), and the padding that it has in base64."""
_HEADERS = 64
"""Headers that are kept read: all tokens that are signed with one key have the same."""
_VERIFIERS = {
    name: JWSRegistry.algorithms["Ed25519" if name == "EdDSA" else name] for name in (*ASYMMETRIC, *SYMMETRIC)
}
"""RFC 9864 calls the `EdDSA` of the curve Ed25519 by the name of the curve."""
_MAX_NUMERIC_DATE = 253_402_300_799.0
"""The last second of the year 9999."""


class TokenRefused(Exception):
    """The token is invalid; `reason` is a word of a closed set for the metric and the log, `detail` a text for the
    client that contains nothing of the token."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(detail)


class UnknownKey(TokenRefused):
    """All is well with the token but that its issuer has no key of that name, as far as is known."""

    def __init__(self, kid: str | None) -> None:
        self.kid = kid
        super().__init__("key", "The token is signed with an unknown key.")


@dataclass(frozen=True)
class Issuer:
    """An issuer of tokens, and which of its tokens are accepted. `provider` is its name in the configuration; `leeway`
    is in seconds."""

    provider: str
    issuer: str
    audience: frozenset[str]
    algorithms: frozenset[str]
    leeway: float = 30.0


class Unverified(msgspec.Struct, frozen=True):
    """A token whose signature has not been checked: everything else has."""

    signed: bytes
    signature: bytes
    algorithm: str
    kid: str | None
    principal: Principal


def read(token: bytes, issuers: dict[str, Issuer], now: float) -> tuple[Issuer, Unverified]:
    """The issuer of a token, out of `issuers` by their `iss`, and what the token says. Raises TokenRefused."""
    pieces = _pieces(token)
    header, claims = _header(pieces[1]), _object(_decoded(pieces[2]), "claims")
    issuer = issuers.get(claims["iss"]) if isinstance(claims.get("iss"), str) else None
    if issuer is None:
        raise TokenRefused("issuer", "The token is of an unknown issuer.")
    if header.algorithm not in issuer.algorithms:
        raise TokenRefused("algorithm", "The token is signed with an algorithm that is not accepted.")
    if header.refusal is not None:
        raise TokenRefused(*header.refusal)
    principal = _principal(claims, issuer, now)
    signed, signature = token[: pieces.end(2)], _decoded(pieces[3])
    return issuer, Unverified(signed, signature, header.algorithm, header.kid, principal)


def issuer_of(token: bytes) -> str | None:
    """The issuer that a token names, which nobody has verified; None for what is no token."""
    try:
        pieces = _pieces(token)
        _header(pieces[1])
        named = _object(_decoded(pieces[2]), "claims").get("iss")
    except TokenRefused:
        return None
    return named if isinstance(named, str) else None


def verify(token: Unverified, keys: tuple[Key, ...]) -> Principal:
    """The principal of a token that one of `keys` has signed. Raises TokenRefused, and UnknownKey if there is none for
    its algorithm."""
    fitting = [key for key in keys if key.fits(token.algorithm)]
    if not fitting:
        raise UnknownKey(token.kid)
    if len(fitting) > MOST_TRIED:
        raise TokenRefused("header", "The token's header names no key, and its issuer has many.")
    for key in fitting:
        if _VERIFIERS[token.algorithm].verify(token.signed, token.signature, key.material):
            return token.principal
    raise TokenRefused("signature", "The token's signature is invalid.")


def _pieces(token: bytes) -> re.Match[bytes]:
    if len(token) > LONGEST_TOKEN:
        raise TokenRefused("size", f"The token is longer than {LONGEST_TOKEN} bytes.")
    pieces = _COMPACT.fullmatch(token)
    if pieces is None:
        raise TokenRefused("form", "The token is not a signed JWT in compact form.")
    return pieces


class _Header(msgspec.Struct, frozen=True):
    """What the header of a token says: the algorithm, empty for none that is a text; and the name of the key. `refusal`
    is the reason and the detail with which it is refused, of any issuer."""

    algorithm: str
    kid: str | None
    refusal: tuple[str, str] | None


@lru_cache(maxsize=_HEADERS)
def _header(piece: bytes) -> _Header:
    fields = _object(_decoded(piece), "header")
    algorithm, kid, kind = fields.get("alg"), fields.get("kid"), fields.get("typ", "JWT")
    refusal = None
    if not fields.keys().isdisjoint(_BRINGS_A_KEY):
        refusal = "header", "The token's header has a field that is not accepted."
    elif not isinstance(kind, str) or kind.lower() not in _TYPES:
        refusal = "type", "The token is of a kind that does not authorize requests."
    elif kid is not None and not (isinstance(kid, str) and _KID.fullmatch(kid) and ".." not in kid):
        refusal = "header", "The token's header has an invalid `kid`."
    return _Header(algorithm if isinstance(algorithm, str) else "", kid, refusal)


def _object(text: bytes, what: str) -> Mapping[str, Any]:
    """Raises TokenRefused."""
    try:
        found = _as_written(text)
        if found is None:
            found = _JSON.decode(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise TokenRefused("form", f"The token's {what} can't be read.") from None
    if not isinstance(found, dict):
        raise TokenRefused("form", f"The token's {what} can't be read.")
    return found


def _as_written(text: bytes) -> Any:
    """The value of a JSON text that is written as msgspec writes it, without spaces, as most issuers do; None for any
    other. No name stands twice in such a text, as it is also what is written of the value (measured: 1 µs for 600
    bytes, where looking at each name takes 3). Raises RecursionError: another reader would take as long to find that
    the text is nested too deeply."""
    try:
        found = _DECODER.decode(text)
        return found if _ENCODER.encode(found) == text else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _decoded(piece: bytes) -> bytes:
    """Raises TokenRefused unless `piece`, of characters of base64url, is the one form of its bytes (RFC 7515 §2)."""
    last, padding = _ENDS[len(piece) % 4]
    if piece[-1] not in last:
        raise TokenRefused("form", "The token is not a signed JWT in compact form.")
    return a2b_base64(piece.translate(_STANDARD) + padding)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a doubled name: two readers may take two values (RFC 7519 §4)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("doubled name")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
_DECODER, _ENCODER = msgspec.json.Decoder(), msgspec.json.Encoder()


def _principal(claims: Mapping[str, Any], issuer: Issuer, now: float) -> Principal:
    if issuer.audience.isdisjoint(_texts(claims.get("aud"))):
        raise TokenRefused("audience", "The token is for another audience.")
    expires = _date(claims, "exp")
    if expires is None:
        raise TokenRefused("expiry", "The token has no `exp`.")
    if now >= expires + issuer.leeway:
        raise TokenRefused("expired", "The token has expired.")
    issued = _date(claims, "iat")
    if issued is None:  # revocations are kept as long as a token can be old: of this one nobody knows how long that is
        raise TokenRefused("age", "The token has no `iat`.")
    for name, date in (("nbf", _date(claims, "nbf")), ("iat", issued)):
        if date is not None and date > now + issuer.leeway:
            raise TokenRefused("early", f"The token's `{name}` is in the future.")
    if "sub" in claims and not is_subject(claims["sub"]):
        raise TokenRefused("claims", "The token's `sub` must be a text.")
    return Principal(
        provider=issuer.provider,
        issuer=issuer.issuer,
        claims=claims,
        scopes=_scopes(claims),
        issued_at=issued,
        expires_at=expires,
    )


def _date(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 §2). Raises TokenRefused."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_NUMERIC_DATE:
        raise TokenRefused("claims", f"The token's `{name}` is no date.")
    return float(value)


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, str)]


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Scopes as RFC 9068 §2.2.3 has them (`scope`, a text parted by spaces), and as common issuers do (`scp`, a text or
    a list)."""
    found: list[str] = []
    for name in ("scope", "scp"):
        for text in _texts(claims.get(name)):
            found += text.split(" ")
    return frozenset(filter(None, found))
