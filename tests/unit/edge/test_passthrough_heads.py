"""Heads of responses past ASGI: whatever an upstream writes in them, a client gets what the app would send."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import Any

import pytest

from gateway.testing import TurnedClock
from tests.support.edge_lines import Counted, Line, asked, masked
from tests.support.gateways import gateway
from tests.support.raw import Connection, raw_upstream

ROUTES: dict[str, dict[str, Any]] = {
    "origin": {"ttl": "origin"},
    "stored": {"ttl": "1000s", "vary": ["accept"], "client_ttl": "5s"},
    "changed": {
        "ttl": "origin",
        "headers": {"response": {"set": {"x-set": "7291046385 100%b"}, "remove": ["etag"], "add": {"x-b": "%"}}},
    },
    "lifetime": {"ttl": "origin", "headers": {"response": {"set": {"cache-control": "max-age=5"}}}},
}
FIELDS = {
    "plain": b'ETag: "%d"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:%02d GMT\r\nCache-Control: no-store\r\n',
    "percent signs": b'ETag: "%%b%d%%"\r\nX-A: 100%% %%s %%(a)s\r\nCache-Control: max-age=%d\r\n',
    "placeholders": b'X-A: 7291046385\r\nETag: "%d"\r\nCache-Control: max-age=729104638%d\r\n',
    "a placeholder, and no lifetime": b'X-A: 7291046385\r\nAge: %d\r\nETag: "%d"\r\nCache-Control: no-store\r\n',
    "a placeholder as tag": b"ETag: 7291046385\r\nX-A: 1\r\nLast-Modified: %d%d\r\nCache-Control: private\r\n",
    "odd lifetimes": b'Cache-Control: max-age=00%d\r\nETag: W/"%d"\r\n',
    "no lifetime": b'Cache-Control: max-age=\r\nAge: %d\r\nETag: "%d"\r\n',
    "doubled names": b'X-A: %d\r\nX-A: b\r\nCache-Control: no-store\r\nETag: "%d"\r\n',
    "two ages": b"Age: %d\r\nAge: %d\r\nCache-Control: no-store\r\n",
    "cookies": b"Set-Cookie: a=%d\r\nSet-Cookie: b=%d\r\nCache-Control: no-store\r\n",
    "a new value each time": b'X-A: %d\r\nCache-Control: no-store\r\nETag: "%d"\r\n',
    "variants": b'Vary: Accept, Origin\r\nETag: "%d"\r\nCache-Control: max-age=%d0\r\n',
    "fields of the gateway": b"X-Request-ID: up\r\nCache-Status: up; hit\r\nServer-Timing: a;dur=%d\r\nAge: %d\r\n",
    "fields of CORS": b'Access-Control-Allow-Origin: *\r\nETag: "%d"\r\nAge: %d\r\nCache-Control: no-store\r\n',
    "fields of one hop": b'Connection: x-a\r\nX-A: %d\r\nETag: "%d"\r\nKeep-Alive: timeout=5\r\n',
    "a tag of one hop": b'Connection: etag\r\nETag: "%d"\r\nAge: %d\r\nCache-Control: no-store\r\n',
    "bytes beyond ASCII": b'X-A: \xe4\xff\r\nETag: "\x80%d"\r\nAge: %d\r\nCache-Control: no-store\r\n',
    "a folded line": b'X-A: a\r\n b\r\nETag: "%d"\r\nAge: %d\r\n',
    "NUL": b'X-A: \0\r\nETag: "%d"\r\nAge: %d\r\n',
    "NUL in a tag": b"ETag: \0A%d\r\nAge: %d\r\n",
    "a long field": b"X-A: " + b"a" * 5000 + b'\r\nETag: "%d"\r\nAge: %d\r\nCache-Control: no-store\r\n',
}
DATE = b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
FORMS = {
    "whole": (b"%bContent-Length: 4\r\n\r\n", b"body"),
    "empty": (b"%bContent-Length: 0\r\n\r\n", b""),
    "a length with zeros": (b"%bContent-Length: 004\r\n\r\n", b"body"),
    "chunked": (b"%bTransfer-Encoding: chunked\r\n\r\n", b"4\r\nbody\r\n0\r\n\r\n"),
    "two lengths": (b"Content-Length: 4\r\n%bContent-Length: 4\r\n\r\n", b"body"),
}
ASKED = (
    *(b"", b"", b"", b"Origin: https://a.test\r\n", b"Origin: https://b.test\r\n", b"Origin: https://a.test\r\n"),
    *(b"Origin: https://evil.test\r\n", b"Cookie: a=1\r\n", b"Range: bytes=1-2\r\n", b'If-None-Match: "3"\r\n', b""),
    *(b"Cookie: a=1\r\nRange: bytes=0-1\r\n", b"Cookie: a=1\r\nIf-None-Match: *\r\n", b"Cookie: a=1\r\n", b""),
)


def fields(answer: bytes) -> tuple[list[bytes], bytes]:
    """An answer's lines in any order, and its body; without an answer's place among others on its way."""
    head, _, body = masked(answer).partition(b"\r\n\r\n")
    return sorted(head.split(b"\r\n")), re.sub(rb'"request_id":"[^"]*"', b"", body)


class Two:
    """Two gateways of an upstream that says `said` on each request, one with the edge and one without."""

    def __init__(self, url: str, clock: TurnedClock) -> None:
        settings = {
            "upstreams": {"api": {"url": url, "timeout": "5s", "breaker_failures": 0}},
            "cors": {"allow_origins": ["https://a.test", "https://b.test"], "allow_credentials": True},
        }
        routes = {name: {"path": f"/{name}/{{id}}", "upstream": "api", **each} for name, each in ROUTES.items()}
        self.apps = [gateway(None, routes, clock=clock, **settings) for _ in range(2)]
        self.apps[1].edge = None
        for app in self.apps:
            app.engine._storing.jitter = lambda: 0.5
        self.counted = Counted(self.apps[0])
        self.lines = [Line(self.counted), Line(Counted(self.apps[1]))]

    async def same(self, request: bytes) -> None:
        first, second = [fields(await asked(line, request)) for line in self.lines]
        assert first == second, request
        for line in self.lines:
            assert not line.pipe.closed


@pytest.mark.parametrize(
    ("form", "names", "routes", "times"),
    [
        ("whole", [*FIELDS], [*ROUTES], 1),
        *((form, ["plain", "percent signs", "no lifetime"], ["origin"], 1) for form in FORMS if form != "whole"),
        ("whole", ["percent signs", "placeholders", "bytes beyond ASCII"], ["origin", "stored"], 6),
        ("whole", ["plain", "fields of one hop", "fields of the gateway"], ["origin", "changed"], 6),
        ("a length with zeros", ["plain"], ["origin"], 6),
    ],
)
async def test_a_head_is_the_apps_whatever_the_upstream_writes(
    clock: TurnedClock, form: str, names: list[str], routes: list[str], times: int
) -> None:
    """Also of new targets each time, so often that the upstream's heads are read by the pattern of their form."""
    said, (frame, body) = b"", FORMS[form]

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            await connection.send(said + (b"" if request.startswith(b"HEAD ") else body))

    async with raw_upstream(script) as upstream, contextlib.AsyncExitStack() as running:
        two = Two(upstream.url, clock)
        for app in two.apps:
            await running.enter_async_context(app.lifespan(app))
        for number, (name, route) in enumerate(itertools.product(names, routes)):
            given = FIELDS[name]
            for at, more in enumerate(ASKED * times):
                values = given % (at, at % 10) if b"%d" in given else given
                date = b"" if at % 7 == 6 else DATE
                said = b"HTTP/1.1 200 OK\r\n" + frame % (values + date)
                method = b"HEAD" if at == 4 else b"GET"
                target = b"/%b/%d-%d" % (route.encode(), number, 0 if times == 1 else at)
                await two.same(b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, target, more))
        if form == "whole":
            assert two.counted.passed > 100
            heads: Any = two.counted.edge.pass_through._pass_through.heads
            assert sum(each is not None for each in heads._forms.values()) > (50 if times == 1 else 5)
            if times > 1:
                assert len(heads._by_form) > 5
                connections: Any = two.apps[0].upstreams["api"]._connections
                assert connections.forms.match(said) is not None
