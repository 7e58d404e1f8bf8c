"""The access log: a line of JSON a request, its fields fixed here and documented in docs/operations.md.

JSON escapes control characters, so nothing a client sends can forge a line. Query values are not logged: they may
hold tokens.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, BinaryIO, Protocol

import orjson

from gateway.context import RequestContext, Result


class AccessLog(Protocol):
    def __call__(self, exchange: RequestContext, status: int, size: int, seconds: float) -> None: ...


def silent(exchange: RequestContext, status: int, size: int, seconds: float) -> None:
    """The access log that is off."""


class JsonAccessLog:
    """Writes the outcome of each request to `file`: default standard output. Of hits only the share `hits` (0 to 1) is
    written, sampled at random: `draw` returns a number from 0 to below 1. In an event loop the lines of one iteration
    are written together, at its end."""

    def __init__(
        self, file: BinaryIO | None = None, *, hits: float = 1.0, draw: Callable[[], float] = random.random
    ) -> None:
        self._file = file if file is not None else sys.stdout.buffer
        self.share = hits
        self._draw = draw
        self._lines: list[bytes] = []
        self._second = 0
        self._date = b""

    def __call__(self, exchange: RequestContext, status: int, size: int, seconds: float) -> None:
        result = exchange.outcome.result
        if self.wants(result):
            fields = fields_of(exchange, status, size, seconds, self.share_of(result))
            self.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))

    def wants(self, result: Result) -> bool:
        """Whether to write this request's line; drawn anew with each call."""
        return self.share >= 1 or result is not Result.HIT or self._draw() < self.share

    def share_of(self, result: Result) -> float:
        """The share of the requests with this outcome that are written."""
        return self.share if result is Result.HIT else 1.0

    def write(self, line: bytes) -> None:
        self._lines.append(line)
        if len(self._lines) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self._flush)
        except RuntimeError:  # no loop runs: nothing would ever come to write it
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self._file.write(b"".join(lines))
        self._file.flush()

    def now(self) -> bytes:
        """The time as a line begins with it."""
        seconds = time.time()
        second = int(seconds)
        if second != self._second:
            self._second = second
            self._date = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode("ascii")
        return b"%b.%03d+00:00" % (self._date, int((seconds - second) * 1000))


BARE = 16
"""The longest parameter without a value that is logged: a longer one may itself be a token, as in `/file?KEY`."""


def _shown(pair: str) -> str:
    """A query parameter as a line has it: its name, without its value."""
    name, equals, _ = pair.partition("=")
    return name if equals or len(name) <= BARE else "…"


MARK = "\x00"


def pieces_of(exchange: RequestContext, status: int, size: int, share: float) -> list[bytes]:
    """A request's line, split around its time, ID, client and seconds, for callers that write the same line many
    times."""
    exchange.request_id = exchange.client = MARK
    fields = fields_of(exchange, status, size, 0.0, share) | {"time": MARK, "seconds": MARK}
    mark = orjson.dumps(MARK)
    line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    return line.split(mark)


def fields_of(exchange: RequestContext, status: int, size: int, seconds: float, share: float = 1.0) -> dict[str, Any]:
    """The fields of a request's line; those that are empty are left out. `share` of such requests are logged."""
    outcome, target = exchange.outcome, exchange.target
    cause, reason = exchange.failure or (None, None)
    fields = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": exchange.request_id,
        "client": exchange.client,
        "method": exchange.method,
        "path": target.path if target is not None else None,
        "query": [_shown(pair) for pair in target.query] if target is not None and target.query else None,
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
        "close_code": exchange.closed[1] if exchange.closed is not None else None,
        "closed_by": exchange.closed[0] if exchange.closed is not None else None,
        "cause": cause,
        "reason": reason,
        "share": share if share < 1 else None,
        "upstream_seconds": round(exchange.spent["upstream"], 6) if "upstream" in exchange.spent else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
