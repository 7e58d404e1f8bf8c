"""The demo's issuer of tokens: it signs what any client asks for. For a screen of your own in `gateway demo`, and for
tests; never for users.

    python -m gateway.demo.issuer --port 9200
    curl http://127.0.0.1:9200/token -d sub=anna -d plan=gold

It has metadata (OpenID Connect Discovery) and a JWK Set, as any issuer has, so the gateway is configured for it as for
any. Its key is made at start: after a restart, tokens are of an unknown key until the gateway has fetched the new one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

AUDIENCE = "demo"
LIFETIME = 3600
"""Seconds."""
_RESERVED = ("iss", "aud", "iat", "exp", "jti")


class Issuer:
    """Signs with one key of its own. `url` is its name."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._key = ECKey.generate_key("P-256", parameters={"kid": token_hex(4), "use": "sig", "alg": "ES256"})

    def token(self, claims: Mapping[str, Any], lifetime: int = LIFETIME) -> str:
        """A token with these claims, for `lifetime` seconds."""
        now = int(time.time())
        given = {"sub": "anna", **{name: value for name, value in claims.items() if name not in _RESERVED}}
        own = {"iss": self.url, "aud": AUDIENCE, "iat": now, "exp": now + lifetime, "jti": token_hex(8)}
        return jwt.encode({"alg": "ES256", "kid": self._key.kid}, {**given, **own}, self._key)

    async def metadata(self, request: Request) -> Response:
        found = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "token_endpoint": f"{self.url}/token",
            "id_token_signing_alg_values_supported": ["ES256"],
        }
        return JSONResponse(found)

    async def jwks(self, request: Request) -> Response:
        return JSONResponse({"keys": [self._key.as_dict(private=False)]})

    async def issue(self, request: Request) -> Response:
        """The fields of the form are the claims; `expires_in` is how many seconds the token is valid."""
        claims = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        lifetime = claims.pop("expires_in", str(LIFETIME))
        if not lifetime.lstrip("-").isdigit():
            return PlainTextResponse("expires_in must be a number of seconds\n", 400)
        return PlainTextResponse(self.token(claims, int(lifetime)), headers={"cache-control": "no-store"})


def create_issuer(url: str) -> Starlette:
    issuer = Issuer(url)
    return Starlette(
        routes=[
            Route("/.well-known/openid-configuration", issuer.metadata),
            Route("/jwks", issuer.jwks),
            Route("/token", issuer.issue, methods=["POST"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo.issuer", description="An issuer of tokens to try the gateway with."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=9200, type=int, help="the port to listen on (default: %(default)s)")
    given = parser.parse_args(arguments)
    app = create_issuer(f"http://{given.host}:{given.port}")
    uvicorn.run(app, host=given.host, port=given.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
