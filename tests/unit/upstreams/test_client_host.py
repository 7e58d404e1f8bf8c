"""The `Host` that upstreams are sent: the URL's, a constant, or the client's, which is then part of the key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from gateway.config.upstream import UpstreamConfig
from gateway.edge import GatewayProtocol
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, raw_upstream

A, B = {"host": "a.test"}, {"host": "b.test"}
TRANSPORTS = pytest.mark.parametrize("transport", ["aiohttp", "httpx"])


class Echo:
    """Answers with the `Host` that it was asked with, as JSON, and counts the requests."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.location = ""

    async def __call__(self, connection: Connection) -> None:
        while head := await connection.request():
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            if length := int(fields.get(b"content-length", b"0")):
                await connection.reader.readexactly(length)
            if b"chunked" in fields.get(b"transfer-encoding", b""):
                await connection.reader.readuntil(b"0\r\n\r\n")
            host = fields[b"host"].decode()
            self.hosts.append(host)
            body = f'{{"host":"{host}"}}'.encode()
            more = f"Location: {self.location}\r\n" if self.location else ""
            status = b"301 Moved" if self.location else b"200 OK"
            await connection.send(
                b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nCache-Control: max-age=60\r\n"
                b"%bContent-Length: %d\r\n\r\n"
                % (status, more.encode(), len(body))
                + (b"" if head.startswith(b"HEAD") else body)
            )


@contextlib.asynccontextmanager
async def asked(
    routes: dict[str, Any], settings: dict[str, Any], *, edge: bool = True
) -> AsyncIterator[tuple[httpx.AsyncClient, Echo, str]]:
    """A client of a gateway whose upstream `up` has these settings; the edge, or the app alone, answers it."""
    echo = Echo()
    async with raw_upstream(echo) as raw:
        app = gateway(None, routes, upstreams={"up": {"url": raw.url, **settings}})
        http: Any = GatewayProtocol if edge else "httptools"
        async with served(app, http=http) as url, httpx.AsyncClient(base_url=url) as client:
            yield client, echo, raw.url.removeprefix("http://")


ROUTES: dict[str, Any] = {
    "own": {"path": "/own/{name}", "upstream": "up", "ttl": "60s"},
    "origin": {"path": "/origin/{name}", "upstream": "up"},
    "whole": {"path": "/whole/{name}", "parts": {"one": {"upstream": "up", "path": "/one/{name}", "ttl": "60s"}}},
}


@TRANSPORTS
@pytest.mark.parametrize("edge", [True, False], ids=["edge", "app"])
@pytest.mark.parametrize("path", ["/own/1", "/origin/1", "/whole/1"])
async def test_a_host_that_is_preserved_reaches_the_upstream_and_is_part_of_the_key(
    path: str, edge: bool, transport: str
) -> None:
    async with asked(ROUTES, {"host": "preserve", "transport": transport}, edge=edge) as (client, echo, _):
        bodies = [(await client.get(path, headers=each)).text for each in (A, B, A, B, {"host": "A.Test"})]
        assert echo.hosts == ["a.test", "b.test"]
        assert ["a.test" in body for body in bodies] == [True, False, True, False, True]


@TRANSPORTS
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_requests_that_pass_by_the_cache_have_the_clients_host_too(method: str, transport: str) -> None:
    async with asked(ROUTES, {"host": "preserve", "transport": transport}) as (client, echo, _):
        content = b"{}" if method in ("POST", "PUT") else None
        assert (await client.request(method, "/own/2", headers=A, content=content)).status_code == 200
        authorised = {**B, "authorization": "Bearer x"}
        assert (await client.get("/own/2", headers=authorised)).json() == {"host": "b.test"}
        assert echo.hosts == ["a.test", "b.test"]


async def test_a_part_whose_request_passes_by_the_cache_has_the_clients_host() -> None:
    parts = {"one": {"upstream": "up", "path": "/one", "ttl": "60s", "authorization": "pass"}}
    posted = {"two": {"upstream": "up", "path": "/two", "method": "POST", "body": {"a": 1}}}
    routes = {"whole": {"path": "/whole", "parts": {**parts, **posted}}}
    async with asked(routes, {"host": "preserve"}) as (client, echo, _):
        for each in (A, B):
            whole = (await client.get("/whole", headers={**each, "authorization": "Bearer x"})).json()
            assert whole == {"one": each, "two": each}
        assert sorted(echo.hosts) == ["a.test"] * 2 + ["b.test"] * 2


@TRANSPORTS
@pytest.mark.parametrize("settings", [{"host": "Tenant.internal:8080"}, {"headers": {"Host": "tenant.internal:8080"}}])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
async def test_a_constant_host_is_sent_for_all(method: str, settings: dict[str, Any], transport: str) -> None:
    async with asked(ROUTES, {**settings, "transport": transport}) as (client, echo, _):
        for each in (A, B):
            await client.request(method, "/own/3", headers=each, content=b"{}" if method == "POST" else None)
        await client.get("/whole/3", headers=A)
        assert set(echo.hosts) == {"tenant.internal:8080"}
        assert len(echo.hosts) == {"GET": 2, "HEAD": 2}.get(method, 3)  # one for both, where it is stored


async def test_the_host_of_the_url_is_sent_unless_told_otherwise() -> None:
    for settings in ({}, {"host": "upstream"}):
        async with asked(ROUTES, settings) as (client, echo, own):
            for each in (A, B):
                await client.get("/own/4", headers=each)
                await client.post("/own/4", headers=each)
            assert set(echo.hosts) == {own}


async def test_a_purge_of_a_url_hits_what_is_stored_for_all_hosts() -> None:
    routes = {"own": {**ROUTES["own"], "purge_from": ["127.0.0.0/8"]}}
    async with asked(routes, {"host": "preserve"}) as (client, echo, _):
        for _ in range(2):
            await asyncio.gather(*(client.get("/own/5", headers=each) for each in (A, B)))
        assert len(echo.hosts) == 2
        assert (await client.request("PURGE", "/own/5", headers=A)).status_code == 200
        await asyncio.gather(*(client.get("/own/5", headers=each) for each in (A, B)))
        assert len(echo.hosts) == 4


async def test_a_reference_with_the_host_that_was_sent_is_mapped_to_where_clients_find_it() -> None:
    routes = {"own": {"path": "/shop/{name}", "upstream": "up", "upstream_path": "/inside/{name}", "ttl": "60s"}}
    async with asked(routes, {"host": "tenant.internal"}) as (client, echo, _):
        echo.location = "http://tenant.internal/inside/7"
        assert (await client.get("/shop/6")).headers["location"] == "/shop/7"
        echo.location = "http://tenant.internal/elsewhere"
        assert (await client.get("/shop/8")).headers["location"] == "http://tenant.internal/elsewhere"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "presrve"}, "did you mean preserve"),
        ({"host": "http://shop.example.com"}, "not a URL"),
        ({"host": "a.test, b.test"}, "must be upstream, preserve"),
        ({"host": ""}, "must be upstream, preserve"),
        ({"host": "a.test\r\nx: y"}, "must be upstream, preserve"),
        ({"headers": {"host": "a b"}}, "must be a host name"),
        ({"host": "a.test", "headers": {"Host": "b.test"}}, "set twice"),
    ],
)
def test_a_host_that_is_none_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UpstreamConfig.model_validate({"url": "http://up.test", **settings})


@pytest.mark.parametrize("host", ["shop.example.com", "catalog", "10.0.0.1:80", "[::1]:8080", "a_b.test", "shop.test."])
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert UpstreamConfig.model_validate({"url": "http://up.test", "host": host}).host_sent == host
