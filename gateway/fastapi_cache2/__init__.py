"""fastapi-cache2's `@cache` on the gateway's own two-tier store."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`register`, the name that apps import, imported on first use: fastapi-cache2 itself is slow to import."""
    if name != "register":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gateway.fastapi_cache2.backend import register

    return register
