"""Credentials at rest: a token that a client sends stands nowhere but in the request that goes upstream. Not in Redis,
the access log, the metrics, an explanation, an error's answer or the admin listener; neither as it is nor in base64 or
percent form, nor as a digest that anybody could make of a guess."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import orjson
import pytest
from fastapi import APIRouter, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPBearer

from gateway import cached
from gateway.admin.app import PurgeOrder, create_admin
from gateway.app.gateway import Gateway, create_app
from gateway.cache.redis.store import RedisStore
from gateway.cache.warm_start import Hottest
from gateway.config.loader import load
from gateway.edge.protocol import GatewayProtocol
from gateway.explain.trace import render
from gateway.observability.access_log import JsonAccessLog
from gateway.policy.identity_key import UNKEYED
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import gateway, served

CANARY = "cAnArY/7f3b+q=="
TOKEN = {"authorization": "Bearer admin-token"}
router = APIRouter()


@router.get("/handler/bearer")
@cached(ttl="60s", authorization="key")
async def bearer(token: Annotated[Any, Security(HTTPBearer())]) -> str:
    return "bearer"


@router.get("/handler/header")
@cached(ttl="60s")
async def header(key: Annotated[str, Security(APIKeyHeader(name="X-Key"))]) -> str:
    return "header"


@router.get("/handler/origin")
@cached(ttl="origin")
async def origin(key: Annotated[str, Security(APIKeyHeader(name="X-Api-Key"))]) -> str:
    return "origin"


@router.get("/handler/cookie")
@cached(ttl="60s", cookies=["sid"])
async def cookie(sid: Annotated[str, Security(APIKeyCookie(name="sid"))]) -> str:
    return "cookie"


@router.get("/handler/query")
@cached(ttl="60s")
async def query(key: Annotated[str, Security(APIKeyQuery(name="api_key"))]) -> str:
    return "query"


def _part(**more: Any) -> dict[str, Any]:
    return {"upstream": "api", "path": "/part", "ttl": "60s", **more}


ROUTES: dict[str, Any] = {
    "authorization": {"path": "/authorization", "upstream": "api", "ttl": "60s", "authorization": "key"},
    "cookies": {"path": "/cookies", "upstream": "api", "ttl": "60s", "cookies": ["sid"]},
    "headers": {"path": "/headers", "upstream": "api", "ttl": "60s", "vary": ["x-api-key", "x-key"]},
    "follows": {"path": "/follows", "upstream": "api"},
    "follows_key": {"path": "/follows/key", "upstream": "api", "authorization": "key", "cookies": ["sid"]},
    "stale": {"path": "/stale", "upstream": "api", "ttl": "1ms", "authorization": "key", "stale_if_error": "60s"},
    "fails": {"path": "/fails", "upstream": "api", "ttl": "60s", "authorization": "key"},
    "query": {"path": "/query", "upstream": "api", "ttl": "60s"},
    "whole": {
        "path": "/whole",
        "parts": {
            "own": _part(authorization="key", cookies=["sid"]),
            "template": _part(headers={"x-api-key": "{header.x-api-key}"}),
            "constant": _part(headers={"x-api-key": CANARY, "x-key": CANARY}),
            "follows": _part(ttl="origin", authorization="key"),
            "asked": _part(query=["api_key"]),
        },
    },
}
CREDENTIALS = [
    {"authorization": f"Bearer {CANARY}"},
    {"authorization": "Basic " + base64.b64encode(f"user:{CANARY}".encode()).decode()},
    {"cookie": f"sid={CANARY}; theme=dark"},
    {"x-api-key": CANARY, "x-key": CANARY},
]
QUERIES = [f"{name}={quote(CANARY, safe='')}" for name in ("api_key", "access_token", "sig", "X-Amz-Signature", "key")]
TARGETS = [*(f"/{name}" for name in ROUTES), "/follows/key", *(f"/handler/{name.name}" for name in router.routes)]


def answer(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/fails":
        raise httpx.ConnectError(f"no way to {request.url}")
    fields = {"cache-control": "public, max-age=60", "vary": "Authorization, Cookie, X-API-Key, X-Key"}
    return httpx.Response(200, json={"path": request.url.path}, headers=fields)


class Seen:
    """Everything that leaves a gateway but for requests upstream."""

    def __init__(self, app: Gateway, log: io.BytesIO, caplog: pytest.LogCaptureFixture) -> None:
        self.app = app
        self._log = log
        self._caplog = caplog
        self.texts: dict[str, bytes] = {}

    async def ask(self, client: httpx.AsyncClient, target: str, fields: dict[str, str]) -> httpx.Response:
        response = await client.get(target, headers=fields)
        # The request is in the client's object, not on the wire.
        self.texts[f"answer to {target} {len(self.texts)}"] = repr(response.headers.raw).encode() + response.content
        return response

    async def explain(self, admin: httpx.AsyncClient, client: httpx.AsyncClient, target: str) -> None:
        for fields in CREDENTIALS:
            order = {"method": "GET", "target": target, "headers": [list(pair) for pair in fields.items()]}
            told = await admin.post("/explain", json=order)
            assert told.status_code == 200, told.text
            self.texts[f"explained {target} {fields}"] = told.content
            trace = await self.app.explain("GET", target, [(n.encode(), v.encode()) for n, v in fields.items()])
            self.texts[f"explained in words {target} {fields}"] = repr((trace, render(trace))).encode()
            told = await client.get(target, headers={**fields, "gateway-explain": "admin-token"})
            told_text = told.headers.get("gateway-explained", "").strip(":")
            self.texts[f"explained by header {target} {fields}"] = base64.b64decode(told_text)

    async def all(self, admin: httpx.AsyncClient) -> dict[str, bytes]:
        for path in ("/metrics", "/advice", "/readyz"):
            self.texts[f"admin {path}"] = (await admin.get(path)).content
        self.texts["log"] = self._log.getvalue()
        self.texts["other logs"] = self._caplog.text.encode()
        assert isinstance(self.app.shared, RedisStore)
        async for name, content in dump(self.app.shared):
            self.texts[f"Redis {name}"] = name.encode() + content
        return self.texts


async def dump(store: RedisStore) -> AsyncIterator[tuple[str, bytes]]:
    """All that lies in a Redis, whatever it is."""
    client = store._client
    async for key in client.scan_iter():
        kind = (await client.type(key)).decode()
        if kind == "none":  # it has expired since
            continue
        read = {
            "string": lambda key: client.get(key),
            "hash": lambda key: client.hgetall(key),
            "list": lambda key: client.lrange(key, 0, -1),
            "set": lambda key: client.smembers(key),
            "zset": lambda key: client.zrange(key, 0, -1),
            "stream": lambda key: client.xrange(key),
        }[kind]
        value = await read(key)
        yield key.decode(), value if isinstance(value, bytes) else repr(value).encode()


def traces() -> Iterator[tuple[str, bytes]]:
    """The forms in which the canary must be found nowhere."""
    raw = CANARY.encode()
    yield "raw", raw.rstrip(b"=")
    yield "percent", quote(CANARY, safe="").encode().rstrip(b"%3D=")
    for shift in range(3):  # wherever it begins in what is encoded
        coded = base64.b64encode(b"x" * shift + raw)
        yield f"base64 {shift}", coded[(0, 2, 3)[shift] : len(coded) - 4]
    for name in ("authorization", "cookie", "x-api-key", "x-key", "cookie:sid", "?"):
        for value in (CANARY, f"Bearer {CANARY}", f"sid={CANARY}", *QUERIES):
            yield f"a digest of {name}", UNKEYED.digest(name, value).encode()


@pytest.mark.parametrize("way", ["app", "edge"])
async def test_a_credential_is_found_nowhere_but_upstream(
    valkey: Embedded, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    config = {
        "redis_url": "none",
        "upstreams": {"api": {"url": "http://api.test"}},
        "routes": ROUTES,
        "compression": [],
        "include": [f"{__name__}:router"],
    }
    path = tmp_path / "gateway.yaml"
    path.write_bytes(orjson.dumps(config))
    loaded = load(path, environ={"GATEWAY_ADMIN_TOKEN": "admin-token"}, dotenv=None)
    log, api = io.BytesIO(), StubUpstream(answer)
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=2.0)
    await store._client.flushdb()
    app = create_app(loaded, transport=api, store=store, log=JsonAccessLog(log))
    seen = Seen(app, log, caplog)
    admin_transport = httpx.ASGITransport(create_admin(app, "admin-token"))

    async def asked(client: httpx.AsyncClient) -> None:
        async with httpx.AsyncClient(transport=admin_transport, base_url="http://localhost", headers=TOKEN) as admin:
            for target in TARGETS:
                for fields in CREDENTIALS:
                    for _ in range(3):
                        await seen.ask(client, target, fields)
                for pair in QUERIES:
                    for _ in range(2):
                        await seen.ask(client, f"{target}?{pair}", CREDENTIALS[3])
                await seen.explain(admin, client, target)
                await seen.explain(admin, client, f"{target}?{QUERIES[0]}&page=1")
            await app.engine.settle()
            await Hottest(app.engine.tiers, 1000, leads=lambda: False).publish()
            purged = await admin.post("/purge", json={"keys": [f"/query?{QUERIES[0]}"]})
            assert purged.status_code == 200
            again = await seen.ask(client, f"/query?{QUERIES[0]}", CREDENTIALS[3])
            assert "fwd=miss" in again.headers["cache-status"] or "fwd=stale" in again.headers["cache-status"]
            await app.engine.settle()
            texts = await seen.all(admin)
            stored = [name for name in texts if f"{store._prefix}e:" in name]
            assert len(stored) > 25
            for name, text in texts.items():
                for form, trace in traces():
                    assert trace not in text, (form, name, text)

    if way == "app":
        async with running(app) as client:
            await asked(client)
    else:
        async with (
            served(app, http=GatewayProtocol) as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            await asked(client)
    assert any(CANARY in str(request.headers) for request in api.requests)


def test_the_audit_list_has_the_purge_of_a_url_without_the_credentials_in_it() -> None:
    assert PurgeOrder(keys=[f"/query?page=1&api_key={CANARY}"]).shown(()) == "key /query?page=1&api_key=***"


async def test_the_edge_makes_the_same_digests_as_the_app() -> None:
    """Else it would miss what the app stored."""
    app = gateway(StubUpstream(answer), ROUTES, clock=TurnedClock())
    async with running(app):
        counted = Counted(app)
        line = Line(counted)
        for target in ("/authorization", "/follows", "/query?api_key=1", "/whole"):
            head = f"GET {target} HTTP/1.1\r\nHost: g.test\r\nAuthorization: a\r\nX-Api-Key: b\r\n\r\n".encode()
            if target in ("/follows", "/query?api_key=1"):  # with it, the app is asked
                head = head.replace(b"Authorization: a\r\n", b"")
            for _ in range(3):
                await asked(line, head)
            before = counted.asked
            assert b"; hit" in await asked(line, head)
            assert counted.asked == before, target
