"""Hits before ASGI: the edge answers what the app would, byte for byte, or not at all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, Header
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from gateway.context import Result
from gateway.edge.client_connection import AT_A_TIME
from gateway.errors import ConfigError
from gateway.http.codings import tag_of
from gateway.observability.metrics import Metrics
from gateway.routing.cached_decorator import cached
from gateway.testing import StubUpstream, TurnedClock
from tests.support import scale
from tests.support.edge_lines import GET, Both, Changing, Counted, Line, Side, asked, living, masked, plain
from tests.support.gateways import gateway
from tests.support.scale import size

EXAMPLES = size("edge_stories")
TIMEOUT = scale.FULL_TIMEOUT if scale.current == "full" else 300.0
"""Seconds; on an idle machine the stories take 15. Cut off within one, they leave counts that differ by one."""


ROUTES: dict[str, Any] = {
    "own": {"path": "/own/{id}", "upstream": "api", "ttl": "10s", "vary": ["accept", "x-flavour"], "tags": ["t:{id}"]},
    "stale": {"path": "/stale/{id}", "upstream": "api", "ttl": "4s", "stale_while_revalidate": "20s", "tags": ["s"]},
    "cookies": {"path": "/cookies/{id}", "upstream": "api", "ttl": "10s", "cookies": ["a"], "authorization": "key"},
    "quick": {"path": "/quick/{id}", "upstream": "api", "ttl": "10s", "client_ttl": "3s", "authorization": "ignore"},
    "origin": {"path": "/{path:path}", "upstream": "api"},
}
CORS = {"allow_origins": ["https://app.test", "https://other.test"], "allow_credentials": True}


# --- the property ------------------------------------------------------------------------------------------

CODED = [tag_of(b'"v1"', "br").decode(), tag_of(b'W/"v1"', "gzip").decode()]
MAYBE: dict[str, list[str | None]] = {
    "Accept": [None, None, "application/json", "text/html, application/json"],
    "X-Flavour": [None, None, "sweet"],
    "Accept-Encoding": [None, "gzip", "gzip, br", "br,gzip", "zstd;q=0.5, gzip;q=0", "*", "identity"],
    "Accept-Language": [None, "de", "en"],
    "Origin": [None, None, "https://app.test", "https://other.test", "https://evil.test"],
    "Cookie": [None, None, None, "a=1", "a=2; b=3", "b=3"],
    "Authorization": [None, None, None, "Bearer x"],
    "If-None-Match": [None, None, '"v1"', 'W/"v1"', '"x", W/"v1"', "*", '"v2"', "", "v1", *CODED],
    "If-Modified-Since": [None, None, "Fri, 15 Jan 2027 08:00:00 GMT", "Thu, 14 Jan 2027 08:00:00 GMT", "nonsense"],
    "Range": [None, None, None, None, None, "bytes=0-2"],
    "Cache-Control": [None, None, None, None, None, "no-cache", "max-age=2", "max-stale=30", "only-if-cached"],
    "Connection": [None, None, None, "close", "keep-alive", "X-Flavour", "Close, X-Flavour"],
    "X-Request-ID": [None, "abc-1", "abc-2", "not an id", "a" * 129],
    "Traceparent": [None, "00-1", "00-2"],
}
PATHS = (
    "/own/1",
    "/own/1?b=1&a=2",
    "/own/%31",
    "/stale/1",
    "/cookies/1",
    "/quick/1",
    "/o/1",
    "/o/2",
    "/a//b",
    "/%2e%2e",
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(("GET", "GET", "GET", "GET", "HEAD", "POST")))
    path = draw(st.sampled_from(PATHS))
    version = draw(st.sampled_from(("1.1", "1.1", "1.1", "1.1", "1.0")))
    lines = ["Host: gateway.test"]
    for name in draw(st.lists(st.sampled_from(sorted(MAYBE)), max_size=4, unique=True)):
        value = draw(st.sampled_from(MAYBE[name]))
        if value is not None:
            lines.append(f"{name}: {value}")
    if method == "POST":
        lines.append("Content-Length: 0")
    lines = draw(st.permutations(lines))
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode()


UPSTREAM_HEADERS: tuple[dict[str, str], ...] = (
    {"cache-control": "max-age=10", "etag": '"v1"'},
    {"cache-control": "max-age=10", "vary": "Accept-Encoding", "etag": 'W/"v1"'},
    {"cache-control": "max-age=10, stale-while-revalidate=20", "vary": "Accept-Language, Origin"},
    {"cache-control": "max-age=10", "vary": "X-Request-ID"},
    {"cache-control": "max-age=5, must-revalidate", "last-modified": "Fri, 15 Jan 2027 08:00:00 GMT"},
    {"cache-control": "public, max-age=10", "access-control-allow-origin": "*", "surrogate-key": "t:1 x"},
    {"cache-control": "no-store"},
    {"cache-control": "max-age=10, no-transform", "etag": '"v1"'},
    {"cache-control": "private, max-age=10"},
    {"location": "http://api.test/o/2", "cache-control": "max-age=10", "age": "3"},
    {},
)
Step = Callable[[Side], Awaitable[object]]


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(("ask", "ask", "ask", "ask", "again", "again", "again", "turn", "purge", "say")))
    if kind == "ask":
        return kind, draw(requests())
    if kind == "turn":
        return kind, draw(st.sampled_from((0.25, 1.0, 3.0, 5.0, 9.5, 12.0)))
    if kind == "purge":
        what = draw(st.sampled_from(({"tags": ["t:1"]}, {"tags": ["s"]}, {"routes": ["origin"]}, {"everything": True})))
        return kind, {**what, "soft": draw(st.booleans())}
    if kind == "say":
        status = draw(st.sampled_from((200, 200, 200, 204, 404, 301, 503)))
        return kind, (status, draw(st.sampled_from(UPSTREAM_HEADERS)), draw(st.integers(1, 3)))
    return kind, None


def make_both() -> Both:
    return Both(Changing(), partial(Side, routes=ROUTES, cors=CORS), UPSTREAM_HEADERS[0])


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[asyncio.Runner, Both]]:
    yield from living(make_both)


STALE = ("ask", b"GET /stale/1 HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
SOFTENED: list[tuple[str, Any]] = [STALE, STALE, ("purge", {"tags": ["s"], "soft": True}), STALE, STALE]
"""Found: a refresh behind what a soft purge ended, which took it for fresh and fetched nothing."""


_CODED = b"GET /stale/1 HTTP/1.1\r\nHost: gateway.test\r\nAccept-Encoding: gzip\r\n\r\n"
LARGE = ("say", (200, {"cache-control": "max-age=10", "etag": '"v1"'}, 2))
CODED_WHEN_STALE: list[tuple[str, Any]] = [LARGE, STALE, STALE, ("turn", 5.0), ("ask", _CODED)]
"""Found: a stale answer that is not compressed yet was left to the app after its refresh had begun, which the app then
found."""


def _asking(*headers: bytes) -> list[tuple[str, Any]]:
    return [("ask", b"GET /o/1 HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n" % each) for each in headers]


_APP, _EVIL = b"Origin: https://app.test\r\n", b"Origin: https://evil.test\r\n"
ORIGINS = _asking(b"", b"", _APP, _APP, b"", _EVIL, _EVIL, _APP)
AUTHORIZED = _asking(b"", b"", b"Authorization: a\r\n", b"Authorization: a\r\n", b"")


@pytest.mark.timeout(TIMEOUT)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=st.lists(steps(), min_size=3, max_size=25))
@example(story=SOFTENED)
@example(story=CODED_WHEN_STALE)
@example(story=ORIGINS)
@example(story=AUTHORIZED)
def test_the_edge_never_answers_otherwise_than_the_app(
    both: tuple[asyncio.Runner, Both], story: list[tuple[str, Any]]
) -> None:
    runner, gateways = both
    runner.run(gateways.live(story))


def test_the_edge_counted_what_the_app_counted_and_answered_much_of_it(both: tuple[asyncio.Runner, Both]) -> None:
    _, gateways = both
    with_edge, without = gateways.sides
    assert with_edge.sent == without.sent == without.counted.asked or without.sent == 0
    assert sorted(with_edge.counts()) == sorted(without.counts())
    for route in ROUTES:
        seen = [side.app.engine.traffic.recorders[route].requests for side in gateways.sides]
        assert seen[0] == seen[1]
    assert with_edge.counted.asked < 0.9 * without.counted.asked or without.sent < 1000


# --- single promises ---------------------------------------------------------------------------------------


async def test_the_second_request_is_answered_before_the_app() -> None:
    app, _ = plain()
    line = Line(app)
    answers = [await asked(line, GET % b"") for _ in range(3)]
    assert app.asked == 1
    assert [b"fwd=miss" in answers[0], b"; hit" in answers[1], b"; hit" in answers[2]] == [True, True, True]


async def test_a_request_id_is_the_clients_where_it_is_sane_and_differs_where_it_is_not_given() -> None:
    app, _ = plain()
    line = Line(app)
    await asked(line, GET % b"")
    ids = []
    for number in (b"X-Request-ID: one\r\n", b"X-Request-ID: two\r\n", b"", b"", b"x-request-id:three\r\n"):
        answer = await asked(line, GET % number)
        ids.append(answer.partition(b"x-request-id: ")[2].partition(b"\r\n")[0])
    assert (ids[:2], ids[4], len(set(ids)), app.asked) == ([b"one", b"two"], b"three", 5, 1)


async def test_a_pipeline_of_hits_is_answered_in_order_and_a_miss_among_them_in_its_place() -> None:
    app, _ = plain()
    line = Line(app)
    await asked(line, GET % b"")
    other = (GET % b"").replace(b"/o/1", b"/o/2")
    line.send(GET % b"X-Request-ID: a\r\n" + other + GET % b"X-Request-ID: b\r\n")
    while line.pipe.written.count(b"\r\n\r\nbody") < 3:
        await asyncio.sleep(0)
    assert re.findall(rb"cache-status: gateway; (hit|fwd=miss)", await line.answer()) == [b"hit", b"fwd=miss", b"hit"]


async def test_a_pipeline_of_hits_leaves_the_others_their_turn() -> None:
    app, _ = plain()
    line, other = Line(app), Line(app)
    await asked(line, GET % b"")
    await asked(other, GET % b"")
    line.send(b"".join(GET % (b"X-Request-ID: %d\r\n" % number) for number in range(100)))
    assert len(ids_in(line.pipe.written)) == AT_A_TIME
    assert b"; hit" in await asked(other, GET % b"")
    while len(ids_in(line.pipe.written)) < 100:
        await asyncio.sleep(0)
    assert ids_in(await line.answer()) == [b"%d" % number for number in range(100)]
    assert b"; hit" in await asked(line, GET % b"")


async def test_a_client_that_leaves_in_the_middle_of_its_pipeline_is_answered_no_more() -> None:
    app, _ = plain()
    line = Line(app)
    await asked(line, GET % b"")
    line.send(GET % b"" * 100)
    line.hang_up()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(ids_in(line.pipe.written)) == AT_A_TIME


def ids_in(written: bytes) -> list[bytes]:
    return re.findall(rb"x-request-id: (\S+)\r\n", written)


async def test_nothing_more_is_written_to_a_client_that_does_not_read() -> None:
    app, _ = plain()
    line = Line(app)
    await asked(line, GET % b"")
    line.protocol.pause_writing()
    assert await asked(line, GET % b"") == b""
    line.protocol.resume_writing()
    while not line.pipe.written:
        await asyncio.sleep(0)
    assert b"; hit" in await line.answer()


async def test_a_purge_and_forgetting_are_heeded_at_once() -> None:
    app, upstream = plain(routes={"rest": {"path": "/{path:path}", "upstream": "api", "tags": ["t"]}})
    line = Line(app)
    for _ in range(2):
        await asked(line, GET % b"")
    await app.app.purge(tags=["t"])
    assert b"fwd=miss" in await asked(line, GET % b"")
    assert b"; hit" in await asked(line, GET % b"")
    app.app.edge.forget()
    before = app.asked
    assert b"; hit" in await asked(line, GET % b"")
    assert (app.asked, upstream.asked) == (before + 1, 2)


async def test_an_app_with_middleware_of_its_own_is_asked_each_time() -> None:
    class Refusing:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and (b"key", b"right") not in scope["headers"]:
                await JSONResponse({}, 401)(scope, receive, send)
                return
            await self.inner(scope, receive, send)

    app, _ = plain()
    app.app.add_middleware(Refusing)
    await app.app.start()
    line = Line(app)
    for _ in range(2):
        assert b" 200 OK" in await asked(line, GET % b"Key: right\r\n")
    assert b" 401 " in await asked(line, GET % b"")
    await app.app.stop()


async def test_a_stale_answer_is_given_at_once_and_refreshed_once_behind(clock: TurnedClock) -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body"))
    route = {"path": "/{path:path}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "60s"}
    app = Counted(gateway(upstream, {"rest": route}, clock=clock))
    line = Line(app)
    for _ in range(2):
        await asked(line, GET % b"")
    clock.turn(15)
    upstream.gate.clear()
    answers = [await asked(line, GET % b"") for _ in range(5)]
    assert all(b"; hit; ttl=-" in answer for answer in answers)
    upstream.gate.set()
    await app.app.engine.settle()
    assert (app.asked, upstream.asked) == (1, 2)
    assert b"; hit; ttl=9" in await asked(line, GET % b"")


async def test_tallies_reach_the_metrics_with_their_buckets() -> None:
    metrics = Metrics()
    tally = metrics.tally("home", Result.HIT, 200)
    tally.count, tally.seconds = 5, 1.5
    tally.slow[3] = 2
    metrics.flush()
    text = metrics.render().decode()
    assert 'gateway_requests_total{outcome="hit",route="home",status="2xx"} 5.0' in text
    buckets = re.findall(r'seconds_bucket\{le="([0-9.+Inf]+)",outcome="hit"\} ([0-9.]+)', text)
    assert [(bound, float(count)) for bound, count in buckets[:5]] == [
        *(("0.0005", 3.0), ("0.001", 3.0), ("0.0025", 3.0), ("0.005", 5.0), ("0.01", 5.0))
    ]
    assert 'gateway_request_seconds_sum{outcome="hit"} 1.5' in text


# --- handlers ----------------------------------------------------------------------------------------------


def with_handler(edge: bool, clock: TurnedClock | None = None, **more: Any) -> Counted:
    app = gateway(StubUpstream(lambda _: httpx.Response(500)), {}, clock=clock)
    router = APIRouter()

    @router.get("/sum/{a}", **more)
    @cached(ttl="30s", edge=edge)
    async def summed(a: int, b: int = 0) -> dict[str, int]:
        return {"sum": a + b}

    app.include_router(router)
    return Counted(app)


@pytest.mark.parametrize("edge", [True, False])
async def test_a_handler_is_answered_before_the_app_where_it_says_so(edge: bool, clock: TurnedClock) -> None:
    app = with_handler(edge, clock)
    line = Line(app)
    request = GET.replace(b"/o/1", b"/sum/1?b=2") % b""
    answers = [masked(await asked(line, request)) for _ in range(3)]
    assert app.asked == (1 if edge else 3)
    assert answers[1] == answers[2]
    assert re.search(rb'; hit; ttl=2[789]\r\n\r\n\{"sum":3\}$', answers[1])
    assert b" 422 " in await asked(line, GET.replace(b"/o/1", b"/sum/x") % b"")


async def test_a_handler_that_takes_the_request_id_is_answered_by_it(clock: TurnedClock) -> None:
    """The edge keeps header blocks without X-Request-ID: what it selects is not known there."""
    app = gateway(StubUpstream(lambda _: httpx.Response(500)), {}, clock=clock)

    router = APIRouter()

    @router.get("/o/1")
    @cached(ttl="30s", edge=True)
    async def echoed(x_request_id: Annotated[str | None, Header()] = None) -> str | None:
        return x_request_id

    app.include_router(router)
    line = Line(Counted(app))
    for field, body in [(b"", b"null"), (b"", b"null"), (b"X-Request-ID: a\r\n", b'"a"'), (b"", b"null")]:
        assert (await asked(line, GET % field)).endswith(b"\r\n\r\n" + body)


def test_a_handler_with_a_dependency_may_not_be_answered_before_the_app() -> None:
    def allowed() -> None: ...

    with pytest.raises(ConfigError, match=r"summed is @cached\(edge=True\) and depends on allowed"):
        with_handler(True, dependencies=[Depends(allowed)])
    with_handler(False, dependencies=[Depends(allowed)])
