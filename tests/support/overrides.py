"""Overrides as they are set."""

from __future__ import annotations

from gateway.config.overrides import Override


def override(value: str = "10s", *, route: str = "item", setting: str = "ttl", until: float = 100.0) -> Override:
    return Override(route=route, setting=setting, value=value, by="ops", at=0.0, until=until)
