"""The access log: a line of JSON a request, its fields fixed here and documented in docs/operations.md.

JSON escapes control characters, so nothing a client sends can forge a line. Query values are not logged: they may
hold tokens.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO, Protocol

import orjson
import structlog

from .exchange import Exchange
from .targets import pair_name


class AccessLog(Protocol):
    def __call__(self, exchange: Exchange, status: int, size: int, seconds: float) -> None: ...


def silent(exchange: Exchange, status: int, size: int, seconds: float) -> None:
    """The access log that is off."""


class JsonAccessLog:
    """Writes what happened to each request to `file`: standard output if none is given."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._logger = structlog.BytesLogger(file if file is not None else sys.stdout.buffer)

    def __call__(self, exchange: Exchange, status: int, size: int, seconds: float) -> None:
        self._logger.info(orjson.dumps(fields_of(exchange, status, size, seconds)))


def fields_of(exchange: Exchange, status: int, size: int, seconds: float) -> dict[str, Any]:
    """The fields of a request's line; those that are empty are left out."""
    outcome, target = exchange.outcome, exchange.target
    fields = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": exchange.request_id,
        "client": exchange.client,
        "method": exchange.method,
        "path": target.path if target is not None else None,
        "query": [pair_name(pair) for pair in target.query] if target is not None and target.query else None,
        "host": exchange.host or None,
        "status": status,
        "bytes": size,
        "seconds": round(seconds, 6),
        "route": exchange.route or None,
        "key": f"{exchange.key:016x}" if exchange.key else None,
        "changed": exchange.changed,
        "outcome": outcome.result.value,
        "tier": outcome.tier,
        "forward": outcome.forward,
        "forward_status": outcome.forward_status,
        "collapsed": outcome.collapsed or None,
        "stored": outcome.stored or None,
        "detail": outcome.detail,
        "upstream_seconds": round(exchange.spent["upstream"], 6) if "upstream" in exchange.spent else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
