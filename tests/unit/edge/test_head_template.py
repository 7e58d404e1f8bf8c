"""The bytes of response heads: those of a template are those that the app would send."""

from __future__ import annotations

import pytest

from gateway.context import Outcome, RequestContext, Result
from gateway.edge.head_template import (
    CLOSES,
    KEEPS,
    TICKS,
    Ending,
    head_of,
    interim_head,
    lines_of,
    template_of,
    with_last,
)
from gateway.observability.response_headers import Texts, diagnostics, in_milliseconds

FIELDS = [
    (b"content-type", b"text/plain"),
    (b"age", b"3"),
    (b"x-share", b"100%"),
    (b"content-length", b"4"),
    (b"date", b"now"),
]


def context(*, parts: bool = False) -> RequestContext:
    made = RequestContext("id-1", 0.0, "GET", "127.0.0.1", "http")
    made.outcome = Outcome(Result.HIT, ttl=17, tier="memory")
    if parts:
        made.spend("memory", 0.000_2)
    return made


@pytest.mark.parametrize("elapsed", [0.0, 0.000_000_4, 0.000_123, (TICKS - 1) / 1e6, TICKS / 1e6, 0.25, 61.5])
def test_the_end_of_a_head_is_what_the_app_sends(elapsed: float) -> None:
    ending, exchange = Ending(context()), context()
    texts = Texts("id-1", f"{elapsed:.6f}", in_milliseconds(elapsed), in_milliseconds)
    sent = lines_of(diagnostics(exchange, texts)) + b"\r\n"
    assert ending.start + b"id-1" + ending.timing(elapsed) + ending.status(17.0) == sent


def test_a_time_is_made_beforehand_for_each_microsecond_where_the_total_is_all() -> None:
    ending = Ending(context())
    assert len(ending.ticks) == TICKS
    assert [ending.ticks[tick] for tick in (0, 7, 999)] == [ending.timing(tick / 1e6) for tick in (0, 7, 999)]


def test_a_time_spent_on_something_stands_before_the_total() -> None:
    ending = Ending(context(parts=True))
    assert ending.ticks == []
    text = ending.timing(0.5, 0.125)
    assert text.index(b"125.000") < text.index(b"500.000")


def test_a_template_takes_the_values_that_vary_and_nothing_else() -> None:
    template = template_of(200, FIELDS, (b"age",))
    assert template is not None
    assert template % b"99" + b"\r\n" == head_of(200, [FIELDS[0], (b"age", b"99"), *FIELDS[2:]])


@pytest.mark.parametrize(
    ("headers", "varying"),
    [
        (FIELDS, (b"age", b"cache-control")),
        (FIELDS, (b"expires",)),
        ([*FIELDS, (b"age", b"4")], (b"age",)),
        ([(b"b", b"1"), (b"a", b"2")], (b"a", b"b")),
    ],
    ids=["one is missing", "it is not there", "twice", "in another order"],
)
def test_there_is_no_template_where_the_fields_that_vary_are_not_there_once_in_order(
    headers: list[tuple[bytes, bytes]], varying: tuple[bytes, ...]
) -> None:
    assert template_of(200, headers, varying) is None


def test_an_interim_response_has_neither_framing_nor_an_upstreams_cors() -> None:
    fields = [
        *((b"link", b"</a>; rel=preload"), (b"content-length", b"2"), (b"connection", b"close")),
        *((b"transfer-encoding", b"chunked"), (b"access-control-allow-origin", b"*")),
    ]
    assert interim_head(103, fields) == b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("field", [CLOSES, KEEPS])
def test_a_last_field_stands_at_the_end_of_a_head(field: bytes) -> None:
    assert with_last(head_of(200, FIELDS), field) == head_of(200, FIELDS)[:-2] + field + b"\r\n"
