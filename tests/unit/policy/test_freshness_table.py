"""policy: the table of cases, and what holds for all of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.headers import Headers, http_date
from gateway.policy import freshness, storability, validation
from gateway.policy import rules as policy_rules
from gateway.policy.entry import Entry, Life
from gateway.policy.freshness import Bypass, Decision, Hit, Miss, Revalidate, Stale, Unsatisfiable
from gateway.policy.keys import Keying, plan
from gateway.policy.rules import PLAIN, CachePolicy, RequestDirectives
from gateway.policy.storability import FOR_US, Admit, ReceivedResponse, Refuse
from gateway.policy.vary import variant_key
from tests.support.policy_cases import CASES, GROUPS, NOW, Case, at

WORDS = {
    Hit: "hit",
    Stale: "stale",
    Revalidate: "ask",
    Miss: "miss",
    Bypass: "bypass",
    Unsatisfiable: "504",
}


def fields(lines: tuple[str, ...]) -> Headers:
    pairs = (line.partition(":") for line in lines)
    return [(name.encode("latin-1"), value.strip(" ").encode("latin-1")) for name, _, value in pairs]


def keep(received: ReceivedResponse, verdict: Admit, request: Headers = (), jitter: float = 0.0) -> Entry:
    base = plan(Keying(vary=None), "api", "/", request).base
    return Entry(
        key=variant_key(base, verdict.vary, request),
        primary=base,
        born=received.arrived,
        started=received.sent,
        initial_age=verdict.initial_age,
        status=received.status,
        headers=verdict.headers,
        body=b"",
        life=verdict.life,
        jitter=jitter,
        vary=verdict.vary,
    )


def outcome(case: Case) -> str:
    """What becomes of a case: stored or not, and what the later request gets."""
    rules = CachePolicy(ttl=case.ttl)
    request, then, response = fields(case.request), fields(case.then), fields(case.response)
    if not any(name == b"date" for name, _ in response):
        response = [*response, (b"date", http_date(NOW))]
    received = ReceivedResponse(case.status, response, NOW, NOW)
    verdict = storability.admit(received, policy_rules.directives_of("GET", request, rules), rules)
    if isinstance(verdict, Refuse):
        return "refused"
    stored = keep(received, verdict, request)
    if variant_key(plan(Keying(vary=None), "api", "/", then).base, stored.vary, then) != stored.key:
        return "other"
    facts = policy_rules.directives_of("GET", then, rules)
    if case.failing:
        return "on-error" if freshness.usable_on_error(stored, facts, rules, NOW + case.after) else "failure"
    return WORDS[type(freshness.decide(stored, facts, rules, NOW + case.after))]


@pytest.mark.parametrize("name", CASES)
def test_the_table(name: str) -> None:
    assert outcome(CASES[name]) == CASES[name].expect


def test_the_table_names_each_case_once_and_its_source() -> None:
    assert len(CASES) == sum(len(cases) for cases in GROUPS.values())
    assert {case.kind for case in CASES.values()} == {"required", "optimal", "ours"}
    assert all("§" in case.clause or case.clause.startswith("DESIGN") for case in CASES.values())


# --- what holds for every response, however it is made ------------------------------------------------------

NAMES = st.sampled_from(
    [
        *(
            b"cache-control",
            b"cdn-cache-control",
            b"gateway-cache-control",
            b"surrogate-control",
            b"pragma",
            b"expires",
        ),
        *(b"date", b"age", b"vary", b"etag", b"last-modified", b"set-cookie", b"connection", b"content-length", b"x"),
    ]
)
PIECES = st.sampled_from(
    [
        *(
            b"max-age=5",
            b"s-maxage=9",
            b"max-age",
            b"no-store",
            b"no-cache",
            b'private="x"',
            b"must-revalidate",
            b"public",
        ),
        *(
            b"stale-while-revalidate=7",
            b"stale-if-error=7",
            b"max-age=+5",
            b"max-stale",
            b"min-fresh=1",
            b"*",
            b"x",
            b"0",
        ),
        *(b'"', b'W/"a"', b'"a"', b"=", b";", b"5", b"-1", b"99999999999999", b"\xff", at(0).encode(), at(50).encode()),
    ]
)
VALUES = st.lists(PIECES, max_size=4).map(b", ".join) | st.binary(max_size=12)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
SECONDS = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, -1.0])
RULES = st.builds(
    CachePolicy,
    ttl=st.none() | st.floats(0, 1e6),
    stale_while_revalidate=st.none() | st.floats(0, 1e6),
    stale_if_error=st.none() | st.floats(0, 1e6),
    client_ttl=st.none() | st.floats(0, 1e6),
    max_life=st.floats(1, 1e6),
)


@given(FIELDS, FIELDS, FIELDS, st.integers(200, 599), SECONDS, st.floats(0, 100), RULES)
def test_no_field_however_malformed_raises(
    request: Headers, response: Headers, then: Headers, status: int, after: float, delay: float, rules: CachePolicy
) -> None:
    received = ReceivedResponse(status, response, NOW - delay, NOW)
    facts = policy_rules.directives_of("GET", then, rules)
    storability.tags_of(response)
    verdict = storability.admit(received, policy_rules.directives_of("GET", request, rules), rules)
    if isinstance(verdict, Admit):
        stored = keep(received, verdict, request)
        freshness.decide(stored, facts, rules, NOW + after)
        told = freshness.response_headers(stored, rules, NOW + after)
        validation.not_modified(then, told, NOW)
        validation.freshened(stored, received)
        validation.confirms(stored, received)
        validation.same_representation(stored, received)
        assert not FOR_US & {name for name, _ in told}
        assert all(int(value) >= 0 for name, value in told if name == b"age")


LIVES = st.builds(
    Life,
    lifetime=st.none() | st.floats(0, 1e6),
    heuristic=st.floats(0, 1e6),
    stale_while_revalidate=st.none() | st.floats(0, 1e6),
    stale_if_error=st.none() | st.floats(0, 1e6),
    strict=st.booleans(),
    no_cache=st.booleans(),
)
STORED = st.builds(
    Entry,
    key=st.just("k"),
    primary=st.just("k"),
    born=st.just(NOW),
    started=st.just(NOW),
    initial_age=st.floats(0, 1e6),
    status=st.sampled_from([200, 404]),
    headers=st.just(()),
    body=st.just(b""),
    life=LIVES,
    jitter=st.floats(0, 0.99),
    softened=st.none() | st.floats(NOW, NOW + 1e6),
    distrusted=st.booleans(),
)


@given(STORED, RULES, SECONDS)
def test_ages_are_never_negative(stored: Entry, rules: CachePolicy, after: float) -> None:
    assert freshness.current_age(stored, NOW + after) >= 0
    assert freshness.response_age(stored, rules, NOW + after) >= 0


@given(STORED, RULES)
def test_the_windows_follow_each_other_and_end_with_the_longest_life(stored: Entry, rules: CachePolicy) -> None:
    ends = freshness.windows(stored, rules)
    assert ends.fresh <= ends.revalidate <= ends.error or stored.distrusted
    assert max(ends.fresh, ends.revalidate, ends.error) <= stored.born + rules.max_life or ends.fresh < stored.born


@given(STORED, RULES)
def test_a_soft_purge_never_makes_a_window_longer(stored: Entry, rules: CachePolicy) -> None:
    plain = freshness.windows(Entry(**{**_parts(stored), "softened": None}), rules)
    ends = freshness.windows(stored, rules)
    assert (ends.fresh, ends.revalidate, ends.error) <= (plain.fresh, plain.revalidate, plain.error)
    assert ends.revalidate <= plain.revalidate or stored.distrusted
    assert ends.error <= plain.error


@given(STORED, st.floats(0, 0.99), st.floats(0, 1e6))
def test_jitter_only_shortens_and_never_what_the_upstream_stated(stored: Entry, jitter: float, ttl: float) -> None:
    jittered, exact = ({**_parts(stored), "jitter": share} for share in (jitter, 0.0))
    for rules in (CachePolicy(ttl=ttl), CachePolicy()):
        ends, plain = freshness.windows(Entry(**jittered), rules), freshness.windows(Entry(**exact), rules)
        assert ends.fresh <= plain.fresh
        if rules.ttl is None and stored.life.lifetime is not None:
            assert ends == plain


def _parts(stored: Entry) -> dict[str, object]:
    return {name: getattr(stored, name) for name in stored.__struct_fields__}


@given(STORED, RULES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_is_no_longer_fresh_never_becomes_fresh_again(
    stored: Entry, rules: CachePolicy, early: float, late: float
) -> None:
    early, late = sorted((early, late))
    if isinstance(freshness.decide(stored, PLAIN, rules, NOW + late), Hit):
        assert isinstance(freshness.decide(stored, PLAIN, rules, NOW + early), Hit)


FACTS = st.builds(
    RequestDirectives,
    no_cache=st.booleans(),
    max_age=st.none() | st.floats(0, 1e6),
    min_fresh=st.floats(0, 1e6),
    stale_if_error=st.none() | st.floats(0, 1e6),
)


@given(STORED, RULES, FACTS, st.floats(0, 1e6))
def test_a_request_can_only_ask_for_more_than_a_plain_one_gets(
    stored: Entry, rules: CachePolicy, facts: RequestDirectives, after: float
) -> None:
    def served(decision: Decision) -> bool:
        return isinstance(decision, Hit | Stale)

    if served(freshness.decide(stored, facts, rules, NOW + after)):
        assert served(freshness.decide(stored, PLAIN, rules, NOW + after))


@given(STORED, st.floats(0, 1e6))
def test_what_must_be_validated_is_never_served_stale(stored: Entry, after: float) -> None:
    if stored.life.strict or stored.life.no_cache:
        stale = RequestDirectives(max_stale=math.inf, stale_if_error=math.inf)
        assert not isinstance(freshness.decide(stored, stale, CachePolicy(), NOW + after), Stale)
        if NOW + after >= freshness.windows(stored, CachePolicy()).fresh:
            assert not freshness.usable_on_error(stored, stale, CachePolicy(), NOW + after) or stored.distrusted


# --- validation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_fields", "response_fields", "held"),
    [
        pytest.param(('if-none-match: "a"',), ('etag: "a"',), True, id="the tag"),
        pytest.param(('if-none-match: W/"a"',), ('etag: "a"',), True, id="weak against strong"),
        pytest.param(('if-none-match: "a"',), ('etag: W/"a"',), True, id="strong against weak"),
        pytest.param(('if-none-match: "b", "a,b" , "a"',), ('etag: "a"',), True, id="one of a list"),
        pytest.param(('if-none-match: "a,b"',), ('etag: "a"',), False, id="a comma within a tag"),
        pytest.param(("if-none-match: *",), (), True, id="any"),
        pytest.param(('if-none-match: "a"',), (), False, id="no tag stored"),
        pytest.param(
            ('if-none-match: "b"', f"if-modified-since: {at(0)}"),
            ('etag: "a"', f"last-modified: {at(-9)}"),
            False,
            id="the tag goes before the date",
        ),
        pytest.param((f"if-modified-since: {at(-9)}",), (f"last-modified: {at(-9)}",), True, id="the date"),
        pytest.param((f"if-modified-since: {at(-8)}",), (f"last-modified: {at(-9)}",), True, id="a later date"),
        pytest.param((f"if-modified-since: {at(-10)}",), (f"last-modified: {at(-9)}",), False, id="an earlier date"),
        pytest.param((f"if-modified-since: {at(0)}",), (f"date: {at(-1)}",), True, id="Date for Last-Modified"),
        pytest.param((f"if-modified-since: {at(-3000)}",), (f"date: {at(0)}",), False, id="Date is later"),
        pytest.param(("if-modified-since: soon",), (f"last-modified: {at(-9)}",), False, id="no date"),
    ],
)
def test_a_client_that_has_it_is_told_so(
    request_fields: tuple[str, ...], response_fields: tuple[str, ...], held: bool
) -> None:
    assert validation.not_modified(fields(request_fields), fields(response_fields), NOW) is held


def stored_with(*lines: str) -> Entry:
    verdict = Admit(Life(lifetime=1), tuple(fields(lines)), (), 0.0)
    return keep(ReceivedResponse(200, (), NOW, NOW), verdict)


@pytest.mark.parametrize(
    ("known", "said", "same"),
    [
        pytest.param('etag: "a"', 'etag: "a"', True, id="the same"),
        pytest.param('etag: "a"', 'etag: "b"', False, id="another"),
        pytest.param('etag: W/"a"', 'etag: W/"a"', True, id="both weak"),
        pytest.param('etag: W/"a"', 'etag: "a"', False, id="a strong one of what was weak"),
        pytest.param('etag: "a"', "x: y", True, id="none said"),
    ],
)
def test_a_304_must_speak_of_what_is_stored(known: str, said: str, same: bool) -> None:
    assert validation.confirms(stored_with(known), ReceivedResponse(304, fields((said,)), NOW, NOW)) is same


def test_a_304_updates_what_it_brings_but_not_what_speaks_of_the_bytes() -> None:
    stored = stored_with("a: 1", "b: 1", 'etag: "a"', "content-encoding: gzip", "content-type: text/plain")
    lines = ("b: 2", "content-type: text/html", "content-encoding: br", "content-length: 9", "connection: c", "c: 3")
    told = dict(
        validation.freshened(
            stored, ReceivedResponse(304, fields((*lines, "gateway-cache-control: max-age=9")), NOW, NOW)
        )
    )
    assert told == {
        b"a": b"1",
        b"b": b"2",
        b"etag": b'"a"',
        b"content-encoding": b"gzip",
        b"content-type": b"text/html",
    }
