"""freshness: the three windows of an entry, the decision about it, and what a client gets with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from gateway.http.headers import http_date
from gateway.policy.entry import Entry, Life
from gateway.policy.freshness import (
    SMALLEST_CODED,
    Bypass,
    Hit,
    Miss,
    Revalidate,
    Stale,
    Unsatisfiable,
    current_age,
    decide,
    has_text,
    invalidates,
    is_compressible,
    is_failure,
    response_age,
    response_headers,
    softened,
    usable_on_error,
    windows,
)
from gateway.policy.rules import DAY, DEFAULT_STALE_IF_ERROR, MAX_LIFE, PLAIN, CachePolicy, RequestDirectives
from tests.support.policy_values import NOW, ORIGIN, TIMED, stored


def spans(entry: Entry, rules: CachePolicy) -> tuple[float, float, float]:
    """The ends of the three windows, in seconds from birth."""
    ends = windows(entry, rules)
    return ends.fresh - NOW, ends.revalidate - NOW, ends.error - NOW


# --- windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life", "rules", "ends"),
    [
        pytest.param(Life(lifetime=60), ORIGIN, (60, 60, 660), id="stated"),
        pytest.param(Life(lifetime=60, stale_while_revalidate=5), ORIGIN, (60, 65, 660), id="the upstream's swr"),
        pytest.param(Life(lifetime=60, stale_if_error=7), ORIGIN, (60, 60, 67), id="the upstream's sie"),
        pytest.param(
            Life(lifetime=60, stale_while_revalidate=50),
            CachePolicy(stale_while_revalidate=9),
            (60, 69, 660),
            id="our swr",
        ),
        pytest.param(Life(lifetime=60), CachePolicy(stale_if_error=0), (60, 60, 60), id="our sie"),
        pytest.param(
            Life(lifetime=60, stale_while_revalidate=90, stale_if_error=7), ORIGIN, (60, 150, 150), id="swr outlasts"
        ),
        pytest.param(
            Life(lifetime=60, strict=True), CachePolicy(stale_if_error=99), (60, 60, 60), id="must-revalidate"
        ),
        pytest.param(Life(lifetime=60, no_cache=True), ORIGIN, (-1, -1, -1), id="no-cache"),
        pytest.param(Life(heuristic=100), CachePolicy(jitter=0), (100, 100, 700), id="heuristic"),
        pytest.param(Life(), ORIGIN, (0, 0, 600), id="nothing known"),
        pytest.param(Life(lifetime=30 * DAY), ORIGIN, (MAX_LIFE, MAX_LIFE, MAX_LIFE), id="never beyond max_life"),
        pytest.param(Life(lifetime=5), TIMED, (60, 60, 660), id="a ttl overrules"),
        pytest.param(Life(lifetime=5, strict=True, no_cache=True), TIMED, (60, 60, 660), id="whatever was said"),
        pytest.param(Life(lifetime=60), CachePolicy(cache=False), (0, 0, 0), id="cache: off"),
    ],
)
def test_the_three_windows(life: Life, rules: CachePolicy, ends: tuple[float, float, float]) -> None:
    assert spans(stored(life), rules) == ends


def test_an_age_on_arrival_shortens_a_stated_life_and_not_a_routes_own() -> None:
    entry = stored(initial_age=20.0)
    assert spans(entry, ORIGIN)[0] == 40
    assert spans(entry, TIMED)[0] == 60


def test_jitter_shortens_what_we_gave_by_a_tenth_at_most_and_never_what_the_upstream_stated() -> None:
    assert spans(stored(jitter=0.5), TIMED)[0] == pytest.approx(57)
    assert spans(stored(Life(heuristic=100), jitter=0.5), ORIGIN)[0] == pytest.approx(95)
    assert spans(stored(jitter=0.5), ORIGIN)[0] == 60


@pytest.mark.parametrize("status", [404, 410])
def test_a_negative_answer_lives_for_negative_ttl(status: int) -> None:
    assert spans(stored(Life(), status=status), CachePolicy(negative_ttl=3))[0] == 3
    assert spans(stored(Life(), status=status), CachePolicy(ttl=60, negative_ttl=3))[0] == 3
    assert spans(stored(Life(lifetime=9), status=status), CachePolicy(negative_ttl=3))[0] == 9


def test_a_soft_purge_ends_freshness_where_it_stands_and_lengthens_nothing() -> None:
    assert spans(stored(softened=NOW + 10), CachePolicy(ttl=60, stale_while_revalidate=5)) == (10, 15, 610)
    assert spans(stored(softened=NOW + 90), TIMED)[0] == 60


@pytest.mark.parametrize("life", [Life(lifetime=60, strict=True), Life(lifetime=60, no_cache=True)])
def test_a_soft_purge_ends_what_no_stale_answer_may_follow(life: Life) -> None:
    assert len(set(spans(stored(life, softened=NOW - 5), ORIGIN))) == 1
    assert spans(stored(life, softened=NOW - 5), ORIGIN)[0] == -5


def test_what_may_have_been_purged_unheard_stands_in_for_a_failure_only() -> None:
    assert spans(stored(distrusted=True), CachePolicy(ttl=60, stale_while_revalidate=5)) == (0, 0, 660)
    assert spans(stored(Life(lifetime=60, strict=True), distrusted=True), ORIGIN) == (0, 0, 0)


def test_ages_count_from_the_upstream_under_origin_and_from_birth_under_a_ttl() -> None:
    entry = stored(initial_age=20.0)
    assert current_age(entry, NOW + 5) == 25
    assert current_age(entry, NOW - 5) == 20, "whatever the clocks did"
    assert (response_age(entry, ORIGIN, NOW + 5.9), response_age(entry, TIMED, NOW + 5.9)) == (25, 5)


# --- the decision ------------------------------------------------------------------------------------------

AT = {"fresh": NOW + 30, "swr": NOW + 65, "sie": NOW + 80}
WINDOWS = CachePolicy(ttl=60.0, stale_while_revalidate=10.0, stale_if_error=60.0)


@pytest.mark.parametrize(
    ("facts", "at", "decision"),
    [
        pytest.param(PLAIN, "fresh", Hit, id="fresh"),
        pytest.param(PLAIN, "swr", Stale, id="stale, refreshed behind"),
        pytest.param(PLAIN, "sie", Revalidate, id="stale"),
        pytest.param(RequestDirectives(no_store=True), "fresh", Bypass, id="no-store"),
        pytest.param(RequestDirectives(no_cache=True), "fresh", Revalidate, id="no-cache"),
        pytest.param(RequestDirectives(no_cache=True), "swr", Revalidate, id="no-cache, stale"),
        pytest.param(RequestDirectives(max_age=30), "fresh", Hit, id="young enough"),
        pytest.param(RequestDirectives(max_age=29), "fresh", Revalidate, id="too old"),
        pytest.param(RequestDirectives(max_age=29, max_stale=1), "fresh", Hit, id="too old, which max-stale allows"),
        pytest.param(RequestDirectives(max_age=90), "swr", Revalidate, id="max-age wants no stale answer"),
        pytest.param(RequestDirectives(min_fresh=30), "fresh", Hit, id="fresh for long enough"),
        pytest.param(RequestDirectives(min_fresh=31), "fresh", Revalidate, id="not for long enough"),
        pytest.param(RequestDirectives(min_fresh=1), "swr", Revalidate, id="min-fresh wants no stale answer"),
        pytest.param(RequestDirectives(max_stale=20), "sie", Stale, id="stale, which the client takes"),
        pytest.param(RequestDirectives(max_stale=19), "sie", Revalidate, id="staler than the client takes"),
        pytest.param(RequestDirectives(max_stale=20, max_age=60), "sie", Stale, id="max-age with max-stale"),
        pytest.param(RequestDirectives(max_stale=20, max_age=59), "sie", Revalidate, id="older than both allow"),
        pytest.param(RequestDirectives(max_stale=20, no_cache=True), "sie", Revalidate, id="no-cache beats max-stale"),
        pytest.param(RequestDirectives(only_if_cached=True), "fresh", Hit, id="only-if-cached, fresh"),
        pytest.param(RequestDirectives(only_if_cached=True), "sie", Unsatisfiable, id="only-if-cached, stale"),
        pytest.param(
            RequestDirectives(only_if_cached=True, no_cache=True), "fresh", Unsatisfiable, id="only-if-cached, no-cache"
        ),
    ],
)
def test_what_is_done_with_a_stored_response(facts: RequestDirectives, at: str, decision: type) -> None:
    assert type(decide(stored(), facts, WINDOWS, AT[at])) is decision


@pytest.mark.parametrize("rules", [CachePolicy(cache=False), CachePolicy(ttl=0)], ids=["cache: off", "ttl: 0s"])
@pytest.mark.parametrize("entry", [None, stored()], ids=["nothing stored", "stored before"])
def test_a_route_that_keeps_nothing_bypasses_the_cache(rules: CachePolicy, entry: Entry | None) -> None:
    assert decide(entry, RequestDirectives(only_if_cached=True), rules, NOW) == Bypass("off")


def test_a_stale_answer_is_refreshed_behind_within_its_window_alone() -> None:
    within = decide(stored(), RequestDirectives(max_stale=20), WINDOWS, AT["swr"])
    after = decide(stored(), RequestDirectives(max_stale=20), WINDOWS, AT["sie"])
    assert isinstance(within, Stale)
    assert isinstance(after, Stale)
    assert (within.refresh, after.refresh) == (True, False)


def test_a_window_ends_with_its_last_instant() -> None:
    assert isinstance(decide(stored(), PLAIN, WINDOWS, NOW + 59.999), Hit)
    assert isinstance(decide(stored(), PLAIN, WINDOWS, NOW + 60), Stale)
    assert isinstance(decide(stored(), PLAIN, WINDOWS, NOW + 70), Revalidate)


def test_nothing_stored_is_a_miss_or_cannot_be_satisfied() -> None:
    assert decide(None, PLAIN, TIMED, NOW) == Miss("miss")
    assert decide(None, RequestDirectives(only_if_cached=True), TIMED, NOW) == Unsatisfiable()


@pytest.mark.parametrize("life", [Life(lifetime=60, strict=True), Life(lifetime=60, no_cache=True)])
def test_max_stale_does_not_overrule_an_upstream_that_forbids_stale_answers(life: Life) -> None:
    assert isinstance(decide(stored(life), RequestDirectives(max_stale=999), ORIGIN, NOW + 70), Revalidate)
    assert isinstance(decide(stored(life), RequestDirectives(max_stale=999), TIMED, NOW + 70), Stale)


def test_under_origin_a_request_with_authorization_reuses_only_what_is_shared() -> None:
    facts = RequestDirectives(authorized=True)
    assert isinstance(decide(stored(), facts, ORIGIN, NOW), Miss)
    assert isinstance(decide(stored(Life(lifetime=60, shared=True)), facts, ORIGIN, NOW), Hit)
    assert isinstance(decide(stored(), facts, TIMED, NOW), Hit)


# --- when the upstream fails -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "life", "rules", "after", "usable"),
    [
        pytest.param(PLAIN, Life(lifetime=60), ORIGIN, 60 + DEFAULT_STALE_IF_ERROR - 1, True, id="by default"),
        pytest.param(PLAIN, Life(lifetime=60), ORIGIN, 60 + DEFAULT_STALE_IF_ERROR, False, id="not for longer"),
        pytest.param(
            RequestDirectives(no_cache=True), Life(lifetime=60), ORIGIN, 70, False, id="not to who wants validation"
        ),
        pytest.param(
            RequestDirectives(no_cache=True, stale_if_error=20),
            Life(lifetime=60),
            ORIGIN,
            70,
            True,
            id="unless it says so",
        ),
        pytest.param(
            RequestDirectives(stale_if_error=900), Life(lifetime=60), ORIGIN, 950, True, id="as long as the client says"
        ),
        pytest.param(
            RequestDirectives(stale_if_error=900),
            Life(lifetime=60, strict=True),
            ORIGIN,
            70,
            False,
            id="must-revalidate",
        ),
        pytest.param(
            RequestDirectives(stale_if_error=900),
            Life(lifetime=60, strict=True),
            TIMED,
            70,
            True,
            id="overruled by a ttl",
        ),
        pytest.param(RequestDirectives(authorized=True), Life(lifetime=60), ORIGIN, 70, False, id="not another's"),
    ],
)
def test_what_stands_in_for_a_failure(
    facts: RequestDirectives, life: Life, rules: CachePolicy, after: float, usable: bool
) -> None:
    assert usable_on_error(stored(life), facts, rules, NOW + after) is usable


def test_only_a_servers_failures_are_failures() -> None:
    assert [status for status in range(200, 600) if is_failure(status)] == [500, 502, 503, 504]


# --- what a client is told ---------------------------------------------------------------------------------


def told(rules: CachePolicy, after: float = 5.0, **more: Any) -> dict[bytes, bytes]:
    entry = stored(headers={"cache-control": "max-age=999", "expires": "x", "x-own": "1"}, **more)
    return dict(response_headers(entry, rules, NOW + after))


def test_under_origin_a_client_is_told_what_the_upstream_said_and_the_age() -> None:
    headers = told(ORIGIN, initial_age=10.0)
    assert headers == {b"cache-control": b"max-age=999", b"expires": b"x", b"x-own": b"1", b"age": b"15"}


def test_under_a_ttl_a_client_is_told_the_entrys_life_and_never_a_longer_promise() -> None:
    headers = told(TIMED, jitter=0.5)
    assert headers[b"cache-control"] == b"max-age=57"
    assert (headers[b"age"], headers[b"date"]) == (b"5", http_date(NOW))
    assert b"expires" not in headers


def test_client_ttl_is_what_is_left_to_a_client_from_now() -> None:
    headers = told(replace(TIMED, client_ttl=20.0))
    assert (headers[b"cache-control"], headers[b"age"]) == (b"max-age=25", b"5")


JSON = (b"content-type", b"application/json")
VARIES = [(b"vary", b"accept"), (b"vary", b"origin")]
LARGE = b"x" * SMALLEST_CODED


@pytest.mark.parametrize("more", [[], VARIES], ids=["each field once", "a field twice"])
@pytest.mark.parametrize(
    ("headers", "compressible"),
    [
        ([JSON], True),
        ([(b"content-type", b" Text/HTML ; charset=utf-8"), (b"cache-control", b"max-age=5")], True),
        ([(b"content-type", b"image/png")], False),
        ([], False),
        ([JSON, (b"cache-control", b"max-age=5, No-Transform")], False),
        ([JSON, (b"cache-control", b"a"), (b"cache-control", b"no-transform")], False),
        ([JSON, (b"cache-control", b'x="no-transform"')], True),
        ([JSON, (b"content-encoding", b"")], False),
        ([JSON, (b"content-type", b"image/png")], True),
        ([(b"content-type", b"image/png"), JSON], False),
        ([JSON, (b"cache-control", b"a" * 600 + b", no-transform")], False),
        ([JSON, (b"cache-control", b"a" * 600)], True),
    ],
)
def test_a_text_that_the_upstream_lets_be_transformed_is_compressible(
    headers: list[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]], compressible: bool
) -> None:
    entry = structs.replace(stored(body=LARGE), headers=(*headers, *more))
    assert is_compressible(entry, TIMED) is compressible
    assert is_compressible(entry, TIMED, is_text=has_text(entry.headers)) is compressible


@pytest.mark.parametrize(
    ("rules", "fields"),
    [(ORIGIN, {}), (TIMED, {"status": 203}), (TIMED, {"body": LARGE[1:]})],
    ids=["the upstream's own codings", "another status", "a body of one packet"],
)
def test_what_no_coding_is_made_of_is_not_compressible(rules: CachePolicy, fields: dict[str, Any]) -> None:
    entry = stored(headers={"content-type": "text/plain"}, **{"body": LARGE, **fields})
    assert not is_compressible(entry, rules)


@pytest.mark.parametrize(
    ("method", "status", "made_void"),
    [("POST", 200, True), ("PURGE", 302, True), ("POST", 404, False), ("POST", 500, False), ("GET", 200, False)],
)
def test_an_unsafe_method_that_succeeds_makes_void_what_is_stored(method: str, status: int, made_void: bool) -> None:
    assert invalidates(method, status) is made_void


def test_a_softened_response_is_the_same_but_for_the_end_of_its_freshness() -> None:
    assert softened(stored(), NOW + 1) == stored(softened=NOW + 1)
