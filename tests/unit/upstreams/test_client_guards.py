"""What guards an upstream, over real sockets: its base, its places, its breaker, its deadlines and caps."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import ValidationError

from gateway.config.types import is_public
from gateway.config.upstream import UpstreamConfig
from gateway.errors import (
    UpstreamBusy,
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.http.headers import values
from gateway.observability.trace_context import BEHIND
from gateway.upstreams.client import Upstream
from gateway.upstreams.hosts import BreakerState
from gateway.upstreams.request import AHEAD, Patience
from gateway.upstreams.transport import Transport
from tests.support.guarded_upstreams import OK, Turned, ask, speaking_to
from tests.support.raw import Connection, always, once, raw_upstream

BAD = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"


async def answering_posts(connection: Connection) -> None:
    """Answers each request when all of it is there, whose body is chunked where there is one."""
    while head := await connection.request():
        if b"transfer-encoding: chunked" in head.lower():
            while (await connection.reader.readuntil(b"\r\n")) != b"0\r\n":  # no content here looks like it
                pass
            await connection.reader.readuntil(b"\r\n")
        await connection.send(OK)


# --- its addresses -------------------------------------------------------------------------------------------


class Names(AbstractResolver):
    """Resolves every name to `address`, and counts how often it was asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        entry = {"hostname": host, "host": self.address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [ResolveResult(**entry)]  # type: ignore[typeddict-item]

    async def close(self) -> None:
        return None


INSIDE = [
    *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("::1", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "::"),
    *("2002:7f00:1::", "224.0.0.1", "ff02::1", "255.255.255.255", "192.0.2.1"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_inside_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::0101:0101"])
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", ["http://127.0.0.1", "http://[::1]:80/x", "http://169.254.169.254", "http://localhost"])
def test_an_inside_url_is_refused_where_the_configuration_says_public(url: str) -> None:
    with pytest.raises(ValidationError, match="isn't a public address"):
        UpstreamConfig.model_validate({"url": url, "addresses": "public"})


async def test_a_name_that_leads_inside_is_refused_where_the_configuration_says_public() -> None:
    async with raw_upstream(always(OK)) as raw:
        port = raw.url.rpartition(":")[2]
        for addresses, transport in (
            ("any", Transport(resolver=Names("127.0.0.1"))),
            ("public", Transport(resolver=Names("127.0.0.1"), public_only=True)),
        ):
            config = UpstreamConfig.model_validate({"url": f"http://catalog.test:{port}", "addresses": addresses})
            upstream = Upstream("raw", config, transport)
            if addresses == "any":
                assert await ask(upstream) == (200, b"ok")
            else:
                with pytest.raises(UpstreamUnreachable):
                    await ask(upstream)
            await upstream.aclose()
        assert raw.connections == 1


# --- its deadlines and caps ----------------------------------------------------------------------------------


async def test_a_head_that_drips_has_one_deadline_for_all_of_it() -> None:
    async def drip(connection: Connection) -> None:
        await connection.request()
        for byte in OK * 100:
            await connection.send(bytes((byte,)))
            await asyncio.sleep(0.01)

    async with raw_upstream(drip) as raw:
        upstream = speaking_to(raw, timeout="100ms")
        with pytest.raises(UpstreamTimeout):
            await ask(upstream)
        await upstream.aclose()


async def test_patience_of_one_request_overrules_the_upstreams() -> None:
    async def silent(connection: Connection) -> None:
        await connection.closed()

    async with raw_upstream(silent) as raw:
        upstream = speaking_to(raw, timeout="60s")
        with pytest.raises(UpstreamTimeout):
            await ask(upstream, patience=Patience(timeout=0.05))
        with pytest.raises(UpstreamTimeout):
            await upstream.request("GET", "/", patience=Patience(timeout=0.05))
        await upstream.aclose()


async def test_a_streamed_answer_without_end_is_broken_off_at_its_limit() -> None:
    async def endless(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not connection.writer.is_closing():
            await connection.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.005)

    async with raw_upstream(endless) as raw:
        upstream = speaking_to(raw, stream_timeout="100ms")
        fetched = await upstream.fetch("GET", "/", [])
        with pytest.raises(UpstreamTimeout):
            async for _ in fetched.body.chunks():
                pass
        assert upstream.places.taken == 0
        await upstream.aclose()


def packed(body: bytes, coding: str) -> bytes:
    for each in coding.split(", "):
        body = gzip.compress(body) if each in ("gzip", "x-gzip") else zlib.compress(body)
    return (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(body)) + body
    )


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "gzip, gzip", "deflate, gzip"])
async def test_a_handler_gets_a_compressed_answer_decoded_and_a_bomb_not_at_all(coding: str) -> None:
    async with raw_upstream(always(packed(b"x" * 1000, coding))) as raw:
        upstream = speaking_to(raw)
        answer = await upstream.get("/")
        assert answer.content == b"x" * 1000
        assert "content-encoding" not in answer.headers
        await upstream.aclose()
    async with raw_upstream(always(packed(b"\0" * 50_000_000, coding))) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(UpstreamMalformed, match="larger"):
            await upstream.request("GET", "/", max_body=1_000_000)
        await upstream.aclose()


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n" + gzip.compress(b"x" * 1000, mtime=0)[:10],
    ],
)
async def test_a_handler_never_gets_a_body_that_is_not_what_it_says(head: bytes) -> None:
    async with raw_upstream(always(b"HTTP/1.1 200 OK\r\n" + head)) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(UpstreamMalformed):
            await upstream.get("/")
        await upstream.aclose()


async def test_what_is_kept_of_a_body_is_bounded_and_the_connection_ends() -> None:
    async with raw_upstream(once(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 3_000_000)) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(UpstreamMalformed, match="larger"):
            await upstream.request("GET", "/", max_body=1_000_000)
        assert upstream.places.taken == 0
        await upstream.aclose()


# --- its places ----------------------------------------------------------------------------------------------


async def test_a_slow_upstream_takes_its_own_places_and_the_next_is_told_at_once() -> None:
    came, release = asyncio.Semaphore(0), asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.request()
        came.release()
        await release.wait()
        await connection.send(OK)

    async with raw_upstream(slow) as raw, raw_upstream(always(OK)) as other:
        upstream, brisk = speaking_to(raw, max_connections=3, max_queue=1), speaking_to(other)
        under_way = [asyncio.ensure_future(ask(upstream)) for _ in range(4)]
        for _ in range(3):
            await came.acquire()
        with pytest.raises(UpstreamBusy) as busy:
            await ask(upstream)
        assert busy.value.retry_after == 1.0
        assert await ask(brisk) == (200, b"ok")
        release.set()
        assert await asyncio.gather(*under_way) == [(200, b"ok")] * 4
        assert (upstream.places.taken, upstream.places.waiting, upstream.places.shed) == (0, 0, 1)
        await upstream.aclose()
        await brisk.aclose()


LONG = b"a line\r\n" * (AHEAD // 8)


async def slowly(first: bytes, release: asyncio.Event) -> AsyncIterator[bytes]:
    """A body whose beginning comes at once, and whose end when it may."""
    yield first
    await release.wait()
    yield b"end"


async def test_a_client_that_sends_its_body_slowly_holds_no_place_before_the_body_is_there() -> None:
    async with raw_upstream(answering_posts) as raw:
        upstream, release = speaking_to(raw, max_connections=1, max_queue=0), asyncio.Event()
        slow = [asyncio.ensure_future(ask(upstream, method="POST", body=slowly(b"a", release))) for _ in range(20)]
        await asyncio.sleep(0)
        assert await ask(upstream) == (200, b"ok")
        release.set()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert (200, b"ok") in ended
        assert upstream.places.taken == upstream.uploads.taken == 0
        await upstream.aclose()


async def test_bodies_that_are_long_and_slow_leave_half_of_the_places_to_those_who_read() -> None:
    async with raw_upstream(answering_posts) as raw:
        upstream, release = speaking_to(raw, max_connections=4, max_queue=0), asyncio.Event()
        slow = [asyncio.ensure_future(ask(upstream, method="POST", body=slowly(LONG, release))) for _ in range(6)]
        told, _ = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert {type(each.exception()) for each in told} == {UpstreamBusy}
        assert upstream.uploads.taken == 2
        assert [await ask(upstream) for _ in range(2)] == [(200, b"ok")] * 2
        release.set()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert [each for each in ended if not isinstance(each, UpstreamBusy)] == [(200, b"ok")] * 2
        assert (upstream.places.taken, upstream.uploads.taken, upstream.shed) == (0, 0, 4)
        await upstream.aclose()


@pytest.mark.parametrize("first", [b"a", LONG], ids=["short", "long"])
async def test_who_breaks_off_a_body_holds_nothing(first: bytes) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield first
        raise ConnectionError("the client disconnected")

    async with raw_upstream(answering_posts) as raw:
        upstream = speaking_to(raw, max_connections=2)
        with pytest.raises((ConnectionError, UpstreamError)):
            await ask(upstream, method="POST", body=broken())
        assert upstream.places.taken == upstream.uploads.taken == 0
        await upstream.aclose()


async def test_a_place_is_free_as_soon_as_the_whole_response_has_come() -> None:
    async with raw_upstream(always(OK)) as raw:
        upstream = speaking_to(raw)
        for _ in range(3):  # the first on a new connection, the others on a kept one
            fetched = await upstream.fetch("GET", "/", [])
            assert upstream.places.taken == 0
            assert await fetched.body.whole(100) is not None
        assert raw.connections == 1
        await upstream.aclose()


async def test_a_place_is_held_until_the_body_is_closed() -> None:
    async with raw_upstream(always(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch("GET", "/", [])
        assert upstream.places.taken == 1
        await fetched.body.aclose()
        await fetched.body.aclose()
        assert upstream.places.taken == 0
        await upstream.aclose()


async def test_a_refresh_behind_is_shed_before_a_client_is() -> None:
    release = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.request()
        await release.wait()
        await connection.send(OK)

    async def behind(upstream: Upstream) -> Any:
        BEHIND.set(True)
        return await ask(upstream)

    async with raw_upstream(slow) as raw:
        upstream = speaking_to(raw, max_connections=4)
        under_way = [asyncio.ensure_future(ask(upstream)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(UpstreamBusy):
            await asyncio.create_task(behind(upstream))
        under_way.append(asyncio.ensure_future(ask(upstream)))
        release.set()
        assert await asyncio.gather(*under_way) == [(200, b"ok")] * 4
        await upstream.aclose()


# --- its breaker ---------------------------------------------------------------------------------------------


async def test_a_host_that_fails_is_left_alone_then_tried_by_one_request() -> None:
    clock, answers = Turned(), [BAD] * 3
    release = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        if not answers:
            await release.wait()
        await connection.send(answers.pop() if answers else OK)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, monotonic=clock, breaker_failures=3, breaker_open_for="2s")
        for _ in range(3):
            assert await ask(upstream) == (503, b"no")
        with pytest.raises(UpstreamCircuitOpen) as back_off:
            await ask(upstream)
        assert (back_off.value.retry_after, raw.connections) == (2.0, 3)
        clock.now = 2.0
        trial = asyncio.ensure_future(ask(upstream))
        await asyncio.sleep(0)
        with pytest.raises(UpstreamCircuitOpen):
            await ask(upstream)
        release.set()
        assert await trial == (200, b"ok")
        assert upstream.hosts[0].breaker.state is BreakerState.CLOSED
        assert await ask(upstream) == (200, b"ok")
        await upstream.aclose()


async def silent(connection: Connection) -> None:
    await connection.closed()


@pytest.mark.parametrize(
    ("script", "opens"),
    [
        pytest.param(always(BAD), True, id="5xx"),
        pytest.param(once(b""), True, id="a connection that breaks"),
        pytest.param(silent, True, id="a deadline"),
        pytest.param(once(b"SSH-2.0\r\n\r\n"), True, id="no HTTP"),
        pytest.param(once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"), True, id="a body that breaks off"),
        pytest.param(always(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), False, id="404"),
        pytest.param(always(b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n"), False, id="429"),
        pytest.param(always(OK), False, id="200"),
    ],
)
async def test_what_opens_the_breaker(script: Any, opens: bool) -> None:
    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, timeout="50ms" if script is silent else "5s", breaker_failures=5)
        for _ in range(5):
            await asyncio.gather(ask(upstream), return_exceptions=True)
        assert (upstream.hosts[0].breaker.state is BreakerState.OPEN) is opens
        await upstream.aclose()


@pytest.mark.parametrize(
    ("name", "opens"),
    [
        (b"x-api-key", False),
        (b"cookie", False),
        pytest.param(b"authorization", True, id="our own credentials are nobody's"),
        (b"accept", True),
    ],
)
async def test_the_5xx_of_one_clients_credentials_do_not_open_the_breaker(name: bytes, opens: bool) -> None:
    async with raw_upstream(always(BAD)) as raw:
        upstream = speaking_to(raw, breaker_failures=4, headers={"authorization": "Bearer ours"})
        breaker = upstream.hosts[0].breaker
        for _ in range(10):
            if breaker.state is BreakerState.CLOSED:
                fetched = await upstream.fetch("GET", "/", [(name, b"one")])
                await fetched.body.whole(100)
        assert (breaker.state is BreakerState.OPEN) is opens
        await upstream.aclose()


async def test_the_deadline_of_whoever_asks_counts_as_the_hosts_failure_and_a_client_that_leaves_does_not() -> None:
    async with raw_upstream(silent) as raw:
        upstream = speaking_to(raw, timeout="100ms", breaker_failures=3)
        for _ in range(5):
            task = asyncio.ensure_future(ask(upstream))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert upstream.hosts[0].breaker.state is BreakerState.CLOSED
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.099):
                    await ask(upstream)
        assert upstream.hosts[0].breaker.state is BreakerState.OPEN
        await upstream.aclose()


async def test_one_host_that_fails_leaves_the_requests_to_the_other() -> None:
    async with raw_upstream(always(BAD)) as bad, raw_upstream(always(OK)) as good:
        upstream = speaking_to(bad, good, breaker_failures=3)
        answers = [(await ask(upstream))[0] for _ in range(20)]
        assert answers.count(503) == 3
        assert answers[6:] == [200] * 14
        await upstream.aclose()


# --- once more -----------------------------------------------------------------------------------------------


async def closing_when_used_again(connection: Connection) -> None:
    await connection.request()
    await connection.send(OK)
    await connection.request()


async def test_repetitions_are_within_the_budget() -> None:
    async with raw_upstream(closing_when_used_again) as raw:
        upstream = speaking_to(raw, retry_budget=0.1, breaker_failures=0)
        failed = 0
        for _ in range(200):
            try:
                await ask(upstream)
            except UpstreamUnreachable:
                failed += 1
        # Every second request meets the closed connection: a tenth of all may be repeated, and the reserve of ten.
        assert failed == upstream.budget.denied > 0
        assert 25 <= upstream.budget.spent <= 30
        await upstream.aclose()


async def test_a_refused_connection_is_tried_at_another_host_and_a_post_never() -> None:
    async with raw_upstream(always(OK)) as gone:
        pass
    async with raw_upstream(always(OK)) as there:
        upstream = speaking_to(gone, there, breaker_failures=0)
        assert [await ask(upstream) for _ in range(4)] == [(200, b"ok")] * 4
        assert upstream.budget.spent == 4
        statuses = await asyncio.gather(*(ask(upstream, method="POST") for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(each, UpstreamUnreachable) for each in statuses) == 2
        tried = [ask(upstream, patience=Patience(retries=0)) for _ in range(2)]
        statuses = await asyncio.gather(*tried, return_exceptions=True)
        assert sum(isinstance(each, UpstreamUnreachable) for each in statuses) == 1
        await upstream.aclose()


@pytest.mark.parametrize("method", ["QUERY", "POST"])
async def test_a_read_with_content_is_tried_again_where_nothing_was_received(method: str) -> None:
    read: list[bytes] = []

    async def closing(connection: Connection) -> None:
        for _ in range(2):
            head = await connection.request()
            read.append(await connection.reader.readexactly(5) if head else b"")
            if len(read) != 2:
                await connection.send(OK)

    async with raw_upstream(closing) as raw:
        upstream = speaking_to(raw)
        for _ in range(2):
            fetched = await upstream.fetch(method, "/", [], b"12345", patience=Patience(safe=True))
            assert (fetched.status, await fetched.body.whole(100)) == (200, b"ok")
        assert (read[:3], raw.connections, upstream.budget.spent) == ([b"12345"] * 3, 2, 1)
        await upstream.aclose()


async def test_a_post_that_is_no_read_is_not_tried_again() -> None:
    async with raw_upstream(closing_when_used_again) as raw:
        upstream = speaking_to(raw)
        assert (await upstream.fetch("POST", "/", [], b"")).status == 200
        with pytest.raises(UpstreamUnreachable):
            await upstream.fetch("POST", "/", [], b"")
        await upstream.aclose()


async def test_an_answer_of_5xx_is_never_asked_for_again() -> None:
    async with raw_upstream(always(BAD)) as raw:
        upstream = speaking_to(raw, breaker_failures=0)
        for _ in range(50):
            await ask(upstream)
        assert upstream.budget.spent == 0
        await upstream.aclose()


async def test_constant_headers_replace_the_clients_and_go_to_their_own_upstream_alone() -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append(await connection.request())
        await connection.send(OK)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, headers={"X-API-Key": "ours"})
        fetched = await upstream.fetch("GET", "/", [(b"x-api-key", b"theirs")])
        await fetched.body.aclose()
        await upstream.aclose()
    sent = [
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in heads[0].split(b"\r\n"))
    ]
    assert values(sent, b"x-api-key") == [b"ours"]
