"""Stored responses."""

from __future__ import annotations

from gateway.policy.entry import Entry, Life

SAMPLE = Entry(
    key="api\n/t\naccept:a/b",
    primary="api\n/t",
    born=1_800_000_000.5,
    started=1_800_000_000.25,
    initial_age=3.0,
    status=200,
    headers=((b"content-type", b"text/plain"), (b"x-a", b"1"), (b"x-a", b"\xe9")),
    body=b"hello \x00\xff",
    life=Life(lifetime=60.0, stale_if_error=5.0, strict=True),
    jitter=0.5,
    tags=("product:7",),
    vary=("accept",),
    route="product",
    stamp="17-0",
)


STORED = Entry(
    key="k",
    primary="k",
    born=2.5,
    started=2.0,
    initial_age=0.0,
    status=200,
    headers=((b"etag", b'"body"'),),
    body=b"body",
    life=Life(lifetime=60.0),
    tags=("body",),
    names=("body",),
)
