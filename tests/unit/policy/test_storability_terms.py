"""storability: the terms kept for a response's decisive fields are those that all of its fields would give."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.policy import storability
from gateway.policy.keys import Plan
from gateway.policy.rules import CachePolicy, RequestDirectives
from gateway.policy.storability import Admit, ReceivedResponse, admit

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


def test_what_a_response_has_beside_decides_nothing() -> None:
    """Two responses that differ in a validator and in a field of their own share their terms, not their fields."""
    storability._known_terms.cache_clear()
    one, other = (
        ReceivedResponse(200, ((b"cache-control", b"max-age=60"), (b"etag", tag), (b"x-id", tag)), 5.0, 5.0)
        for tag in (b'"1"', b'"2"')
    )
    first, second = (admit(each, RequestDirectives(), CachePolicy()) for each in (one, other))
    assert isinstance(first, Admit)
    assert isinstance(second, Admit)
    assert first.life == second.life
    assert dict(first.headers)[b"x-id"] == b'"1"'
    assert dict(second.headers)[b"x-id"] == b'"2"'
    assert storability._known_terms.cache_info().misses == 1
