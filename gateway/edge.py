"""The door: a subclass of uvicorn's httptools protocol, given to uvicorn by its `http=` setting.

It sees a request before any ASGI scope is made. What it adds to the scope, ASGI alone cannot say:

- the request line's target as it came: an absolute form's authority, which may contradict `Host`;
- a way to pass interim responses (102, 103) on to the client (RFC 9110 §15.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .exchange import INTERIM_KEY
from .middleware import RAW_TARGET_KEY

PASSED_ON = (HTTPStatus.PROCESSING, HTTPStatus.EARLY_HINTS)


class GatewayProtocol(HttpToolsProtocol):
    def on_headers_complete(self) -> None:
        scope = cast(dict[str, Any], self.scope)
        scope[RAW_TARGET_KEY] = self.url
        scope["extensions"] = {INTERIM_KEY: partial(self._interim, scope)}
        super().on_headers_complete()

    def _interim(self, scope: dict[str, Any], status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send an interim response, if `scope`'s request is the one being answered and nothing was sent yet.

        HTTP/1.0 has none (RFC 9110 §15.2); 101 is a hop's own affair, and so are 100 and unknown ones.
        """
        cycle = self.cycle
        if (
            status not in PASSED_ON
            or scope.get("http_version", "1.1") != "1.1"
            or cast(object, cycle.scope) is not scope
            or cycle.response_started
            or self.transport.is_closing()
        ):
            return
        lines = [b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode("ascii"))]
        lines += [name + b": " + value + b"\r\n" for name, value in headers if name.lower() != b"connection"]
        self.transport.write(b"".join([*lines, b"\r\n"]))
