"""A cached, read-heavy API gateway: declared routes and typed FastAPI handlers behind one shared cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "Upstream", "aggregate", "cached", "create_app", "part", "upstream"]

if TYPE_CHECKING:
    from .app import create_app
    from .config import Config
    from .handlers import cached, upstream
    from .typed_parts import aggregate, part
    from .upstreams import Upstream

_PLACES = {
    "Config": "config",
    "Upstream": "upstreams",
    "aggregate": "typed_parts",
    "cached": "handlers",
    "create_app": "app",
    "part": "typed_parts",
    "upstream": "handlers",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `gateway check` needs no web framework."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
