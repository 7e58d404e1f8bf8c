"""A path that differs from a route's by the slash at its end: the client is sent to the other one (307).

Starlette does it too, but names the host that the client's `Host` said, over the scheme that this hop has, and writes
the path decoded: an encoded question mark of a parameter began a query then. Here the target stays as it came, and no
host is named.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import Receive, Scope, Send

from .inside import rooted


class OtherSlash:
    """What `router` does with a path that no route has, in place of its own redirect."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._otherwise = router.default
        router.redirect_slashes = False
        router.default = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_served(other_slash(scope["path"]), scope):
            query: bytes = scope["query_string"]
            location = other_slash(scope["raw_path"].decode("ascii")) + ("?" + query.decode("ascii") if query else "")
            await Response(status_code=307, headers={"location": rooted(location)})(scope, receive, send)
        else:
            await self._otherwise(scope, receive, send)

    def _is_served(self, path: str, scope: Scope) -> bool:
        other = {**scope, "path": path}
        return bool(path) and any(route.matches(other)[0] is not Match.NONE for route in self._router.routes)


def other_slash(path: str) -> str:
    """The path without the slashes at its end, or with one; empty where that is none."""
    return path.rstrip("/") if path.endswith("/") else path + "/"
