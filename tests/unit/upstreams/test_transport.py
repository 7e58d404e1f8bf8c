"""The transport: the target as it is, no redirect, no proxy, no cookie."""

from __future__ import annotations

import pytest

from gateway.config.upstream import UpstreamConfig
from gateway.errors import (
    UpstreamError,
)
from gateway.http.target import normalise
from gateway.upstreams.client import Upstream
from tests.support.guarded_upstreams import OK, ask, speaking_to
from tests.support.raw import Connection, always, once, raw_upstream
from tests.support.target_forms import FORMS


@pytest.mark.parametrize("target", FORMS)
async def test_no_form_of_a_target_leaves_scheme_host_port_or_prefix(target: str) -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append(await connection.request())
        await connection.send(OK)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, path="/prefix")
        try:
            await ask(upstream, target)
        except UpstreamError:
            assert heads == []
        else:
            host = raw.url.removeprefix("http://").encode()
            line, _, rest = heads[0].partition(b"\r\n")
            assert line == b"GET /prefix" + target.encode() + b" HTTP/1.1"
            assert b"host: " + host + b"\r\n" in (rest.lower())
            assert rest.lower().count(b"host:") == 1
        assert upstream.places.taken == 0
        await upstream.aclose()


async def test_a_redirect_is_handed_on_and_never_followed() -> None:
    async with raw_upstream(always(OK)) as inside:
        head = f"HTTP/1.1 302 Found\r\nLocation: {inside.url}/secret\r\nContent-Length: 0\r\n\r\n".encode()
        async with raw_upstream(always(head)) as raw:
            upstream = speaking_to(raw)
            assert await ask(upstream) == (302, b"")
            assert (await upstream.get("/")).status_code == 302
            assert inside.connections == 0
            await upstream.aclose()


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_upstream(always(OK)) as proxy, raw_upstream(always(OK)) as raw:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for transport in ("aiohttp", "httpx"):
            config = UpstreamConfig.model_validate({"url": raw.url, "transport": transport})
            upstream = Upstream("raw", config)
            await ask(upstream)
            await upstream.aclose()
        assert proxy.connections == 0


async def test_no_cookie_of_one_request_is_sent_with_the_next() -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            heads.append(head)
            await connection.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1\r\nContent-Length: 2\r\n\r\nok")

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        for _ in range(2):
            await ask(upstream)
        await upstream.aclose()
    assert b"cookie" not in heads[1].lower()


async def test_nothing_is_sent_that_nobody_set_and_the_target_keeps_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append(await connection.request())
        await connection.send(OK)

    target = str(normalise(b"/a%2Cb/c%3Bd/%C3%A9", b"x=%2C%3D&y=a+b%20c"))
    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        await ask(upstream, target)
        await upstream.aclose()
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /a%2Cb/c%3Bd/%C3%A9?x=%2C%3D&y=a+b%20c HTTP/1.1"
    assert [line.split(":")[0].lower() for line in lines[1:] if line] == ["host"]


async def test_redirects_are_not_followed() -> None:
    async with raw_upstream(once(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")) as raw:
        upstream = speaking_to(raw)
        assert (await ask(upstream))[0] == 302
        assert raw.connections == 1
        await upstream.aclose()


async def test_the_httpx_transport_can_be_chosen() -> None:
    async with raw_upstream(always(OK)) as raw:
        upstream = Upstream("raw", UpstreamConfig.model_validate({"url": raw.url, "transport": "httpx"}))
        assert await ask(upstream) == (200, b"ok")
        await upstream.aclose()
