"""A route whose traffic is advised on."""

from __future__ import annotations

from typing import Any

from gateway.advisor.advice import Advice
from gateway.advisor.ttl_ladder import LADDER

ITEM: dict[str, Any] = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10s"}}


def rung(advice: Advice, ttl: float) -> Any:
    return advice.rungs[LADDER.index(ttl)]
