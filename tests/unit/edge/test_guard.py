"""The door's guard, over real connections: raw bytes in, raw bytes out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import Any

import pytest

from gateway.edge.guard import READ_RATE, SLICE, ConnectionGuard, SlowReader, Underway
from gateway.testing import StubUpstream
from tests.support.gateways import json_answer
from tests.support.raw_requests import GET, HOST, REFUSED
from tests.support.wire import QUICK, door, guarded, refused_by


async def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_ends() -> None:
    upstream = StubUpstream(json_answer())
    app = guarded(upstream)
    async with door(app) as connect:
        seen = {name: await _refusal(connect, sent) for name, (sent, _, _) in REFUSED.items()}
    assert seen == {name: (status, True) for name, (_, status, _) in REFUSED.items()}
    assert refused_by(app) == Counter(reason for _, _, reason in REFUSED.values())
    assert upstream.asked == 0


async def _refusal(connect: Any, sent: bytes) -> tuple[int, bool]:
    """The status of the answer, and whether it was a proper one, after which the connection ended."""
    wire = await connect()
    wire.send(sent)
    status, headers, body = await wire.answer()
    proper = headers["connection"] == "close" and headers["content-type"] == "application/problem+json"
    # What was hidden behind it is no request.
    with contextlib.suppress(ConnectionError):
        wire.send(GET + HOST + b"\r\n")
    return status, proper and f'"status":{status}'.encode() in body and await wire.ended()


# --- slow clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("read", "slow"), [(0, True), (READ_RATE - 1, True), (READ_RATE + 1, False)])
def test_what_a_client_reads_counts_also_while_more_comes_than_it_reads(read: int, slow: bool) -> None:
    reader, written, judged = SlowReader(), 0, []
    for second in range(10):
        judged.append(reader.is_too_slow(second, 8.0, 50_000 + written - read * second, written))
        written += 2 * READ_RATE
    assert any(judged) is slow


async def test_a_silent_connection_is_closed() -> None:
    async with door(guarded(limits=QUICK)) as connect:
        assert await (await connect()).ended()


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with door(guarded(limits={"keep_alive": "1s"})) as connect:
        wire = await connect()
        wire.send(GET + HOST + b"\r\n")
        assert (await wire.answer())[0] == 200
        assert await wire.ended()


async def test_a_head_that_drips_is_answered_with_408() -> None:
    async with door(guarded(limits=QUICK)) as connect:
        wire = await connect()

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for each in GET + HOST + b"A: b\r\n" * 40:
                    wire.send(bytes((each,)))
                    await wire.writer.drain()
                    await asyncio.sleep(0.1)

        dripping = asyncio.ensure_future(drip())
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) == (408, "close")
        dripping.cancel()
        assert await wire.ended()


async def test_a_crowd_of_slow_clients_is_ended_in_turn_with_what_else_is_due() -> None:
    ended: list[int] = []

    class Slow:
        def __init__(self, number: int) -> None:
            self.number = number

        def sweep(self, now: float) -> None:
            ended.append(self.number)
            while time.perf_counter() < now + SLICE / 4:
                pass

    loop, guard = asyncio.get_running_loop(), ConnectionGuard()
    for number in range(60):
        guard.enter(Slow(number), "", loop)
    guard._sweep(loop)
    turns = []
    while len(ended) < 60:
        turns.append(len(ended))
        await asyncio.sleep(0)
    assert len(turns) >= 10
    assert sorted(ended) == list(range(60))
    assert guard._timer is not None
    guard._timer.cancel()


# --- numbers -----------------------------------------------------------------------------------------------


async def test_connections_beyond_the_limit_are_answered_with_503() -> None:
    async with door(guarded(limits={"connections": 2})) as connect:
        first, _ = await connect(), await connect()
        third = await connect()
        status, headers, _ = await third.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert await third.ended()
        first.send(GET + HOST + b"\r\n")
        assert (await first.answer())[0] == 200


async def test_connections_of_one_address_are_bounded_but_those_of_a_trusted_proxy() -> None:
    for trusted, expected in (([], 503), (["127.0.0.0/8"], 200)):
        app = guarded(limits={"connections_per_client": 1}, trusted_proxies=trusted)
        async with door(app) as connect:
            await connect()
            wire = await connect()
            wire.send(GET + HOST + b"\r\n")
            assert (await wire.answer())[0] == expected


async def test_requests_beyond_the_limit_are_answered_with_503_and_places_are_given_back() -> None:
    upstream = StubUpstream(json_answer())
    async with door(guarded(upstream, limits={"requests": 1})) as connect:
        upstream.gate.clear()
        slow = await connect()
        slow.send(GET + HOST + b"\r\n")
        await upstream.came.acquire()
        other = await connect()
        other.send(GET + HOST + b"\r\n")
        assert (await other.answer())[0] == 503
        upstream.gate.set()
        assert (await slow.answer())[0] == 200
        slow.send(GET + HOST + b"\r\n")
        assert (await slow.answer())[0] == 200


# --- requests under way -------------------------------------------------------------------------------------


async def test_no_request_under_way_is_nothing_to_wait_for() -> None:
    await asyncio.wait_for(Underway().none(), 5)


async def test_all_who_wait_are_woken_by_the_last_request_and_wait_again_for_one_that_began_meanwhile() -> None:
    underway = Underway()
    underway.began()
    underway.began()
    waiting = [asyncio.ensure_future(underway.none()) for _ in range(2)]
    await asyncio.sleep(0)
    underway.ended()
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    underway.ended()
    underway.began()  # before those that wait have run
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    underway.ended()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_one_that_no_longer_waits_does_not_disturb_the_end() -> None:
    underway = Underway()
    underway.began()
    waiting = asyncio.ensure_future(underway.none())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    underway.ended()
    assert underway.count == 0
