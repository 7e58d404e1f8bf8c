"""`Gateway-Explain: TOKEN` on a request: its trace in `Gateway-Explained`, for holders of an admin token that may read.

The header is removed before other code sees the request, whether its token is valid or not: no upstream, key, handler
or log has it. No cache may store a response with a trace, since a trace names keys and upstreams. An invalid token is
ignored; after ten invalid tokens in a minute from one address, all tokens from it are ignored for the rest of the
minute.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection
from hmac import compare_digest
from typing import TYPE_CHECKING

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.context import RAW_TARGET_KEY
from gateway.explain.trace import Trace
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers, has, values

if TYPE_CHECKING:
    from limits.strategies import FixedWindowRateLimiter


class Attempts:
    """At most `most` a minute from each address, counted in fixed windows in this process.

    The library and its thread are there from the first attempt on: few gateways ever see a wrong token, and its import
    would make every start longer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: FixedWindowRateLimiter | None = None

    def __repr__(self) -> str:
        return f"<Attempts {self._most} a minute>"

    def count(self, address: str) -> bool:
        """Count one; whether it is within the bound."""
        from limits import RateLimitItemPerMinute

        return self._counting().hit(RateLimitItemPerMinute(self._most), address)

    def are_left(self, address: str) -> bool:
        """Whether another one would be within the bound."""
        if self._limiter is None:
            return True
        from limits import RateLimitItemPerMinute

        return self._limiter.test(RateLimitItemPerMinute(self._most), address)

    def _counting(self) -> FixedWindowRateLimiter:
        if self._limiter is None:
            from limits.storage import MemoryStorage
            from limits.strategies import FixedWindowRateLimiter

            self._limiter = FixedWindowRateLimiter(MemoryStorage())
        return self._limiter


ASKS = b"gateway-explain"
TELLS = b"gateway-explained"
MOST_BYTES = 4096
"""Of a trace as JSON; what clients and proxies take of a head is 8 KiB often, and base64 adds a third."""
WRONG_TOKENS = 10
"""A minute, from one address."""

Explain = Callable[[str, str, Headers], Awaitable[Trace]]


class Explaining:
    """The outermost layer. Without `tokens` no request is explained, and the header is removed too."""

    def __init__(self, app: ASGIApp, explain: Explain, *, tokens: Collection[bytes], trusted: Trusted) -> None:
        self.app = app
        self._explain = explain
        self._tokens = tokens
        self._trusted = trusted
        self._wrong_tokens = Attempts(WRONG_TOKENS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has(scope["headers"], ASKS):
            await self.app(scope, receive, send)
            return
        given = values(scope["headers"], ASKS)
        headers = scope["headers"] = [pair for pair in scope["headers"] if pair[0] != ASKS]
        if not self._is_right(given, scope):
            await self.app(scope, receive, send)
            return
        trace = encoded(await self._explain(scope["method"], self._target(scope), headers))

        async def send_with_diagnostics(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if pair[0] != b"cache-control"]
                message["headers"] = [*kept, (b"cache-control", b"no-store"), (TELLS, trace)]
            await send(message)

        await self.app(scope, receive, send_with_diagnostics)

    def _target(self, scope: Scope) -> str:
        """The request target, without the path prefix that a trusted proxy sent."""
        target, peer = _raw_target(scope), scope["client"][0] if scope.get("client") else ""
        prefix = self._trusted.prefix(peer, scope["headers"])
        return target.removeprefix(prefix) if prefix and target.startswith((prefix + "/", prefix + "?")) else target

    def _is_right(self, given: list[bytes], scope: Scope) -> bool:
        if not self._tokens:
            return False
        address = self._trusted.client(scope["client"][0] if scope.get("client") else "", scope["headers"])
        if not self._wrong_tokens.are_left(address):
            return False
        # All are compared, so that the time tells nothing.
        if len(given) == 1 and sum(compare_digest(given[0], each) for each in self._tokens):
            return True
        self._wrong_tokens.count(address)
        return False


def encoded(trace: Trace) -> bytes:
    """A trace as a Byte Sequence (RFC 9651 §3.3.5) of JSON: base64 between colons. Of one that is too long, the parts,
    the names, and at last all but the decision are left out."""
    decision = Trace(request=trace.request[:256], decision=trace.decision, why=trace.why[:1024])
    without_parts = msgspec.structs.replace(trace, parts=())
    fit = (trace, without_parts, msgspec.structs.replace(without_parts, names=()), decision)
    texts = (msgspec.json.encode(each) for each in fit)
    text = next((text for text in texts if len(text) <= MOST_BYTES), b"{}")
    return b":" + b64encode(text) + b":"


def _raw_target(scope: Scope) -> str:
    raw = scope.get(RAW_TARGET_KEY)
    if raw is None:
        query = scope.get("query_string", b"")
        raw = (scope.get("raw_path") or scope["path"].encode()) + (b"?" + query if query else b"")
    return bytes(raw).decode("latin-1")
