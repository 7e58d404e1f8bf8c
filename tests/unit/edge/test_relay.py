"""Frames between a client and an upstream: how each end ends, what is limited, and who waits for whom."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway.edge.relay import MOST_CONTROLS, Relay
from gateway.http.websocket import AT_ONCE
from tests.support.raw import Connection, raw_upstream
from tests.support.websockets import Raw, client_frame, echo, open_to, talking

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


async def until(condition: Callable[[], bool]) -> None:
    """Return once the gateway is in that state; the test's time limit ends the waiting."""
    while not condition():
        await asyncio.sleep(0.01)


def relay_of(app: Any) -> Relay:
    [relay] = [each for each in app.guard._connections if isinstance(each, Relay)]
    return relay


def counts(app: Any) -> Any:
    return app.worker_state.websockets.counts("api")


async def test_messages_go_both_ways_and_are_counted_at_the_end() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        async with connect(url) as client:
            for message in ("a", b"b", "c" * 200_000):
                await client.send(message)
                assert await client.recv() == message
            await (await client.ping())
            assert counts(app).open == 1
            assert len(app.guard) == 1
        assert await server.ended.get() == (1000, "")
        await until(lambda: counts(app).open == 0 and len(app.guard) == 0)
        assert counts(app).closed == {("client", "1000"): 1}
        assert counts(app).messages == {"client": 3, "upstream": 3}


async def test_a_close_of_either_end_reaches_the_other_as_it_is() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client = await connect(url)
        await client.close(3007, "enough")
        assert await server.ended.get() == (3007, "enough")
        client = await connect(url)
        await until(lambda: len(server.open) == 2)
        await server.open[1].close(4001, "bye")
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "bye")
        await until(lambda: counts(app).open == 0)
        assert counts(app).closed == {("client", "3xxx"): 1, ("upstream", "4xxx"): 1}


async def test_the_other_end_is_told_of_one_that_is_gone() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client = await connect(url)
        client.transport.abort()
        assert await server.ended.get() == (1001, "the client is gone")
        client = await connect(url)
        await until(lambda: len(server.open) == 2)
        server.open[1].transport.abort()
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        await until(lambda: counts(app).open == 0)
        assert counts(app).closed == {("client", "1006"): 1, ("upstream", "1006"): 1}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x02hi", 1002),
        (client_frame(TEXT, b"x" * 1001), 1009),
        (client_frame(TEXT, b"x" * 600, fin=False) + client_frame(0, b"x" * 600), 1009),
        (client_frame(TEXT, fin=False) + client_frame(0, fin=False) * 5000, 1008),
        (client_frame(PING) * (MOST_CONTROLS + 2), 1008),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 1002),  # a request behind the handshake
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_and_the_upstream_sees_nothing_of_it(
    sent: bytes, code: int
) -> None:
    route = {"websocket_max_message": "1000B"}
    async with echo() as server, open_to(talking(server.url, route=route)) as url:
        client, head = await Raw.connect(url)
        assert head.startswith(b"HTTP/1.1 101")
        client.writer.write(sent)
        while (got := await client.frame())[0] == PONG:
            pass
        assert (got[0], int.from_bytes(got[1][:2], "big")) == (CLOSE, code)
        client.send(CLOSE, got[1][:2])
        assert await client.reader.read() == b""
        assert await server.ended.get() == (1001, "the client broke the protocol")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (client_frame(TEXT, b"masked"), 1002),
        (b"\x81\x7f" + (2**21).to_bytes(8, "big"), 1009),
        (b"\xf1\x00", 1002),
    ],
)
async def test_an_upstream_that_breaks_the_protocol_is_told_and_the_client_gets_1011(sent: bytes, code: int) -> None:
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(connection: Connection) -> None:
        await accept(connection)
        await connection.send(sent)
        told.put_nowait(await connection.reader.read(100))

    async with raw_upstream(script) as upstream, open_to(talking(upstream.url)) as url:
        client, _ = await Raw.connect(url)
        assert await client.closed_by() == 1011
        close = await told.get()
        key = close[2:6]
        assert close[:1] == b"\x88"
        assert int.from_bytes(bytes(byte ^ mask for byte, mask in zip(close[6:8], key, strict=False)), "big") == code


async def accept(connection: Connection) -> None:
    from gateway.http.websocket import accepted

    head = await connection.request()
    key = next(line for line in head.split(b"\r\n") if line.startswith(b"sec-websocket-key: ")).split(b": ")[1]
    await connection.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + accepted(key) + b"\r\n\r\n"
    )


async def test_both_ends_are_told_when_the_server_stops() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client = await connect(url)
        relay_of(app).shutdown()
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the gateway restarts")
        assert await server.ended.get() == (1001, "the gateway restarts")
        await until(lambda: counts(app).open == 0)
        assert counts(app).closed == {("gateway", "1001"): 1}


async def test_no_frame_is_written_into_another_one() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        client.writer.write(client_frame(TEXT, b"x" * 1000)[:500])
        await until(lambda: len(server.open) == 1)
        await until(lambda: relay_of(app)._client.frames.left > 0)
        relay_of(app).shutdown()
        assert await client.closed_by() == 1001  # towards the client no frame was under way
        code, _ = await server.ended.get()
        assert code == 1006


async def test_an_idle_one_is_closed_and_a_silent_end_is_gone() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        await until(lambda: len(server.open) == 1)
        relay = relay_of(app)
        now = relay._message
        relay.sweep(now + 19)
        relay.sweep(now + 21)
        assert await client.frame() == (PING, b"")
        client.send(PONG)
        await until(lambda: relay._client.pinged is None)
        relay.sweep(now + 601)
        assert await client.closed_by() == 1001
        assert await server.ended.get() == (1001, "idle")


async def test_an_end_that_does_not_answer_a_ping_is_cut_off() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        await until(lambda: len(server.open) == 1)
        relay = relay_of(app)
        now = relay._message
        relay._upstream.received_at = now + 100
        relay.sweep(now + 21)
        relay.sweep(now + 41)
        assert await server.ended.get() == (1001, "the client is gone")
        with pytest.raises(ConnectionError):
            await client.reader.read()


async def test_an_end_to_which_a_large_frame_is_under_way_is_pinged_behind_it() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        frame = client_frame(TEXT, b"x" * 1000)
        client.writer.write(frame[:500])
        await until(lambda: len(server.open) == 1)
        relay = relay_of(app)
        await until(lambda: relay._client.frames.left > 0)
        now = relay._message
        relay._client.received_at = now + 400
        for seconds in (21, 41, 61, 400):
            relay.sweep(now + seconds)
        assert relay._upstream.pinged is None
        client.writer.write(frame[500:])
        assert await client.frame() == (TEXT, b"x" * 1000)


async def test_a_close_without_an_answer_is_forced() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        await until(lambda: len(server.open) == 1)
        relay = relay_of(app)
        relay.shutdown()
        assert await client.closed_by() == 1001
        assert relay._deadline is not None
        relay.sweep(relay._deadline)
        assert await client.reader.read() == b""
        await until(lambda: counts(app).open == 0 and len(app.guard) == 0)


async def test_a_client_that_reads_nothing_stops_its_upstream_and_is_cut_off() -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: len(server.open) == 1)
        relay = relay_of(app)
        flood = asyncio.ensure_future(_flood(server.open[0]))
        await until(lambda: "full" in relay._upstream.pauses)
        assert relay._client.transport is not None
        assert relay._client.transport.get_write_buffer_size() < 1_000_000
        now = relay._message
        relay.sweep(now)
        relay.sweep(now + 9)
        await until(lambda: counts(app).open == 0)
        assert counts(app).closed == {("client", "1006"): 1}
        await flood


async def _flood(connection: Any) -> None:
    try:
        while True:
            await connection.send(b"x" * 50_000)
    except (ConnectionClosed, AttributeError):  # websockets 17 aborts a transport that asyncio has given up already
        return


async def test_a_flood_of_small_frames_lets_others_come_in_between() -> None:
    async with echo() as server, open_to(talking(server.url)) as url:
        client, _ = await Raw.connect(url)
        frames = 10 * AT_ONCE
        client.writer.write(client_frame(TEXT, b"a") * frames)
        for _ in range(frames):
            assert await client.frame() == (TEXT, b"a")
        client.send(CLOSE, b"\x03\xe8")
        assert await client.closed_by() == 1000
        assert await client.reader.read() == b""
