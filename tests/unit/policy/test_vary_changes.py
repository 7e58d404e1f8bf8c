"""A 304, or a HEAD's answer, that brings or changes `Vary`: who is told apart by it is never given another's answer."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway

STRONG = {"etag": '"v1"'}
WEAK = {"etag": 'W/"v1"'}
DATED = {"last-modified": "Fri, 15 Jan 2027 07:00:00 GMT"}
WINDOWS = "max-age=10, stale-while-revalidate=60, stale-if-error=60"


class Deployed(StubUpstream):
    """An upstream whose answers are in the language that `X-Lang` names; what it says of that changes by deployments.

    It takes every condition for true: whoever validates with another's tag is told that nothing has changed.
    """

    def __init__(self, validator: dict[str, str]) -> None:
        super().__init__(self._answer)
        self.validator = validator
        self.vary: str | None = None
        self.cache_control = "max-age=10"
        self.failing = False

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if self.failing:
            return httpx.Response(503)
        fields = {**self.validator, "cache-control": self.cache_control} | ({"vary": self.vary} if self.vary else {})
        if {"if-none-match", "if-modified-since"} & set(request.headers):
            return httpx.Response(304, headers=fields)
        body = f"in {request.headers.get('x-lang')}"
        if request.method == "HEAD":
            return httpx.Response(200, headers={**fields, "content-length": str(len(body))})
        return httpx.Response(200, text=body, headers=fields)

    @property
    def conditional(self) -> list[bool]:
        return [bool({"if-none-match", "if-modified-since"} & set(each.headers)) for each in self.requests]


async def read(client: httpx.AsyncClient, language: str, method: str = "GET", **headers: str) -> httpx.Response:
    fields = {"x-lang": language} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.request(method, "/page", headers=fields)


def store_of(valkey: Embedded, prefix: str) -> RedisStore:
    return RedisStore(valkey.url, prefix=prefix, budget=1.0)


@pytest.mark.parametrize("validator", [STRONG, WEAK, DATED])
async def test_a_304_with_a_new_vary_tells_apart_from_then_on(clock: TurnedClock, validator: dict[str, str]) -> None:
    upstream = Deployed(validator)
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de")
        clock.turn(11)
        upstream.vary = "X-Lang"
        answers = [(await read(client, language)).text for language in ("de", "fr", "de", "fr")]
    assert answers == ["in de", "in fr", "in de", "in fr"]
    # A strong tag proves that the stored bytes are this request's. Without one they may be another's, and are left.
    assert upstream.conditional == ([False, True, False] if validator is STRONG else [False, True, False, False])


@pytest.mark.parametrize("validator", [WEAK, DATED])
async def test_whoever_validates_first_is_not_given_what_another_was_sent(
    clock: TurnedClock, validator: dict[str, str]
) -> None:
    upstream = Deployed(validator)
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de")
        clock.turn(11)
        upstream.vary = "X-Lang"
        assert [(await read(client, language)).text for language in ("fr", "de")] == ["in fr", "in de"]


async def test_a_304_that_changes_one_vary_to_another_does_too(clock: TurnedClock) -> None:
    upstream = Deployed(STRONG)
    upstream.vary = "Accept"
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de", accept="text/html")
        clock.turn(11)
        upstream.vary = "X-Lang"
        await read(client, "de", accept="text/html")
        assert (await read(client, "de", accept="text/plain")).text == "in de"
        assert (await read(client, "fr", accept="text/html")).text == "in fr"
    assert upstream.conditional == [False, True, False]


@pytest.mark.parametrize("failing", [False, True])
async def test_what_was_stored_without_vary_stands_in_for_nobody_else(clock: TurnedClock, failing: bool) -> None:
    upstream = Deployed(STRONG)
    upstream.cache_control = WINDOWS
    app = gateway(upstream, clock=clock)
    async with running(app) as client:
        await read(client, "de")
        clock.turn(11)
        upstream.vary = "X-Lang"
        await read(client, "de")
        await app.engine.settle()
        upstream.failing = failing
        answer = await read(client, "fr")
    assert (answer.status_code, answer.text == "in fr") == ((503, False) if failing else (200, True))


@pytest.mark.parametrize("validator", [STRONG, WEAK, DATED])
async def test_a_head_that_brings_vary_does_too(clock: TurnedClock, validator: dict[str, str]) -> None:
    upstream = Deployed(validator)
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de")
        upstream.vary = "X-Lang"
        await read(client, "de", "HEAD", cache_control="no-cache")
        assert [(await read(client, language)).text for language in ("fr", "de")] == ["in fr", "in de"]


@pytest.mark.parametrize("stored", [STRONG, {}])
async def test_a_head_for_another_does_not_make_the_stored_answer_its_own(
    clock: TurnedClock, stored: dict[str, str]
) -> None:
    upstream = Deployed(stored)
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de")
        upstream.vary = "X-Lang"
        upstream.validator = {}  # nothing but the length, which is the same, says what the HEAD's answer is of
        await read(client, "fr", "HEAD", cache_control="no-cache")
        assert (await read(client, "fr")).text == "in fr"


@pytest.mark.parametrize("validator", [STRONG, WEAK, DATED])
@pytest.mark.parametrize(
    ("vary", "cache_control"),
    [("*", "max-age=10"), (None, "no-store"), (None, "private, max-age=10"), ("X-Lang", "no-store")],
)
async def test_a_304_that_forbids_to_store_is_told_and_ends_what_was_stored(
    clock: TurnedClock, validator: dict[str, str], vary: str | None, cache_control: str
) -> None:
    upstream = Deployed(validator)
    upstream.cache_control = WINDOWS
    app = gateway(upstream, clock=clock)
    async with running(app) as client:
        await read(client, "de")
        clock.turn(71)
        upstream.vary, upstream.cache_control = vary, cache_control
        answer = await read(client, "de")
        assert (answer.status_code, answer.text) == (200, "in de")
        assert (answer.headers["cache-control"], answer.headers.get("vary")) == (cache_control, vary)
        for language in ("fr", "de"):
            assert (await read(client, language)).text == f"in {language}"
        head = await read(client, "de", "HEAD")
    assert head.headers["cache-control"] == cache_control
    assert not any(upstream.conditional[2:])


async def test_a_304_that_forbids_to_store_still_answers_a_condition(clock: TurnedClock) -> None:
    upstream = Deployed(STRONG)
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de")
        clock.turn(11)
        upstream.cache_control = "no-store"
        answer = await read(client, "de", if_none_match='"v1"')
    assert (answer.status_code, answer.headers["cache-control"]) == (304, "no-store")
    assert "fwd-status=304" in answer.headers["cache-status"]


@pytest.mark.parametrize("vary", ["X-Lang", "*"])
async def test_those_who_wait_for_the_304_are_told_apart(clock: TurnedClock, vary: str) -> None:
    upstream = Deployed(STRONG)
    async with running(gateway(upstream, clock=clock)) as client:
        await read(client, "de")
        clock.turn(11)
        upstream.vary = vary
        upstream.gate.clear()
        asked = [asyncio.ensure_future(read(client, language)) for language in ("de", "fr", "es", "de")]
        for _ in range(2):  # the first of the test, and the one that all wait for
            await upstream.came.acquire()
        upstream.gate.set()
        answers = [answer.text for answer in await asyncio.gather(*asked)]
    assert answers == ["in de", "in fr", "in es", "in de"]


@pytest.mark.parametrize("change", ["vary", "star", "head"])
@pytest.mark.parametrize("remembers", [False, True])
async def test_another_worker_and_what_redis_has_go_by_it_too(
    clock: TurnedClock, valkey: Embedded, change: str, remembers: bool
) -> None:
    upstream = Deployed(STRONG)
    upstream.cache_control = WINDOWS
    prefix = f"{change}{remembers}:"
    one = gateway(upstream, clock=clock, store=store_of(valkey, prefix))
    other = gateway(upstream, clock=clock, store=store_of(valkey, prefix))
    async with running(one) as first, running(other) as second:
        await read(first, "de")
        await one.engine.settle()
        if remembers:
            assert "hit" in (await read(second, "de")).headers["cache-status"]
        clock.turn(11)
        upstream.vary = "*" if change == "star" else "X-Lang"
        if change == "head":  # the strong tag is repeated
            await read(first, "de", "HEAD", cache_control="no-cache")
        else:
            await read(first, "de", cache_control="no-cache")
        await one.engine.settle()
        await one.engine.purge(tags=["nothing"])  # and so the other has heard of what was made void before
        asked = upstream.asked
        again = await read(first, "de")
        assert ("hit" in again.headers["cache-status"]) == (change != "star")
        asked += change == "star"
        answers = [(await read(second, language)).text for language in ("fr", "de")]
    assert answers == ["in fr", "in de"]
    assert upstream.asked == asked + (2 if change == "star" else 1)
