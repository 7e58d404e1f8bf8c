"""TLS to upstreams: whom the gateway trusts, what it shows, and files that can't be used. Real servers throughout."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.config.upstream import UpstreamConfig
from gateway.errors import UpstreamUnreachable
from gateway.upstreams.client import Upstream
from tests.support.raw import OK, always, raw_upstream
from tests.support.tls import Authority

WAYS = pytest.mark.parametrize(
    ("transport", "method"),
    [("aiohttp", "GET"), ("aiohttp", "POST"), ("httpx", "GET")],
    ids=["plain", "session", "httpx"],
)


async def ask(server: ssl.SSLContext, method: str, **settings: Any) -> tuple[int, bytes | None]:
    """The answer of this server to an upstream of these settings. Raises UpstreamError."""

    async def content() -> AsyncIterator[bytes]:
        yield b"{}"

    async with raw_upstream(always(OK), server) as raw:
        upstream = Upstream("up", UpstreamConfig.model_validate({"url": raw.url, "retry_budget": 0, **settings}))
        try:
            fetched = await upstream.fetch(method, "/", [], content() if method == "POST" else None)
            return fetched.status, await fetched.body.whole(100)
        finally:
            await upstream.aclose()


@WAYS
async def test_the_authorities_of_ca_file_are_trusted_and_no_others(
    method: str, transport: str, ours: Authority, others: Authority
) -> None:
    file = str(ours.certificate)
    assert await ask(ours.server("localhost"), method, ca_file=file, transport=transport) == (200, b"ok")
    with pytest.raises(UpstreamUnreachable) as raised:
        await ask(others.server("localhost"), method, ca_file=file, transport=transport)
    assert raised.value.cause == "certificate"
    with pytest.raises(UpstreamUnreachable):
        await ask(ours.server("localhost"), method, transport=transport)
    assert await ask(others.server("localhost"), method, verify=False, transport=transport) == (200, b"ok")


@WAYS
async def test_a_client_certificate_is_shown(method: str, transport: str, ours: Authority, others: Authority) -> None:
    server = ours.server("localhost", clients=True)
    trusted = {"ca_file": str(ours.certificate), "transport": transport}
    certificate, key = ours.issue("gateway")
    shown = {"client_cert": str(certificate), "client_key": str(key)}
    assert await ask(server, method, **trusted, **shown) == (200, b"ok")
    together = ours.folder / "together.pem"
    together.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert await ask(server, method, **trusted, client_cert=str(together)) == (200, b"ok")
    with pytest.raises(UpstreamUnreachable):
        await ask(server, method, **trusted)
    foreign, foreign_key = others.issue("gateway")
    with pytest.raises(UpstreamUnreachable):
        await ask(server, method, **trusted, client_cert=str(foreign), client_key=str(foreign_key))


@WAYS
async def test_the_name_in_the_certificate_can_be_another_than_the_urls(
    method: str, transport: str, ours: Authority
) -> None:
    server, names = ours.server("api.internal"), list[str | None]()
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    settings = {"ca_file": str(ours.certificate), "transport": transport}
    assert await ask(server, method, **settings, tls_name="API.internal") == (200, b"ok")
    with pytest.raises(UpstreamUnreachable) as raised:
        await ask(server, method, **settings, host="api.internal")  # Host says nothing to TLS
    assert raised.value.cause == "certificate"
    assert "mismatch" in raised.value.text
    assert names == ["api.internal", "localhost"]


@WAYS
async def test_an_expired_certificate_is_refused_with_its_reason(method: str, transport: str, ours: Authority) -> None:
    with pytest.raises(UpstreamUnreachable) as raised:
        await ask(ours.server("localhost", days=-1), method, ca_file=str(ours.certificate), transport=transport)
    assert raised.value.why == ("certificate", "certificate has expired")


@WAYS
async def test_ssl_cert_file_of_the_environment_is_honoured(
    method: str, transport: str, ours: Authority, others: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.certificate))
    assert await ask(ours.server("localhost"), method, transport=transport) == (200, b"ok")
    own = {"ca_file": str(others.certificate), "transport": transport}
    assert await ask(others.server("localhost"), method, **own) == (200, b"ok")
    with pytest.raises(UpstreamUnreachable):
        await ask(ours.server("localhost"), method, **own)
