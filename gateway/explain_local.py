"""What the gateway answers by itself, before any declared route: health, documentation, redirects to the slash."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.routing import BaseRoute, Match, Router

from .slashes import other_slash

Local = Callable[[str, str], int | None]
"""Of a method and a decoded path: 200 where the gateway answers it, 405 where it does for another method, 307 where the
path differs from a route's by its last slash alone; None of what is left to routes."""


def nothing_local(method: str, path: str) -> int | None:
    return None


def local_of(own: Iterable[BaseRoute], router: Router) -> Local:
    """`own` are the routes of `router` that are the gateway's."""

    def local(method: str, path: str) -> int | None:
        match _matched(own, method, path):
            case Match.FULL:
                return 200
            case Match.PARTIAL:
                return 405
        other = other_slash(path)
        return 307 if other and _matched(router.routes, method, other) is not Match.NONE else None

    return local


def _matched(routes: Iterable[BaseRoute], method: str, path: str) -> Match:
    """How the first of `routes` that has this path matches it."""
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return next((match for route in routes if (match := route.matches(scope)[0]) is not Match.NONE), Match.NONE)
