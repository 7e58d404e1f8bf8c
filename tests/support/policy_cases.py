"""The table of the cache policy: what is stored of a response, and what a later request gets of it.

Each case is one response to one request, then, `after` seconds, another request. `kind` is *required* (a clause
demands it), *optimal* (a clause allows it, and a good cache does it) or *ours* (no clause says; we chose). Fields are
written as on the wire. The response comes with `Date: now` unless it has a `Date` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.http.headers import http_date

NOW = 1_735_732_800.0  # 2025-01-01 12:00:00 UTC


def at(seconds: float) -> str:
    """The HTTP date `seconds` from now."""
    return http_date(NOW + seconds).decode("ascii")


@dataclass(frozen=True)
class Case:
    """`expect` is one of: refused (not stored), other (another variant is wanted), hit, stale (served, refreshed behind
    or accepted by `max-stale`), ask (the upstream, with validators), bypass, 504, on-error (may stand in for a failing
    upstream), failure (may not)."""

    id: str
    kind: str
    clause: str
    response: tuple[str, ...]
    expect: str
    request: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    after: float = 1.0
    status: int = 200
    ttl: float | None = None
    failing: bool = False


def lifetime(id: str, clause: str, expect: str, *response: str, kind: str = "required", after: float = 5.0) -> Case:
    return Case(id, kind, clause, response, expect, after=after)


def asked(
    id: str, clause: str, expect: str, then: str, *response: str, kind: str = "optimal", after: float = 5
) -> Case:
    return Case(id, kind, clause, response or ("cache-control: max-age=60",), expect, then=(then,), after=after)


def failing(id: str, clause: str, expect: str, *response: str, then: tuple[str, ...] = (), after: float = 30.0) -> Case:
    return Case(id, "required", clause, response, expect, then=then, after=after, failing=True)


FRESHNESS = [
    lifetime("max-age-fresh", "RFC 9111 §5.2.2.1", "hit", "cache-control: max-age=10", kind="optimal"),
    lifetime("max-age-over", "RFC 9111 §4.2", "ask", "cache-control: max-age=10", after=10),
    lifetime("max-age-last-moment", "RFC 9111 §4.2", "hit", "cache-control: max-age=10", after=9.9),
    lifetime("max-age-0", "RFC 9111 §4.2", "refused", "cache-control: max-age=0"),
    lifetime("max-age-0-validator", "RFC 9111 §4.3", "ask", "cache-control: max-age=0", 'etag: "a"', kind="optimal"),
    lifetime("max-age-negative", "RFC 9111 §4.2.1", "refused", "cache-control: max-age=-10"),
    lifetime("max-age-fraction", "RFC 9111 §4.2.1", "refused", "cache-control: max-age=10.0"),
    lifetime("max-age-words", "RFC 9111 §4.2.1", "refused", "cache-control: max-age=ten"),
    lifetime("max-age-empty", "RFC 9111 §4.2.1", "refused", "cache-control: max-age="),
    lifetime("max-age-bare", "RFC 9111 §4.2.1", "refused", "cache-control: max-age"),
    lifetime("max-age-zeros", "RFC 9111 §1.2.2", "hit", "cache-control: max-age=0010"),
    lifetime("max-age-2^31", "RFC 9111 §1.2.2", "hit", "cache-control: max-age=2147483648"),
    lifetime("max-age-huge", "RFC 9111 §1.2.2", "hit", "cache-control: max-age=99999999999999999999"),
    lifetime("max-age-quoted", "RFC 9111 §5.2", "hit", 'cache-control: max-age="10"', kind="optimal"),
    lifetime("max-age-single-quotes", "RFC 9111 §5.2", "refused", "cache-control: max-age='10'"),
    lifetime("max-age-case", "RFC 9111 §5.2", "hit", "cache-control: MAX-Age=10"),
    lifetime("max-age-within-quotes", "RFC 9111 §5.2", "ask", 'cache-control: x="max-age=60", max-age=1'),
    lifetime("max-age-and-unknown", "RFC 9111 §5.2.3", "hit", "cache-control: foo, max-age=10, bar=1"),
    lifetime("max-age-twice", "RFC 9111 §4.2.1", "ask", "cache-control: max-age=1, max-age=60", kind="ours"),
    lifetime("max-age-twice-lines", "RFC 9111 §4.2.1", "ask", "cache-control: max-age=60", "cache-control: max-age=1"),
    lifetime("empty-elements", "RFC 9110 §5.6.1", "hit", "cache-control: ,, max-age=10 ,"),
    lifetime("s-maxage-shorter", "RFC 9111 §5.2.2.10", "ask", "cache-control: max-age=60, s-maxage=1"),
    lifetime("s-maxage-longer", "RFC 9111 §5.2.2.10", "hit", "cache-control: max-age=1, s-maxage=60", kind="optimal"),
    lifetime("immutable", "RFC 8246 §2", "ask", "cache-control: max-age=1, immutable"),
    lifetime("expires", "RFC 9111 §5.3", "hit", f"expires: {at(10)}", kind="optimal"),
    lifetime("expires-over", "RFC 9111 §5.3", "ask", f"expires: {at(3)}"),
    lifetime("expires-past", "RFC 9111 §5.3", "refused", f"expires: {at(-10)}"),
    lifetime("expires-0", "RFC 9111 §5.3", "refused", "expires: 0"),
    lifetime("expires-and-max-age", "RFC 9111 §5.3", "hit", f"expires: {at(-10)}", "cache-control: max-age=10"),
    lifetime("expires-twice", "RFC 9111 §4.2.1", "ask", f"expires: {at(60)}", f"expires: {at(2)}", kind="ours"),
    lifetime("expires-rfc-850", "RFC 9110 §5.6.7", "hit", "expires: Wednesday, 01-Jan-25 12:00:10 GMT"),
    lifetime("expires-asctime", "RFC 9110 §5.6.7", "hit", "expires: Wed Jan  1 12:00:10 2025"),
    lifetime("expires-case", "RFC 9111 §4.2", "hit", "expires: WED, 01 jan 2025 12:00:10 gmt", kind="optimal"),
    lifetime("expires-utc", "RFC 9110 §5.6.7", "refused", "expires: Wed, 01 Jan 2025 12:00:10 UTC"),
    lifetime("expires-dashes", "RFC 9110 §5.6.7", "refused", "expires: Wed, 01-Jan-2025 12:00:10 GMT"),
    lifetime("expires-year-0", "RFC 9110 §5.6.7", "refused", "expires: Wed, 01 Jan 0000 12:00:10 GMT"),
    lifetime("expires-fast-clock", "RFC 9111 §4.2.1", "refused", f"date: {at(400)}", f"expires: {at(300)}"),
    lifetime("expires-no-date", "RFC 9111 §4.2.1", "hit", "date: nonsense", f"expires: {at(10)}"),
    lifetime("nothing-stated", "RFC 9111 §4.2.2", "refused"),
    lifetime("heuristic", "RFC 9111 §4.2.2", "hit", f"last-modified: {at(-1000)}", kind="optimal"),
    lifetime("heuristic-over", "RFC 9111 §4.2.2", "ask", f"last-modified: {at(-1000)}", after=101),
    lifetime("heuristic-limit", "RFC 9111 §4.2.2", "ask", f"last-modified: {at(-9e8)}", after=86_401),
    lifetime("heuristic-future", "RFC 9111 §4.2.2", "ask", f"last-modified: {at(1000)}"),
    lifetime(
        "heuristic-no-cache", "RFC 9111 §5.4", "ask", f"last-modified: {at(-1000)}", "pragma: no-cache", kind="ours"
    ),
    lifetime("must-revalidate-fresh", "RFC 9111 §5.2.2.2", "hit", "cache-control: max-age=10, must-revalidate"),
]

AGES = [
    lifetime("age", "RFC 9111 §4.2.3", "ask", "cache-control: max-age=10", "age: 6"),
    lifetime("age-little", "RFC 9111 §4.2.3", "hit", "cache-control: max-age=10", "age: 4"),
    lifetime("age-of-date", "RFC 9111 §4.2.3", "ask", "cache-control: max-age=10", f"date: {at(-6)}"),
    lifetime("age-date-ahead", "RFC 9111 §4.2.3", "hit", "cache-control: max-age=10", f"date: {at(60)}"),
    lifetime("age-list-first", "RFC 9111 §5.1", "hit", "cache-control: max-age=10", "age: 0, 60"),
    lifetime("age-list-old", "RFC 9111 §5.1", "ask", "cache-control: max-age=10", "age: 60, 0"),
    lifetime("age-two-lines", "RFC 9111 §5.1", "hit", "cache-control: max-age=10", "age: 0", "age: 60"),
    lifetime("age-negative", "RFC 9111 §5.1", "hit", "cache-control: max-age=10", "age: -60"),
    lifetime("age-fraction", "RFC 9111 §5.1", "hit", "cache-control: max-age=10", "age: 60.0"),
    lifetime("age-words", "RFC 9111 §5.1", "hit", "cache-control: max-age=10", "age: old"),
    lifetime("age-parameter", "RFC 9111 §5.1", "hit", "cache-control: max-age=10", "age: 60;a=b"),
    lifetime("age-huge", "RFC 9111 §1.2.2", "ask", "cache-control: max-age=10", "age: 99999999999999"),
]

STORING = [
    lifetime("no-store", "RFC 9111 §5.2.2.5", "refused", "cache-control: no-store, max-age=10"),
    lifetime("no-store-case", "RFC 9111 §5.2", "refused", "cache-control: No-Store, max-age=10"),
    lifetime("private", "RFC 9111 §5.2.2.7", "refused", "cache-control: private, max-age=10"),
    lifetime("private-fields", "RFC 9111 §5.2.2.7", "hit", 'cache-control: private="x-user", max-age=10'),
    lifetime("no-cache", "RFC 9111 §5.2.2.4", "ask", "cache-control: no-cache, max-age=10", 'etag: "a"'),
    lifetime("no-cache-fields", "RFC 9111 §5.2.2.4", "hit", 'cache-control: no-cache="x-user", max-age=10'),
    lifetime("set-cookie", "RFC 9111 §7.3", "refused", "cache-control: max-age=10", "set-cookie: a=b", kind="ours"),
    lifetime("set-cookie2", "RFC 9111 §7.3", "refused", "cache-control: max-age=10", "set-cookie2: a=b", kind="ours"),
    lifetime(
        "set-cookie-excepted",
        "RFC 9111 §5.2.2.4",
        "hit",
        'cache-control: no-cache="set-cookie", max-age=10',
        "set-cookie: a",
    ),
    lifetime("vary-star", "RFC 9111 §4.1", "refused", "cache-control: max-age=10", "vary: *"),
    lifetime("vary-star-in-a-list", "RFC 9111 §4.1", "refused", "cache-control: max-age=10", "vary: a", "vary: , *"),
    Case(
        "authorization", "required", "RFC 9111 §3.5", ("cache-control: max-age=10",), "refused", ("authorization: a",)
    ),
    *(
        Case(
            f"authorization-{name}",
            "optimal",
            "RFC 9111 §3.5",
            (f"cache-control: max-age=10, {directive}",),
            "hit",
            ("authorization: a",),
        )
        for name, directive in (("public", "public"), ("s-maxage", "s-maxage=10"), ("must", "must-revalidate"))
    ),
    Case("partial", "required", "RFC 9111 §3.3", ("cache-control: max-age=10",), "refused", status=206),
    Case("not-modified", "required", "RFC 9111 §3", ("cache-control: max-age=10",), "refused", status=304),
    *(
        Case(f"status-{status}", "optimal", "RFC 9111 §3", ("cache-control: max-age=10",), "hit", status=status)
        for status in (203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 502, 503, 504, 599)
    ),
    *(
        Case(f"heuristic-{status}", "optimal", "RFC 9110 §15.1", (f"last-modified: {at(-1000)}",), "hit", status=status)
        for status in (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
    ),
    *(
        Case(
            f"heuristic-not-{status}",
            "required",
            "RFC 9111 §4.2.2",
            (f"last-modified: {at(-1000)}",),
            "refused",
            status=status,
        )
        for status in (201, 202, 302, 403, 502, 503, 504, 599)
    ),
    Case(
        "heuristic-public",
        "optimal",
        "RFC 9111 §4.2.2",
        (f"last-modified: {at(-1000)}", "cache-control: public"),
        "hit",
        status=599,
    ),
    Case(
        "must-understand",
        "optimal",
        "RFC 9111 §5.2.2.3",
        ("cache-control: max-age=10, no-store, must-understand",),
        "hit",
    ),
    Case(
        "must-understand-unknown",
        "required",
        "RFC 9111 §5.2.2.3",
        ("cache-control: max-age=10, must-understand",),
        "refused",
        status=599,
    ),
]

REQUESTS = [
    asked("no-cache", "RFC 9111 §5.2.1.4", "ask", "cache-control: no-cache"),
    asked("no-cache-case", "RFC 9111 §5.2", "ask", "cache-control: NO-CACHE"),
    asked("no-store", "RFC 9111 §5.2.1.5", "bypass", "cache-control: no-store"),
    asked("max-age", "RFC 9111 §5.2.1.1", "ask", "cache-control: max-age=4"),
    asked("max-age-enough", "RFC 9111 §5.2.1.1", "hit", "cache-control: max-age=6"),
    asked("max-age-0", "RFC 9111 §5.2.1.1", "ask", "cache-control: max-age=0"),
    asked(
        "max-age-of-an-age",
        "RFC 9111 §5.2.1.1",
        "ask",
        "cache-control: max-age=6",
        "cache-control: max-age=60",
        "age: 9",
    ),
    asked("min-fresh", "RFC 9111 §5.2.1.3", "ask", "cache-control: min-fresh=56"),
    asked("min-fresh-enough", "RFC 9111 §5.2.1.3", "hit", "cache-control: min-fresh=54"),
    asked("max-stale", "RFC 9111 §5.2.1.2", "stale", "cache-control: max-stale=10", "cache-control: max-age=1"),
    asked("max-stale-any", "RFC 9111 §5.2.1.2", "stale", "cache-control: max-stale", "cache-control: max-age=1"),
    asked("max-stale-less", "RFC 9111 §5.2.1.2", "ask", "cache-control: max-stale=3", "cache-control: max-age=1"),
    asked(
        "max-stale-must-revalidate",
        "RFC 9111 §5.2.2.2",
        "ask",
        "cache-control: max-stale",
        "cache-control: max-age=1, must-revalidate",
        kind="required",
    ),
    asked("only-if-cached", "RFC 9111 §5.2.1.7", "hit", "cache-control: only-if-cached"),
    asked(
        "only-if-cached-stale", "RFC 9111 §5.2.1.7", "504", "cache-control: only-if-cached", "cache-control: max-age=1"
    ),
    asked("pragma", "RFC 9111 §5.4", "ask", "pragma: no-cache"),
    asked("unknown-directive", "RFC 9111 §5.2.3", "hit", "cache-control: something-else"),
    Case(
        "authorized-reader",
        "required",
        "RFC 9111 §3.5",
        ("cache-control: max-age=60",),
        "miss",
        then=("authorization: a",),
    ),
    Case(
        "authorized-reader-public",
        "optimal",
        "RFC 9111 §3.5",
        ("cache-control: max-age=60, public",),
        "hit",
        then=("authorization: a",),
    ),
]


def varied(
    id: str, expect: str, vary: str, first: tuple[str, ...], then: tuple[str, ...], kind: str = "required"
) -> Case:
    return Case(id, kind, "RFC 9111 §4.1", ("cache-control: max-age=60", vary), expect, first, then)


VARIANTS = [
    varied("same", "hit", "vary: foo", ("foo: 1",), ("foo: 1",), "optimal"),
    varied("another", "other", "vary: foo", ("foo: 1",), ("foo: 2",)),
    varied("missing-now", "other", "vary: foo", ("foo: 1",), ()),
    varied("missing-then", "other", "vary: foo", (), ("foo: 1",)),
    varied("missing-both", "hit", "vary: foo", (), (), "optimal"),
    varied("empty-is-not-missing", "other", "vary: foo", (), ("foo: ",)),
    varied("not-listed", "hit", "vary: foo", ("foo: 1", "bar: 1"), ("foo: 1", "bar: 2"), "optimal"),
    varied("two-fields", "other", "vary: foo, bar", ("foo: 1", "bar: 1"), ("foo: 1", "bar: 2")),
    varied("names-in-capitals", "other", "vary: FOO", ("foo: 1",), ("foo: 2",)),
    varied("lines-combined", "hit", "vary: foo", ("foo: 1, 2",), ("foo: 1", "foo: 2"), "optimal"),
    varied("space", "hit", "vary: foo", ("foo: 1,2",), ("foo:  1 , 2 ",), "optimal"),
    varied("order-counts", "other", "vary: foo", ("foo: 1, 2",), ("foo: 2, 1",)),
    varied("case-counts", "other", "vary: foo", ("foo: a",), ("foo: A",)),
    varied(
        "languages-reordered",
        "hit",
        "vary: accept-language",
        ("accept-language: en, de",),
        ("accept-language: DE,en",),
        "optimal",
    ),
    varied(
        "languages-ranked", "other", "vary: accept-language", ("accept-language: en, de",), ("accept-language: de",)
    ),
]

STALE = [
    Case("swr", "optimal", "RFC 5861 §3", ("cache-control: max-age=1, stale-while-revalidate=10",), "stale", after=5),
    Case(
        "swr-over", "required", "RFC 5861 §3", ("cache-control: max-age=1, stale-while-revalidate=3",), "ask", after=5
    ),
    *(
        Case(
            f"swr-{name}",
            "required",
            "RFC 9111 §4.2.4",
            (f"cache-control: max-age=1, stale-while-revalidate=10, {name}",),
            "ask",
            after=5,
        )
        for name in ("must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=1")
    ),
    Case(
        "swr-no-cache-asked",
        "ours",
        "RFC 9111 §5.2.1.4",
        ("cache-control: max-age=1, stale-while-revalidate=9",),
        "ask",
        then=("cache-control: no-cache",),
        after=5,
    ),
    failing("sie", "RFC 5861 §4", "on-error", "cache-control: max-age=1, stale-if-error=60"),
    failing("sie-over", "RFC 5861 §4", "failure", "cache-control: max-age=1, stale-if-error=20"),
    failing("sie-by-default", "RFC 9111 §4.2.4", "on-error", "cache-control: max-age=1"),
    failing("sie-default-over", "RFC 9111 §4.2.4", "failure", "cache-control: max-age=1", after=700),
    failing(
        "sie-asked",
        "RFC 5861 §4",
        "on-error",
        "cache-control: max-age=1, stale-if-error=0",
        then=("cache-control: stale-if-error=60",),
    ),
    failing(
        "sie-validation-asked",
        "RFC 9111 §5.2.1.4",
        "failure",
        "cache-control: max-age=1",
        then=("cache-control: no-cache",),
    ),
    *(
        failing(
            f"sie-{name}{'-asked' if then else ''}",
            "RFC 9111 §4.2.4",
            "failure",
            f"cache-control: max-age=1, stale-if-error=60, {name}",
            'etag: "a"',
            then=then,
        )
        for name in ("must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=1")
        for then in ((), ("cache-control: stale-if-error=60",))
    ),
]

TARGETED = [
    lifetime("cdn", "RFC 9213 §2.2", "hit", "cdn-cache-control: max-age=10", kind="optimal"),
    lifetime("cdn-shorter", "RFC 9213 §2.2", "ask", "cdn-cache-control: max-age=1", "cache-control: max-age=60"),
    lifetime("cdn-longer", "RFC 9213 §2.2", "hit", "cdn-cache-control: max-age=60", "cache-control: max-age=1"),
    lifetime("cdn-over-no-store", "RFC 9213 §2.2", "hit", "cdn-cache-control: max-age=60", "cache-control: no-store"),
    lifetime("cdn-no-store", "RFC 9213 §2.2", "refused", "cdn-cache-control: no-store", "cache-control: max-age=60"),
    lifetime("cdn-private", "RFC 9213 §2.2", "refused", "cdn-cache-control: private", "cache-control: max-age=60"),
    lifetime("cdn-ignores-expires", "RFC 9213 §2.2", "refused", "cdn-cache-control: max-age=0", f"expires: {at(60)}"),
    lifetime("cdn-broken", "RFC 9213 §2.1", "refused", "cdn-cache-control: max-age=60, &&", "cache-control: no-store"),
    lifetime("cdn-type", "RFC 9213 §2.1", "refused", 'cdn-cache-control: max-age="60"', "cache-control: no-store"),
    lifetime("cdn-case", "RFC 9213 §2.1", "ask", "cdn-cache-control: Max-Age=60", "cache-control: max-age=1"),
    lifetime("cdn-space", "RFC 9213 §2.1", "ask", "cdn-cache-control: max-age =60", "cache-control: max-age=1"),
    lifetime("cdn-parameters", "RFC 9213 §2.1", "hit", "cdn-cache-control: max-age=60;x=1", "cache-control: no-store"),
    lifetime("cdn-empty", "RFC 9213 §2.2", "hit", "cdn-cache-control: ", "cache-control: max-age=60"),
    lifetime("own-first", "RFC 9213 §2.2", "hit", "gateway-cache-control: max-age=60", "cdn-cache-control: max-age=1"),
    lifetime("own-false", "RFC 9213 §2.1", "hit", "gateway-cache-control: max-age=60, no-store=?0"),
    lifetime(
        "surrogate", "Edge Architecture 1.0 §2.2", "hit", "surrogate-control: max-age=60", "cache-control: no-store"
    ),
    lifetime("surrogate-other", "Edge Architecture 1.0 §2.2", "refused", "surrogate-control: max-age=60;someone-else"),
    Case(
        "surrogate-stale", "ours", "Edge Architecture 1.0 §2.2", ("surrogate-control: max-age=1+60",), "stale", after=5
    ),
]

OVERRULED = [
    Case("ttl-no-headers", "ours", "DESIGN: three windows", (), "hit", after=25, ttl=30),
    Case("ttl-over", "ours", "DESIGN: three windows", ("cache-control: max-age=600",), "ask", after=30, ttl=30),
    Case("ttl-over-max-age-0", "ours", "DESIGN: three windows", ("cache-control: max-age=0",), "hit", ttl=30),
    Case("ttl-private", "required", "RFC 9111 §5.2.2.7", ("cache-control: private",), "refused", ttl=30),
    Case("ttl-no-store", "required", "RFC 9111 §5.2.2.5", ("cache-control: no-store",), "refused", ttl=30),
    Case("ttl-set-cookie", "ours", "RFC 9111 §7.3", ("set-cookie: a=b",), "refused", ttl=30),
    Case("ttl-failure", "ours", "DESIGN: three windows", (), "refused", status=500, ttl=30),
    Case("ttl-negative", "ours", "DESIGN: three windows", (), "hit", status=404, after=4, ttl=30),
    Case("ttl-negative-over", "ours", "DESIGN: three windows", (), "ask", status=404, after=6, ttl=30),
    Case("ttl-counts-from-here", "ours", "DESIGN: three windows", ("age: 500",), "hit", after=25, ttl=30),
]

GROUPS = {
    "freshness": FRESHNESS,
    "age": AGES,
    "storing": STORING,
    "request": REQUESTS,
    "vary": VARIANTS,
    "stale": STALE,
    "targeted": TARGETED,
    "ttl": OVERRULED,
}
CASES = {f"{group}: {case.id}": case for group, cases in GROUPS.items() for case in cases}
