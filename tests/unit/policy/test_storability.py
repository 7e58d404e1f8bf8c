"""storability: whether a response is stored, with which lifetime and fields, and how it is tagged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.http.headers import http_date
from gateway.http.response_parser import HeadForm, HeadForms, read_head
from gateway.policy.entry import Life
from gateway.policy.freshness import has_text
from gateway.policy.keys import Keying, Plan, plan
from gateway.policy.rules import DAY, PLAIN, CachePolicy, RequestDirectives
from gateway.policy.storability import (
    _DECISIVE,
    Admit,
    ReceivedResponse,
    Refuse,
    admit,
    governing,
    has_validator,
    passed_form,
    passed_on,
    retry_after,
    tags_of,
)
from tests.support.policy_values import NOW, ORIGIN, TIMED, Fields, fields, received

# --- whether it is stored -----------------------------------------------------------------------------------


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
    admitted = admit(ReceivedResponse(200, fields(headers), sent, NOW), PLAIN, TIMED)
    assert isinstance(admitted, Admit)
    assert admitted.initial_age == age


def test_a_date_on_our_own_clock_makes_no_response_a_second_old() -> None:
    response = ReceivedResponse(200, fields({"date": http_date(NOW).decode()}), NOW + 0.9, NOW + 0.95)
    admitted = admit(response, PLAIN, TIMED)
    assert isinstance(admitted, Admit)
    assert admitted.initial_age == 0


def test_tags_are_read_from_any_of_three_fields_once_each_and_bounded() -> None:
    headers = fields({"surrogate-key": "a b", "cache-tag": "b,c", "xkey": "d"})
    assert sorted(tags_of(headers)) == ["a", "b", "c", "d"]
    assert tags_of(()) == ()
    assert len(tags_of(fields({"xkey": " ".join(map(str, range(999)))}))) == 256


@pytest.mark.parametrize("name", ["etag", "last-modified"])
def test_a_tag_or_a_date_of_change_is_a_validator(name: str) -> None:
    assert has_validator(fields({name: "x"}))
    assert not has_validator(fields({"date": "x"}))


# --- what is not stored ------------------------------------------------------------------------------------


def test_fields_for_this_cache_and_this_hop_are_not_passed_on() -> None:
    given = {
        "surrogate-control": "max-age=9",
        "gateway-cache-control": "max-age=9",
        "connection": "x-hop",
        "x-hop": "1",
    }
    kept = {"cache-control": "no-store", "cdn-cache-control": "max-age=9", "set-cookie": "a=1"}
    assert passed_on(fields(given | kept)) == fields(kept)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        pytest.param("7", 7, id="seconds"),
        pytest.param("0", 0, id="at once"),
        pytest.param("86400", 600, id="at most ten minutes"),
        pytest.param(http_date(NOW + 30).decode(), 30, id="a date"),
        pytest.param(http_date(NOW + 9000).decode(), 600, id="a date far ahead"),
        pytest.param(http_date(NOW - 30).decode(), 0, id="a date in the past"),
        *(pytest.param(text, None, id=text) for text in ("-1", "1.5", "soon", "\xb2", "")),
    ],
)
def test_a_refusal_for_now_says_for_how_long_in_seconds_or_by_a_date(
    status: int, said: str, seconds: float | None
) -> None:
    assert retry_after(received(status, retry_after=said)) == seconds  # RFC 9110 §10.2.3


@pytest.mark.parametrize("status", [200, 301, 500, 502])
def test_retry_after_counts_with_429_and_503_alone(status: int) -> None:
    assert retry_after(received(status, retry_after="7")) is None
    assert retry_after(received(503)) is None


# --- terms that are kept for decisive fields ---------------------------------------------------------------

_DIRECTIVES = ("max-age=60", "s-maxage=5", "no-store", "no-cache", 'no-cache="x-a"', "private", 'private="set-cookie"')
_FIELDS: tuple[tuple[bytes, tuple[bytes, ...]], ...] = (
    (b"cache-control", (*(each.encode() for each in _DIRECTIVES), b"public, must-revalidate", b"max-age=60;private")),
    (b"gateway-cache-control", (b"max-age=9", b"no-store", b"broken=(")),
    (b"cdn-cache-control", (b"max-age=8, stale-if-error=3", b"?")),
    (b"surrogate-control", (b"max-age=7+3", b"no-store", b"max-age=1;other")),
    (b"pragma", (b"no-cache",)),
    (b"expires", (b"0", b"Sun, 06 Nov 1994 08:49:37 GMT", b"Fri, 01 Jan 2100 00:00:00 GMT")),
    (b"last-modified", (b"Sun, 06 Nov 1994 08:49:37 GMT", b"never")),
    (b"date", (b"Sun, 06 Nov 1994 09:49:37 GMT", b"Monday")),
    (b"age", (b"5", b"x")),
    (b"vary", (b"accept", b"x-user, accept", b"*", b"(")),
    (b"etag", (b'"1"', b'"2"')),
    (b"set-cookie", (b"a=1", b"b=2")),
    (b"content-type", (b"application/json", b"text/event-stream; x=1")),
    (b"connection", (b"close", b"x-a")),
    (b"x-a", (b"1",)),
    (b"server-timing", (b"db",)),
)
_LINES = st.lists(st.sampled_from([(name, value) for name, given in _FIELDS for value in given]), max_size=8)
_RULES = (
    CachePolicy(),
    CachePolicy(ttl=30.0),
    CachePolicy(ttl=30.0, negative_ttl=0.0),
    CachePolicy(authorization_keyed=True),
    CachePolicy(cache=False),
)
_PLANS = (None, Plan("p", "p", ()), Plan("p", "p", (), keyed=("x-user",)), Plan("p", "p", (), unkeyed=("x-user",)))


@given(
    lines=_LINES,
    status=st.sampled_from((200, 203, 206, 301, 404, 429, 500, 599)),
    rules=st.sampled_from(_RULES),
    plan=st.sampled_from(_PLANS),
    authorized=st.booleans(),
)
def test_terms_by_decisive_fields_are_those_by_all(
    lines: list[tuple[bytes, bytes]], status: int, rules: CachePolicy, plan: Plan | None, authorized: bool
) -> None:
    received = ReceivedResponse(status, lines, 1_800_000_000.0, 1_800_000_000.5)
    facts = RequestDirectives(authorized=authorized)
    verdict = admit(received, facts, rules, plan)
    # A long decisive field of a name that decides nothing here: the terms are then worked out from all the fields.
    long = structs.replace(received, headers=[*lines, (b"content-type", b";" * 600)])
    if not any(name == b"content-type" for name, _ in lines):
        other = admit(long, facts, rules, plan)
        if isinstance(other, Admit):
            assert isinstance(verdict, Admit)
            kept = tuple(pair for pair in other.headers if pair[0] != b"content-type")
            assert verdict == structs.replace(other, headers=kept)
        else:
            assert verdict == other


@given(
    heads=st.lists(st.tuples(_LINES, st.integers(1, 4)), min_size=1, max_size=4),
    rules=st.sampled_from(_RULES),
    plan=st.sampled_from(_PLANS),
    authorized=st.booleans(),
)
def test_terms_by_the_form_of_a_head_are_those_by_all_its_fields(
    heads: list[tuple[list[tuple[bytes, bytes]], int]], rules: CachePolicy, plan: Plan | None, authorized: bool
) -> None:
    forms, rules = HeadForms(), replace(rules)
    for lines, times in heads:
        data = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n"
        for number in range(times):
            head = read_head(data.replace(b'"1"', b'"%d"' % number), bodiless=False)
            forms.note(data, head)
            received = ReceivedResponse(200, head.fields, 1_800_000_000.0, 1_800_000_000.5)
            facts = RequestDirectives(authorized=authorized)
            verdict = admit(received, facts, rules, plan)
            plain = admit(structs.replace(received, headers=[*head.fields]), facts, replace(rules), plan)
            if isinstance(verdict, Admit):
                if verdict.form is not None:
                    assert verdict.form.names == {name for name, _ in verdict.headers}
                    assert verdict.form.is_text == has_text(verdict.headers)
                verdict = structs.replace(verdict, form=None)
            assert verdict == plain


def test_a_head_whose_form_is_known_is_judged_by_that() -> None:
    forms, rules = HeadForms(), CachePolicy()
    data = b"HTTP/1.1 200 OK\r\nDate: a\r\nETag: 1\r\nCache-Control: max-age=9\r\n\r\n"
    seen = []
    for _ in range(4):
        head = read_head(data, bodiless=False)
        forms.note(data, head)
        verdict = admit(ReceivedResponse(200, head.fields, 5.0, 5.0), PLAIN, rules)
        assert isinstance(verdict, Admit)
        seen.append(verdict.form)
    assert seen[:2] == [None, None]
    assert seen[3] is not None


@pytest.mark.parametrize("name", [b"Age", b"Surrogate-Key", b"Cache-Tag"])
def test_a_head_of_which_more_is_read_for_each_response_is_judged_by_its_fields(name: bytes) -> None:
    forms, rules = HeadForms(), CachePolicy()
    for number in range(1, 6):
        data = b"HTTP/1.1 200 OK\r\nDate: a\r\nCache-Control: max-age=9\r\n%b: %d\r\n\r\n" % (name, number)
        head = read_head(data, bodiless=False)
        forms.note(data, head)
        verdict = admit(ReceivedResponse(200, head.fields, 5.0, 5.0), PLAIN, rules)
        assert isinstance(verdict, Admit)
        assert verdict.form is None
        assert (verdict.initial_age, verdict.tags) == ((number, ()) if name == b"Age" else (0.0, (str(number),)))
    assert head.fields.form is not None


def test_what_decides_about_storing_has_one_value_in_a_form() -> None:
    lines = b"".join(name + b": a\r\n" for name in sorted(_DECISIVE))
    form = HeadForm(read_head(b"HTTP/1.1 200 OK\r\n" + lines + b"X-Other: a\r\n\r\n", bodiless=False))
    assert form.constant == _DECISIVE


def test_a_head_whose_form_is_known_is_refused_by_that() -> None:
    forms, rules = HeadForms(), CachePolicy()
    data = b"HTTP/1.1 200 OK\r\nDate: a\r\nETag: 1\r\nCache-Control: no-store\r\n\r\n"
    verdicts = []
    for _ in range(4):
        head = read_head(data, bodiless=False)
        forms.note(data, head)
        verdicts.append(admit(ReceivedResponse(200, head.fields, 5.0, 5.0), PLAIN, rules))
    assert verdicts == [Refuse("no-store", personal=True)] * 4
    assert rules.terms[head.fields.form, ((), ()), False] is verdicts[3]


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        (b"Date: a\r\nETag: %d\r\nContent-Length: 4\r\n", [b"date", b"etag", b"content-length"]),
        (b"Connection: x-a\r\nX-A: %d\r\nContent-Length: 4\r\nDate: a\r\n", [b"content-length", b"date"]),
        (b"Surrogate-Control: max-age=1\r\nContent-Length: %d\r\nDate: a\r\n", [b"content-length", b"date"]),
        (b"Date: a\r\nETag: %d\r\n", None),
        (b"Content-Length: 4\r\nETag: %d\r\n", None),
        (b"Content-Length: %d\r\n", None),
        (b"Connection: date\r\nDate: a\r\nContent-Length: %d\r\nETag: 1\r\n", None),
        (b"Connection: content-length\r\nDate: a\r\nContent-Length: %d\r\nETag: 1\r\n", None),
    ],
)
def test_by_the_form_of_a_head_what_is_passed_on_is_picked(fields: bytes, passed: list[bytes] | None) -> None:
    forms = HeadForms()
    for number in (1, 2, 3):
        data = b"HTTP/1.1 200 OK\r\n" + fields.replace(b"%d", b"%d" % number) + b"\r\n"
        head = read_head(data, bodiless=False)
        forms.note(data, head)
    assert head.fields.form is not None
    known = passed_form(head.fields.form)
    if passed is None:
        assert known is None
    else:
        assert known is not None
        assert [*known.pick(head.fields)] == passed_on(head.fields)
        assert [name for name, _ in known.pick(head.fields)] == passed
        assert head.fields[known.length][0] == b"content-length"


def test_a_head_of_which_one_field_is_stored_is_judged_by_its_fields() -> None:
    forms, rules = HeadForms(), CachePolicy(ttl=60.0)
    for _ in range(4):
        head = read_head(b"HTTP/1.1 200 OK\r\nDate: a\r\nContent-Length: 0\r\n\r\n", bodiless=False)
        forms.note(b"HTTP/1.1 200 OK\r\nDate: a\r\nContent-Length: 0\r\n\r\n", head)
        verdict = admit(ReceivedResponse(200, head.fields, 5.0, 5.0), PLAIN, rules)
        assert isinstance(verdict, Admit)
        assert (verdict.headers, verdict.form) == (((b"date", b"a"),), None)


def test_what_a_response_has_beside_decides_nothing() -> None:
    """Two responses that differ in a validator and in a field of their own share their terms, not their fields."""
    rules = CachePolicy()
    one, other = (
        ReceivedResponse(200, ((b"cache-control", b"max-age=60"), (b"etag", tag), (b"x-id", tag)), 5.0, 5.0)
        for tag in (b'"1"', b'"2"')
    )
    first, second = (admit(each, RequestDirectives(), rules) for each in (one, other))
    assert isinstance(first, Admit)
    assert isinstance(second, Admit)
    assert first.life == second.life
    assert dict(first.headers)[b"x-id"] == b'"1"'
    assert dict(second.headers)[b"x-id"] == b'"2"'
    assert len(rules.terms) == 1


def test_only_so_many_terms_are_kept() -> None:
    rules = CachePolicy()
    for seconds in range(70):
        lines = ((b"cache-control", b"max-age=%d" % seconds),)
        verdict = admit(ReceivedResponse(200, lines, 5.0, 5.0), PLAIN, rules)
        assert isinstance(verdict, Admit | Refuse)
        if seconds:
            assert isinstance(verdict, Admit)
            assert verdict.life.lifetime == seconds
    assert 1 <= len(rules.terms) < 64


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (((b"cache-control", b"max-age=7"),), 1),
        (((b"cache-control", b"no-store"),), 1),
        (((b"cache-control", b"public"),), 0),
        ((), 0),
    ],
)
@pytest.mark.parametrize("name", [b"last-modified", b"expires"])
def test_terms_are_kept_for_dated_responses_where_the_dates_do_not_decide(
    lines: tuple[tuple[bytes, bytes], ...], kept: int, name: bytes
) -> None:
    rules = CachePolicy()
    for days in (1, 10):
        dated = (*lines, (b"date", http_date(NOW)), (name, http_date(NOW - days * DAY)))
        response = ReceivedResponse(200, dated, NOW, NOW)
        assert admit(response, PLAIN, rules) == admit(response, PLAIN, CachePolicy())
    assert len(rules.terms) == kept


# --- private responses -------------------------------------------------------------------------------------

NAMES = st.sampled_from(["authorization", "cookie", "x-api-key", "x-user-id", "accept"])
VALUES = st.sampled_from(["sid=1", "sid=2", "a"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4, unique_by=lambda each: each[0])
KEYINGS = st.builds(
    Keying,
    st.none() | st.just(("accept", "x-api-key")),
    st.sampled_from(["pass", "ignore", "key"]),
    st.sampled_from([(), ("sid",)]),
)


@given(KEYINGS, FIELDS, st.lists(NAMES, max_size=2))
def test_whatever_says_who_asks_and_reaches_the_upstream_selects_a_private_answer(
    keying: Keying, fields: list[tuple[str, str]], vary: list[str]
) -> None:
    headers = [(name.encode(), value.encode()) for name, value in fields]
    asking_for = plan(keying, "api", "/t", headers)
    rules = CachePolicy(ttl=None if keying.vary is None else 60.0, authorization_keyed=keying.authorization != "pass")
    answer = [(b"cache-control", b"private, max-age=60"), (b"vary", ", ".join(vary).encode())]
    verdict = admit(ReceivedResponse(200, answer, 1.0, 1.0), PLAIN, rules, asking_for)
    sent = {name.decode() for name, _ in asking_for.forward if keying.identifies(name.decode())}
    in_base = {name for name in sent if f"\n{name}:" in asking_for.base}
    held = bool(sent) and sent <= in_base | set(vary)
    assert isinstance(verdict, Admit if held else Refuse)
