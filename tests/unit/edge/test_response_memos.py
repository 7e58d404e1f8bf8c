"""memos: an answer is given again only while nothing has changed that it rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import uvicorn
from msgspec import structs
from uvicorn.server import ServerState

from gateway.app.gateway import Gateway
from gateway.cache.memory import Memory
from gateway.edge.protocol import GatewayProtocol
from gateway.policy.entry import Entry
from gateway.policy.vary import VaryIndex
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Counted, Line, Pipe, asked
from tests.support.gateways import gateway

GET = b"GET /o/1 HTTP/1.1\r\nHost: gateway.test\r\nAccept-Encoding: %b\r\nX-Request-ID: a\r\n\r\n"
PLAIN = GET % b"identity"
TEXT = "text " * 400


class Site:
    """A gateway whose edge has a memo for `request`, and knows nothing else any more but by memos."""

    def __init__(self, clock: TurnedClock, headers: dict[str, str] | None = None, **settings: str) -> None:
        told = {"cache-control": "max-age=60", "content-type": "text/plain"} | (headers or {})
        self.upstream = StubUpstream(lambda _: httpx.Response(200, content=TEXT.encode(), headers=told))
        route = {"path": "/{path:path}", "upstream": "api", "ttl": "60s", "tags": ["t"]} | settings
        self.app: Gateway = gateway(self.upstream, {"rest": route}, clock=clock)
        self.app.engine._storing.jitter = lambda: 0.0
        self.counted = Counted(self.app)
        self.line = Line(self.counted)
        assert self.app.edge is not None
        self.edge = self.app.edge
        self.memory: Memory = self.app.engine.memory

    async def settled(self, request: bytes = PLAIN) -> bytes:
        answer = b""
        for _ in range(4):
            answer = await asked(self.line, request)
            await self.app.engine.settle()
        assert len(self.edge.memos) == 1
        self.edge.known_targets.clear()
        return answer

    async def by_memo(self, request: bytes = PLAIN) -> bool:
        """Whether the edge answers by what memos tell alone."""
        before = self.counted.asked
        assert b" 200 OK\r\n" in await asked(self.line, request)
        return self.counted.asked == before

    @property
    def stored(self) -> Entry:
        (stored,) = (each for each in self.memory._responses.hottest(9, 9) if "\ncoding " not in each.key)
        return stored


@pytest.fixture
async def site(clock: TurnedClock) -> Site:  # in the loop that its connection will use
    return Site(clock)


async def test_what_was_answered_is_answered_again_with_the_age_of_now(site: Site, clock: TurnedClock) -> None:
    await site.settled()
    assert b"\r\nage: 0\r\n" in await asked(site.line, PLAIN)
    clock.turn(7)
    answer = await asked(site.line, PLAIN)
    assert (b"\r\nage: 7\r\n" in answer, answer.endswith(TEXT.encode())) == (True, True)
    assert await site.by_memo()


CHANGES: dict[str, Callable[[Site], Any]] = {
    "another response": lambda site: site.memory.put(structs.replace(site.stored, born=site.stored.born + 1)),
    "removed": lambda site: site.memory.remove(site.stored.key),
    "evicted": lambda site: site.memory._responses.evict(),
    "cleared": lambda site: site.memory.clear(),
    "an index of variants": lambda site: site.memory.put_index(VaryIndex(primary=site.stored.primary, names=((),))),
    "a purge of something else": lambda site: site.app.engine.tiers.purges.epochs.raise_floor((1, 1)),
    "forgotten": lambda site: site.edge.forget(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_memo_is_void_at_once_with(site: Site, change: Callable[[Site], Any]) -> None:
    await site.settled()
    assert await site.by_memo()
    change(site)
    assert not await site.by_memo()


async def test_a_memo_is_void_when_its_response_is_fresh_no_longer(site: Site, clock: TurnedClock) -> None:
    await site.settled()
    clock.turn(59.5)
    assert await site.by_memo()
    clock.turn(10)
    assert not await site.by_memo()


@pytest.mark.parametrize("ending", ["", "\ncoding gzip"], ids=["response", "coded body"])
@pytest.mark.parametrize("replaced", [True, False])
async def test_a_memo_of_a_coded_answer_is_void_with_its(site: Site, ending: str, replaced: bool) -> None:
    request = GET % b"gzip"
    answer = await site.settled(request)
    assert b"\r\ncontent-encoding: gzip\r\n" in answer
    assert await site.by_memo(request)
    lain = site.memory.get(site.stored.key + ending)
    assert lain is not None
    if replaced:
        site.memory.put(structs.replace(lain, born=lain.born + 1))
    else:
        site.memory.remove(lain.key)
    assert not await site.by_memo(request)


async def test_another_variant_that_comes_voids_the_memos_of_its_siblings(clock: TurnedClock) -> None:
    site = Site(clock, {"vary": "accept-encoding"}, ttl="origin")
    await site.settled()
    assert await site.by_memo()
    stored = site.stored
    assert stored.vary
    site.memory.put(structs.replace(stored, key=stored.primary, born=stored.born + 1, vary=()))
    assert not await site.by_memo()


async def test_a_memo_does_not_keep_the_body_of_what_left_memory(site: Site) -> None:
    await site.settled()
    node = site.memory.node(site.stored.key)
    site.memory._responses.evict()
    assert node is not None
    assert node.value is None


async def test_a_memo_counts_as_a_use(site: Site) -> None:
    await site.settled()
    node = site.memory.node(site.stored.key)
    assert node is not None
    node.uses = 0
    for uses in (1, 2, 3, 3):
        await asked(site.line, PLAIN)
        assert node.uses == uses


async def test_memos_are_counted_and_replayed_like_other_hits(site: Site, clock: TurnedClock) -> None:
    await site.settled()
    recorder = site.app.engine.traffic.recorders["rest"]
    recorder.take()
    for _ in range(3):
        await asked(site.line, PLAIN)
    clock.turn(0.2)
    await asked(site.line, PLAIN)
    requests, sightings = recorder.take()
    assert (requests, [each.number for each in sightings]) == (4, [3, 1])
    assert 'outcome="hit",route="rest",status="2xx"} 7.0' in site.app.metrics.render().decode()


async def test_memos_are_bounded(site: Site) -> None:
    site.edge.memos._most = 10
    for number in range(30):
        for _ in range(3):
            await asked(site.line, PLAIN.replace(b"/o/1", b"/o/%d" % number))
    assert len(site.edge.memos) == 10
    assert sum(len(block.memos) for block in site.edge.blocks.values()) == 10


@pytest.mark.parametrize("id_", [b"", b"a" * 129, b"a\x00", b"a b", b"a\r\nx: y", b"a:", b"\xff"])
async def test_a_request_id_that_is_not_sane_is_not_repeated(site: Site, id_: bytes) -> None:
    await site.settled()
    answer = await asked(site.line, PLAIN.replace(b": a\r\n", b": " + id_ + b"\r\n"))
    assert site.counted.asked == 2 or b" 400 Bad Request\r\n" in answer


@pytest.mark.parametrize("forwarded", [b"", b"X-Forwarded-For: 203.0.113.9\r\n", b"X-Forwarded-Proto: https\r\n"])
async def test_behind_uvicorns_proxy_headers_the_edge_answers_what_they_leave_alone(
    site: Site, forwarded: bytes
) -> None:
    options: Any = {"lifespan": "off", "log_config": None, "proxy_headers": True}
    protocol = GatewayProtocol(uvicorn.Config(site.counted, **options), ServerState(), {})
    protocol.connection_made(Pipe())
    for _ in range(3):
        protocol.data_received(PLAIN.replace(b"X-Request", forwarded + b"X-Request"))
        while protocol.tasks:
            await asyncio.wait(set(protocol.tasks))
    assert site.counted.asked == (3 if forwarded else 1)
