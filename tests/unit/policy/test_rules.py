"""What a route's rules come to, and which directives of a request count."""

from __future__ import annotations

import math

import pytest

from gateway.policy.rules import PLAIN, CachePolicy, RequestDirectives, directives_of

HONOURED = CachePolicy()


@pytest.mark.parametrize(
    ("policy", "off"),
    [
        (CachePolicy(), False),
        (CachePolicy(cache=False), True),
        (CachePolicy(ttl=30.0), False),
        (CachePolicy(ttl=0), True),
        (CachePolicy(ttl=0, stale_while_revalidate=0, stale_if_error=0), True),
        (CachePolicy(ttl=0, stale_while_revalidate=1.0), False),
        (CachePolicy(ttl=0, stale_if_error=1.0), False),
        (CachePolicy(ttl=0, stale_if_error=1.0, cache=False), True),
    ],
)
def test_a_route_is_off_where_nothing_would_be_kept(policy: CachePolicy, off: bool) -> None:
    assert policy.off is off


def test_a_request_without_directives_is_plain() -> None:
    assert directives_of("GET", [(b"accept", b"*/*")], HONOURED) == PLAIN


@pytest.mark.parametrize(
    ("cache_control", "expected"),
    [
        ("no-store", RequestDirectives(no_store=True)),
        ("no-cache", RequestDirectives(no_cache=True)),
        ("only-if-cached", RequestDirectives(only_if_cached=True)),
        ("max-age=5", RequestDirectives(max_age=5)),
        ("min-fresh=7", RequestDirectives(min_fresh=7.0)),
        ("max-stale", RequestDirectives(max_stale=math.inf)),
        ("max-stale=9", RequestDirectives(max_stale=9)),
        ("stale-if-error=60", RequestDirectives(stale_if_error=60)),
        ("max-age=0, max-stale=1", RequestDirectives(max_age=0, max_stale=1)),
    ],
)
def test_each_directive_of_a_request_is_read(cache_control: str, expected: RequestDirectives) -> None:
    assert directives_of("GET", [(b"cache-control", cache_control.encode())], HONOURED) == expected


def test_pragma_counts_where_there_is_no_cache_control() -> None:
    pragma = (b"pragma", b"no-cache")
    assert directives_of("GET", [pragma], HONOURED).no_cache
    assert not directives_of("GET", [pragma, (b"cache-control", b"max-age=5")], HONOURED).no_cache
    assert directives_of("GET", [(b"pragma", b"other")], HONOURED) == PLAIN


def test_directives_are_ignored_where_the_route_says_so() -> None:
    ignoring = CachePolicy(request_directives=False)
    assert directives_of("GET", [(b"cache-control", b"no-store")], ignoring) == PLAIN


@pytest.mark.parametrize("headers", [[], [(b"cache-control", b"no-cache")]])
@pytest.mark.parametrize("request_directives", [True, False])
def test_the_method_and_authorization_are_seen_with_and_without_directives(
    headers: list[tuple[bytes, bytes]], request_directives: bool
) -> None:
    fields = [*headers, (b"authorization", b"Bearer x")]
    policy = CachePolicy(request_directives=request_directives)
    keyed = CachePolicy(request_directives=request_directives, authorization_keyed=True)
    head, got = directives_of("HEAD", fields, policy), directives_of("GET", fields, keyed)
    assert (head.head, head.authorized) == (True, True)
    assert (got.head, got.authorized) == (False, False)
