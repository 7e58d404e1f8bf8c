"""The demo's issuer: the gateway verifies what it signs, and finds its keys by its metadata."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app.gateway import create_app
from gateway.demo.issuer import AUDIENCE, create_issuer
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, running
from tests.support.personal import told

URL = "http://127.0.0.1:9200"


@pytest.fixture
async def issuer() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_issuer(URL)), base_url=URL) as client:
        yield client


async def status(issuer: httpx.AsyncClient, token: str) -> int:
    """That of a request to a gateway that takes the issuer's tokens."""

    def transport(name: str) -> httpx.AsyncBaseTransport:
        return issuer._transport if name.startswith("identity") else StubUpstream(told)

    me = {"path": "/me", "upstream": "shop", "ttl": "30s", "identity": ["demo"], "per": ["sub"]}
    config = {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.example.com"}},
        "identity": {"demo": {"issuer": URL, "audience": [AUDIENCE]}},
        "routes": {"me": {**me, "forward": {"x-user": "sub"}}},
    }
    app = create_app(config, transport=transport, log=silent)
    async with running(app) as client:
        response = await client.get("/me", headers={"authorization": f"Bearer {token}"})
    assert response.status_code != 200 or response.json()["sub"] == "berta"
    return response.status_code


async def test_its_tokens_are_verified_by_a_gateway_that_knows_its_url(issuer: httpx.AsyncClient) -> None:
    token = (await issuer.post("/token", content="sub=berta&plan=gold")).text
    assert await status(issuer, token) == 200


async def test_a_claim_of_its_own_can_not_be_chosen(issuer: httpx.AsyncClient) -> None:
    token = (await issuer.post("/token", content="sub=berta&iss=x&aud=y&exp=1")).text
    assert await status(issuer, token) == 200


async def test_a_token_may_be_one_that_has_expired(issuer: httpx.AsyncClient) -> None:
    token = (await issuer.post("/token", content="sub=berta&expires_in=-60")).text
    assert await status(issuer, token) == 401


async def test_a_lifetime_that_is_no_number_is_refused(issuer: httpx.AsyncClient) -> None:
    assert (await issuer.post("/token", content="expires_in=soon")).status_code == 400
