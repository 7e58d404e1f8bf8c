"""A cached, read-heavy API gateway: declared routes and typed FastAPI handlers behind one shared cache.

The public names are those of `__all__`, described in docs/python.md; what tests of an app need is in `gateway.testing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "Clock",
    "Config",
    "ConfigError",
    "Gateway",
    "GatewayError",
    "Principal",
    "PurgeReport",
    "RedisStore",
    "SharedStore",
    "Upstream",
    "UpstreamError",
    "aggregate",
    "cached",
    "create_app",
    "get_or_set",
    "identified",
    "part",
    "principal",
    "rate_limited",
    "upstream",
]

if TYPE_CHECKING:
    from gateway.aggregates.typed import aggregate, part
    from gateway.app.existing_app import Cache
    from gateway.app.gateway import Gateway, create_app
    from gateway.cache.purge_log import PurgeReport
    from gateway.cache.redis.store import RedisStore
    from gateway.cache.shared_store import SharedStore
    from gateway.clock import Clock
    from gateway.config.models import Config
    from gateway.errors import ConfigError, GatewayError, UpstreamError
    from gateway.routing.cached_decorator import cached
    from gateway.routing.function_calls import get_or_set
    from gateway.routing.handler_limits import rate_limited
    from gateway.routing.handler_settings import upstream
    from gateway.routing.principal import Principal, identified, principal
    from gateway.upstreams.client import Upstream

_PLACES = {
    "Cache": "app.existing_app",
    "Clock": "clock",
    "Config": "config.models",
    "ConfigError": "errors",
    "Gateway": "app.gateway",
    "GatewayError": "errors",
    "Principal": "routing.principal",
    "PurgeReport": "cache.purge_log",
    "RedisStore": "cache.redis.store",
    "SharedStore": "cache.shared_store",
    "Upstream": "upstreams.client",
    "UpstreamError": "errors",
    "aggregate": "aggregates.typed",
    "cached": "routing.cached_decorator",
    "create_app": "app.gateway",
    "get_or_set": "routing.function_calls",
    "identified": "routing.principal",
    "part": "aggregates.typed",
    "principal": "routing.principal",
    "rate_limited": "routing.handler_limits",
    "upstream": "routing.handler_settings",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `gateway check` needs no web framework."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
