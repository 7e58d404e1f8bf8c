"""Stored and received responses for tests of the policy: values in, values out."""

from __future__ import annotations

from typing import Any

from gateway.policy.entry import Entry, Life
from gateway.policy.rules import CachePolicy
from gateway.policy.storability import ReceivedResponse

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
