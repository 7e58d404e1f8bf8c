"""The diagnostic response fields, in one list for every response.

The app adds them to each of its responses (`complete`); the edge makes a template of them (`head_template`). So a field
that is added to `diagnostics` is in the responses of both. It may depend on the route, the outcome, the parts and the
times; other per-request values are members of `Texts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from gateway.context import REQUEST_ID, RequestContext, Result, cache_status
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers, has, http_date, values
from gateway.policy.downstream import NOTHING

Field = tuple[bytes, bytes]
_STORED = (Result.HIT, Result.STALE, Result.STALE_ERROR)
"""Results whose response has an `Age`: clients ignore `RateLimit` there."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The values that differ from one response to the next, as text. `seconds` and `milliseconds` are the total time;
    `duration` formats a part of it, from seconds to milliseconds. `ttl` is the remaining freshness in seconds; None:
    the outcome's."""

    request_id: str
    seconds: str
    milliseconds: str
    duration: Callable[[float], str]
    ttl: str | None = None


def diagnostics(exchange: RequestContext, texts: Texts) -> list[Field]:
    """The diagnostic response fields."""
    fields = [
        (b"x-request-id", texts.request_id.encode("ascii")),
        (b"x-process-time", texts.seconds.encode("ascii")),
        (b"server-timing", _server_timing(exchange, texts).encode("ascii")),
    ]
    if exchange.outcome.result is not Result.LOCAL:
        fields.append((b"cache-status", cache_status(exchange.outcome, ttl=texts.ttl).encode("ascii")))
    return fields


def complete(exchange: RequestContext, headers: Headers, texts: Texts | None = None) -> list[Field]:
    """All fields of a response with the given `headers`: those for downstream caches, of rate limits, `Date`, and the
    diagnostic fields, with `texts` in them; None: the request's ID and the time it has taken."""
    if exchange.downstream is not NOTHING:
        selecting = exchange.stored.vary if exchange.stored is not None else ()
        passed = exchange.outcome.result is Result.BYPASS
        headers = exchange.downstream.told(headers, selecting, passed=passed, stored=exchange.stored is not None)
    if texts is None:
        elapsed = time.perf_counter() - exchange.began
        texts = Texts(exchange.request_id, f"{elapsed:.6f}", in_milliseconds(elapsed), in_milliseconds)
    date = [] if has(headers, b"date") else [(b"date", http_date(int(time.time())))]
    if exchange.rate_limit and exchange.outcome.result not in _STORED:
        headers = [*headers, *exchange.rate_limit]
    return [*headers, *date, *diagnostics(exchange, texts)]


def in_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"


def _server_timing(exchange: RequestContext, texts: Texts) -> str:
    """`Server-Timing`: the cache outcome, the upstream, the parts, the total."""
    local = exchange.outcome.result is Result.LOCAL
    if local and not exchange.spent and not exchange.parts:
        return f"total;dur={texts.milliseconds}"
    duration, metrics = texts.duration, []
    if not local:
        looked = exchange.spent.get("cache")
        took = "" if looked is None else f";dur={duration(looked)}"
        metrics.append(f"cache;desc={exchange.outcome.result.value}{took}")
    for name, seconds in exchange.spent.items():
        if name != "cache":
            metrics.append(f"{name};dur={duration(seconds)}")
    if exchange.parts:
        metrics += [
            f'{each.name};desc="{each.text.translate(_PLAIN)}";dur={duration(each.seconds)}' for each in exchange.parts
        ]
    return ", ".join([*metrics, f"total;dur={texts.milliseconds}"])


_PLAIN = {ord("\\"): None, ord('"'): "'"}
"""What stands in a quoted string for the characters that would need an escape."""


def exchange_for(
    headers: Headers, peer: str, method: str, scheme: str, trusted: Trusted | None, *, looked: bool = False
) -> RequestContext:
    """The RequestContext of a request from `peer`. Its `X-Request-ID` is kept if it is valid."""
    given = values(headers, b"x-request-id")
    kept = len(given) == 1 and REQUEST_ID.fullmatch(given[0])
    exchange = RequestContext(
        request_id=given[0].decode("ascii") if kept else uuid4().hex,
        began=time.perf_counter(),
        method=method,
        client=peer,
        scheme=scheme,
        forwarded_for=peer,
        headers=headers,
        looked=looked,
    )
    if trusted:
        exchange.came_through(trusted.told(peer, headers))
    return exchange
