"""The middleware that an app adds itself, and which of it can be left out for a hit at the edge.

Most middleware is code that nothing is known of: it may refuse a request, so with it the app answers each. Of a few
classes of Starlette it is known what they read of a request: without that field they pass it on, and change no more
than the fields of its response, always in the same way. With those alone, the edge answers requests without the fields.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.headers import Headers

_READS = {
    "starlette.middleware.cors.CORSMiddleware": b"origin",
    "starlette.middleware.sessions.SessionMiddleware": b"cookie",
}
"""By class, the only request field that it acts on. A subclass may do anything. They are named, as the import of the
second requires itsdangerous."""
_GIVEN = "gateway.given"


def opaque(middleware: Sequence[Middleware]) -> str | None:
    """The name of the first middleware of which it is not known what it does; None if there is none."""
    return next((_name(each.cls) for each in middleware if _place(each.cls) not in _READS), None)


def fields_read(middleware: Sequence[Middleware]) -> frozenset[bytes]:
    """The request fields, in lower case, with which a request is left to the app."""
    return frozenset(_READS[place] for each in middleware if (place := _place(each.cls)) in _READS)


class KnownMiddleware:
    """Middleware of which none is opaque, as it changes responses to requests without the fields that it reads."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        app: ASGIApp = _answer
        for each in reversed(middleware):
            app = each.cls(app, *each.args, **each.kwargs)
        self._app = app

    def told(self, headers: Headers, origin: str | None) -> list[tuple[bytes, bytes]]:
        """A response's fields, as the middleware sends them. `origin` is None: other requests are the app's."""
        found: list[tuple[bytes, bytes]] = []

        async def send(message: Message) -> None:
            found.extend(message["headers"])

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], _GIVEN: headers}
        _run(self._app(scope, _nothing, send))
        return found


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*scope[_GIVEN]]})


async def _nothing() -> Message:
    raise AssertionError("known middleware reads no body")


def _run(work: Any) -> None:
    """Run a coroutine that waits for nothing, outside of an event loop's turn."""
    assert isinstance(work, Coroutine)
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise AssertionError("known middleware waits for nothing")


def _name(middleware: Any) -> str:
    return getattr(middleware, "__name__", type(middleware).__name__)


def _place(middleware: Any) -> str:
    return f"{getattr(middleware, '__module__', '')}.{getattr(middleware, '__qualname__', '')}"
