"""outcome, exchange: one value says what happened to a request, and all who tell it read the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context import (
    FORWARD_REASONS,
    LOCAL,
    SCOPE_KEY,
    Outcome,
    RequestContext,
    Result,
    cache_status,
    exchange_of,
)
from gateway.http.headers import dictionary


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        pytest.param(Outcome(Result.HIT, ttl=27), "gateway; hit; ttl=27", id="a hit"),
        pytest.param(Outcome(Result.HIT, ttl=0), "gateway; hit; ttl=0", id="a hit in its last second"),
        pytest.param(Outcome(Result.HIT, ttl=5, tier="redis"), "gateway; hit; ttl=5", id="the tier is not told"),
        pytest.param(Outcome(Result.STALE, ttl=-3), "gateway; hit; ttl=-3", id="served stale"),
        pytest.param(
            Outcome(Result.STALE_ERROR, ttl=-9, forward="stale", forward_status=503),
            "gateway; fwd=stale; fwd-status=503; ttl=-9",
            id="served stale as the upstream failed",
        ),
        pytest.param(
            Outcome(Result.MISS, forward="miss", forward_status=200, stored=True, ttl=30),
            "gateway; fwd=miss; stored; fwd-status=200; ttl=30",
            id="a miss that was stored",
        ),
        pytest.param(
            Outcome(Result.MISS, forward="miss", collapsed=True), "gateway; fwd=miss; collapsed", id="a waiter"
        ),
        pytest.param(
            Outcome(Result.REVALIDATED, forward="stale", forward_status=304, stored=True, collapsed=True, ttl=1),
            "gateway; fwd=stale; stored; collapsed; fwd-status=304; ttl=1",
            id="all of it",
        ),
        pytest.param(
            Outcome(Result.BYPASS, forward="bypass", detail="cookie"),
            "gateway; fwd=bypass; detail=cookie",
            id="passed by",
        ),
        pytest.param(
            Outcome(Result.HIT, stored=True, collapsed=True, forward_status=200),
            "gateway; hit",
            id="a hit was not forwarded",
        ),
    ],
)
def test_an_outcome_is_told_in_the_words_of_rfc_9211(outcome: Outcome, text: str) -> None:
    assert cache_status(outcome) == text


def test_a_template_has_its_mark_in_place_of_the_freshness_that_remains() -> None:
    assert cache_status(Outcome(Result.HIT, ttl=5), ttl="?") == "gateway; hit; ttl=?"
    assert cache_status(Outcome(Result.HIT), ttl="?") == "gateway; hit"


@given(
    st.builds(
        Outcome,
        result=st.sampled_from(Result),
        forward=st.none() | st.sampled_from(sorted(FORWARD_REASONS)),
        forward_status=st.none() | st.integers(100, 599),
        ttl=st.none() | st.integers(-(2**31), 2**31),
        stored=st.booleans(),
        collapsed=st.booleans(),
        detail=st.none() | st.sampled_from(["no-store", "set-cookie", "timeout"]),
    )
)
def test_any_outcome_is_one_list_member_with_each_parameter_once(outcome: Outcome) -> None:
    name, *parameters = cache_status(outcome).split("; ")
    keys = [parameter.partition("=")[0] for parameter in parameters]
    assert name == "gateway"
    assert len(keys) == len(set(keys))
    assert ("hit" in keys) != ("fwd" in keys)
    assert all(re.fullmatch(r"[a-z-]+(=(-?[0-9]+|[a-z-]+))?", parameter) for parameter in parameters)


def test_the_names_of_results_are_fixed() -> None:
    names = {"hit", "stale", "stale_error", "revalidated", "miss", "bypass", "error", "local"}
    assert {str(result) for result in Result} == names


# --- exchange ----------------------------------------------------------------------------------------------


def exchange() -> RequestContext:
    return RequestContext(request_id="r", began=0.0, method="GET", client="192.0.2.1", scheme="http")


def test_an_exchange_begins_as_local() -> None:
    assert exchange().outcome is LOCAL


def test_an_exchange_adds_up_what_is_spent_on_one_thing() -> None:
    one = exchange()
    one.spent["cache"] += 0.25
    one.spent["upstream"] += 1.0
    one.spent["cache"] += 0.5
    assert one.spent == {"cache": 0.75, "upstream": 1.0}


def test_an_exchange_is_found_in_its_scope() -> None:
    one = exchange()
    assert exchange_of({SCOPE_KEY: one}) is one


@pytest.mark.parametrize("scope", [{}, {SCOPE_KEY: "a guest's"}], ids=["none", "another's"])
def test_a_scope_without_an_exchange_has_none(scope: dict[str, object]) -> None:
    assert exchange_of(scope) is None


def test_an_exchange_does_not_show_its_scope() -> None:
    one = exchange()
    one.scope = {"headers": [(b"authorization", b"secret")]}
    assert "secret" not in repr(one)


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
