"""What `gateway explain` tells of one request, as a value: JSON at the admin listener, text by `explain_text`."""

from __future__ import annotations

import msgspec

UNKNOWN = "unknown"
"""The decision where no running gateway was asked."""


class Lifetime(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A TTL, or another window, and where it came from, the winner first: `30s: environment …, over file … line 14`.

    `setting` is the one that decides: of a 404 or 410 it is `negative_ttl`."""

    value: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    setting: str = "ttl"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored response: where it lies, and how it stands. Durations are seconds from now, negative where past."""

    tier: str
    status: int
    bytes: int
    age: float
    fresh_for: float
    stale_while_revalidate_for: float
    stale_if_error_for: float
    varies_on: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    purged_softly: bool = False


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """A name by which the answer can be purged, and its last purge as a position on the stream (`-`: none)."""

    name: str
    epoch: str


class PartTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part of an aggregate: what it asks, or why that is not known yet; its TTL, and what is stored."""

    name: str
    upstream: str = ""
    asks: str = ""
    note: str = ""
    ttl: Lifetime | None = None
    entry: Entry | None = None


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request's way: what `gateway explain` prints, and the admin API gives as JSON.

    `decision` is what would be done: `hit`, `stale`, `stale_error` (the upstream failed a moment ago), `revalidate`,
    `miss`, `join`, `bypass`, `pass`, `purge`, `uncached`, `local`, `preflight`, `unknown`, or the status of a refusal.
    `status` is what the client gets of what is stored (304 or 206 where it asked so)."""

    request: str
    decision: str
    why: str
    status: int | None = None
    target: str = ""
    normalised: tuple[str, ...] = ()
    route: str = ""
    path: str = ""
    lost: tuple[str, ...] = ()
    upstream: str = ""
    asks: str = ""
    dropped: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    ttl: Lifetime | None = None
    windows: tuple[Lifetime, ...] = ()
    entry: Entry | None = None
    names: tuple[Name, ...] = ()
    client: tuple[str, ...] = ()
    parts: tuple[PartTrace, ...] = ()
