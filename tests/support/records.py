"""Records of API keys and revocations."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from gateway.identity.principal import Principal
from gateway.identity.records import ApiKey, key_id

AT = 1_800_000_000.0


def api_key(name: str, **changes: Any) -> ApiKey:
    """The record of a key made of `name`, of the provider `partner`."""
    digest = sha256(name.encode()).hexdigest()
    settings = {"provider": "partner", "created": AT - 100, "owner": f"owner of {name}", **changes}
    return ApiKey(key=key_id(digest), sha256=digest, **settings)


def token_of(issued: float | None = AT - 60, issuer: str = "https://id.example.com", **claims: Any) -> Principal:
    """Whom a token is of that was issued then."""
    return Principal(
        provider="shop", issuer=issuer, claims={"sub": "anna", **claims}, issued_at=issued, expires_at=AT + 600
    )
