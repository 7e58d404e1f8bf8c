"""The splice before ASGI: the edge joins what the app would join, byte for byte, or leaves it to the app."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.testing import TurnedClock
from tests.support.edge_lines import Both, Line, asked, living, masked
from tests.support.gateways import lose_wholes
from tests.support.scale import size
from tests.support.splice import ROUTES, UPSTREAM_HEADERS, JoiningSide, Parts, get

EXAMPLES = size("aggregate_stories")
"""20,000 nightly."""


MAYBE: dict[str, list[str]] = {
    "X-Flavour": ["sweet", "sour"],
    "Accept": ["application/json"],
    "Accept-Encoding": ["gzip"],
    "Origin": ["https://app.test", "https://evil.test"],
    "Cookie": ["a=1", "b=2"],
    "Authorization": ["Bearer x"],
    "If-None-Match": ["*", '"x"', "ETAG"],
    "If-Modified-Since": ["Fri, 15 Jan 2027 08:00:00 GMT"],
    "Cache-Control": ["no-cache", "max-age=2", "min-fresh=3", "only-if-cached"],
    "Connection": ["close"],
    "X-Request-ID": ["abc"],
}
PATHS = (
    *(
        "/plain/1",
        "/plain/1",
        "/plain/1",
        "/plain/2?page=3",
        "/plain/2?page=3&page=",
        "/plain/2?page=4&page=%FF",
        "/shaped/1",
        "/shaped/1",
        "/shaped/1?parts=offers,version",
        "/shaped/1?parts=offers&parts=flavour",
        "/through",
    ),
    *("/refusing?x=1", "/refusing?x=..", "/refusing"),
    *("/chained/1", "/rooted", "/enveloped", "/personal", "/passing", "/offers"),
)
PURGES: tuple[dict[str, Any], ...] = (
    *({"tags": ["offers"]}, {"tags": ["user:1"]}, {"tags": ["whole"]}, {"tags": ["upstreams"]}),
    *({"routes": ["plain"]}, {"routes": ["plain.offers"]}, {"routes": ["product"]}, {"everything": True}),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(("GET", "GET", "GET", "GET", "HEAD")))
    path = draw(st.sampled_from(PATHS))
    version = draw(st.sampled_from(("1.1", "1.1", "1.1", "1.0")))
    names = draw(st.lists(st.sampled_from(sorted(MAYBE)), max_size=draw(st.integers(0, 2)), unique=True))
    lines = ["Host: gateway.test", *(f"{name}: {draw(st.sampled_from(MAYBE[name]))}" for name in names)]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode()


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(
        st.sampled_from(("ask", "ask", "ask", "again", "again", "lose", "lose", "turn", "turn", "purge", "say"))
    )
    if kind == "ask":
        return kind, draw(requests())
    if kind == "turn":
        return kind, draw(st.sampled_from((0.25, 1.0, 3.0, 5.0, 9.5)))
    if kind == "purge":
        return kind, {**draw(st.sampled_from(PURGES)), "soft": draw(st.booleans())}
    if kind == "say":
        return kind, (
            draw(st.sampled_from((200, 200, 404, 503))),
            draw(st.sampled_from(UPSTREAM_HEADERS)),
            draw(st.integers(1, 2)),
        )
    return kind, None


_ETAG = re.compile(rb'etag: ("[^"]+")')


class Joining(Both):
    """`lose` takes the wholes out of memory, as an eviction would, leaves the parts, and asks again; `ETAG` in a
    request is the entity tag of the last answer."""

    def __init__(self) -> None:
        super().__init__(Parts(), JoiningSide, UPSTREAM_HEADERS[0])
        self.joined = 0
        self._etag = b'"none"'

    async def ask(self, kind: str, what: bytes | None) -> bytes:
        for side in self.sides if kind == "lose" else ():
            lose_wholes(side.app)
        before = self.sides[0].counted.asked
        answer = await super().ask(kind, what.replace(b"ETAG", self._etag) if what is not None else None)
        self.joined += b"detail=joined" in answer and self.sides[0].counted.asked == before
        self._etag = match[1] if (match := _ETAG.search(answer)) else self._etag
        return answer


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[asyncio.Runner, Joining]]:
    yield from living(Joining)


def asking_for(path: str, *lines: str) -> list[tuple[str, Any]]:
    return [("ask", get(path, *lines))]


LOST = [*asking_for("/plain/1"), ("lose", None), ("again", None), ("lose", None)]
PURGED = [*asking_for("/plain/1"), ("purge", {"tags": ["whole"]}), ("again", None), ("again", None)]
PART_PURGED = [*LOST, ("purge", {"tags": ["offers"]}), ("again", None), ("lose", None)]
_ETAG_ASKED = asking_for("/shaped/1", "If-None-Match: ETAG")
CONDITIONAL = [*asking_for("/shaped/1"), *_ETAG_ASKED, *_ETAG_ASKED, ("lose", None), ("lose", None)]
VARIED = [*LOST, ("say", (200, UPSTREAM_HEADERS[2], 1)), ("turn", 9.5), ("again", None), ("lose", None), ("lose", None)]
_CODED = asking_for("/plain/1", "Accept-Encoding: gzip")
UNSEEN = [("say", (200, {"cache-control": "max-age=20", "vary": "Accept-Encoding"}, 1)), *_CODED, ("lose", None)]
HEAD_OF_A_PRIVATE_ONE = [
    ("say", (200, UPSTREAM_HEADERS[5], 1)),
    ("ask", get("/plain/1").replace(b"GET", b"HEAD")),
]
OLDER = [*LOST, ("turn", 3.0), ("lose", None), ("turn", 3.5), ("again", None), ("again", None)]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=st.lists(steps(), min_size=4, max_size=25))
@example(story=LOST)
@example(story=PURGED)
@example(story=PART_PURGED)
@example(story=CONDITIONAL)
@example(story=VARIED)
@example(story=[*UNSEEN, ("lose", None)])
@example(story=OLDER)
@example(story=HEAD_OF_A_PRIVATE_ONE)
def test_the_edge_never_joins_otherwise_than_the_app(
    both: tuple[asyncio.Runner, Joining], story: list[tuple[str, Any]]
) -> None:
    runner, gateways = both
    runner.run(gateways.live(story))


def test_the_edge_counted_what_the_app_counted_and_joined_much_of_it(both: tuple[asyncio.Runner, Joining]) -> None:
    _, gateways = both
    with_edge, without = gateways.sides
    assert sorted(with_edge.counts()) == sorted(without.counts())
    for route in ROUTES:
        seen = [side.app.engine.traffic.recorders[route].requests for side in gateways.sides]
        assert seen[0] == seen[1]
    assert gateways.joined > 10


async def test_while_parts_are_refreshed_behind_the_edge_joins_them_as_the_app_does() -> None:
    """The first request is the app's, which begins the refresh; those that come before its end need no app."""
    clock, changing, told = TurnedClock(), Parts(), []
    changing.headers = {"cache-control": "max-age=20"}
    requests = [
        get("/plain/1"),
        get("/plain/1", "Origin: https://app.test", "X-Request-ID: abc"),
        get("/plain/1").replace(b"GET", b"HEAD"),
        get("/plain/1", "Connection: close"),
    ]
    sides = [JoiningSide(clock, changing, edge=edge) for edge in (True, False)]
    for side in sides:
        for request in requests:
            for _ in range(3):
                await side.ask(request)
                lose_wholes(side.app)
    clock.turn(7)
    for side in sides:
        side.upstream.gate.clear()
        await asked(Line(side.counted), requests[0])
        before, answers = side.counted.asked, []
        for request in requests:
            line = Line(side.counted)
            answers.append((masked(await asked(line, request)), line.pipe.closed))
        told.append(answers)
        assert (side.counted.asked == before) == (side is sides[0])
        side.upstream.gate.set()
        await side.app.engine.settle()
        assert b"offers=hit" in (await side.ask(requests[0]))[0]
    assert told[0] == told[1]
    assert b"gateway-parts: user=hit, offers=stale;age=7, news=hit" in told[0][0][0]
    assert sides[0].lines == sides[1].lines
    assert sorted(sides[0].counts()) == sorted(sides[1].counts())


async def test_a_part_that_is_stale_and_not_being_refreshed_is_the_apps(clock: TurnedClock) -> None:
    changing = Parts()
    changing.headers = {"cache-control": "max-age=20"}
    side = JoiningSide(clock, changing, edge=True)
    for _ in range(3):
        await side.ask(get("/plain/1"))
    clock.turn(7)
    before = side.counted.asked
    assert b"offers=stale;age=7" in (await side.ask(get("/plain/1")))[0]
    assert side.counted.asked == before + 1


async def test_a_whole_takes_the_place_of_the_one_before_and_is_counted_once(clock: TurnedClock) -> None:
    changing = Parts()
    changing.headers = {"cache-control": "max-age=20"}
    side = JoiningSide(clock, changing, edge=True)
    memory = side.app.engine.memory
    sizes, entries = set(), set()
    for _ in range(8):
        clock.turn(7)
        for _ in range(3):
            answer, _ = await side.ask(get("/plain/1"))
        assert b"cache-status: gateway; hit; ttl=" in answer
        sizes.add(memory.statistics.bytes)
        entries.add(len(memory))
    assert entries == {4}
    assert max(sizes) - min(sizes) < 20  # the digits of ages


async def test_a_whole_that_nobody_asked_for_before_needs_no_asgi_whatever_becomes_of_its_parts(
    clock: TurnedClock,
) -> None:
    changing = Parts()
    changing.headers = {"cache-control": "max-age=20"}
    side = JoiningSide(clock, changing, edge=True)
    answers = [(await side.ask(get(path)))[0] for path in ("/plain/1", "/plain/2", "/chained/1", "/rooted")]
    changing.status = 503
    await side.app.purge(everything=True)
    answers.append((await side.ask(get("/plain/1")))[0])
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 4 + [b"HTTP/1.1 502"]
    assert b"gateway-parts: user=miss, offers=hit, news=hit" in answers[1]
    assert b"(offers: status-503: upstream returned 503)" in answers[4]
    assert (side.counted.asked, side.counted.passed) == (5, 5)


async def test_a_client_that_leaves_while_its_whole_is_joined_takes_nothing_from_others(clock: TurnedClock) -> None:
    changing = Parts()
    changing.headers = {"cache-control": "max-age=20"}
    side = JoiningSide(clock, changing, edge=True)
    side.upstream.gate.clear()
    leaving, staying = Line(side.counted), Line(side.counted)
    leaving.send(get("/plain/1"))
    await side.upstream.came.acquire()
    staying.send(get("/plain/1"))
    leaving.hang_up()
    side.upstream.gate.set()
    assert b"gateway-complete: ?1" in await staying.answer()
    await side.app.engine.settle()
    assert side.counted.passed == 2
