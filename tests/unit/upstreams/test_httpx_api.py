"""The gateway on httpx's fork, as if the one module that imports httpx imported the fork."""

from __future__ import annotations

import subprocess
import sys

import pytest

ON_THE_FORK = """
import asyncio, sys
import httpx2
sys.modules["httpx"] = httpx2  # as if the one module that imports httpx imported the fork
from gateway.testing import StubUpstream, running
from gateway.upstreams.client import Upstream
from tests.support.gateways import gateway, served

assert "httpx_aiohttp" not in sys.modules

async def upstream(scope, receive, send):
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    body += message["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode() + body})

async def main():
    async def parts():
        yield b"=1"
        yield b"&b=2"

    async with served(upstream) as url:
        upstreams = {
            "api": {"url": url, "transport": sys.argv[1], "timeout": "30s"},
            "gone": {"url": "http://127.0.0.1:9", "transport": sys.argv[1], "timeout": "30s"},
        }
        routes = {
            "get": {"path": "/get/{id}", "upstream": "api", "ttl": "60s"},
            "post": {"path": "/post", "upstream": "api"},
            "gone": {"path": "/gone", "upstream": "gone", "ttl": "60s"},
        }
        app = gateway(None, routes, upstreams=upstreams)
        async with running(app) as client:
            assert isinstance(client, httpx2.AsyncClient)
            for outcome in ("fwd=miss", "hit"):
                answer = await client.get("/get/1")
                assert (answer.status_code, answer.text) == (200, "/get/1"), answer.text
                assert outcome in answer.headers["cache-status"]
            for content, expected in ((parts(), "/post=1&b=2"), (b"whole", "/postwhole")):
                answer = await client.post("/post", content=content)
                assert answer.text == expected, answer.text
            gone = await client.get("/gone")
            assert (gone.status_code, "unreachable" in gone.headers["cache-status"]) == (502, True), gone.headers
            found = await app.upstreams["api"].get("/handler")
            assert (found.text, type(found)) == ("/handler", httpx2.Response)

    stub = StubUpstream(lambda request: httpx2.Response(200, text=request.url.path))
    async with running(gateway(stub)) as client:
        assert (await client.get("/stub")).text == "/stub"

asyncio.run(main())
print("done")
"""


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_the_gateway_runs_on_the_fork(transport: str) -> None:
    ran = subprocess.run([sys.executable, "-c", ON_THE_FORK, transport], capture_output=True, text=True, check=False)
    assert ran.stdout == "done\n", ran.stderr
