"""Ranges of what is too large to keep, or may not be kept: the same answer each time, whoever asks first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import cycle

import httpx
import pytest

from gateway.app.gateway import Gateway
from gateway.testing import StubUpstream, TurnedClock, running
from gateway.upstreams.response import PartOfBody
from tests.support.gateways import gateway, served

BODY = bytes(range(256)) * 64  # 16 KiB, of which 4 may be kept
EDGE = "gateway.edge:GatewayProtocol"


def serving(*, knows_ranges: bool = True, **headers: str) -> StubUpstream:
    """BODY, in parts where they are asked for. With `if-range` the whole unless it names the tag."""
    fields = {"etag": '"v"', "cache-control": "max-age=60", **{k.replace("_", "-"): v for k, v in headers.items()}}

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("range", "")
        if not knows_ranges or not asked or request.headers.get("if-range", '"v"') != '"v"':
            return httpx.Response(200, content=BODY, headers=fields)
        if "," in asked:
            return httpx.Response(206, content=b"--parts", headers=fields)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if int(first or 0) >= len(BODY):
            return httpx.Response(416, headers={"content-range": f"bytes */{len(BODY)}"})
        part = BODY[int(first) : int(last or len(BODY)) + 1] if first else BODY[-int(last) :]
        start = int(first) if first else len(BODY) - int(last)
        said = {"content-range": f"bytes {start}-{start + len(part) - 1}/{len(BODY)}"}
        return httpx.Response(206, content=part, headers=fields | said)

    return StubUpstream(answer)


def app_of(upstream: StubUpstream, clock: TurnedClock, ttl: str = "60s", **settings: str) -> Gateway:
    routes = {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": ttl}}
    return gateway(upstream, routes, clock=clock, max_body="4KiB", **settings)


ASKED = [
    ({"range": "bytes=10-19"}, 206, BODY[10:20]),
    ({"range": "bytes=-5"}, 206, BODY[-5:]),
    ({"range": "bytes=16000-"}, 206, BODY[16000:]),
    ({"range": "bytes=10-19", "if-range": '"v"'}, 206, BODY[10:20]),
    ({"range": "bytes=10-19", "if-range": '"w"'}, 200, BODY),
    ({"range": "bytes=10-19", "if-none-match": '"v"'}, 304, b""),
    ({"range": "bytes=0-1,4-5"}, 200, BODY),
    ({"range": "bytes=99999-"}, 416, b""),
]


@pytest.mark.parametrize("kept", ["max-age=60", "no-store", "private"])
@pytest.mark.parametrize("on_the_wire", [False, True])
@pytest.mark.parametrize(("headers", "status", "body"), ASKED)
async def test_a_range_of_what_cannot_be_kept_is_answered_alike_with_and_without_the_mark(
    clock: TurnedClock, headers: dict[str, str], status: int, body: bytes, on_the_wire: bool, kept: str
) -> None:
    app = app_of(serving(cache_control=kept), clock)
    answers = []

    async def live(client: httpx.AsyncClient) -> None:
        for turn in (0, 1, 10, 1):  # unknown, marked, forgotten, marked
            clock.turn(turn)
            answer = await client.get("/file", headers=headers)
            content = b"" if answer.status_code == 416 else answer.content
            answers.append((answer.status_code, content, answer.headers.get("content-range")))

    if on_the_wire:
        async with served(app, http=EDGE) as url, httpx.AsyncClient(base_url=url) as client:
            await live(client)
    else:
        async with running(app) as client:
            await live(client)
    assert (answers[0][:2], len(set(answers))) == ((status, body), 1)


async def test_those_who_come_at_once_are_answered_alike_too(clock: TurnedClock) -> None:
    upstream = serving()
    async with running(app_of(upstream, clock)) as client:
        upstream.gate.clear()
        asked = [asyncio.ensure_future(client.get("/file", headers={"range": f"bytes={n}-{n + 9}"})) for n in range(5)]
        await upstream.came.acquire()
        upstream.gate.set()
        answers = await asyncio.gather(*asked)
    assert [(each.status_code, each.content) for each in answers] == [(206, BODY[n : n + 10]) for n in range(5)]
    assert upstream.asked == 6  # once for the whole


@pytest.mark.parametrize("kept", ["max-age=60", "no-store"])
async def test_where_the_upstream_knows_no_ranges_it_is_cut_each_time(clock: TurnedClock, kept: str) -> None:
    async with running(app_of(serving(knows_ranges=False, cache_control=kept), clock)) as client:
        for turn in (0, 1, 10):
            clock.turn(turn)
            answer = await client.get("/file", headers={"range": "bytes=0-9"})
            assert (answer.status_code, answer.content) == (206, BODY[:10])
            assert (answer.headers["content-range"], answer.headers["content-length"]) == ("bytes 0-9/16384", "10")


@pytest.mark.parametrize("ttl", ["60s", "origin"])
async def test_a_range_is_one_of_a_get(clock: TurnedClock, ttl: str) -> None:
    upstream = serving()
    async with running(app_of(upstream, clock, ttl)) as client:
        for _ in range(3):
            head = await client.head("/file", headers={"range": "bytes=0-9"})
            assert (head.status_code, "content-range" in head.headers) == (200, False)
    assert not [request for request in upstream.requests if "range" in request.headers]


@pytest.mark.parametrize(("kept", "expected"), [("max-age=60", [2, 3, 4]), ("no-store", [1, 2, 3])])
async def test_only_what_is_too_large_is_asked_for_twice_and_once(
    clock: TurnedClock, kept: str, expected: list[int]
) -> None:
    """What may not be stored may be for one use: the answer that came is cut."""
    upstream = serving(cache_control=kept)
    async with running(app_of(upstream, clock)) as client:
        counts = []
        for _ in range(3):
            await client.get("/file", headers={"range": "bytes=0-9"})
            counts.append(upstream.asked)
    assert counts == expected


@pytest.mark.parametrize("sizes", [(1,), (4, 16), (16384,)])
async def test_a_part_of_a_body_is_its_bytes_however_it_comes_and_ends_it(sizes: tuple[int, ...]) -> None:
    class Pieces:
        closed = 0

        async def whole(self, limit: int, live: object = None) -> bytes | None:
            return None

        async def chunks(self) -> AsyncIterator[bytes]:
            at = 0
            for size in cycle(sizes):
                yield BODY[at : at + size]
                at += size
                if at >= len(BODY):
                    return

        async def aclose(self) -> None:
            self.closed += 1

    for first, last in ((0, 0), (3, 9), (5, 300), (16380, 16383), (0, 16383)):
        pieces = Pieces()
        part = b"".join([piece async for piece in PartOfBody(pieces, first, last).chunks()])
        assert (part, pieces.closed) == (BODY[first : last + 1], 1)
