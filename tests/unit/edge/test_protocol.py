"""What was remembered of a request line or a header block is no way around what the first reading refuses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.testing import StubUpstream
from tests.support.edge_lines import Counted, Line, asked, get
from tests.support.gateways import gateway

# --- OPTIONS * ---------------------------------------------------------------------------------------------

OF_THE_SERVER = [
    b"OPTIONS * HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n" % fields
    for fields in (
        b"",
        b"Content-Length: 0\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"Origin: https://a.test\r\n",
    )
] + [b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"]


@pytest.mark.parametrize("request_head", OF_THE_SERVER)
async def test_options_of_the_server_are_answered_and_the_connection_goes_on(request_head: bytes) -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body"))
    line = Line(Counted(gateway(upstream, cors={"allow_origins": ["https://a.test"]})))
    for _ in range(2):
        answer = await asked(line, request_head)
        assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"\r\nallow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n" in answer
        assert b"content-length" not in answer
    assert upstream.asked == 0
    assert (await asked(line, get(b"/x"))).endswith(b"body")


@pytest.mark.parametrize(
    "request_head",
    [
        *(
            b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HEAD * HTTP/1.1\r\nHost: a\r\n\r\n",
            b"OPTIONS *a HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        *(
            b"OPTIONS * HTTP/1.1\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: a b\r\n\r\n",
            b"POST * HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
    ],
)
async def test_nothing_else_is_asked_of_the_server(request_head: bytes) -> None:
    line = Line(Counted(gateway(StubUpstream(lambda _: httpx.Response(200)))))
    assert (await asked(line, request_head)).startswith(b"HTTP/1.1 400 ")


async def test_the_app_alone_answers_options_of_the_server() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "OPTIONS",
        "path": "*",
        "raw_path": b"*",
        "query_string": b"",
        "headers": [(b"host", b"a")],
    }
    await gateway(StubUpstream(lambda _: httpx.Response(200)))(scope, receive, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"allow"][:3]) == (204, b"GET")
