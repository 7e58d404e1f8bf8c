"""downstream: responses with fields that settings set, add and remove; on the edge as by the app, whatever came before,
and so that other caches are told what protects them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway import create_app
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import Both, Changing, Side

CHANGED = {
    "request": {},
    "response": {
        "set": {"X-Frame-Options": "DENY", "Cache-Control": "max-age=1"},
        "add": {"Link": ["</a>; rel=x", "</b>; rel=y"]},
        "remove": ["X-Secret", "ETag"],
    },
}
PARTS = {"p": {"upstream": "api", "path": "/p", "ttl": "5s"}, "q": {"upstream": "api", "path": "/q", "ttl": "9s"}}
ROUTES: dict[str, Any] = {
    "own": {"path": "/own/{id}", "upstream": "api", "ttl": "10s", "headers": CHANGED, "stale_while_revalidate": "5s"},
    "origin": {"path": "/origin/{id}", "upstream": "api", "headers": CHANGED},
    "whole": {"path": "/whole", "parts": PARTS, "headers": {"response": CHANGED["response"]}},
    "tagged": {"path": "/tagged", "parts": PARTS, "headers": {"response": {"set": {"X-Frame-Options": "DENY"}}}},
}
LINE = b"%b %b HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n"
ASKED = [
    LINE % (method, path, fields)
    for path in (b"/own/1", b"/origin/1", b"/whole", b"/tagged")
    for method in (b"GET", b"HEAD")
    for fields in (
        *(b"", b"If-None-Match: *\r\n", b"Range: bytes=0-1\r\n", b"Cookie: a=b\r\n", b"Authorization: x\r\n"),
        *(b"Cache-Control: only-if-cached\r\n", b"Accept-Encoding: gzip\r\n", b"Cache-Control: no-cache\r\n"),
    )
] + [LINE % (b"POST", b"/own/1", b"Content-Length: 0\r\n"), LINE % (b"PURGE", b"/own/1", b"")]


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"x-secret": "s", "cache-control": "max-age=60", "etag": '"e"'}),
        (200, {"x-secret": "s", "cache-control": "no-store"}),
        (200, {"x-secret": "s", "set-cookie": "a=b", "vary": "accept-language"}),
        (404, {"x-secret": "s"}),
        (503, {"x-secret": "s"}),
    ],
)
async def test_every_answer_of_a_route_has_the_changes(answer: tuple[int, dict[str, str]]) -> None:
    def side(clock: TurnedClock, changing: Changing, *, edge: bool) -> Side:
        changes = {"response": {"set": {"X-Up": "1"}}}
        upstreams = {"api": {"url": "http://api.test", "headers": changes, "breaker_failures": 0}}
        return Side(clock, changing, edge=edge, routes=ROUTES, upstreams=upstreams)

    changing = Changing()
    if answer[0] == 200 and "etag" in answer[1]:
        changing.headers = {}
    both = Both(changing, side, {})
    changing.say(*answer, 1)
    for turn in (0, 1, 6, 20):
        both.clock.turn(turn)
        for line in ASKED * 2:
            got = await both.ask("ask", line)
            head = got.partition(b"\r\n\r\n")[0].lower()
            assert b"x-frame-options: deny" in head, line
            assert b"x-secret" not in head, line
            assert (b"x-up: 1" in head) is (b"/whole" not in line and b"/tagged" not in line)
            if b"/tagged" not in line:
                assert b"etag" not in head, line
                assert head.count(b"link:") == 2, line


async def test_other_caches_are_told_of_cors_and_codings_whatever_is_taken_out_of_vary() -> None:
    def side(clock: TurnedClock, changing: Changing, *, edge: bool) -> Side:
        route = {"path": "/a", "upstream": "api", "ttl": "10s", "headers": {"response": {"remove": ["Vary"]}}}
        return Side(clock, changing, edge=edge, routes={"r": route}, cors={"allow_origins": ["https://a.test"]})

    both = Both(Changing(), side, {})
    both.changing.say(200, {"vary": "x-junk"}, 30)
    fields = b"Origin: https://a.test\r\nAccept-Encoding: gzip\r\n"
    for _ in range(3):
        got = (await both.ask("ask", LINE % (b"GET", b"/a", fields))).partition(b"\r\n\r\n")[0].lower()
        names = {
            name.strip() for line in got.split(b"\r\n") if line.startswith(b"vary:") for name in line[5:].split(b",")
        }
        assert {b"origin", b"accept"} <= names
        assert b"x-junk" not in names or b"fwd=" in got
        assert b"accept-encoding" in names or b"content-encoding" not in got


async def test_a_reload_changes_what_is_stored_already() -> None:
    route = {"path": "/a", "upstream": "api", "ttl": "10s"}
    base = {"redis_url": "none", "access_log": False, "upstreams": {"api": {"url": "http://api.test"}}}
    upstream = StubUpstream(lambda _: httpx.Response(200, text="body", headers={"x-secret": "s"}))
    app = create_app({**base, "routes": {"r": route}}, transport=upstream)
    changed = {**route, "headers": {"response": {"set": {"X-A": "new"}, "remove": ["X-Secret"]}}}
    async with running(app) as http:
        assert (await http.get("/a")).headers["x-secret"] == "s"
        fresh = Loaded(Config.model_validate({**base, "routes": {"r": changed}}), {}, ())
        generations = Generations(app)
        generations.reload(fresh)
        transport = httpx.ASGITransport(generations)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as after:
            answer = await after.get("/a")
        assert (answer.headers["x-a"], answer.headers.get("x-secret")) == ("new", None)
    assert upstream.asked == 1
