"""policy: RFC 9111 as a shared cache, the three windows, a route's own rules. Values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.http.headers import http_date
from gateway.policy.entry import Entry, Life
from gateway.policy.freshness import (
    Bypass,
    Hit,
    Miss,
    Revalidate,
    Stale,
    Unsatisfiable,
    current_age,
    decide,
    invalidates,
    is_failure,
    response_age,
    response_headers,
    softened,
    usable_on_error,
    windows,
)
from gateway.policy.rules import (
    DAY,
    DEFAULT_STALE_IF_ERROR,
    MAX_LIFE,
    PLAIN,
    CachePolicy,
    RequestDirectives,
    directives_of,
)
from gateway.policy.storability import (
    Admit,
    ReceivedResponse,
    Refuse,
    admit,
    governing,
    has_validator,
    initial_age,
    tags_of,
)
from gateway.policy.validation import (
    confirms,
    fields_of_304,
    freshened,
    not_modified,
    own_tag,
    same_representation,
    validators,
)

NOW = 1_800_000_000.0
ORIGIN = CachePolicy()
TIMED = CachePolicy(ttl=60.0)
Fields = dict[str, str]


def fields(given: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()]


def stored(life: Life | None = None, headers: Fields | None = None, **more: Any) -> Entry:
    """A response born at NOW."""
    given: dict[str, Any] = {
        "key": "k",
        "primary": "k",
        "born": NOW,
        "started": NOW,
        "initial_age": 0.0,
        "status": 200,
        "body": b"body",
        **more,
    }
    return Entry(**given, headers=tuple(fields(headers or {})), life=life or Life(lifetime=60.0))


def received(status: int = 200, **headers: str) -> ReceivedResponse:
    return ReceivedResponse(status, fields(headers), NOW, NOW)


def spans(entry: Entry, rules: CachePolicy) -> tuple[float, float, float]:
    """The ends of the three windows, in seconds from birth."""
    ends = windows(entry, rules)
    return ends.fresh - NOW, ends.revalidate - NOW, ends.error - NOW


# --- what a request says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "facts"),
    [
        ({}, RequestDirectives()),
        ({"cache-control": "no-store"}, RequestDirectives(no_store=True)),
        ({"cache-control": "no-cache"}, RequestDirectives(no_cache=True)),
        ({"pragma": "no-cache"}, RequestDirectives(no_cache=True)),
        ({"pragma": "no-cache", "cache-control": "max-age=5"}, RequestDirectives(max_age=5)),
        ({"cache-control": "only-if-cached, min-fresh=3"}, RequestDirectives(only_if_cached=True, min_fresh=3)),
        ({"cache-control": "max-stale"}, RequestDirectives(max_stale=float("inf"))),
        ({"cache-control": "max-stale=9, stale-if-error=8"}, RequestDirectives(max_stale=9, stale_if_error=8)),
        ({"authorization": "x"}, RequestDirectives(authorized=True)),
    ],
)
def test_a_requests_directives_are_facts(headers: Fields, facts: RequestDirectives) -> None:
    assert directives_of("GET", fields(headers), ORIGIN) == facts


def test_a_route_may_ignore_a_clients_directives_but_not_its_credentials() -> None:
    headers = fields({"cache-control": "no-store", "authorization": "x"})
    assert directives_of("HEAD", headers, replace(TIMED, request_directives=False)) == RequestDirectives(
        head=True, authorized=True
    )


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


# --- storing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "facts", "rules", "reason"),
    [
        pytest.param(received(cache_control="private"), PLAIN, TIMED, "private", id="private"),
        pytest.param(received(set_cookie="a=1", cache_control="max-age=9"), PLAIN, ORIGIN, "set-cookie", id="cookie"),
        pytest.param(received(set_cookie="a=1"), PLAIN, TIMED, "set-cookie", id="cookie with a ttl"),
        pytest.param(received(cache_control="no-store"), PLAIN, TIMED, "no-store", id="no-store"),
        pytest.param(
            received(299, cache_control="must-understand, max-age=9"), PLAIN, ORIGIN, "not-understood", id="?"
        ),
        pytest.param(received(cache_control="max-age=9", vary="*"), PLAIN, ORIGIN, "vary", id="vary *"),
        pytest.param(received(206, cache_control="max-age=9"), PLAIN, ORIGIN, "status", id="a part"),
        pytest.param(received(199, cache_control="max-age=9"), PLAIN, ORIGIN, "status", id="interim"),
        pytest.param(received(600, cache_control="max-age=9"), PLAIN, ORIGIN, "status", id="no status"),
        pytest.param(received(429, cache_control="max-age=9"), PLAIN, ORIGIN, "status", id="a limit (RFC 6585)"),
        pytest.param(received(content_type="text/event-stream"), PLAIN, TIMED, "endless", id="a stream of events"),
        pytest.param(
            received(content_type='Multipart/X-Mixed-Replace;boundary="a"', cache_control="max-age=9"),
            PLAIN,
            ORIGIN,
            "endless",
            id="a moving picture",
        ),
        pytest.param(received(cache_control="max-age=9"), PLAIN, CachePolicy(cache=False), "off", id="cache: off"),
        pytest.param(received(), PLAIN, CachePolicy(ttl=0), "off", id="ttl: 0s"),
        pytest.param(received(302), PLAIN, TIMED, "status", id="a redirect of the moment"),
        pytest.param(received(500), PLAIN, TIMED, "status", id="an error with a ttl"),
        pytest.param(
            received(404), PLAIN, CachePolicy(ttl=60, negative_ttl=0), "status", id="404 with no negative_ttl"
        ),
        pytest.param(
            received(cache_control="max-age=9"), RequestDirectives(authorized=True), ORIGIN, "authorization", id="auth"
        ),
        pytest.param(received(), PLAIN, ORIGIN, "no-lifetime", id="nothing said"),
        pytest.param(received(cache_control="max-age=0"), PLAIN, ORIGIN, "no-lifetime", id="no life"),
        pytest.param(received(500), PLAIN, ORIGIN, "no-lifetime", id="an error that says nothing"),
        pytest.param(received(404), PLAIN, CachePolicy(negative_ttl=0), "no-lifetime", id="404, none wanted"),
    ],
)
def test_what_is_not_stored_and_why(
    response: ReceivedResponse, facts: RequestDirectives, rules: CachePolicy, reason: str
) -> None:
    refused = admit(response, facts, rules)
    assert isinstance(refused, Refuse)
    assert refused.reason == reason
    assert refused.personal == (reason in ("private", "set-cookie", "no-store", "authorization"))


@pytest.mark.parametrize(
    ("response", "facts", "rules"),
    [
        pytest.param(received(cache_control="max-age=9"), PLAIN, ORIGIN, id="a stated life"),
        pytest.param(received(cache_control="max-age=0", etag='"a"'), PLAIN, ORIGIN, id="no life, but a validator"),
        pytest.param(received(cache_control="max-age=0, stale-while-revalidate=9"), PLAIN, ORIGIN, id="a stale window"),
        pytest.param(received(etag='"a"'), PLAIN, ORIGIN, id="a validator"),
        pytest.param(received(404), PLAIN, ORIGIN, id="404"),
        pytest.param(received(500, cache_control="max-age=9"), PLAIN, ORIGIN, id="an error with a life of its own"),
        pytest.param(received(404), PLAIN, TIMED, id="404 with a ttl"),
        pytest.param(received(), PLAIN, TIMED, id="anything with a ttl"),
        pytest.param(
            received(cache_control="must-understand, no-store, max-age=9"), PLAIN, ORIGIN, id="must-understand"
        ),
        pytest.param(received(cache_control="private=x-own"), PLAIN, TIMED, id="private for a field"),
        pytest.param(received(set_cookie="a=1", cache_control="private=set-cookie"), PLAIN, TIMED, id="cookie named"),
        pytest.param(
            received(cache_control="public, max-age=9"), RequestDirectives(authorized=True), ORIGIN, id="auth, public"
        ),
        pytest.param(
            received(cache_control="s-maxage=9"), RequestDirectives(authorized=True), ORIGIN, id="auth, s-maxage"
        ),
    ],
)
def test_what_is_stored(response: ReceivedResponse, facts: RequestDirectives, rules: CachePolicy) -> None:
    assert isinstance(admit(response, facts, rules), Admit)


def life_of(**headers: str) -> Life:
    found = admit(received(**headers), PLAIN, ORIGIN)
    assert isinstance(found, Admit)
    return found.life


EXPIRES = {seconds: http_date(NOW + seconds).decode() for seconds in (-600, 60, 120)}


@pytest.mark.parametrize(
    ("headers", "lifetime"),
    [
        ({"cache_control": "max-age=60"}, 60),
        ({"cache_control": "max-age=60, s-maxage=9"}, 9),
        ({"cache_control": "max-age=x", "etag": '"a"'}, 0),
        ({"expires": EXPIRES[60]}, 60),
        ({"expires": EXPIRES[120], "date": EXPIRES[60]}, 60),
        ({"expires": EXPIRES[60], "cache_control": "max-age=9"}, 9),
        ({"expires": "0", "etag": '"a"'}, 0),
        ({"expires": EXPIRES[-600], "etag": '"a"'}, 0),
        ({"etag": '"a"'}, None),
        ({"cdn_cache_control": "max-age=7", "cache_control": "max-age=60"}, 7),
        ({"gateway_cache_control": "max-age=8", "cdn_cache_control": "max-age=7"}, 8),
        ({"cdn_cache_control": "stale-if-error=7", "expires": EXPIRES[60], "etag": '"a"'}, None),
        ({"cdn_cache_control": 'max-age="7"', "cache_control": "max-age=60"}, 60),
        ({"surrogate_control": "max-age=7", "cache_control": "max-age=60"}, 7),
        ({"surrogate_control": "content=ESI/1.0", "cache_control": "max-age=60"}, 60),
        ({"surrogate_control": "max-age=7;other", "cache_control": "max-age=60"}, 60),
    ],
)
def test_the_lifetime_that_a_response_states(headers: Fields, lifetime: float | None) -> None:
    assert life_of(**headers).lifetime == lifetime


def test_a_surrogates_second_number_is_a_stale_window() -> None:
    life = life_of(surrogate_control="max-age=7+30")
    assert (life.lifetime, life.stale_while_revalidate) == (7, 30)
    assert governing(fields({"surrogate-control": "no-store"}))[1]


@pytest.mark.parametrize(
    ("headers", "heuristic"),
    [
        ({"last_modified": EXPIRES[-600]}, 60),
        ({"last_modified": EXPIRES[60]}, 0),
        ({"last_modified": http_date(NOW - 100 * DAY).decode()}, DAY),
        ({"etag": '"a"', "last_modified": "x"}, 0),
        ({"last_modified": EXPIRES[-600], "cache_control": "max-age=5"}, 0),
    ],
)
def test_a_life_is_assumed_from_the_last_change_where_none_is_stated(headers: Fields, heuristic: float) -> None:
    assert life_of(**headers).heuristic == heuristic


def test_no_life_is_assumed_for_a_status_that_has_none() -> None:
    response = received(302, last_modified=EXPIRES[-600], cache_control="public")
    found = admit(response, PLAIN, ORIGIN)
    assert isinstance(found, Admit)
    assert found.life.heuristic == 60, "but where it is public"
    assert isinstance(admit(received(302, last_modified=EXPIRES[-600]), PLAIN, ORIGIN), Refuse)


def test_what_an_upstream_forbids_is_kept_with_the_response() -> None:
    assert life_of(cache_control="max-age=9, must-revalidate").strict
    assert life_of(cache_control="max-age=9, no-cache").no_cache
    assert life_of(pragma="no-cache", etag='"a"').no_cache
    assert not life_of(pragma="no-cache", cache_control="max-age=9").no_cache
    assert not life_of(cache_control='max-age=9, no-cache="x-own"').no_cache


def test_fields_of_the_exchange_and_those_that_are_listed_are_not_stored() -> None:
    response = received(
        cache_control="max-age=9, private=x-one, no-cache=x-two",
        x_one="1",
        x_two="2",
        x_three="3",
        connection="close",
        server_timing="a",
        x_request_id="b",
        age="1",
        surrogate_control="a",
    )
    found = admit(response, PLAIN, ORIGIN)
    assert isinstance(found, Admit)
    assert {name for name, _ in found.headers} == {b"cache-control", b"x-three"}


def test_vary_selects_where_the_upstream_decides_and_not_where_the_route_does() -> None:
    response = received(cache_control="max-age=9", vary="Accept-Language, Accept")
    origin, timed = admit(response, PLAIN, ORIGIN), admit(response, PLAIN, TIMED)
    assert isinstance(origin, Admit)
    assert isinstance(timed, Admit)
    assert (origin.vary, timed.vary) == (("accept", "accept-language"), ())


@pytest.mark.parametrize(
    ("headers", "sent", "age"),
    [
        ({}, NOW, 0),
        ({"age": "7"}, NOW, 7),
        ({"age": "7"}, NOW - 2, 9),
        ({"date": http_date(NOW - 30).decode()}, NOW, 30),
        ({"date": http_date(NOW - 30).decode(), "age": "40"}, NOW, 40),
        ({"date": http_date(NOW + 30).decode()}, NOW, 0),
        ({}, NOW - 2, 0),
    ],
)
def test_the_age_on_arrival_is_the_greater_of_what_date_and_age_make_it(
    headers: Fields, sent: float, age: float
) -> None:
    assert initial_age(ReceivedResponse(200, fields(headers), sent, NOW)) == age


def test_a_date_on_our_own_clock_makes_no_response_a_second_old() -> None:
    response = ReceivedResponse(200, fields({"date": http_date(NOW).decode()}), NOW + 0.9, NOW + 0.95)
    assert initial_age(response) == 0


def test_tags_are_read_from_any_of_three_fields_once_each_and_bounded() -> None:
    headers = fields({"surrogate-key": "a b", "cache-tag": "b,c", "xkey": "d"})
    assert sorted(tags_of(headers)) == ["a", "b", "c", "d"]
    assert tags_of(()) == ()
    assert len(tags_of(fields({"xkey": " ".join(map(str, range(999)))}))) == 256


# --- validation --------------------------------------------------------------------------------------------


def test_the_upstream_is_asked_by_its_own_validators_and_never_by_a_tag_of_ours() -> None:
    entry = stored(headers={"etag": '"a"', "last-modified": "x"})
    assert validators(entry) == [(b"if-none-match", b'"a"'), (b"if-modified-since", b"x")]
    assert validators(stored(headers={"etag": own_tag(b"x").decode()})) == []
    assert validators(stored(headers={"etag": '"gw-1"'})) == [(b"if-none-match", b'"gw-1"')]
    assert has_validator(fields({"last-modified": "x"}))
    assert not has_validator(())


def test_a_304_updates_the_stored_fields_but_those_of_the_very_bytes() -> None:
    entry = stored(headers={"etag": '"a"', "x-own": "old", "x-kept": "1", "content-length": "4"})
    update = received(304, x_own="new", content_length="0", etag='"b"', set_cookie="a=1", connection="x-hop", x_hop="1")
    assert sorted(freshened(entry, update)) == [
        *((b"content-length", b"4"), (b"etag", b'"a"'), (b"x-kept", b"1"), (b"x-own", b"new")),
    ]


@pytest.mark.parametrize(
    ("known", "said", "confirmed"),
    [
        ('"a"', '"a"', True),
        ('"a"', '"b"', False),
        ('W/"a"', '"a"', False),
        ('"a"', 'W/"a"', True),
        ('"a"', 'W/"b"', False),
        ('"a"', None, True),
        (None, '"a"', True),
    ],
)
def test_a_304_confirms_what_carries_the_same_tag(known: str | None, said: str | None, confirmed: bool) -> None:
    entry = stored(headers={"etag": known} if known else {})
    assert confirms(entry, received(304, **({"etag": said} if said else {}))) is confirmed


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True),
        ({"etag": '"a"', "last_modified": "x", "content_length": "4"}, True),
        ({"etag": '"b"'}, False),
        ({"last_modified": "y"}, False),
        ({"content_length": "5"}, False),
    ],
)
def test_a_head_speaks_of_the_same_where_all_it_says_agrees(headers: Fields, same: bool) -> None:
    assert same_representation(stored(headers={"etag": '"a"', "last-modified": "x"}), received(**headers)) is same


@pytest.mark.parametrize(
    ("request_fields", "response", "has_it"),
    [
        ({}, {"etag": '"a"'}, False),
        ({"if-none-match": '"a"'}, {"etag": '"a"'}, True),
        ({"if-none-match": 'W/"a", "b"'}, {"etag": '"a"'}, True),
        ({"if-none-match": '"a"'}, {"etag": 'W/"a"'}, True),
        ({"if-none-match": "*"}, {}, True),
        ({"if-none-match": '"b"'}, {"etag": '"a"'}, False),
        ({"if-none-match": '"a"'}, {}, False),
        ({"if-none-match": '"b"', "if-modified-since": EXPIRES[60]}, {"last-modified": EXPIRES[-600]}, False),
        ({"if-modified-since": EXPIRES[60]}, {"last-modified": EXPIRES[60]}, True),
        ({"if-modified-since": EXPIRES[-600]}, {"last-modified": EXPIRES[60]}, False),
        ({"if-modified-since": EXPIRES[60]}, {"date": EXPIRES[-600]}, True),
        ({"if-modified-since": EXPIRES[60]}, {}, False),
        ({"if-modified-since": "x"}, {"last-modified": EXPIRES[60]}, False),
    ],
)
def test_whether_a_client_has_the_response_already(request_fields: Fields, response: Fields, has_it: bool) -> None:
    assert not_modified(fields(request_fields), fields(response), NOW) is has_it


def test_a_304_carries_no_field_of_a_body() -> None:
    headers = fields({"etag": "a", "content-type": "b", "content-location": "c", "set-cookie": "d", "x-own": "e"})
    assert [name for name, _ in fields_of_304(headers)] == [b"etag", b"content-location", b"x-own"]


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


@pytest.mark.parametrize(
    ("method", "status", "made_void"),
    [("POST", 200, True), ("PURGE", 302, True), ("POST", 404, False), ("POST", 500, False), ("GET", 200, False)],
)
def test_an_unsafe_method_that_succeeds_makes_void_what_is_stored(method: str, status: int, made_void: bool) -> None:
    assert invalidates(method, status) is made_void


def test_a_softened_response_is_the_same_but_for_the_end_of_its_freshness() -> None:
    assert softened(stored(), NOW + 1) == stored(softened=NOW + 1)
