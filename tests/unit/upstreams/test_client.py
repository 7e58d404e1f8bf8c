"""Upstreams over real sockets: framing, deadlines, cancellation, and what never crosses from one request to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.config.upstream import UpstreamConfig
from gateway.errors import UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from gateway.upstreams.client import Upstream
from tests.support.raw import MALFORMED, OK, WAYS, Connection, always, ask, once, raw_upstream, speaking_to


@WAYS
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_answer_is_an_error_and_the_next_request_is_right(data: bytes, method: str) -> None:
    answers = [data, OK]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answers.pop(0))

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        with pytest.raises((UpstreamMalformed, UpstreamUnreachable)):
            await ask(upstream, method=method)
        assert await ask(upstream, method=method) == (200, b"ok")
        await upstream.aclose()


@WAYS
@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"garbage"])
async def test_bytes_after_a_response_reach_no_other_request(surplus: bytes, method: str) -> None:
    count = 0

    async def script(connection: Connection) -> None:
        nonlocal count
        while await connection.request():
            count += 1
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % count + surplus)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        assert [await ask(upstream, method=method) for _ in range(5)] == [
            (200, b"%d" % number) for number in range(1, 6)
        ]
        assert raw.connections == 5
        await upstream.aclose()


async def test_bytes_sent_later_on_a_kept_connection_reach_no_other_request() -> None:
    sent = asyncio.Event()

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(OK)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            sent.set()

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        for _ in range(20):
            sent.clear()
            assert await ask(upstream) == (200, b"ok")
            await sent.wait()
            await asyncio.sleep(0)
        await upstream.aclose()


async def test_a_pool_survives_six_thousand_cancelled_requests() -> None:
    release = asyncio.Event()

    async def script(connection: Connection) -> None:
        while await connection.request():
            await release.wait()
            await connection.send(OK)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw, max_connections=10, max_queue=100, timeout="10s")
        for _ in range(60):
            tasks = [asyncio.ensure_future(ask(upstream)) for _ in range(100)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        release.set()
        assert await asyncio.gather(*(ask(upstream) for _ in range(100))) == [(200, b"ok")] * 100
        assert upstream.transport.connections_in_use == 0  # type: ignore[attr-defined]
        await upstream.aclose()


async def test_connections_are_reused() -> None:
    async with raw_upstream(always(OK)) as raw:
        upstream = speaking_to(raw)
        for _ in range(10):
            await ask(upstream)
        assert raw.connections == 1
        await upstream.aclose()


async def test_a_request_is_repeated_where_a_kept_connection_was_closed_as_it_was_used_again() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()  # and closes, having answered nothing

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        assert [await ask(upstream) for _ in range(3)] == [(200, b"ok")] * 3
        assert raw.connections == 3
        await upstream.aclose()


async def test_a_request_is_not_repeated_where_a_new_connection_was_closed_or_something_was_received() -> None:
    heads = [b"", b"HTTP/1.1 200 OK\r\n"]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(heads.pop(0))

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        for count in (1, 2):
            with pytest.raises(UpstreamUnreachable):
                await ask(upstream)
            assert raw.connections == count
        await upstream.aclose()


async def test_an_upstream_that_is_silent_costs_its_deadline() -> None:
    async def silent(connection: Connection) -> None:
        await connection.closed()

    async with raw_upstream(silent) as raw:
        upstream = speaking_to(raw, timeout="50ms")
        with pytest.raises(UpstreamTimeout):
            await ask(upstream)
        await upstream.aclose()


async def test_a_refused_connection_is_unreachable() -> None:
    async with raw_upstream(always(OK)) as raw:
        pass
    upstream = speaking_to(raw)
    with pytest.raises(UpstreamUnreachable):
        await ask(upstream)
    await upstream.aclose()


async def test_interim_responses_are_heard_of_and_passed_over() -> None:
    heard: list[tuple[int, list[bytes]]] = []
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    async with raw_upstream(once(early + OK)) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch(
            "GET", "/", [], None, lambda status, headers: heard.append((status, [value for _, value in headers]))
        )
        assert await fetched.body.whole(10) == b"ok"
        await upstream.aclose()
    assert heard == [(103, [b"</style.css>"])]


async def test_a_body_sent_in_pieces_arrives_whole() -> None:
    received = bytearray()

    async def script(connection: Connection) -> None:
        await connection.request()
        while not received.endswith(b"0\r\n\r\n"):
            received.extend(await connection.reader.read(1000))
        await connection.send(OK)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch("POST", "/", [], pieces())
        await fetched.body.aclose()
        await upstream.aclose()
    assert bytes(received) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_a_body_left_unread_closes_its_connection() -> None:
    async with raw_upstream(once(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch("GET", "/", [])
        await fetched.body.aclose()
        assert upstream.transport.connections_in_use == 0  # type: ignore[attr-defined]
        await upstream.aclose()


async def test_several_bases_are_taken_in_turn() -> None:
    async with raw_upstream(always(OK)) as one, raw_upstream(always(OK)) as two:
        upstream = Upstream("both", UpstreamConfig.model_validate({"urls": [one.url, two.url]}))
        for _ in range(4):
            await ask(upstream)
        assert (one.connections, two.connections) == (1, 1)
        await upstream.aclose()
