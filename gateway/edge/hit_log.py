"""The access log's lines for hits, made of reusable pieces.

Decides how a hit's line is assembled from the parts that stay the same for its request line, host and client. It must
not know how the hit was found or served.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from gateway.context import Outcome, RequestContext
from gateway.edge.entries import SHAPES, HeaderBlock, KnownTarget, PreparedResponse, ResponseForm
from gateway.edge.head_template import TICKS
from gateway.http.forwarding import Trusted
from gateway.observability.access_log import AccessLog, JsonAccessLog, pieces_of

_SECONDS_TEXT = [orjson.dumps(ticks / 1_000_000) for ticks in range(TICKS)]


class HitLog:
    """Writes to `log`. `exchange` makes a request's `RequestContext`."""

    def __init__(
        self,
        log: AccessLog,
        trusted: Trusted,
        exchange: Callable[[KnownTarget, HeaderBlock, bytes, float, str], RequestContext],
    ) -> None:
        self._log = log
        self._trusted = trusted
        self._exchange = exchange

    def note(
        self,
        known_target: KnownTarget,
        block: HeaderBlock,
        ready: PreparedResponse,
        shape: ResponseForm,
        request_id: bytes,
        began: float,
        peer: str,
        now: float,
        elapsed: float,
        tier: str = "memory",
    ) -> None:
        """The request's line in the access log."""
        if not isinstance(self._log, JsonAccessLog) or tier != "memory":
            exchange = self._exchange(known_target, block, request_id, began, peer)
            exchange.key = ready.key
            exchange.outcome = Outcome(shape.result, ttl=int(ready.fresh - now), tier=tier)
            self._log(exchange, shape.status, shape.length, elapsed)
            return
        if not self._log.wants(shape.result):
            return
        pieces = shape.lines.get((known_target, block.host)) if shape.lines is not None else None
        before, between, behind, rest, end = pieces or self._pieces(known_target, block, ready, shape)
        client = block.clients.get(peer) or self._client(block, peer)
        ticks = int(elapsed * 1_000_000 + 0.5)
        seconds = _SECONDS_TEXT[ticks] if ticks < TICKS else orjson.dumps(round(elapsed, 6))
        moment = self._log.now()
        self._log.write(b"".join((before, moment, between, request_id, behind, client, rest, seconds, end)))

    def _pieces(
        self, known_target: KnownTarget, block: HeaderBlock, ready: PreparedResponse, shape: ResponseForm
    ) -> tuple[bytes, ...]:
        """The parts of an access log line that are the same for all hits of a form by one request line and host."""
        exchange = self._exchange(known_target, block, b"", 0.0, "")
        exchange.key = ready.key
        exchange.outcome = Outcome(shape.result, tier="memory")
        share = self._log.share_of(shape.result) if isinstance(self._log, JsonAccessLog) else 1.0
        before, between, behind, rest, end = pieces_of(exchange, shape.status, shape.length, share)
        if shape.lines is None or len(shape.lines) >= SHAPES:
            shape.lines = {}
        pieces = shape.lines[known_target, block.host] = (
            before + b'"',
            b'"' + between + b'"',
            b'"' + behind,
            rest,
            end,
        )
        return pieces

    def _client(self, block: HeaderBlock, peer: str) -> bytes:
        if len(block.clients) >= SHAPES:
            block.clients.clear()
        client = block.clients[peer] = orjson.dumps(self._trusted.client(peer, block.headers))
        return client
