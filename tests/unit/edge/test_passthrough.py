"""Requests that no hit answers, past ASGI: who takes that way, how bodies are framed on it, and how it ends.

That the answers are the app's, byte for byte, `test_edge`'s property holds.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount

from gateway import create_app
from gateway.context import RequestContext
from gateway.edge.protocol import GatewayProtocol
from gateway.observability.access_log import fields_of
from gateway.testing import StubUpstream
from tests.support.edge_lines import GET, Counted, Line, asked
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, always, raw_upstream

NO_STORE = {"cache-control": "no-store"}


def counted(**headers: str) -> Counted:
    return Counted(gateway(StubUpstream(lambda _: httpx.Response(200, content=b"body", headers=NO_STORE | headers))))


@pytest.mark.parametrize(
    "request_head",
    [GET % b"", b"HEAD /o/1 HTTP/1.1\r\nHost: a\r\n\r\n", GET % b"Range: bytes=0-1\r\n", GET % b"Cookie: a=1\r\n"],
)
async def test_what_no_hit_answers_passes_by_the_app(request_head: bytes) -> None:
    app = counted()
    answer = await asked(Line(app), request_head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert app.passed == 1


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /o/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET /o/1 HTTP/1.0\r\n\r\n",
        b"GET /%2e%2e/1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://other.test/ HTTP/1.1\r\nHost: a\r\n\r\n",
        GET % b"Gateway-Explain: 1\r\n",
        GET % b"Upgrade: h2c\r\n",
    ],
)
async def test_where_anything_else_may_have_a_say_the_app_answers(request_head: bytes) -> None:
    app = counted()
    await asked(Line(app), request_head)
    assert (app.asked, app.passed) == (1, 0)


async def test_a_handler_with_a_more_specific_path_keeps_its_requests() -> None:
    router = APIRouter()

    @router.get("/o/{number}")
    async def own(number: int) -> dict[str, int]:
        return {"own": number}

    app = gateway(StubUpstream(lambda _: httpx.Response(200, content=b"body")))
    app.router.routes.insert(0, router.routes[0])
    line = Line(Counted(app))
    assert b'{"own":1}' in await asked(line, GET % b"")


async def answering_itself(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse(f"own {scope['path']}")(scope, receive, send)


class Unknown(BaseRoute):
    def matches(self, scope: Any) -> tuple[Match, dict[str, Any]]:
        return (Match.FULL, {}) if scope["path"].startswith("/o/") else (Match.NONE, {})

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await answering_itself(scope, receive, send)


def mounted() -> list[BaseRoute]:
    router = APIRouter()
    router.mount("/o", answering_itself)
    app = FastAPI()
    app.include_router(router)
    return [app.router.routes[-1]]


@pytest.mark.parametrize(
    "before",
    [mounted(), [Mount("/o", answering_itself)], [Host("{name}", answering_itself)], [Unknown()]],
    ids=["included", "mount", "host", "unknown"],
)
async def test_a_mount_or_what_nobody_knows_keeps_its_requests(before: list[BaseRoute]) -> None:
    app = gateway(StubUpstream(lambda _: httpx.Response(200, content=b"body", headers=NO_STORE)))
    app.router.routes[:0] = before
    assert b"own /o/1" in await asked(Line(Counted(app)), GET % b"")


async def test_below_no_mount_the_way_past_the_app_is_open() -> None:
    app = gateway(StubUpstream(lambda _: httpx.Response(200, content=b"body", headers=NO_STORE)))
    app.router.routes.insert(0, Mount("/other", answering_itself))
    counts = Counted(app)
    await asked(Line(counts), GET % b"")
    assert counts.passed == 1


async def test_a_chunked_answer_is_chunked_again_and_the_next_on_the_connection_is_right() -> None:
    async def body() -> AsyncIterator[bytes]:
        for piece in (b"one", b"", b"two"):
            yield piece

    app = Counted(gateway(StubUpstream(lambda _: httpx.Response(200, content=body(), headers=NO_STORE))))
    line = Line(app)
    for _ in range(2):
        answer = await asked(line, GET % b"")
        assert b"transfer-encoding: chunked\r\n" in answer
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize("ttl", ["origin", "10s"])
async def test_a_head_that_is_asked_for_by_get_has_no_body_though_the_body_has_come(ttl: str) -> None:
    async with (
        raw_upstream(always(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 4\r\n\r\nbody")) as raw,
        served(real(raw.url, ttl=ttl), http=GatewayProtocol) as url,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        for _ in range(2):
            writer.write(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.write(GET % b"Connection: close\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nbody")


async def test_a_client_that_leaves_ends_nothing_for_those_who_wait_for_the_same_fetch() -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body", headers={"cache-control": "max-age=60"}))
    app = Counted(gateway(upstream))
    upstream.gate.clear()
    first, second = Line(app), Line(app)
    first.send(GET % b"")
    await upstream.came.acquire()
    second.send(GET % b"")
    await asyncio.sleep(0)
    first.hang_up()
    await asyncio.sleep(0)
    upstream.gate.set()
    assert (await second.answer()).endswith(b"\r\n\r\nbody")
    await first.answer()
    assert (app.passed, upstream.asked) == (2, 1)
    assert app.app.underway.count == 0


@pytest.mark.parametrize("repeated", [False, True])
async def test_of_a_client_that_leaves_before_its_request_has_begun_the_upstream_hears_nothing(repeated: bool) -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body", headers=NO_STORE))
    log: list[int] = []
    settings = gateway().config.model_copy()
    app = Counted(create_app(settings, transport=upstream, log=lambda exchange, status, *_: log.append(status)))
    line = Line(app)
    if repeated:
        await asked(line, GET % b"")
    line.send(GET % b"")
    line.hang_up()
    await line.answer()
    assert (upstream.asked, log) == (int(repeated), [200] * repeated + [499])
    assert (app.passed, app.app.underway.count, len(line.protocol.tasks)) == (1 + repeated, 0, 0)


async def test_nothing_is_written_to_a_connection_that_has_ended_though_the_answer_came() -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body", headers=NO_STORE))
    log: list[int] = []
    app = Counted(
        create_app(
            gateway().config.model_copy(), transport=upstream, log=lambda exchange, status, *_: log.append(status)
        )
    )
    upstream.gate.clear()
    line = Line(app)
    line.send(GET % b"")
    await upstream.came.acquire()
    line.pipe.close()
    upstream.gate.set()
    await asyncio.wait(set(line.protocol.tasks))
    assert (line.pipe.written, log) == (b"", [499])
    line.hang_up()
    assert (log, app.app.underway.count, len(line.protocol.tasks)) == ([499], 0, 0)


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    app = Counted(
        gateway(StubUpstream(lambda request: httpx.Response(200, content=request.url.path, headers=NO_STORE)))
    )
    line = Line(app)
    line.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(5)))
    answer = b""
    while answer.count(b"HTTP/1.1 200") < 5:
        answer += await line.answer()
        await asyncio.sleep(0)
    assert [answer.index(b"\r\n\r\n/%d" % number) for number in range(5)] == sorted(
        answer.index(b"\r\n\r\n/%d" % number) for number in range(5)
    )


@pytest.mark.parametrize("said", [b"Connection: close\r\n", b"Connection: x, Close\r\n"])
async def test_a_connection_ends_with_the_answer_where_the_client_says_so(said: bytes) -> None:
    line = Line(counted())
    assert b"connection: close\r\n" in await asked(line, GET % said)
    assert line.pipe.closed


@pytest.mark.parametrize("framing", [b"Content-Length: 20\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf"])
async def test_where_the_upstream_breaks_off_so_does_the_answer(framing: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\n" + framing)

    async with (
        raw_upstream(script) as raw,
        served(real(raw.url), http=GatewayProtocol) as url,
        httpx.AsyncClient() as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(url)


async def test_a_client_that_leaves_ends_its_request_at_the_upstream_and_is_logged() -> None:
    came, ended = asyncio.Event(), asyncio.Event()
    lines: list[dict[str, Any]] = []
    logged = asyncio.Event()

    def log(exchange: RequestContext, status: int, size: int, seconds: float) -> None:
        lines.append(fields_of(exchange, status, size, seconds))
        logged.set()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 9\r\n\r\nhalf")
        came.set()
        await connection.closed()
        ended.set()

    async with raw_upstream(script) as raw, served(real(raw.url, log=log), http=GatewayProtocol) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(GET % b"")
        await reader.readuntil(b"half")
        await came.wait()
        writer.close()
        await ended.wait()
        await logged.wait()
    assert [line["status"] for line in lines] == [200]


async def test_an_interim_response_is_passed_on() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        await connection.send(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\nok")

    async with raw_upstream(script) as raw, served(real(raw.url), http=GatewayProtocol) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(GET % b"Connection: close\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(("ttl", "said"), [("10s", b"max-age=9"), ("origin", b"max-age=9"), ("origin", b"no-store")])
async def test_no_cycle_of_what_a_request_was_made_of_waits_for_the_garbage_collector(ttl: str, said: bytes) -> None:
    async with (
        raw_upstream(always(b"HTTP/1.1 200 OK\r\nCache-Control: %b\r\nContent-Length: 4\r\n\r\nbody" % said)) as raw,
        served(real(raw.url, ttl=ttl), http=GatewayProtocol) as url,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)

        async def ask(name: int) -> None:
            writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % name)
            await reader.readuntil(b"body")

        for name in range(3):
            await ask(name)
        while gc.collect():  # what one round frees may have referred to more garbage, past the garbage collector
            pass
        gc.disable()
        try:
            for name in range(3, 23):
                await ask(name)
            left = gc.collect()
        finally:
            gc.enable()
            writer.close()
    assert left < 20  # one object for each request, where a cycle has a dozen


def real(url: str, *, ttl: str = "origin", **more: Any) -> Any:
    config = {
        "redis_url": "none",
        "access_log": False,
        "upstreams": {"api": {"url": url, "timeout": "5s"}},
        "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": ttl}},
    }
    return create_app(config, **more)
