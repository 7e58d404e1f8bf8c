"""TLS to upstreams: whom the gateway trusts, what it shows, and files that can't be used. Real servers throughout."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.app.gateway import create_app
from gateway.config.loader import load
from gateway.config.upstream import UpstreamConfig
from gateway.errors import ConfigError, UpstreamUnreachable
from gateway.upstreams.client import Upstream
from tests.support.raw import OK, always, raw_upstream
from tests.support.tls import Authority

WAYS = pytest.mark.parametrize(
    ("transport", "method"),
    [("aiohttp", "GET"), ("aiohttp", "POST"), ("httpx", "GET")],
    ids=["plain", "session", "httpx"],
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "our authority")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("others"), "another authority")


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


def written(folder: Path, **settings: object) -> Path:
    file = folder / "gateway.yaml"
    lines = [f"    {name}: {value}" for name, value in settings.items()]
    file.write_text("\n".join(["redis_url: none", "upstreams:", "  up:", "    url: https://up.test", *lines, ""]))
    return file


@pytest.fixture
def files(tmp_path: Path, ours: Authority, others: Authority) -> dict[str, str]:
    certificate, key = ours.issue("gateway")
    text, locked = tmp_path / "text.pem", tmp_path / "locked.key"
    text.write_text("no certificate\n")
    ours._openssl("ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked)
    return {
        "{away}": str(tmp_path / "away.pem"),
        "{folder}": str(tmp_path),
        "{text}": str(text),
        "{locked}": str(locked),
        "{cert}": str(certificate),
        "{key}": str(key),
        "{other}": str(others.issue("gateway")[1]),
    }


@pytest.mark.parametrize(
    ("settings", "line", "key", "message"),
    [
        ({"ca_file": "{away}"}, 5, "ca_file", "can't be read: No such file or directory"),
        ({"ca_file": "{folder}"}, 5, "ca_file", "can't be read: Is a directory"),
        ({"ca_file": "{text}"}, 5, "ca_file", "contains no certificates in PEM format"),
        ({"client_cert": "{away}"}, 5, "client_cert", "can't be read"),
        ({"client_cert": "{text}", "client_key": "{key}"}, 5, "client_cert", "contains no certificate in PEM format"),
        ({"client_cert": "{cert}", "client_key": "{away}"}, 6, "client_key", "can't be read"),
        ({"client_cert": "{cert}", "client_key": "{text}"}, 6, "client_key", "contains no private key"),
        ({"client_cert": "{cert}", "client_key": "{other}"}, 6, "client_key", "is not the key of the certificate"),
        ({"client_cert": "{cert}", "client_key": "{locked}"}, 6, "client_key", "without a passphrase"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place(
    settings: dict[str, str], line: int, key: str, message: str, files: dict[str, str], tmp_path: Path
) -> None:
    named = {name: files.get(value, value) for name, value in settings.items()}
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, **named), environ={}, dotenv=None)
    [problem] = raised.value.problems
    assert problem.source.endswith(f"gateway.yaml line {line}")
    assert problem.key == f"upstreams.up.{key}"
    assert message in problem.message
    upstream = {"url": "https://up.test", **named}
    with pytest.raises(ConfigError, match=f"upstreams.up.{key}"):
        create_app({"redis_url": "none", "upstreams": {"up": upstream}})


def test_ssl_cert_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE: /nowhere\.pem can't be read"):
        load(written(tmp_path), environ={"SSL_CERT_FILE": "/nowhere.pem"}, dotenv=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://up.test", "ca_file": "ca.pem"}, "ca_file requires a URL with https"),
        ({"url": "https://up.test", "ca_file": "ca.pem", "verify": False}, "no effect with `verify: false`"),
        ({"url": "https://up.test", "client_key": "a.key"}, "client_key requires client_cert"),
        ({"url": "https://up.test", "tls_name": "https://api"}, "isn't a host name"),
        ({"url": "https://up.test", "tls_name": "api:443"}, "isn't a host name"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UpstreamConfig.model_validate(settings)
