"""TLS of real gateways: docs/tls.md's configurations, clients that no one here wrote, certificates that change."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.processes import GatewayProcess, StartGateway
from tests.support.raw import Connection, raw_upstream
from tests.support.snippets import Block, sections
from tests.support.tls import Authority

PAGE = Path(__file__).parents[2] / "docs/tls.md"
BLOCKS: dict[str, list[Block]] = {section.title: section.blocks for section in sections(PAGE)}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


def place(authority: Authority, folder: Path, name: str) -> None:
    """A new certificate where the page has it."""
    certificate, key = authority.issue(name, alternative="IP:127.0.0.1,DNS:localhost")
    for source, target in ((certificate, "cert.pem"), (key, "key.pem")):
        shutil.copy(source, folder / f"{target}.new")
        (folder / f"{target}.new").replace(folder / target)


def listening(folder: Path, origin: str, **more: Any) -> dict[str, Any]:
    """The page's configuration, its files in `folder`."""
    [block] = BLOCKS["A certificate"]
    settings = yaml.safe_load(block.text)
    assert settings["listen"]["tls"].keys() == {"cert", "key", "min", "reload"}
    settings["listen"]["tls"] |= {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem"), "reload": "1s"}
    settings["upstreams"]["api"]["url"] = origin
    del settings["port"]
    return {**settings, "access_log": False, **more}


async def connected(url: str, context: ssl.SSLContext) -> str:
    """The name in the certificate that a new connection gets, which then answers a request."""
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.read()
        return str(writer.get_extra_info("peercert")["subject"][0][0][1])
    finally:
        writer.close()


async def test_a_certificate_is_swapped_under_load_without_a_failed_handshake(
    start_gateway: StartGateway, origin: str, authority: Authority, tmp_path: Path
) -> None:
    place(authority, tmp_path, "first")
    gateway = start_gateway(listening(tmp_path, origin, workers=2, redis_url="embedded"))
    assert gateway.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    seen: list[str] = []
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            seen.append(await connected(gateway.url, context))

    async with asyncio.timeout(40):
        clients = [asyncio.ensure_future(load()) for _ in range(4)]
        while len(seen) < 50:
            await asyncio.sleep(0.01)
        place(authority, tmp_path, "second")  # seen by looking every `reload`
        while seen[-40:].count("second") < 40:
            await asyncio.sleep(0.01)
        (tmp_path / "key.pem").write_text("no key")  # broken: the previous one stays
        await asyncio.to_thread(gateway.said, "contains no private key in PEM format; the previous certificate stays")
        at = len(seen)
        while len(seen) < at + 50:
            await asyncio.sleep(0.01)
        assert set(seen[at:]) == {"second"}
        place(authority, tmp_path, "third")
        gateway.signal(signal.SIGHUP)
        while seen[-40:].count("third") < 40:
            await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*clients)  # which raises what any of them met
    assert next(iter(dict.fromkeys(seen))) == "first"
    metrics = gateway.metrics()
    assert metrics["gateway_certificate_failures_total"] >= 1
    assert 0 < metrics["gateway_certificate_expiry_seconds"] < 3 * 86400
    assert 'reason="handshake"' not in gateway.admin("/metrics").text
    assert gateway.errors.count("the previous certificate stays") == 1


def test_curl_wrk_and_python_are_served_and_older_versions_refused(
    start_gateway: StartGateway, origin: str, authority: Authority, tmp_path: Path
) -> None:
    place(authority, tmp_path, "localhost")
    gateway = start_gateway(listening(tmp_path, origin))
    url = gateway.url.replace("127.0.0.1", "localhost")
    curl = [
        "curl",
        "-sS",
        "--cacert",
        str(authority.certificate),
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version}",
    ]
    said = subprocess.run([*curl, "--http2", f"{url}/products/1"], capture_output=True, text=True, timeout=30)
    assert said.stdout == "200 1.1", said.stderr
    for version in ("1.0", "1.1"):
        refused = subprocess.run(
            [*curl, "--tls-max", version, "--tlsv1.0", "--ciphers", "DEFAULT:@SECLEVEL=0", f"{url}/products/1"],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert "alert protocol version" in refused.stderr
    with httpx.Client(verify=ssl.create_default_context(cafile=str(authority.certificate))) as client:
        ready = client.get(f"{url}/readyz").json()
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT.*", ready["certificate_expires"])
        assert "certificate_problem" not in ready
    if shutil.which("wrk"):
        ran = subprocess.run(
            ["wrk", "-t1", "-c8", "-d1s", f"{url}/products/1"], capture_output=True, text=True, timeout=30
        )
        assert "Non-2xx" not in ran.stdout
        assert "Socket errors" not in ran.stdout
        assert int(re.search(r"(\d+) requests in", ran.stdout)[1]) > 100  # type: ignore[index]


def test_a_start_without_a_usable_key_names_file_and_setting(authority: Authority, tmp_path: Path, origin: str) -> None:
    place(authority, tmp_path, "localhost")
    (tmp_path / "key.pem").unlink()
    with pytest.raises(AssertionError, match=r"listen\.tls\.key: \S+key\.pem can't be read: No such file"):
        GatewayProcess(tmp_path, listening(tmp_path, origin))


async def test_an_upstream_that_demands_a_certificate_gets_the_changed_one(
    start_gateway: StartGateway, authority: Authority, tmp_path: Path
) -> None:
    shown: list[str] = []

    async def script(connection: Connection) -> None:
        certificate = connection.writer.get_extra_info("peercert")
        while await connection.request():
            shown.append(certificate["subject"][0][0][1])
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: no-store\r\n\r\n{}")

    place(authority, tmp_path, "one")
    [block] = BLOCKS["Certificates for upstreams"]
    settings = yaml.safe_load(block.text)
    context = authority.server("localhost", clients=True)
    async with raw_upstream(script, context) as upstream, asyncio.timeout(40):
        assert settings["upstreams"]["billing"].keys() == {"url", "ca_file", "client_cert", "client_key", "tls_reload"}
        settings["upstreams"]["billing"] |= {
            "url": upstream.url,
            "ca_file": str(authority.certificate),
            "client_cert": str(tmp_path / "cert.pem"),
            "client_key": str(tmp_path / "key.pem"),
            "tls_reload": "1s",
        }
        gateway = start_gateway(settings)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as client:
            assert (await client.get("/invoices/1")).status_code == 200
            (tmp_path / "key.pem").write_text("no key")
            await asyncio.to_thread(gateway.said, "contains no private key in PEM format; the previous certificates")
            assert (await client.get("/invoices/1")).status_code == 200
            place(authority, tmp_path, "two")
            while shown[-1] != "two":
                assert (await client.get("/invoices/1")).status_code == 200
    assert list(dict.fromkeys(shown)) == ["one", "two"]
