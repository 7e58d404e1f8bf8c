"""API keys and revocations over the admin listener, of a gateway on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from gateway.admin.app import create_admin
from gateway.admin.operations import operations_of
from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.cache.redis.store import RedisStore
from gateway.clock import SystemClock
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.identity.api_keys import digest_of, new_key
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream
from tests.support.admin import TOKEN
from tests.support.gateways import json_answer

KEY = new_key()
SECRET = "0123456789abcdef0123456789abcdef"
SHOP = {"issuer": "https://id.example.com", "audience": ["a"], "algorithms": ["HS256"], "secret": SECRET}
ROUTES = {"home": {"path": "/home", "upstream": "api", "ttl": "1m", "identity": ["partner"], "per": ["sub"]}}


@asynccontextmanager
async def working(
    valkey: Embedded, upstream: StubUpstream | None = None, **identity: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """A client of the gateway, and an operator's of its admin listener."""
    clock = SystemClock()
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=1.0, clock=clock)
    config = Config.model_validate(
        {
            "redis_url": valkey.url,
            "access_log": False,
            "upstreams": {"api": {"url": "http://api.test"}},
            "identity": identity or {"partner": {"keys": "redis"}, "shop": SHOP},
            "routes": ROUTES if not identity or "partner" in identity else {},
        }
    )
    loaded = Loaded(config, {}, ())
    app = create_app(loaded, transport=upstream or StubUpstream(json_answer()), clock=clock, store=store)
    generations = Generations(app)
    operations = operations_of(generations, loaded)
    admin = create_admin(lambda: generations.current, "secret", operations=operations)
    await app.start()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(generations), base_url="http://gateway.test")
    operator = httpx.AsyncClient(transport=httpx.ASGITransport(admin), base_url="http://admin.test", headers=TOKEN)
    try:
        yield client, operator
    finally:
        await operations.aclose()
        await app.stop()


def order(key: str = KEY, **settings: Any) -> dict[str, Any]:
    return {"sha256": digest_of(key.encode()), "by": "ann", **settings}


async def test_a_key_is_created_listed_rotated_and_revoked(valkey: Embedded) -> None:
    other = new_key()
    async with working(valkey) as (client, operator):

        async def status(key: str) -> int:
            return (await client.get("/home", headers={"x-api-key": key})).status_code

        assert await status(KEY) == 401
        answer = await operator.post("/keys", json=order(owner="acme", plan="gold", scopes=["x"], expires="90d"))
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        made = answer.json()
        assert (made["complete"], made["kept"], made["workers"]) == (True, True, 1)
        (key,) = made["keys"]
        assert (key["identity"], key["owner"], key["plan"], key["scopes"]) == ("partner", "acme", "gold", ["x"])
        assert (key["state"], key["by"]) == ("in force", "ann (127.0.0.1)")
        assert key["expires"] == pytest.approx(key["created"] + 90 * 86_400, abs=5)
        assert await status(KEY) == 200
        rotated = (await operator.post(f"/keys/{key['id']}/rotate", json=order(other, overlap="1h"))).json()
        assert [await status(each) for each in (KEY, other)] == [200, 200]
        assert rotated["keys"][1]["expires"] == pytest.approx(rotated["keys"][0]["created"] + 3600, abs=5)
        assert (await operator.delete(f"/keys/{key['id']}?by=ben")).json()["complete"]
        assert [await status(each) for each in (KEY, other)] == [401, 200]
        assert (await operator.delete("/keys?owner=acme")).json()["keys"][0]["state"] == "revoked"
        assert [await status(each) for each in (KEY, other)] == [401, 401]
        listed = (await operator.get("/keys")).json()["keys"]
        assert [each["state"] for each in listed] == ["revoked", "revoked"]
        events = (await operator.get("/audit")).json()["events"]
    assert [each["what"] for each in events] == ["key revoked", "key revoked", "key rotated", "key created"]
    said = str(listed) + str(events) + str(made)
    assert not any(text in said for text in (KEY, other, digest_of(KEY.encode())))


async def test_a_revocation_is_confirmed_and_neither_answer_nor_audit_list_say_whose(valkey: Embedded) -> None:
    async with working(valkey) as (_, operator):
        answer = await operator.post("/revocations", json={"sub": "anna-4711", "issuer": "shop", "by": "ann"})
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert (made["complete"], made["confirmed"], made["workers"]) == (True, 1, 1)
        assert (made["revocation"]["kind"], made["revocation"]["issuer"]) == ("sub", "https://id.example.com")
        exact = {"issued_before": "2026-01-31T00:00:00Z"}
        assert (await operator.post("/revocations", json=exact)).json()["revocation"]["issued_before"] == 1769817600.0
        listed = (await operator.get("/revocations")).json()["revocations"]
        assert [each["kind"] for each in listed] == ["all", "sub"]
        events = (await operator.get("/audit")).json()["events"]
    assert events[1]["detail"].startswith("tokens of a sub of shop issued before ")
    assert "anna" not in str(made) + str(listed) + str(events)


MEANS_NOTHING: list[tuple[str, str, Any, str]] = [
    ("POST", "/keys", {"sha256": KEY}, "never the key"),
    ("POST", "/keys", {}, "sha256"),
    ("POST", "/keys", {"sha256": "0" * 64, "expires": "soon"}, "isn't a date"),
    ("POST", "/keys", {"sha256": "0" * 64, "key": KEY}, "unknown field"),
    ("POST", "/keys", {"sha256": "0" * 64, "identity": "shop"}, "no identity 'shop' with `keys: redis`"),
    ("POST", "/keys/abc/rotate", {"sha256": "0" * 64}, "there is no key abc"),
    ("POST", "/keys/abc/rotate", {"sha256": "0" * 64, "overlap": "400d"}, "longer than 365d"),
    ("DELETE", "/keys/abc", None, "there is no key abc"),
    ("DELETE", "/keys", None, "name the owner"),
    ("DELETE", "/keys?owner=nobody", None, "no key of that owner"),
    ("POST", "/revocations", {}, "name one of sub, jti and client"),
    ("POST", "/revocations", {"sub": "a", "jti": "b"}, "name one of sub, jti and client"),
    ("POST", "/revocations", {"sub": "a", "issuer": "sho"}, "did you mean shop"),
    ("POST", "/revocations", {"sub": "a", "issued_before": "never"}, "isn't a date"),
    ("POST", "/revocations", {"sub": 7}, "Expected `str`"),
]


async def test_an_order_that_means_nothing_is_a_400_that_says_why(valkey: Embedded) -> None:
    async with working(valkey) as (_, operator):
        for method, path, body, said in MEANS_NOTHING:
            answer = await operator.request(method, path, json=body)
            assert answer.status_code == 400, (method, path, body)
            assert said in answer.json()["detail"]
            assert KEY not in answer.text
        assert (await operator.get("/keys")).json() == {"keys": []}


async def test_a_gateway_without_identity_has_nothing_to_change(valkey: Embedded) -> None:
    clock = SystemClock()
    app = create_app({"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}}, clock=clock)
    operator = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_admin(app, "secret")), base_url="http://admin.test", headers=TOKEN
    )
    for path, body in (("/keys", order()), ("/revocations", {"sub": "anna"})):
        answer = await operator.post(path, json=body)
        assert (answer.status_code, "has no identity" in answer.text) == (400, True)


async def test_without_redis_a_revocation_is_in_force_and_is_said_to_end_with_the_gateway() -> None:
    config = {"redis_url": "none", "identity": {"shop": SHOP}, "upstreams": {"api": {"url": "http://api.test"}}}
    app = create_app(config)
    operator = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_admin(app, "secret")), base_url="http://admin.test", headers=TOKEN
    )
    made = (await operator.post("/revocations", json={"sub": "anna"})).json()
    assert (made["complete"], made["kept"]) == (True, False)


PROTECTED = [
    *(("GET", "/keys"), ("POST", "/keys"), ("DELETE", "/keys"), ("DELETE", "/keys/x"), ("POST", "/keys/x/rotate")),
    *(("GET", "/revocations"), ("POST", "/revocations")),
]


async def test_without_the_token_nothing_is_shown_or_changed(valkey: Embedded) -> None:
    async with working(valkey) as (_, operator):
        for method, path in PROTECTED:
            answer = await operator.request(method, path, json={}, headers={"authorization": "Bearer wrong"})
            assert answer.status_code == 401
