"""response_headers, head_template: what is said of a request is the same whether app or edge writes it."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context import LOCAL, Outcome, PartState, RequestContext, Result
from gateway.edge.head_template import Ending, head_of, lines_of, template_of, with_last
from gateway.observability import response_headers
from gateway.observability.response_headers import Field, Texts, complete, diagnostics, in_milliseconds
from gateway.testing import TurnedClock
from tests.support.edge_lines import Changing, Side
from tests.support.gateways import lose_wholes


def exchange_of(outcome: Outcome, *parts: PartState, **spent: float) -> RequestContext:
    return RequestContext("id", 0.0, "GET", "", "", outcome=outcome, parts=parts, spent=spent)


def texts_of(exchange: RequestContext, elapsed: float) -> Texts:
    return Texts(exchange.request_id, f"{elapsed:.6f}", in_milliseconds(elapsed), in_milliseconds)


# --- the list ----------------------------------------------------------------------------------------------


def test_what_became_of_a_request_is_said() -> None:
    exchange = exchange_of(Outcome(Result.HIT, ttl=7), PartState("user", 'a "b"', 0.002), upstream=0.25, cache=0.001)
    assert diagnostics(exchange, texts_of(exchange, 0.5)) == [
        (b"x-request-id", b"id"),
        (b"x-process-time", b"0.500000"),
        (
            b"server-timing",
            b"cache;desc=hit;dur=1.000, upstream;dur=250.000, user;desc=\"a 'b'\";dur=2.000, total;dur=500.000",
        ),
        (b"cache-status", b"gateway; hit; ttl=7"),
    ]


@pytest.mark.parametrize("outcome", [LOCAL, Outcome(Result.LOCAL, detail="websocket")])
def test_what_needs_no_cache_says_nothing_of_one(outcome: Outcome) -> None:
    exchange = exchange_of(outcome)
    fields = dict(diagnostics(exchange, texts_of(exchange, 0.5)))
    assert fields[b"server-timing"] == b"total;dur=500.000"
    assert b"cache-status" not in fields


def test_a_date_is_added_where_there_is_none() -> None:
    exchange = exchange_of(LOCAL)
    assert [name for name, _ in complete(exchange, [(b"x-a", b"1")])][:2] == [b"x-a", b"date"]
    assert complete(exchange, [(b"date", b"then")])[:2][0] == (b"date", b"then")
    assert [name for name, _ in complete(exchange, [(b"date", b"then")])].count(b"date") == 1


# --- the template ------------------------------------------------------------------------------------------


@given(
    elapsed=st.floats(0, 30) | st.integers(0, 1100).map(lambda tick: tick / 1_000_000),
    duration=st.floats(0, 30) | st.integers(0, 1100).map(lambda tick: tick / 1_000_000),
    ttl=st.integers(-100, 10_000),
    names=st.lists(st.sampled_from(["user", "offers", "news"]), max_size=3, unique=True),
    looked=st.booleans(),
)
def test_an_ending_writes_what_the_list_says(
    elapsed: float, duration: float, ttl: int, names: list[str], looked: bool
) -> None:
    elapsed, duration = round(elapsed, 6), round(duration, 6)
    parts = [PartState(name, "hit", duration) for name in names]
    exchange = exchange_of(Outcome(Result.HIT, ttl=ttl), *parts, **({"cache": duration} if looked else {}))
    ending = Ending(exchange)
    written = ending.start + b"id" + ending.timing(elapsed, duration) + ending.status(ttl)
    assert written == lines_of(diagnostics(exchange, texts_of(exchange, elapsed))) + b"\r\n"


def test_the_timings_that_are_made_beforehand_are_those_that_are_made() -> None:
    ending = Ending(exchange_of(Outcome(Result.HIT, ttl=0)))
    assert [ending.timing(tick / 1_000_000) for tick in range(len(ending.ticks))] == ending.ticks
    assert len(ending.ticks) == 1000


def test_a_template_takes_the_values_that_vary_and_keeps_the_others() -> None:
    headers = [(b"x-a", b"5 %"), (b"date", b"now"), (b"age", b"1"), (b"content-length", b"0")]
    template = template_of(200, headers, (b"age",))
    assert template is not None
    assert template % b"7" + b"\r\n" == head_of(200, [*headers[:2], (b"age", b"7"), headers[3]])


@pytest.mark.parametrize(
    "headers",
    [
        [(b"date", b"now"), (b"content-length", b"0")],
        [(b"age", b"1"), (b"age", b"2"), (b"date", b"now"), (b"content-length", b"0")],
        [(b"age", b"1"), (b"date", b"now"), (b"content-length", b"0"), (b"connection", b"close")],
        [(b"age", b"1"), (b"date", b"now"), (b"content-length", b"0"), (b"x-a", b"a\r\nb: c")],
    ],
)
def test_what_cannot_be_written_as_it_is_has_no_template(headers: list[Field]) -> None:
    assert template_of(200, headers, (b"age",)) is None


def test_the_head_of_a_last_answer_says_so() -> None:
    assert with_last(head_of(200, [(b"x-a", b"1")]), b"connection: close\r\n") == head_of(
        200, [(b"x-a", b"1"), (b"connection", b"close")]
    )


# --- one edit ----------------------------------------------------------------------------------------------

ROUTES = {
    "plain": {"path": "/plain", "upstream": "api", "ttl": "5s", "stale_while_revalidate": "30s"},
    "past": {"path": "/past", "upstream": "api", "ttl": "0s"},
    "whole": {"path": "/whole", "parts": {"one": {"upstream": "api", "path": "/one", "ttl": "5s", "vary": []}}},
}


@pytest.mark.parametrize("edge", [True, False])
async def test_a_field_that_is_added_to_the_list_stands_in_every_answer(
    monkeypatch: pytest.MonkeyPatch, clock: TurnedClock, edge: bool
) -> None:
    plain = response_headers.diagnostics

    def with_route(exchange: RequestContext, texts: Texts) -> list[Field]:
        return [*plain(exchange, texts), (b"x-route", f"{exchange.route}/{exchange.outcome.result}".encode())]

    monkeypatch.setattr(response_headers, "diagnostics", with_route)

    class Json(Changing):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={})

    side = Side(clock, Json(), edge=edge, routes=ROUTES)

    async def route_of(path: str, *, more: str = "") -> str:
        answer, _ = await side.ask(f"GET {path} HTTP/1.1\r\nHost: gateway.test\r\n{more}\r\n".encode())
        head = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        return next(line for line in head if line.startswith("x-route: ")).removeprefix("x-route: ")

    assert [await route_of("/plain") for _ in range(4)] == ["plain/miss", *["plain/hit"] * 3]
    assert await route_of("/plain", more="Connection: close\r\n") == "plain/hit"
    assert await route_of("/plain", more="If-None-Match: *\r\n") == "plain/hit"
    assert [await route_of("/past") for _ in range(2)] == ["past/bypass"] * 2
    assert [await route_of("/whole") for _ in range(3)] == ["whole/miss", "whole/hit", "whole/hit"]
    lose_wholes(side.app)
    assert await route_of("/whole") == "whole/hit"  # joined of what lies in memory
    clock.turn(6)
    assert await route_of("/plain") == "plain/stale"
    assert await route_of("/one-that-is-not-there") == "/local"
