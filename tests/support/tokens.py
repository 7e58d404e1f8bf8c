"""A test issuer: signs tokens with keys of each kind."""

from __future__ import annotations

import base64
import json
from typing import Any

from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

NOW = 1_800_000_000.0
ISSUER = "https://id.example.com"


class TestIssuer:
    """Signs with one key a kind. `jwks` is the document of its public keys."""

    __test__ = False

    def __init__(self, url: str = ISSUER) -> None:
        self.url = url
        self.keys: dict[str, Any] = {
            "RS256": RSAKey.generate_key(2048, parameters={"kid": "rsa"}),
            "ES256": ECKey.generate_key("P-256", parameters={"kid": "ec"}),
            "Ed25519": OKPKey.generate_key("Ed25519", parameters={"kid": "ed"}),
        }

    @property
    def jwks(self) -> bytes:
        keys = [key.as_dict(private=False) for key in self.keys.values()]
        return json.dumps({"keys": keys}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a valid token, changed; None removes one."""
        claims = {"iss": self.url, "aud": "shop-api", "sub": "anna", "iat": NOW - 10, "exp": NOW + 600, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def sign(
        self, algorithm: str = "RS256", header: dict[str, Any] | None = None, claims: str | None = None, **changes: Any
    ) -> bytes:
        """A token. `claims` replaces the text of its claims, `header` changes its header."""
        key = self.keys[{"PS256": "RS256", "EdDSA": "Ed25519"}.get(algorithm, algorithm)]
        fields = {"alg": algorithm, "typ": "JWT", "kid": key.kid, **(header or {})}
        fields = {name: value for name, value in fields.items() if value is not None}
        payload = json.dumps(self.claims(**changes)) if claims is None else claims
        text = b".".join(encoded(part) for part in (json.dumps(fields).encode(), payload.encode()))
        signer = JWSRegistry.algorithms["Ed25519" if algorithm == "EdDSA" else algorithm]
        return text + b"." + encoded(signer.sign(text, key))


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"x") -> bytes:
    """A token of any header and claims that nobody has signed."""
    return b".".join(encoded(json.dumps(part).encode()) for part in (header, claims)) + b"." + encoded(signature)


def encoded(piece: bytes) -> bytes:
    return base64.urlsafe_b64encode(piece).rstrip(b"=")


def symmetric(secret: bytes) -> Any:
    return OctKey.import_key(secret)
