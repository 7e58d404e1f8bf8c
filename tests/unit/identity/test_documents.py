"""Where an issuer's keys are: discovery by its metadata, a URL, a file, or the configuration itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config.identity import IssuerConfig
from gateway.errors import UpstreamError
from gateway.identity.documents import Documents, key_document
from gateway.identity.key_set import InvalidKeySet
from gateway.testing import StubUpstream
from tests.support.tokens import TestIssuer

issuer = TestIssuer()


def config(**settings: Any) -> IssuerConfig:
    return IssuerConfig(**{"issuer": "https://id.example.com/shop", "audience": ["a"], **settings})


async def document(setting: IssuerConfig, **pages: Any) -> tuple[bytes | Exception, list[str]]:
    """The key set that is found where `pages` are what the issuer serves, and the URLs that were requested."""

    def answer(request: httpx.Request) -> httpx.Response:
        page = pages["pages"].get(str(request.url))
        return httpx.Response(404) if page is None else httpx.Response(200, content=page)

    stub = StubUpstream(answer)
    documents = Documents("shop", setting, stub)
    try:
        found: bytes | Exception = await key_document(setting, documents.get)()
    except (InvalidKeySet, UpstreamError) as error:
        found = error
    await documents.aclose()
    return found, [str(request.url) for request in stub.requests]


def metadata(**changes: Any) -> bytes:
    said = {"issuer": "https://id.example.com/shop", "jwks_uri": "https://keys.example.com/jwks?v=1", **changes}
    return json.dumps(said).encode()


KEYS = "https://keys.example.com/jwks?v=1"
OPENID = "https://id.example.com/shop/.well-known/openid-configuration"
OAUTH = "https://id.example.com/.well-known/oauth-authorization-server/shop"


@pytest.mark.parametrize("place", [OPENID, OAUTH])
async def test_discovery_finds_the_metadata_at_both_places(place: str) -> None:
    found, urls = await document(config(), pages={place: metadata(), KEYS: issuer.jwks})
    assert found == issuer.jwks
    assert urls[-1] == KEYS
    assert urls[0] == OPENID


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (metadata(issuer="https://id.example.com/shop/"), "another issuer"),
        (metadata(issuer=None), "no issuer"),
        (metadata(jwks_uri="http://keys.example.com/jwks?v=1"), "not https"),
        (metadata(jwks_uri="file:///etc/passwd"), "not https"),
        (b"<html>", "no issuer"),
        (b"\xff", "no issuer"),
    ],
)
async def test_metadata_that_does_not_hold_is_refused(page: bytes, reason: str) -> None:
    found, urls = await document(config(), pages={OPENID: page, KEYS: issuer.jwks})
    assert isinstance(found, InvalidKeySet)
    assert reason in str(found)
    assert KEYS not in urls


async def test_a_plain_issuer_may_have_plain_keys() -> None:
    setting = config(issuer="http://127.0.0.1:8200")
    page = json.dumps({"issuer": "http://127.0.0.1:8200", "jwks_uri": "http://127.0.0.1:8200/keys"}).encode()
    place = "http://127.0.0.1:8200/.well-known/openid-configuration"
    found, _ = await document(setting, pages={place: page, "http://127.0.0.1:8200/keys": issuer.jwks})
    assert found == issuer.jwks


async def test_without_metadata_the_first_failure_is_told() -> None:
    found, urls = await document(config(), pages={})
    assert isinstance(found, InvalidKeySet)
    assert "openid-configuration responds 404" in str(found)
    assert urls == [OPENID, OAUTH]


async def test_a_url_is_requested_as_it_is() -> None:
    found, urls = await document(config(jwks=KEYS), pages={KEYS: issuer.jwks})
    assert (found, urls) == (issuer.jwks, [KEYS])


async def test_a_document_that_is_too_large_is_refused() -> None:
    found, _ = await document(config(jwks=KEYS), pages={KEYS: b"x" * (1024 * 1024 + 1)})
    assert isinstance(found, UpstreamError)


async def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    setting = config(jwks=f"file:{path}")
    found, _ = await document(setting, pages={})
    assert isinstance(found, InvalidKeySet)
    assert "No such file" in str(found)
    path.write_bytes(issuer.jwks)
    assert (await document(setting, pages={}))[0] == issuer.jwks


async def test_the_configuration_may_have_the_keys_itself() -> None:
    found, urls = await document(config(jwks=json.loads(issuer.jwks)), pages={})
    assert isinstance(found, bytes)
    assert json.loads(found) == json.loads(issuer.jwks)
    assert urls == []


@pytest.mark.parametrize(
    "url", ["https://[bad", "https://a:b@h/keys", "https://h:99999/", "https:///keys", "https://h:x/"]
)
async def test_an_address_that_is_no_url_is_a_failure_of_the_issuer(url: str) -> None:
    found, _ = await document(config(), pages={OPENID: metadata(jwks_uri=url)})
    assert isinstance(found, InvalidKeySet)
    assert "no URL that can be requested" in str(found)
