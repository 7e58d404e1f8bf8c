"""One URL's bytes never answer the next: every status and framing, with bytes early, late and split, over sockets."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import subprocess
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.errors import UpstreamError
from gateway.testing import TurnedClock, running
from gateway.upstreams.request import Attempt, UpstreamTimeouts
from gateway.upstreams.transport import Transport
from tests.support.gateways import gateway
from tests.support.raw import OK, POISON, SECOND, Connection, always, raw_upstream, speaking_to

STATUSES = (100, 101, 103, 200, 204, 205, 206, 301, 304, 404, 500, 503)
FRAMINGS = {
    "none": b"",
    "length": b"Content-Length: %d\r\n" % len(POISON),
    "no length": b"Content-Length: 0\r\n",
    "chunked": b"Transfer-Encoding: chunked\r\n",
    "both": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(POISON),
    "until the end": b"Connection: close\r\n",
}
CONTENT = {
    "none": b"",
    "length": b"a" * len(POISON),
    "no length": b"",
    "chunked": b"1\r\na\r\n0\r\n\r\n",
    "both": b"1\r\na\r\n0\r\n\r\n",
    "until the end": b"a",
}
WAYS = pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
"""Those without a body go by `plain_connections` where they are GET or HEAD, the others by aiohttp's session."""
ASKED_FOR = [(b"if-none-match", b'"a"'), (b"range", b"bytes=0-5")]


async def _upload() -> AsyncIterator[bytes]:
    yield b"x"


class Exchange:
    """An upstream whose first connection answers once with `first`, then sends `late` when it is told to; what is asked
    for after that is answered with SECOND, on whatever connection."""

    def __init__(self, first: list[bytes], late: list[bytes], *, ends: bool) -> None:
        self.first, self.late, self.ends = first, late, ends
        self.answered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.sent = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        request = await connection.request()
        if b" /first " in request:
            for piece in self.first:
                await connection.send(piece)
                await asyncio.sleep(0)
            self.answered.set()
            if self.ends:
                return
            await self.go_on.wait()
            for piece in self.late:
                await connection.send(piece)
            self.sent.set()
            request = await connection.request()
        while request:
            await connection.send(SECOND)
            request = await connection.request()


async def _second_after(
    method: str, exchange: Exchange, *, turns: int, tls: ssl.SSLContext | None = None
) -> bytes | None:
    """What the request for another URL gets, `turns` of the event loop after the late bytes were sent."""
    async with raw_upstream(exchange, tls) as raw:
        upstream = speaking_to(raw, timeout="2s", verify=False)
        try:
            fetched = await upstream.fetch(method, "/first", ASKED_FOR, _upload() if method == "PUT" else None)
            await fetched.body.whole(1_000_000)
            await fetched.body.aclose()
        except UpstreamError:
            pass
        await exchange.answered.wait()
        exchange.go_on.set()
        if not exchange.ends:
            await exchange.sent.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        fetched = await upstream.fetch("GET" if method == "HEAD" else method, "/second", [])
        body = await fetched.body.whole(1_000_000)
        await upstream.aclose()
        return body


@WAYS
@pytest.mark.parametrize("status", STATUSES)
async def test_no_answer_is_made_of_another_urls_bytes(status: int, method: str) -> None:
    for framing, turns in itertools.product(FRAMINGS, (0, 3)):
        head = b"HTTP/1.1 %d X\r\n%s\r\n" % (status, FRAMINGS[framing])
        bodiless = status in (204, 304) or method == "HEAD" or status < 200
        whole = head if bodiless else head + CONTENT[framing]
        final = b"" if status >= 200 else b"HTTP/1.1 204 X\r\n\r\n"
        ends = framing == "until the end" or (framing == "none" and not bodiless)
        cases = {
            "late": ([whole + final], [POISON]),
            "late and split": ([whole + final], [POISON[:9], POISON[9:]]),
            "early": ([whole + final + POISON], []),
            "early and split": ([whole + final + POISON[:9], POISON[9:]], []),
            "in the place of the content": ([head], [POISON]) if bodiless and status >= 200 else ([head, POISON], []),
        }
        for how, (first, late) in cases.items():
            got = await _second_after(method, Exchange(first, late, ends=ends), turns=turns)
            assert got == b"second", (status, framing, how, turns)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    made = tmp_path_factory.mktemp("tls")
    files = ["-keyout", str(made / "key"), "-out", str(made / "certificate")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / "certificate", made / "key")
    return context


@WAYS
@pytest.mark.parametrize("status", [200, 204, 205, 304])
async def test_no_answer_is_made_of_another_urls_bytes_by_a_name_and_tls(
    status: int, method: str, tls: ssl.SSLContext
) -> None:
    for framing, turns in itertools.product(("length", "no length", "chunked"), (0, 3)):
        head = b"HTTP/1.1 %d X\r\n%s\r\n" % (status, FRAMINGS[framing])
        bodiless = status in (204, 304) or method == "HEAD"
        whole = head if bodiless else head + CONTENT[framing]
        for first, late in (([whole], [POISON]), ([whole + POISON], []), ([whole, POISON], [])):
            exchange = Exchange(first, late, ends=False)
            assert await _second_after(method, exchange, turns=turns, tls=tls) == b"second", (status, framing, turns)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS"])
async def test_a_connection_whose_response_ended_surely_is_used_again(secured: bool, tls: ssl.SSLContext) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(SECOND)

    async with raw_upstream(script, tls if secured else None) as raw:
        upstream = speaking_to(raw, verify=False)
        for method in ("GET", "OPTIONS", "GET", "OPTIONS"):
            assert await (await upstream.fetch(method, "/", [])).body.whole(100) == b"second"
        assert raw.connections == 2, "one for each way"
        await upstream.aclose()


@pytest.mark.parametrize("ttl", ["30s", "origin"])
async def test_what_is_stored_for_a_url_is_its_own_answer(ttl: str, clock: TurnedClock) -> None:
    """The upstream's 204 announces the content that it sends a moment later."""
    head = b"HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n" % len(POISON)
    cacheable = POISON.replace(b"\r\n\r\n", b"\r\nCache-Control: max-age=60\r\n\r\n")
    exchange = Exchange([head], [cacheable], ends=False)
    async with raw_upstream(exchange) as raw:
        routes = {"all": {"path": "/{path:path}", "upstream": "raw", "ttl": ttl}}
        async with running(gateway(None, routes, clock=clock, upstreams={"raw": {"url": raw.url}})) as client:
            assert (await client.get("/first")).status_code == 204
            exchange.go_on.set()
            await exchange.sent.wait()
            assert [(await client.get("/second")).text for _ in range(3)] == ["second"] * 3


async def test_the_httpx_transport_uses_no_connection_twice() -> None:
    async with raw_upstream(Exchange([b"HTTP/1.1 204 X\r\n\r\n"], [POISON], ends=False)) as raw:
        upstream = speaking_to(raw, transport="httpx")
        for target in ("/other", "/second"):
            assert await (await upstream.fetch("GET", target, [])).body.whole(100) == b"second"
        assert raw.connections == 2
        await upstream.aclose()


async def test_connections_of_both_kinds_have_one_limit() -> None:
    async with raw_upstream(always(OK)) as raw:
        upstream = speaking_to(raw, max_connections=4)
        for methods in ("GET GET GET GET", "OPTIONS OPTIONS OPTIONS", "GET GET OPTIONS OPTIONS", "GET GET GET GET"):
            fetched = await asyncio.gather(*(upstream.fetch(method, "/", []) for method in methods.split()))
            for each in fetched:
                assert await each.body.whole(10) == b"ok"
                await each.body.aclose()
            await asyncio.sleep(0.05)  # until the server has seen what was closed
            assert raw.open <= 4
        await upstream.aclose()


async def test_a_request_on_an_idle_connection_is_written_without_a_wait() -> None:
    async with raw_upstream(always(OK)) as raw:
        upstream = speaking_to(raw, max_connections=1)
        await upstream.fetch("GET", "/", [])
        pool = upstream.transport.plain  # type: ignore[attr-defined]
        assert pool.in_use == 0
        asked = upstream.fetch("GET", "/", [])
        pending = asked.send(None)
        assert pool.in_use == 1
        assert next(iter(pool._used)).requests == 2
        assert pool.begin(f"{raw.url}", b"", Attempt(), None) is None, "the one connection is in use"
        await asyncio.wait((pending,))
        with pytest.raises(StopIteration) as answer:
            asked.send(None)
        assert answer.value.value.status == 200
        await upstream.aclose()


async def test_a_caller_that_leaves_takes_the_connection_with_it() -> None:
    """The answer that is on its way must not reach the next request."""
    release = asyncio.Event()

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(OK)
            await connection.request()
            await release.wait()
            await connection.send(OK.replace(b"200 OK", b"299 Late"))

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        await upstream.fetch("GET", "/", [])
        left = asyncio.ensure_future(upstream.fetch("GET", "/", []))
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.wait((left,))
        assert upstream.transport.connections_in_use == 0  # type: ignore[attr-defined]
        release.set()
        assert (await upstream.fetch("GET", "/", [])).status == 200
        assert raw.connections == 2
        await upstream.aclose()


async def test_requests_beyond_the_limit_of_connections_wait_for_one_or_give_up() -> None:
    """The upstream's own queue is before it; this is for those who use the transport alone."""
    release = asyncio.Event()

    async def script(connection: Connection) -> None:
        while await connection.request():
            await release.wait()
            await connection.send(OK)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, max_connections=1)
        transport = upstream.transport
        assert isinstance(transport, Transport)

        async def ask(pool: float | None) -> int:
            return (await transport.send("GET", raw.url + "/", [], None, UpstreamTimeouts(pool), Attempt())).status

        waiting = [asyncio.ensure_future(ask(None)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(httpx.PoolTimeout):
            await ask(0.001)
        waiting[1].cancel()
        release.set()
        assert await asyncio.gather(waiting[0], *waiting[2:]) == [200, 200, 200]
        assert transport.connections_in_use == 0
        await upstream.aclose()
