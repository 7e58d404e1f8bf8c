"""The public keys of an issuer (JWK Set, RFC 7517): which of them verify a token. Pure.

A key is taken for signatures alone, of a type and size that its algorithms may have (RFC 7518, RFC 8725 §3.5).
Symmetric keys in a set are ignored: what everybody can read verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from joserfc import jwk
from joserfc.errors import JoseError
from joserfc.util import urlsafe_b64decode

MAX_KEYS = 100
"""Keys of a set that are used, at most; the rest is ignored."""
LEAST_RSA_BITS = 2048
"""RFC 7518 §3.3."""
MOST_RSA_BITS = 8192
"""A larger key makes one signature take milliseconds."""
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_CURVE = {
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("Ed25519", "EdDSA"),
}


@dataclass(frozen=True, eq=False)
class Key:
    """A key and the algorithms that it verifies. `material` is joserfc's."""

    kid: str | None
    algorithms: frozenset[str]
    material: Any = field(repr=False)

    def fits(self, algorithm: str) -> bool:
        return algorithm in self.algorithms


class KeySet(msgspec.Struct, frozen=True):
    """The usable keys of an issuer; `ignored` says, for the log, why others are not."""

    keys: tuple[Key, ...] = ()
    ignored: tuple[str, ...] = ()

    def of(self, kid: str | None) -> tuple[Key, ...]:
        """The keys of that name; all of them for a token that names none."""
        return tuple(key for key in self.keys if kid is None or key.kid == kid)


class InvalidKeySet(ValueError):
    """A document is no JWK Set, or has no key that verifies a token."""


def parse_key_set(document: bytes) -> KeySet:
    """The keys of a JWK Set. Raises InvalidKeySet; a key that can't be used is left out."""
    try:
        found = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise InvalidKeySet("the document is not JSON") from None
    members = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(members, list):
        raise InvalidKeySet("the document has no list `keys`")
    keys: list[Key] = []
    ignored: list[str] = []
    for place, member in enumerate(members[:MAX_KEYS]):
        try:
            keys.append(_key(member))
        except (JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            ignored.append(f"key {place}: {error}")
    if not keys:
        raise InvalidKeySet("; ".join(("no key verifies signatures", *ignored)))
    return KeySet(tuple(keys), tuple(ignored))


def _key(member: Any) -> Key:
    if not isinstance(member, dict):
        raise ValueError("not an object")
    if member.get("use", "sig") != "sig" or "verify" not in member.get("key_ops", ["verify"]):
        raise ValueError("not for signatures")
    kind = member.get("kty")
    if kind not in ("RSA", "EC", "OKP"):
        raise ValueError(f"of the type {kind!r}")
    fitting = _of_modulus(member["n"]) if kind == "RSA" else _OF_CURVE.get(str(member.get("crv")), ())
    if "alg" in member:
        fitting = tuple(name for name in fitting if _same(name, member["alg"]))
    if not fitting:
        raise ValueError("of a curve, size or algorithm that is not supported")
    material = jwk.import_key({name: member[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in member})
    kid = member.get("kid")
    return Key(kid if isinstance(kid, str) else None, frozenset(fitting), material)


def _of_modulus(modulus: str) -> tuple[str, ...]:
    bits = int.from_bytes(urlsafe_b64decode(modulus.encode("ascii"))).bit_length()
    return _RSA if LEAST_RSA_BITS <= bits <= MOST_RSA_BITS else ()


def _same(name: str, named: object) -> bool:
    """`EdDSA` names the algorithm that RFC 9864 calls `Ed25519`."""
    return name == named or {name, named} == {"Ed25519", "EdDSA"}


def secret_key(secret: bytes, algorithms: frozenset[str]) -> KeySet:
    """The key set of an issuer that shares a `secret` with the gateway (HMAC)."""
    return KeySet((Key(None, algorithms, jwk.OctKey.import_key(secret)),))
