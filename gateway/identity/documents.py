"""Requests an issuer's documents: its metadata (OpenID Connect Discovery 1.0, RFC 8414), and its JWK Set."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import orjson

from gateway.config.identity import IssuerConfig
from gateway.config.upstream import UpstreamConfig
from gateway.identity.key_set import InvalidKeySet
from gateway.identity.key_source import LONGEST_DOCUMENT
from gateway.upstreams.client import Upstream
from gateway.upstreams.httpx_api import httpx

TIMEOUT = timedelta(seconds=5)
Get = Callable[[str], Awaitable[bytes]]
"""Requests a URL, and returns the body of a 200. Raises GatewayError, and InvalidKeySet for another status."""


class _Metadata(msgspec.Struct):
    issuer: str
    jwks_uri: str


class Documents:
    """An HTTP client for the issuer `name`: one upstream for each host that its documents are on."""

    def __init__(self, name: str, config: IssuerConfig, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._name = name
        self._config = config
        self._transport = transport
        self._upstreams: dict[str, Upstream] = {}

    async def get(self, url: str) -> bytes:
        try:
            parts = urlsplit(url)
            upstream = self._upstream(f"{parts.scheme}://{parts.netloc}")
        except ValueError:  # the issuer's metadata may name anything
            raise InvalidKeySet(f"{url!r} is no URL that can be requested") from None
        query = dict(httpx.QueryParams(parts.query))
        response = await upstream.request(
            "GET", parts.path or "/", params=query, headers={"accept": "application/json"}, max_body=LONGEST_DOCUMENT
        )
        if response.status_code != 200:
            raise InvalidKeySet(f"{url} responds {response.status_code}")
        return response.content

    def _upstream(self, base: str) -> Upstream:
        if base not in self._upstreams:
            ca_file = self._config.ca_file if base.startswith("https:") else None
            config = UpstreamConfig(url=base, timeout=TIMEOUT, ca_file=ca_file, max_connections=2)
            self._upstreams[base] = Upstream(f"identity {self._name}", config, self._transport)
        return self._upstreams[base]

    async def aclose(self) -> None:
        for upstream in self._upstreams.values():
            await upstream.aclose()


def key_document(config: IssuerConfig, get: Get) -> Callable[[], Awaitable[bytes]]:
    """The function that gets an issuer's JWK Set from where its setting `jwks` says. It raises GatewayError and
    InvalidKeySet."""
    jwks = config.jwks
    if isinstance(jwks, dict):
        return lambda: _now(orjson.dumps(jwks))
    if jwks.startswith("file:"):
        return lambda: _read(Path(jwks.removeprefix("file:")))
    if jwks != "auto":
        return lambda: get(jwks)
    return lambda: _discovered(config.issuer, get)


async def _now(document: bytes) -> bytes:
    return document


async def _read(path: Path) -> bytes:
    try:
        return await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise InvalidKeySet(f"{path} can't be read: {error.strerror}") from None


async def _discovered(issuer: str, get: Get) -> bytes:
    """The JWK Set that the issuer's metadata names. Raises GatewayError and InvalidKeySet."""
    found = await _first(get, _metadata_urls(issuer))
    try:
        metadata = msgspec.json.decode(found, type=_Metadata)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidKeySet("the issuer's metadata has no issuer and jwks_uri") from None
    if metadata.issuer != issuer:
        raise InvalidKeySet(f"the metadata is of another issuer, {metadata.issuer!r}")
    scheme = metadata.jwks_uri.partition(":")[0].lower()
    if scheme != "https" and not (scheme == "http" and issuer.startswith("http:")):
        raise InvalidKeySet("the jwks_uri in the issuer's metadata is not https")
    return await get(metadata.jwks_uri)


def _metadata_urls(issuer: str) -> tuple[str, ...]:
    """Where an issuer's metadata may be: behind its URL (Discovery §4), or between its host and path (RFC 8414 §3)."""
    parts = urlsplit(issuer)
    base, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    return (
        f"{base}{path}/.well-known/openid-configuration",
        f"{base}/.well-known/oauth-authorization-server{path}",
    )


async def _first(get: Get, urls: tuple[str, ...]) -> bytes:
    failure: InvalidKeySet | None = None
    for url in urls:
        try:
            return await get(url)
        except InvalidKeySet as error:
            failure = failure or error
    assert failure is not None
    raise failure
