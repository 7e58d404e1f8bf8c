"""The door: a subclass of uvicorn's httptools protocol, given to uvicorn by its `http=` setting.

It sees a request before any ASGI scope is made. For now it keeps the request line's target as it came: ASGI alone
drops the authority of an absolute form, and with it the chance to notice that it contradicts `Host`.
"""

from __future__ import annotations

from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .middleware import RAW_TARGET_KEY


class GatewayProtocol(HttpToolsProtocol):
    def on_headers_complete(self) -> None:
        cast(dict[str, object], self.scope)[RAW_TARGET_KEY] = self.url
        super().on_headers_complete()
