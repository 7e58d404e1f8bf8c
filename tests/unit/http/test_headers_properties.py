"""headers, structured: what fields mean to a cache, and that nothing a peer writes can raise."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context import FORWARD_REASONS, Outcome, Result, cache_status
from gateway.http import headers
from gateway.http.headers import (
    MAX_DELTA,
    CacheControl,
    delta_seconds,
    dictionary,
    http_date,
    parse_age,
    parse_date,
    split_list,
)

NOON = 1_735_732_800.0  # Wed, 01 Jan 2025 12:00:00 GMT
TEXT = st.text(st.characters(max_codepoint=255), max_size=40)
TOKENS = st.text(string.ascii_lowercase + string.digits + "-_!#$%&'*+.^`|~", min_size=1, max_size=12)


@given(st.dictionaries(TOKENS, st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)))
def test_directives_rendered_are_parsed_to_the_same(directives: dict[str, str | None]) -> None:
    control = CacheControl(directives)
    assert CacheControl.parse([control.render()]) == control


@given(st.lists(TEXT, max_size=4))
def test_what_was_parsed_renders_to_what_parses_the_same(lines: list[str]) -> None:
    control = CacheControl.parse(lines)
    assert CacheControl.parse([control.render()]) == control


@given(TEXT, TEXT, st.floats(0, 4e9))
def test_no_text_however_malformed_raises(text: str, other: str, now: float) -> None:
    for line in (text, other):
        parse_date(line, now)
        split_list(line)
        headers.unquote(line)
        dictionary(line)
    fields = [(name, text.encode("latin-1")) for name in (b"vary", b"age", b"connection", b"cache-control", b"accept")]
    assert headers.vary_names(fields) is None or all(headers.vary_names(fields) or ())
    assert 0 <= parse_age(fields) <= MAX_DELTA
    headers.end_to_end(fields)
    headers.sent_value(fields, "accept")


@given(st.integers(0, 253_402_300_799))
def test_a_date_written_is_read_as_it_was(moment: int) -> None:
    text = http_date(moment).decode()
    assert parse_date(text, NOON) == moment
    assert parse_date(text.upper(), NOON) == parse_date(text.lower(), NOON) == moment


@pytest.mark.parametrize(
    "text",
    [
        "Wed, 01 Jan 2025 12:00:00 GMT",
        "wed, 01 JAN 2025 12:00:00 gmt",
        "Wednesday, 01-Jan-25 12:00:00 GMT",
        "Wed Jan  1 12:00:00 2025",
    ],
)
def test_a_date_has_three_forms_in_any_case(text: str) -> None:
    assert parse_date(text, NOON) == NOON


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "Wed, 01 Jan 2025 12:00:00",
        "Wed, 01 Jan 2025 12:00:00 UTC",
        "Wed, 01 Jan 2025 24:00:00 GMT",
        "Wed, 00 Jan 2025 12:00:00 GMT",
        "Wed, 01 Jan 0000 12:00:00 GMT",
        "Wed, 1 Jan 2025 12:00:00 GMT",
        "Wed, 01  Jan 2025 12:00:00 GMT",
        "Wed, 01-Jan-2025 12:00:00 GMT",
        "Wed, 01 Jan 25 12:00:00 GMT",
        "Wed 01 Jan 2025 12:00:00 GMT",
        " Wed, 01 Jan 2025 12:00:00 GMT",
    ],
)
def test_what_is_no_date_is_none(text: str) -> None:
    assert parse_date(text, NOON) is None


def test_a_year_of_two_digits_is_at_most_fifty_years_ahead() -> None:
    assert parse_date("Friday, 01-Jan-75 00:00:00 GMT", NOON) == parse_date("Tue, 01 Jan 2075 00:00:00 GMT", NOON)
    assert parse_date("Thursday, 01-Jan-76 00:00:00 GMT", NOON) == parse_date("Thu, 01 Jan 1976 00:00:00 GMT", NOON)


@given(st.integers(0))
def test_delta_seconds_end_at_2_to_the_31(seconds: int) -> None:
    assert delta_seconds(str(seconds)) == min(seconds, MAX_DELTA)


@pytest.mark.parametrize("text", [None, "", "-1", "+1", "1.0", " 1", "1s", "\u0661"])
def test_what_is_no_delta_makes_a_response_stale(text: str | None) -> None:
    assert delta_seconds(text) == 0


@pytest.mark.parametrize(
    ("text", "members"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("max-age=60", {"max-age": "60"}, id="an integer"),
        pytest.param("a, b=?0;x, c=?1", {"a": "?1", "b": "?0", "c": "?1"}, id="booleans"),
        pytest.param('a="x, \\"y\\"" , b=tok/en:*', {"a": '"x, \\"y\\""', "b": "tok/en:*"}, id="a string and a token"),
        pytest.param("a=(1 2.5);q=1, b=:aGk=:", {"a": "(1 2.5)", "b": ":aGk=:"}, id="a list and bytes"),
        pytest.param("a=1, a=2", {"a": "2"}, id="the last of two"),
        pytest.param("a=-1.5, b=@17, *c", {"a": "-1.5", "b": "@17", "*c": "?1"}, id="a decimal, a date, a star"),
    ],
)
def test_a_dictionary_is_read_by_its_grammar(text: str, members: dict[str, str]) -> None:
    assert dictionary(text) == members


@pytest.mark.parametrize(
    "text",
    [
        "a,",
        ",a",
        "a,,b",
        "a=",
        "a =1",
        "a= 1",
        "A=1",
        "a=1 b=2",
        "&&&&",
        'a="x',
        "a=1.",
        "a=1.2345",
        "a=1e5",
        "a=é",
        'a="\x01"',
        "a=1234567890123456",
        "a=(1",
        "a=?2",
    ],
)
def test_what_breaks_the_grammar_anywhere_is_no_dictionary(text: str) -> None:
    assert dictionary(text) is None


OUTCOMES = st.builds(
    Outcome,
    result=st.sampled_from(Result),
    forward=st.none() | st.sampled_from(sorted(FORWARD_REASONS)),
    forward_status=st.none() | st.integers(100, 599),
    ttl=st.none() | st.integers(-(10**6), 10**6),
    stored=st.booleans(),
    collapsed=st.booleans(),
    detail=st.none() | st.sampled_from(["no-store", "end-in-doubt", "only-if-cached", "too-large"]),
)


@given(OUTCOMES)
def test_every_outcome_is_told_as_a_member_of_a_structured_list(outcome: Outcome) -> None:
    name, _, parameters = cache_status(outcome).partition("; ")
    told = dictionary(", ".join(parameters.split("; ")))
    assert name == "gateway"
    assert told is not None
    assert ("hit" in told) != ("fwd" in told)  # RFC 9211 §2.1
    assert ("fwd-status" in told or "stored" in told or "collapsed" in told) <= ("fwd" in told)
