"""Attacks by header blocks: what one client writes beside a credential changes no response for others."""

from __future__ import annotations

import json

import httpx
import pytest

from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import gateway
from tests.support.tokens import TestIssuer

issuer = TestIssuer()
WEB = {"issuer": issuer.url, "jwks": json.loads(issuer.jwks), "audience": ["web"], "from": ["x-token"]}


@pytest.mark.parametrize(
    ("field", "status"), [(b'If-None-Match: "v1", x', b" 304 "), (b"Accept-Encoding: gzip, x", b" 200 ")]
)
async def test_a_credential_that_is_found_in_another_field_changes_no_form_of_a_response(
    clock: TurnedClock, field: bytes, status: bytes
) -> None:
    body = b"much of it " * 200
    fields = {"etag": '"v1"', "content-type": "text/plain"}
    upstream = StubUpstream(lambda _: httpx.Response(200, content=body, headers=fields))
    common = {"upstream": "api", "ttl": "1000s"}
    routes = {"open": {**common, "path": "/1"}, "own": {**common, "path": "/own", "identity": ["web"]}}
    app = gateway(upstream, routes, clock=clock, identity={"web": WEB})
    counted = Counted(app)

    async def ask(more: bytes) -> bytes:
        return await asked(Line(counted), b"GET /1 HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n" % more)

    await ask(b"Accept: a/b\r\n")
    # Without what is taken for the credential, both have the lines `: X-Token` and `X-Token: FIELD`.
    await ask(b"X-Token: X-Token: X-Token\r\nX-Token: %b\r\n" % field)
    for _ in range(3):  # a compressed form is made behind the first, for the next ones
        assert status in await ask(b"%b: X-Token\r\nX-Token: %b\r\n" % (field, field))
        await app.engine.background.settle()
    for _ in range(2):
        head, _, found = (await ask(b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert found == body
