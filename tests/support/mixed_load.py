"""A load of hits, stale entries and new keys, so that Redis is read and written all the time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

from tests.support.processes import Valkey

HOT = 20


def settings(origin: str, valkey: Valkey) -> dict[str, Any]:
    route = {"upstream": "api", "path": "/hot/{id}", "ttl": "60s"}
    return {
        "redis_url": valkey.url,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {
            "hot": route,
            "warm": {**route, "path": "/warm/{id}", "ttl": "300ms", "stale_while_revalidate": "60s"},
            "cold": {**route, "path": "/cold/{id}"},
        },
    }


def mixed() -> Callable[[], str]:
    """Seven in ten of a hot key, one of a warm, two of a key that nobody asked for before."""
    number = itertools.count()

    def choose() -> str:
        kind = random.random()
        if kind < 0.7:
            return f"/hot/{random.randrange(HOT)}"
        return f"/warm/{random.randrange(HOT)}" if kind < 0.8 else f"/cold/{next(number)}"

    return choose
