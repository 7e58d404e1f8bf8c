"""A server that writes head and body apart does not cost a delayed acknowledgement on a kept connection."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.config.upstream import UpstreamConfig
from gateway.upstreams.client import Upstream

DELAYED = 0.04
"""Seconds for which Linux delays an acknowledgement at least (TCP_DELACK_MIN)."""


class Apart(http.server.BaseHTTPRequestHandler):
    """Python's own server: it writes the head, then the body, with Nagle's algorithm."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def do_OPTIONS(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def apart() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Apart)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
@pytest.mark.parametrize("method", ["GET", "OPTIONS"], ids=["plain", "session"])
async def test_a_body_that_is_written_apart_comes_at_once(method: str, apart: str) -> None:
    upstream = Upstream("up", UpstreamConfig.model_validate({"url": apart}))
    took = []
    for _ in range(30):
        began = time.perf_counter()
        fetched = await upstream.fetch(method, "/", [])
        assert await fetched.body.whole(100) == b"hello"
        took.append(time.perf_counter() - began)
    await upstream.aclose()
    assert sorted(took)[15] < DELAYED / 2, f"{sorted(took)[15] * 1000:.1f} ms a request"
