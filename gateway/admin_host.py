"""By what name the admin listener may be called.

A page that a browser on this machine shows can have its own name lead to 127.0.0.1 (DNS rebinding), and then read what
needs no token: metrics, health. It cannot choose `Host`, which is the name it came by. So a listener on loopback
answers to addresses, to `localhost` and to the name that is configured for it, and to no other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from .console import problem


class KnownHost:
    """An ASGI app before another. `configured` is the host in `admin_listen`."""

    def __init__(self, app: ASGIApp, configured: Callable[[], str]) -> None:
        self.app = app
        self._configured = configured

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and on_loopback(scope):
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_known(host, self._configured()):
                refusal = problem(421, "This listener answers to addresses and to localhost alone.")
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def on_loopback(scope: Scope) -> bool:
    """Whether a request came over TCP to an address that only this machine has."""
    server = scope.get("server")
    return server is not None and _is_loopback(str(server[0]))


def is_known(host: str, configured: str) -> bool:
    """Whether a `Host`, with or without its port, is an address, `localhost` or the configured name."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().removesuffix(".")
    return name in ("localhost", configured.lower()) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
