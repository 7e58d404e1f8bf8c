"""Requests whose keys differ, or must not."""

from __future__ import annotations

import itertools

from tests.support.scale import size

EXAMPLES = size("key_pairs")


number = itertools.count()


PAIRS = [
    "a=1",
    "a=2",
    "A=1",
    "b=1",
    "b",
    "a=%31",
    "a=1;b=2",
    "utm_source=x",
    "a[]=1",
    "",
    "a=1%26b=2",
    "c=%0a",
    "%61=1",
]


FIELDS = [
    *(("Accept", "a/b"), ("Accept", "A/B"), ("Accept", "a/b, c/d"), ("Accept", "a/b,c/d"), ("accept", "")),
    *(("Accept-Language", "de"), ("Accept-Language", "en"), ("Accept-Encoding", "gzip"), ("User-Agent", "a phone")),
    *(("Accept", ",a/b,"), ("X-Tenant", "1,"), ("X-Tenant", ", 1"), ("X-Tenant", ","), ("X-Tenant", "")),
    *(
        ("X-Tenant", "1"),
        ("X-Tenant", "2"),
        ("X_Tenant", "2"),
        ("X-Forwarded-Host", "evil.test"),
        ("Forwarded", "for=1"),
    ),
    *(
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
        ("X-HTTP-Method-Override", "POST"),
        ("X-Host", "evil"),
    ),
    *(("Authorization", "Bearer 1"), ("Authorization", "Bearer 2"), ("Cookie", "session=1"), ("Cookie", "session=2")),
    *(("Cookie", "session=1; other=2"), ("Cookie", "lang=de"), ("Connection", "x-tenant"), ("Connection", "accept")),
    *(("Range", "bytes=0-1"), ("If-None-Match", '"1"'), ("Cache-Control", "max-age=5"), ("X-Api-Key", "1")),
    *(("traceparent", f"00-{1:032x}-{1:016x}-01"), ("tracestate", "a=b")),
    *(("X-Request-ID", "mine"), ("traceparent", "00-1-1-01"), ("Via", "1.1 other"), ("Host", "other.test")),
    *(("X-Middleware-Subrequest", "1"), ("X-Original-Host", "evil"), ("X-Real-IP", "10.0.0.1"), ("Expect", "")),
]
