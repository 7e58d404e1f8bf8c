"""Signed tokens (JWT, RFC 7519): what is refused, and what a verified one says. Pure.

Checks are ordered by their cost: size and form, header, claims, and the signature last, so that a token that is refused
for anything else costs a fraction of a signature and no request for keys. What is refused follows RFC 8725: `none`,
algorithms that the issuer's setting doesn't list, keys of another type than the algorithm's, header fields that bring
or name a key (`jwk`, `jku`, `x5u`, `x5c`), extensions that must be understood (`crit`), doubled names.

It does not know where keys come from; `key_set` does.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
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
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
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
    header, claims = _parts(token)
    issuer = issuers.get(claims["iss"]) if isinstance(claims.get("iss"), str) else None
    if issuer is None:
        raise TokenRefused("issuer", "The token is of an unknown issuer.")
    algorithm = _algorithm(header, issuer)
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and _KID.fullmatch(kid) and ".." not in kid):
        raise TokenRefused("header", "The token's header has an invalid `kid`.")
    principal = _principal(claims, issuer, now)
    signed, _, signature = token.rpartition(b".")
    return issuer, Unverified(signed, _decoded(signature), algorithm, kid, principal)


def issuer_of(token: bytes) -> str | None:
    """The issuer that a token names, which nobody has verified; None for what is no token."""
    try:
        named = _parts(token)[1].get("iss")
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


def _parts(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    if len(token) > LONGEST_TOKEN:
        raise TokenRefused("size", f"The token is longer than {LONGEST_TOKEN} bytes.")
    pieces = token.split(b".")
    if len(pieces) != 3 or not all(map(_BASE64URL.fullmatch, pieces)):
        raise TokenRefused("form", "The token is not a signed JWT in compact form.")
    return _object(pieces[0], "header"), _object(pieces[1], "claims")


def _object(piece: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(_decoded(piece).decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise TokenRefused("form", f"The token's {what} can't be read.") from None
    if not isinstance(found, dict):
        raise TokenRefused("form", f"The token's {what} can't be read.")
    return found


def _decoded(piece: bytes) -> bytes:
    """Raises TokenRefused unless `piece` is the one form of its bytes (RFC 7515 §2)."""
    try:
        found = base64.urlsafe_b64decode(piece + b"=" * (-len(piece) % 4))
    except binascii.Error:
        found = b""
    if base64.urlsafe_b64encode(found).rstrip(b"=") != piece:
        raise TokenRefused("form", "The token is not a signed JWT in compact form.")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a doubled name: two readers may take two values (RFC 7519 §4)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("doubled name")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _algorithm(header: dict[str, Any], issuer: Issuer) -> str:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise TokenRefused("algorithm", "The token is signed with an algorithm that is not accepted.")
    if not header.keys().isdisjoint(_BRINGS_A_KEY):
        raise TokenRefused("header", "The token's header has a field that is not accepted.")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRefused("type", "The token is of a kind that does not authorize requests.")
    return algorithm


def _principal(claims: dict[str, Any], issuer: Issuer, now: float) -> Principal:
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
    for name in ("nbf", "iat"):
        date = _date(claims, name)
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


def _date(claims: dict[str, Any], name: str) -> float | None:
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


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """Scopes as RFC 9068 §2.2.3 has them (`scope`, a text parted by spaces), and as common issuers do (`scp`, a text or
    a list)."""
    found: list[str] = []
    for name in ("scope", "scp"):
        for text in _texts(claims.get(name)):
            found += text.split(" ")
    return frozenset(filter(None, found))
