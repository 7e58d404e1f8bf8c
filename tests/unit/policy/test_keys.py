"""keys: what of a request reaches the upstream is in the key, and no two keys can be confused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.http.headers import Headers, connection_named, sent_value
from gateway.policy.content import Content
from gateway.policy.identity_key import UNKEYED, IdentityKey
from gateway.policy.keys import (
    FOLLOWING,
    LONGEST_SHORT,
    Keying,
    Plan,
    PlannedFields,
    digest,
    holds_identity,
    is_identity,
    key_hash,
    passed_through,
    plan,
    primary_and_stem,
    primary_key,
    shared_name,
    short_key,
    stem_of,
    without_ignored,
)
from gateway.policy.vary import variant_key

TIMED = Keying(vary=("accept", "accept-language"))
ORIGIN = Keying(vary=None)
VIA = (b"via", b"1.1 gateway")

# FAULTS.md: what reaches an upstream behind a key's back, and what belongs to one connection or one client.
DANGEROUS = [
    *(b"forwarded", b"x-forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"),
    *(b"x-original-url", b"x-rewrite-url", b"x-http-method", b"x-http-method-override", b"x-method-override"),
    *(b"x_forwarded_host", b"x_user", b"content_length"),
]
HOPS = [b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"]
CONDITIONS = [b"if-none-match", b"if-modified-since", b"range", b"if-range"]
OURS = [b"host", b"content-length", b"expect", b"x-request-id", b"via", b"proxy-authorization"]


def planned(keying: Keying, *headers: tuple[bytes, bytes], target: str = "/t") -> Plan:
    return plan(keying, "api", target, headers)


# --- which requests pass the cache by ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keying", "header", "bypass"),
    [
        pytest.param(TIMED, b"authorization", "authorization", id="authorization with a duration"),
        pytest.param(ORIGIN, b"authorization", None, id="authorization with ttl: origin"),
        pytest.param(Keying(("accept",), "ignore"), b"authorization", None, id="authorization ignored"),
        pytest.param(Keying(("accept",), "key"), b"authorization", None, id="authorization in the key"),
        pytest.param(TIMED, b"cookie", "cookie", id="a cookie with a duration"),
        pytest.param(ORIGIN, b"cookie", "cookie", id="a cookie with ttl: origin"),
        pytest.param(Keying(None, cookies=()), b"cookie", None, id="cookies ignored"),
        pytest.param(Keying(("accept",), cookies=("a",)), b"cookie", None, id="cookies in the key"),
        pytest.param(TIMED, b"if-match", "precondition", id="if-match"),
        pytest.param(ORIGIN, b"if-unmodified-since", "precondition", id="if-unmodified-since"),
        pytest.param(TIMED, b"if-none-match", None, id="if-none-match"),
        pytest.param(TIMED, b"range", None, id="range"),
    ],
)
def test_a_header_makes_a_request_pass_by_or_not(keying: Keying, header: bytes, bypass: str | None) -> None:
    assert planned(keying, (header, b"a=1")).bypass == bypass


def test_a_request_with_a_body_passes_by() -> None:
    assert plan(TIMED, "api", "/t", (), has_body=True) == Plan("api\n/t", "api\n/t", (), "body")


def test_a_plain_request_asks_for_its_target_alone() -> None:
    assert planned(TIMED) == Plan("api\n/t", "api\n/t", (), None)


# --- routes with a duration --------------------------------------------------------------------------------


def test_listed_headers_are_in_the_key_in_the_form_they_are_forwarded() -> None:
    asked = planned(TIMED, (b"accept-language", b"DE ,  en;Q=0.5"), (b"accept", b"a/b"), (b"accept", b"c/d"))
    assert asked.forward == ((b"accept", b"a/b, c/d"), (b"accept-language", b"de, en;q=0.5"))
    assert asked.base == "api\n/t\naccept:a/b, c/d\naccept-language:de, en;q=0.5"


def test_an_empty_header_is_another_than_none() -> None:
    assert planned(TIMED, (b"accept", b"")).base != planned(TIMED).base


def test_unlisted_headers_do_not_reach_the_upstream() -> None:
    assert planned(TIMED, (b"user-agent", b"x"), (b"x-a", b"1")) == planned(TIMED)


def test_constants_are_forwarded_and_not_in_the_key() -> None:
    asked = planned(Keying(("accept",), constants=(VIA,)), (b"accept", b"a/b"))
    assert asked.forward == ((b"accept", b"a/b"), VIA)
    assert VIA[0].decode() not in asked.base


@pytest.mark.parametrize("vary", [("accept",), None], ids=["duration", "origin"])
def test_a_forwarded_host_is_in_the_key_in_lower_case_and_reaches_the_upstream(vary: tuple[str, ...] | None) -> None:
    keying = Keying(vary, host=True)
    asked = planned(keying, (b"host", b"One.Test"))
    assert asked.forward == ((b"host", b"one.test"),)
    assert asked.base != planned(keying, (b"host", b"two.test")).base
    assert asked.base == planned(keying, (b"host", b"ONE.test")).base
    assert asked.primary == planned(keying, (b"host", b"two.test")).primary, "a purge of the URL is for all hosts"
    assert planned(keying).forward == (), "HTTP/1.0 may send none"


def test_a_host_that_is_not_forwarded_is_in_no_key() -> None:
    assert planned(TIMED, (b"host", b"one.test")) == planned(TIMED)


def test_what_settings_send_is_in_the_key_as_a_digest() -> None:
    one, other, none = (planned(replace(TIMED, sent=sent)) for sent in ("x-api-key:canary", "x-api-key:other", ""))
    assert len({one.base, other.base, none.base}) == 3
    assert one.primary == other.primary == none.primary
    assert "canary" not in one.base


def test_marks_of_settings_that_change_the_stored_response_are_in_the_key_alone() -> None:
    asked = planned(replace(TIMED, marks=((b"shape", b"1"),)))
    assert (asked.base, asked.primary, asked.forward) == ("api\n/t\nshape:1", "api\n/t", ())


# --- routes with ttl: origin -------------------------------------------------------------------------------


def test_the_upstream_sees_all_end_to_end_headers_where_it_decides() -> None:
    asked = planned(
        Keying(None, constants=(VIA,)), (b"user-agent", b"x"), (b"x-a", b"1"), (b"x-a", b"2"), (b"authorization", b"b")
    )
    assert asked.forward == ((b"user-agent", b"x"), (b"x-a", b"1, 2"), (b"authorization", b"b"), VIA)
    assert asked.base == asked.primary + FOLLOWING


@pytest.mark.parametrize("name", [*DANGEROUS, *HOPS, *CONDITIONS, *OURS], ids=bytes.decode)
def test_a_header_that_could_poison_is_never_forwarded(name: bytes) -> None:
    assert planned(ORIGIN, (name, b"1"), (b"x-a", b"1")).forward == ((b"x-a", b"1"),)


def test_headers_that_connection_names_are_not_forwarded() -> None:
    assert planned(ORIGIN, (b"connection", b"X-A, close"), (b"x-a", b"1")).forward == ()


@pytest.mark.parametrize(
    ("authorization", "forwarded", "in_key"),
    [("pass", True, False), ("ignore", False, False), ("key", True, True)],
    ids=["pass", "ignore", "key"],
)
def test_authorization_is_forwarded_and_keyed_as_the_route_says(
    authorization: str, forwarded: bool, in_key: bool
) -> None:
    asked = planned(Keying(None, authorization), (b"authorization", b"Bearer x"))
    assert ((b"authorization", b"Bearer x") in asked.forward) == forwarded
    digest = UNKEYED.digest("authorization", "Bearer x")
    assert asked.base == asked.primary + FOLLOWING + (f"\nauthorization:{digest}" if in_key else "")


def test_authorization_that_is_absent_is_in_no_key() -> None:
    assert planned(Keying(("accept",), "key")).base == "api\n/t"


# --- cookies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        pytest.param([b"b=2; a=1; evil=3"], b"a=1; b=2", id="listed ones, sorted"),
        pytest.param([b"a=1", b"b=2"], b"a=1; b=2", id="two lines"),
        pytest.param([b"a=1; a=2"], b"a=1", id="the first of a name"),
        pytest.param([b"  a=1 ;b=2"], b"a=1; b=2", id="space"),
        pytest.param([b"a=b=c"], b"a=b=c", id="an equals sign in a value"),
        pytest.param([b"a="], b"a=", id="an empty value"),
        pytest.param([b"a"], None, id="a name alone"),
        pytest.param([b"A=1"], None, id="case counts"),
        pytest.param([b"evil=1"], None, id="none of the listed"),
        pytest.param([], None, id="none"),
    ],
)
@pytest.mark.parametrize("vary", [("accept",), None], ids=["duration", "origin"])
def test_listed_cookies_alone_are_forwarded_and_keyed(
    vary: tuple[str, ...] | None, sent: list[bytes], kept: bytes | None
) -> None:
    asked = planned(Keying(vary, cookies=("a", "b")), *((b"cookie", line) for line in sent))
    assert asked.forward == (((b"cookie", kept),) if kept is not None else ())
    follows = FOLLOWING if vary is None else ""
    counted = "" if kept is None else f"\ncookie:{UNKEYED.digest('cookie', kept.decode())}"
    assert asked.base == f"api\n/t{follows}{counted}"


@pytest.mark.parametrize("vary", [("accept",), None], ids=["duration", "origin"])
def test_ignored_cookies_are_neither_forwarded_nor_keyed(vary: tuple[str, ...] | None) -> None:
    assert planned(Keying(vary, cookies=()), (b"cookie", b"a=1")) == planned(Keying(vary, cookies=()))


# --- requests that pass by ---------------------------------------------------------------------------------


def test_a_request_that_passes_by_keeps_its_credentials_and_conditions() -> None:
    own = [(b"authorization", b"b"), (b"cookie", b"a=1"), (b"if-match", b'"x"'), (b"range", b"bytes=0-1")]
    assert passed_through(own) == own


@pytest.mark.parametrize("name", [*DANGEROUS, *HOPS, *OURS], ids=bytes.decode)
def test_a_request_that_passes_by_forwards_no_header_that_deceives(name: bytes) -> None:
    assert passed_through([(name, b"1"), (b"x-a", b"1")]) == [(b"x-a", b"1")]


@pytest.mark.parametrize(
    ("keying", "names"),
    [
        (Keying(None), {b"accept", b"authorization", b"cookie"}),
        (Keying(None, "ignore"), {b"accept", b"cookie"}),
        (Keying(None, "key", ()), {b"accept", b"authorization"}),
        (Keying(None, "ignore", ("sid",)), {b"accept", b"cookie"}),
    ],
)
def test_a_request_that_passes_by_keeps_back_what_its_route_ignores(keying: Keying, names: set[bytes]) -> None:
    sent = [(b"accept", b"a/b"), (b"authorization", b"b"), (b"cookie", b"theme=dark; sid=1")]
    left = without_ignored(keying, sent)
    assert {name for name, _ in left} == names
    assert dict(left).get(b"cookie") == (
        b"sid=1" if keying.cookies else dict(sent)[b"cookie"] if keying.cookies is None else None
    )


# --- identity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("authorization", "proxy-authorization", "x-amz-authorization", "cookie", "cookie:sid", "cookie:theme"),
        *("x-api-key", "api-key", "apikey", "x-apikey", "x-rapidapi-key", "ocp-apim-subscription-key"),
        *("x-auth-token", "x-access-token", "x-csrf-token", "x-token", "token", "x_token", "dpop", "x-goog-iap-jwt"),
        *("x-session-id", "x-session", "x-user", "x-user-id", "remote-user", "x-customer-id", "x-device-id", "from"),
        *("x-amz-security-token", "x-signature", "x-client-cert", "x-auth-request-email"),
    ],
)
def test_a_field_that_says_who_asks_is_an_identity(name: str) -> None:
    assert is_identity(name)


@pytest.mark.parametrize(
    "name",
    [
        *("accept", "accept-language", "accept-encoding", "user-agent", "x-tenant", "x-country", "origin", "host"),
        *("x-forwarded-proto", "idempotency-key", "surrogate-key", "sec-websocket-key", "x-request-id", "traceparent"),
        *(":host", ":scheme", "sec-ch-ua", "x-client-version", "x-device", "key", "id", ""),
    ],
)
def test_a_field_that_says_what_is_asked_for_is_no_identity(name: str) -> None:
    assert not is_identity(name)


def test_a_declared_identity_is_one_whatever_its_name() -> None:
    keying = Keying(("x-tenant", "accept"), identities=frozenset(("x-tenant",)))
    assert [keying.identifies(name) for name in ("x-tenant", "accept", "authorization")] == [True, False, True]


# --- credentials -------------------------------------------------------------------------------------------

SECRET, OTHER = IdentityKey(b"a" * 32), IdentityKey(b"b" * 32)
IN_KEY = Keying(("x-tenant", "x-api-key"), "key", ("sid",), identity_key=SECRET)
CREDENTIALS = [(b"authorization", b"Bearer canary"), (b"cookie", b"sid=canary"), (b"x-api-key", b"canary")]


def test_no_key_holds_what_says_who_asks() -> None:
    asked = planned(IN_KEY, *CREDENTIALS, (b"x-tenant", b"canary"), target="/t?api_key=canary&page=2")
    assert asked.primary == "api\n/t?api_key=***&page=2"
    variant = variant_key(asked.base, ("x-tenant", "cookie:sid", "authorization"), CREDENTIALS, SECRET)
    assert "canary" not in variant
    assert asked.forward == ((b"x-tenant", b"canary"), CREDENTIALS[2], CREDENTIALS[0], CREDENTIALS[1])


def test_the_digests_in_a_key_are_made_with_the_secret() -> None:
    asked = [
        planned(replace(IN_KEY, identity_key=key), *CREDENTIALS, target="/t?sig=1").base for key in (SECRET, OTHER)
    ]
    lines = [base.split("\n")[2:] for base in asked]
    assert len(lines[0]) == 4
    assert not set(lines[0]) & set(lines[1])


@pytest.mark.parametrize("target", ["/t?api_key=1", "/t?api_key=2", "/t?api_key=1&token=2", "/t?api_key=1&token=3"])
def test_a_base_key_tells_credentials_in_the_query_apart_and_the_primary_key_does_not(target: str) -> None:
    others = ["/t?api_key=1", "/t?api_key=2", "/t?api_key=1&token=2", "/t?api_key=1&token=3", "/t?api_key=***"]
    same = [planned(IN_KEY, target=other).base == planned(IN_KEY, target=target).base for other in others]
    assert sum(same) == 1
    purged = [primary_key("api", other) == primary_key("api", target) for other in others]
    assert sum(purged) == (2 if "token" in target else 3)


@pytest.mark.parametrize(
    ("keyed", "unkeyed", "vary", "holds"),
    [
        pytest.param((), (), ("accept",), False, id="nobody is named"),
        pytest.param(("authorization",), (), (), True, id="all in the key"),
        pytest.param((), ("authorization",), (), False, id="one that selects nothing"),
        pytest.param((), ("authorization",), ("accept", "authorization"), True, id="one that selects the variant"),
        pytest.param(("authorization",), ("cookie", "x-user"), ("cookie",), False, id="one of two selects"),
    ],
)
def test_a_response_is_for_one_user_where_all_that_identifies_the_user_selects_it(
    keyed: tuple[str, ...], unkeyed: tuple[str, ...], vary: tuple[str, ...], holds: bool
) -> None:
    assert holds_identity(keyed, unkeyed, vary) is holds


# --- names in Redis ----------------------------------------------------------------------------------------


def test_a_digest_is_the_same_in_every_process() -> None:
    assert digest("api\n/t") == "2ea941a0fdd95db5c4ce0f82ab7ef722"


@pytest.mark.parametrize("key", ["api\n/t\n?x", "api\n/t\naccept:a", "api\n/t\norigin\nvary accept:a", "api\n/t"])
def test_all_names_of_a_target_have_one_hash_tag_and_their_own_digest(key: str) -> None:
    name, tag = shared_name("e", key), digest("api\n/t")[:16]
    assert name == f"e:{{{tag}}}{digest(key)}"
    assert f"{{{tag}}}" in shared_name("i", "api\n/t")
    assert f"{{{tag}}}" not in shared_name("i", "api\n/u")
    assert shared_name("l", "no line feed") == f"l:{{{digest('no line feed')[:16]}}}{digest('no line feed')}"


@given(target=st.from_regex(r"/[a-z0-9/]{0,20}(\?[a-z_]{1,8}=[a-z0-9]{0,8}){0,1}", fullmatch=True))
def test_every_key_of_a_plan_has_the_hash_tag_of_its_primary_key(target: str) -> None:
    """Else a command on an entry and its index would cross slots of a cluster."""
    keying = Keying(vary=("accept",), host=True, marks=((b"m", b"1"),), sent="x")
    planned = plan(keying, "api", target, [(b"host", b"a"), (b"accept", b"b")])
    names = [shared_name(kind, key) for kind, key in (("i", planned.primary), ("e", planned.base), ("l", planned.base))]
    assert len({re.search(r"\{(.*)\}", name)[1] for name in names}) == 1  # type: ignore[index]


@pytest.mark.parametrize("key", ["", "caf\xe9", "\u5546", "x" * 10_000])
def test_a_digest_is_32_hex_digits_of_any_key(key: str) -> None:
    assert len(digest(key)) == 32
    assert int(digest(key), 16) >= 0


def test_a_short_key_is_itself_and_a_long_one_its_digest() -> None:
    assert short_key("a" * LONGEST_SHORT) == "a" * LONGEST_SHORT
    assert short_key("a" * (LONGEST_SHORT + 1)) == digest("a" * (LONGEST_SHORT + 1))
    assert short_key("\u20ac" * 65) != short_key("\u20ac" * 66)


def test_the_number_of_a_key_is_the_same_in_every_worker() -> None:
    assert [key_hash("api\n/t"), key_hash("api\n/\xe9\u20ac")] == [8736604541777616414, 807172086182467992]


# --- properties --------------------------------------------------------------------------------------------

# Few names and values, so that two requests often have the same key; values that hold the key's own syntax.
NAMES = st.sampled_from([b"accept", b"accept-language", b"x-a", b"x-b", b"authorization", b"cookie", b"user-agent"])
OTHER_NAMES = st.sampled_from([*DANGEROUS, *HOPS, *CONDITIONS, *OURS])
TOKENS = st.text("!#$%&'*+-.^_`|~abAB01", min_size=1, max_size=6).map(lambda text: text.lower().encode())
PIECES = [*'aAb:, "\\\xe9', "a:b", ";q=1", "; q=1", "a=1", "a=2; b=1", "b=1", "vary x-a:"]
VALUES = st.lists(st.sampled_from(PIECES), max_size=3).map(lambda pieces: "".join(pieces).encode("latin-1"))
ANY_VALUE = st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n\0"), max_size=12).map(
    lambda text: text.encode("latin-1")
)
FIELDS = st.tuples(NAMES, VALUES) | st.tuples(NAMES | TOKENS | OTHER_NAMES, VALUES | ANY_VALUE)
HEADERS = st.lists(FIELDS, max_size=6)
FEW = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"a:b", b"a=1"])), max_size=3)
AUTHORIZATION = st.sampled_from(["pass", "ignore", "key"])
COOKIES = st.sampled_from([None, (), ("a",), ("a", "b")])
NAME_LISTS = st.lists(st.sampled_from(["accept", "accept-language", "x-a"]), max_size=3, unique=True).map(
    lambda names: tuple(sorted(names))
)
TIMED_KEYINGS = st.builds(Keying, NAME_LISTS, AUTHORIZATION, COOKIES, st.just((VIA,)))
ORIGIN_KEYINGS = st.builds(Keying, st.none(), AUTHORIZATION, COOKIES, st.just((VIA,)))
TARGETS = st.sampled_from(["/", "/t", "/t:a", "/taccept:a", "/t?a=1&accept:a"])

properties = settings(deadline=None)


@settings(deadline=None, max_examples=500)
@given(TIMED_KEYINGS, st.tuples(TARGETS, FEW | HEADERS), st.tuples(TARGETS, FEW | HEADERS))
@example(TIMED, ("/t", [(b"accept", b"a:b")]), ("/t", [(b"accept", b"a"), (b"x-a", b"b")]))
@example(TIMED, ("/t", [(b"accept-language", b"DE, en")]), ("/t", [(b"accept-language", b"de,en")]))
def test_with_a_duration_two_requests_of_one_key_send_the_upstream_the_same(
    keying: Keying, one: tuple[str, Headers], other: tuple[str, Headers]
) -> None:
    first, second = (plan(keying, "api", target, headers) for target, headers in (one, other))
    assume(first.bypass is None and second.bypass is None)
    assert (first.base == second.base) == ((first.primary, first.forward) == (second.primary, second.forward))


@properties
@given(TIMED_KEYINGS, HEADERS)
def test_with_a_duration_nothing_but_what_is_declared_reaches_the_upstream(keying: Keying, headers: Headers) -> None:
    asked = plan(keying, "api", "/t", headers)
    assert keying.vary is not None
    declared = {name.encode() for name in keying.vary} | {VIA[0]}
    declared |= {b"authorization"} if keying.authorization == "key" else set()
    declared |= {b"cookie"} if keying.cookies else set()
    assert {name for name, _ in asked.forward} <= declared


@properties
@given(ORIGIN_KEYINGS, HEADERS)
def test_with_ttl_origin_no_dangerous_header_reaches_the_upstream(keying: Keying, headers: Headers) -> None:
    sent = {name for name, _ in plan(keying, "api", "/t", headers).forward} - {VIA[0]}
    assert not sent & {*DANGEROUS, *HOPS, *CONDITIONS, *OURS}
    assert not any(b"_" in name or name.startswith(b"x-forwarded") for name in sent)
    keyed = {b"cookie"} | ({b"authorization"} if keying.authorization == "key" else set())
    assert not sent & (connection_named(headers) - keyed)


@properties
@given(ORIGIN_KEYINGS, HEADERS, HEADERS)
def test_with_ttl_origin_credentials_that_are_keyed_are_never_shared(
    keying: Keying, one: Headers, other: Headers
) -> None:
    def credentials(asked: Plan) -> set[tuple[bytes, bytes]]:
        keyed = {b"cookie"} | ({b"authorization"} if keying.authorization == "key" else set())
        return {pair for pair in asked.forward if pair[0] in keyed}

    first, second = plan(keying, "api", "/t", one), plan(keying, "api", "/t", other)
    assume(first.bypass is None and second.bypass is None)
    assert (first.base == second.base) == (credentials(first) == credentials(second))


@properties
@given(st.tuples(NAME_LISTS, FEW), st.tuples(NAME_LISTS, FEW), st.sampled_from(["api\n/t", "api\n/t\naccept:a"]))
def test_two_variants_of_one_key_have_the_same_values_of_the_same_fields(
    one: tuple[tuple[str, ...], Headers], other: tuple[tuple[str, ...], Headers], base: str
) -> None:
    def selected(names: tuple[str, ...], headers: Headers) -> list[tuple[str, str | None]]:
        return [(name, sent_value(headers, name)) for name in names]

    same_key = variant_key(base, *one) == variant_key("api\n/t", *other)
    assert same_key == (base == "api\n/t" and selected(*one) == selected(*other))


@properties
@given(st.text("ab@.<>_"), st.text("/ab?&:=%"), st.text("ab@.<>_"), st.text("/ab?&:=%"))
def test_two_targets_of_one_primary_key_are_the_same_target_of_the_same_origin(
    origin: str, target: str, other_origin: str, other_target: str
) -> None:
    same = primary_key(origin, target) == primary_key(other_origin, other_target)
    assert same == ((origin, target) == (other_origin, other_target))


@properties
@given(TIMED_KEYINGS | ORIGIN_KEYINGS, HEADERS)
def test_no_component_of_a_key_holds_its_separator(keying: Keying, headers: Headers) -> None:
    asked = plan(keying, "api", "/t", headers)
    lines = variant_key(asked.base, ("accept",), headers).split("\n")
    follows = ["origin"] if keying.vary is None and asked.bypass is None else []
    assert lines[: 2 + len(follows)] == ["api", "/t", *follows]
    assert lines[-1].startswith("vary accept")
    assert all(":" in line for line in lines[2 + len(follows) : -1])


@properties
@given(TIMED_KEYINGS, ORIGIN_KEYINGS, HEADERS, HEADERS)
def test_what_follows_its_upstream_never_shares_an_entry_with_what_has_a_duration(
    timed: Keying, following: Keying, headers: Headers, others: Headers
) -> None:
    one, other = plan(timed, "api", "/t", headers), plan(following, "api", "/t", others)
    assert one.primary == other.primary
    if one.bypass is None and other.bypass is None:
        assert one.base != other.base


@given(target=st.text("/a?&=;token", max_size=20))
def test_the_primary_key_and_the_stem_are_those_that_each_gives_alone(target: str) -> None:
    secret = IdentityKey(b"k" * 32)
    assert primary_and_stem("up", target, secret) == (primary_key("up", target), stem_of("up", target, secret))


@properties
@given(TIMED_KEYINGS | ORIGIN_KEYINGS, HEADERS, st.sampled_from(["", "secret"]), st.text("/a?&=;token", max_size=20))
def test_a_plan_of_fields_that_were_planned_is_the_one_that_is_made(
    keying: Keying, headers: Headers, sent: str, target: str
) -> None:
    keying = replace(keying, sent=sent, host=bool(sent), identity_key=IdentityKey(b"k" * 32))
    assert PlannedFields.of(keying, headers).plan("up", target) == plan(keying, "up", target, headers)


# --- partitions of credentials -----------------------------------------------------------------------------

PARTITIONED = Keying(("accept",), "pass", (), claims=("x-user",), one_user=True, credentials=("authorization",))
OF_ANNA = [(b":principal", b"a1"), (b"x-user", b"anna")]


def test_the_partition_is_in_the_key_in_place_of_its_claims_which_are_sent() -> None:
    anna, berta = (
        plan(PARTITIONED, "api", "/", [(b":principal", partition), (b"x-user", user)])
        for partition, user in ((b"a1", b"anna"), (b"b2", b"berta"))
    )
    assert (anna.base, berta.base) == ("api\n/\n:principal:a1", "api\n/\n:principal:b2")
    assert (anna.primary, berta.primary) == ("api\n/", "api\n/")
    assert anna.forward == ((b"x-user", b"anna"),)
    assert holds_identity(anna.keyed, anna.unkeyed, ())


def test_a_route_that_follows_its_upstream_keys_the_partition_and_never_sends_it() -> None:
    following = replace(PARTITIONED, vary=None)
    found = plan(following, "api", "/", OF_ANNA)
    assert "\n:principal:a1" in found.base
    assert found.forward == ((b"x-user", b"anna"),)
    assert (found.keyed, found.unkeyed) == (("authorization",), ())
    assert passed_through(OF_ANNA) == [(b"x-user", b"anna")]


def test_the_partition_of_a_group_holds_no_users_identity() -> None:
    group = replace(PARTITIONED, claims=(), one_user=False)
    found = plan(group, "api", "/", OF_ANNA[:1])
    assert found.base == "api\n/\n:principal:a1"
    assert not holds_identity(found.keyed, found.unkeyed, ())


def test_without_a_credential_there_is_no_partition() -> None:
    assert plan(PARTITIONED, "api", "/", []).base == "api\n/"
    assert plan(TIMED, "api", "/", OF_ANNA[:1]).base == "api\n/"  # a route without `identity`


@pytest.mark.parametrize(
    "keying", [PARTITIONED, replace(PARTITIONED, vary=None), replace(PARTITIONED, vary=("x-user",))]
)
def test_a_field_made_of_a_claim_is_sent_as_it_was_made(keying: Keying) -> None:
    """In a list, `a,b` and `a, b` are the same; as users, they are two."""
    found = plan(keying, "api", "/", [(b":principal", b"a1"), (b"x-user", b"a,b")])
    assert found.forward == ((b"x-user", b"a,b"),)


def test_the_content_of_a_read_is_in_its_key_and_its_description_in_what_is_sent() -> None:
    keying, headers = Keying(vary=("accept",)), [(b"content-type", b"text/plain"), (b"accept", b"a/b")]
    one, other = (Content("QUERY", ((b"content-type", b"a/json"),), body) for body in (b"1", b"2"))
    with_one, with_other = (plan(keying, "up", "/s", headers, content=each) for each in (one, other))
    assert with_one.primary == with_other.primary == primary_key("up", "/s")
    assert len({with_one.base, with_other.base, plan(keying, "up", "/s", headers[1:]).base}) == 3
    assert with_one.forward == ((b"accept", b"a/b"), (b"content-type", b"a/json"))
