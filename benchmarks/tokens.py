"""Tokens of an issuer of the benchmarks' own, as apps would send them: RS256, 941 bytes with the scheme."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

ISSUER = "https://id.bench.example"
AUDIENCE = "bench"
_LENGTH = 941
_LIVES = 24 * 3600
"""Seconds: longer than any run."""


@cache
def _key() -> RSAKey:
    return RSAKey.generate_key(2048, parameters={"kid": "bench"})


def key_set() -> str:
    """The issuer's public keys (JWK Set, RFC 7517), as JSON."""
    return json.dumps({"keys": [_key().as_dict(private=False)]})


@cache
def authorization(number: int = 0) -> str:
    """The line of a request with the user's token of that number; another number is a refreshed token."""
    now = int(time.time())
    claims: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "iat": now, "exp": now + _LIVES}
    claims["jti"] = f"{number:06}"
    padding = (_LENGTH - len(_line(claims | {"padding": ""}))) * 3 // 4
    return _line(claims | {"padding": "a" * padding})


@cache
def many() -> tuple[str, ...]:
    """So many lines, each with another token, that a gateway which remembers few has forgotten the first at the
    last."""
    return tuple(authorization(number) for number in range(2000))


def _line(claims: dict[str, Any]) -> str:
    return "Authorization: Bearer " + jwt.encode({"alg": "RS256", "kid": "bench"}, claims, _key())
