"""docs/deploying/tls.md: its nginx and its Caddy terminate TLS in front of a gateway with the settings of the page."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.shared_caches.fronts import program
from tests.support.processes import Child, GatewayProcess, StartGateway, free_port
from tests.support.snippets import Block, sections
from tests.support.tls import Authority

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
