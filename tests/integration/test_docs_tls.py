"""docs/deploying/tls.md: its nginx and its Caddy terminate TLS in front of a gateway with the settings of the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.asyncio.client import connect

from tests.shared_caches.fronts import program
from tests.support import http3
from tests.support.processes import Child, GatewayProcess, StartGateway, free_port
from tests.support.raw import Connection, raw_upstream
from tests.support.snippets import Block, sections
from tests.support.tls import Authority
from tests.support.websockets import echo

PAGE = Path(__file__).parents[2] / "docs/deploying/tls.md"
BLOCKS: dict[str, Block] = {block.language: block for section in sections(PAGE) for block in section.blocks}
NGINX = program("nginx")
CADDY = Path(sys.executable).with_name("caddy")
Front = Callable[[str], str]
FORGED = {
    "x-forwarded-for": "203.0.113.9",
    "forwarded": "for=203.0.113.9;host=evil.test",
    "x-forwarded-prefix": "/evil",
}


def test_each_block_of_the_page_is_tried_here() -> None:
    assert set(BLOCKS) == {"yaml", "nginx", "caddyfile"}
    assert sum(len(section.blocks) for section in sections(PAGE)) == 3


@pytest.fixture
def behind(start_gateway: StartGateway, origin: str) -> GatewayProcess:
    settings = yaml.safe_load(BLOCKS["yaml"].text)
    settings["upstreams"]["api"]["url"] = origin
    return start_gateway(settings)


@pytest.fixture
def nginx(tmp_path: Path, behind: GatewayProcess) -> Iterator[str]:
    if NGINX is None:
        pytest.skip("nginx is missing (Debian: apt-get install nginx)")
    port = free_port()
    certificate, key = Authority(tmp_path).issue("api.example.com")
    text = BLOCKS["nginx"].text.replace("127.0.0.1:8000", behind.url.removeprefix("http://"))
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}")
    text = text.replace("/etc/ssl/api.example.com.pem", str(certificate)).replace(
        "/etc/ssl/api.example.com.key", str(key)
    )
    file = tmp_path / "nginx.conf"
    places = "".join(
        f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file.write_text(f"daemon off; pid {tmp_path}/pid; events {{}} http {{ access_log off; {places}\n{text}\n}}")
    child = Child([NGINX, "-e", "stderr", "-c", str(file)], output=tmp_path / "nginx.out", cwd=tmp_path)
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        child.end()


@pytest.fixture
def caddy(tmp_path: Path, behind: GatewayProcess) -> Iterator[str]:
    with caddy_before(behind, tmp_path) as url:
        yield url


@contextlib.contextmanager
def caddy_before(behind: GatewayProcess, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    text = BLOCKS["caddyfile"].text.replace("127.0.0.1:8000", behind.url.removeprefix("http://"))
    text = re.sub(
        r"^api\.example\.com \{", f"https://api.example.com:{port} {{\n    tls internal", text, flags=re.MULTILINE
    )
    options = "{\n    admin off\n    auto_https disable_redirects\n    skip_install_trust\n    persist_config off\n}\n"
    (tmp_path / "Caddyfile").write_text(options + text)
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = [str(CADDY), "run", "--config", "Caddyfile"]
    child = Child(command, output=tmp_path / "caddy.out", cwd=tmp_path, environment=home)
    try:
        child.said("serving initial configuration")
        yield f"https://127.0.0.1:{port}"
    finally:
        child.end()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("front", ["nginx", "caddy"])
def test_a_client_reaches_the_gateway_by_tls_and_forges_nothing(
    front: str, request: pytest.FixtureRequest, behind: GatewayProcess, tmp_path: Path
) -> None:
    url = request.getfixturevalue(front)
    names = {"headers": {"host": "api.example.com"}, "extensions": {"sni_hostname": "api.example.com"}}
    retries = httpx.HTTPTransport(verify=False, retries=50)
    with httpx.Client(base_url=url, transport=retries, timeout=20) as client:
        first = client.get("/products/7", **names)
        assert first.headers["cache-status"].startswith("gateway; fwd=miss; stored")
        names["headers"] |= FORGED
        again = client.get("/products/7", **names)
        assert again.headers["cache-status"].startswith("gateway; hit")
    behind.end()  # what is logged is written in batches, the last one at the end
    log = (tmp_path / "gateway.log").read_text()
    assert "203.0.113.9" not in log
    assert '"client":"127.0.0.1"' in log


async def told(connection: Connection) -> None:
    """Answers by the fields of the request, as JSON."""
    while head := await connection.request():
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
        body = json.dumps(fields).encode()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )


@pytest.mark.timeout(120)
async def test_http_2_and_3_and_websockets_pass_caddy_which_is_believed_while_it_is_trusted(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    settings = yaml.safe_load(BLOCKS["yaml"].text)
    del settings["public_url"]  # the host and scheme are those that Caddy tells
    settings["routes"] = {
        "product": {"path": "/products/{id}", "upstream": "api", "cache": "off"},
        "talk": {"path": "/talk", "upstream": "talk", "websocket": True},
    }
    host, anyone = "api.example.com", ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    async with raw_upstream(told) as upstream, echo() as server:
        settings["upstreams"] = {"api": {"url": upstream.url}, "talk": {"url": server.url}}
        gateway = await asyncio.to_thread(start_gateway, settings)
        with caddy_before(gateway, tmp_path) as url:
            port = int(url.rpartition(":")[2])
            by_2, by_3 = await by_http_2(url, host), await by_http_3(port, host)
            wss = f"wss://{host}:{port}/talk"
            async with connect(wss, host="127.0.0.1", ssl=anyone, local_addr=("127.0.0.2", 0)) as client:
                await client.send("hello")
                assert await client.recv() == "hello"
            gateway.file.write_text(yaml.safe_dump(yaml.safe_load(gateway.file.read_text()) | {"trusted_proxies": []}))
            gateway.signal(signal.SIGHUP)
            await asyncio.to_thread(gateway.said, "configuration reloaded, 1 change")
            not_trusted = await by_http_2(url, host)
        gateway.end()
    for fields, address in ((by_2, "127.0.0.2"), (by_3, "127.0.0.1"), (server.requests[0], "127.0.0.2")):
        assert fields["x-forwarded-for"] == f"{address}, 127.0.0.1"
        assert (fields["x-forwarded-proto"], fields["x-forwarded-host"].partition(":")[0]) == ("https", host)
    assert (not_trusted["x-forwarded-for"], not_trusted["x-forwarded-proto"]) == ("127.0.0.1", "http")


async def by_http_2(url: str, host: str) -> dict[str, str]:
    """What the upstream was told of a client from an address of its own."""
    names: dict[str, Any] = {"headers": {"host": host, **FORGED}, "extensions": {"sni_hostname": host}}
    transport = httpx.AsyncHTTPTransport(http2=True, verify=False, local_address="127.0.0.2", retries=50)
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        answer = await client.get(f"{url}/products/7", **names)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        assert answer.headers["cache-status"].startswith("gateway; fwd=bypass")
        fields: dict[str, str] = answer.json()
        return fields


async def by_http_3(port: int, host: str) -> dict[str, str]:
    fields, body = await http3.get(port, host, "/products/7")
    assert fields[":status"] == "200"
    assert fields["cache-status"].startswith("gateway; fwd=bypass")
    found: dict[str, str] = json.loads(body)
    return found
