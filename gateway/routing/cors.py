"""CORS on the gateway's responses: which origins may read them, and `Vary: Origin`.

Computed for each request from the configuration and never stored; CORS fields of an upstream are replaced. App and
edge both use it.
"""

from __future__ import annotations

from starlette.datastructures import Headers as StarletteHeaders
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.config.models import CorsConfig
from gateway.http.headers import Headers, vary_names


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the layers of the app call `preflight` and `told`")


class Cors(CORSMiddleware):
    """Starlette's CORS, computed for each request and never stored, with what it leaves out:

    - `Vary: Origin` on every answer where origins are listed, whether this request had an Origin or not, so that a
      cache between us and the client does not give one origin's answer to another;
    - an upstream's own CORS headers give way to the gateway's.
    """

    def __init__(self, config: CorsConfig) -> None:
        super().__init__(
            _no_app,
            allow_origins=config.allow_origins,
            allow_origin_regex=config.allow_origin_regex,
            allow_methods=config.allow_methods,
            allow_headers=config.allow_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=config.expose_headers,
            max_age=int(config.max_age.total_seconds()),
        )

    def preflight(self, scope: Scope) -> Response | None:
        """The response to a preflight request; None for any other."""
        if scope["method"] != "OPTIONS":
            return None
        headers = StarletteHeaders(scope=scope)
        asks = "origin" in headers and "access-control-request-method" in headers
        return self.preflight_response(request_headers=headers) if asks else None

    def told(self, headers: Headers, origin: str | None) -> list[tuple[bytes, bytes]]:
        """An answer's headers with those of CORS, for a request with this `Origin`."""
        told = MutableHeaders(raw=_without_cors(headers))
        if origin is not None:
            told.update(self.simple_headers)
        if origin is not None and not self.allow_all_origins and self.is_allowed_origin(origin):
            told["Access-Control-Allow-Origin"] = origin
            _vary_on_origin(told)
        elif origin is not None or not self.allow_all_origins:
            _vary_on_origin(told)
        return told.raw


def _vary_on_origin(headers: MutableHeaders) -> None:
    if "origin" not in (vary_names(headers.raw) or ()):
        headers.add_vary_header("Origin")


def _without_cors(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if not pair[0].startswith(b"access-control-")]
