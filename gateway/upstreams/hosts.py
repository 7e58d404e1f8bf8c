"""One host of an upstream: the base that no request leaves, and the circuit breaker that skips it while it fails.

Breakers take the time as an argument, in seconds of any clock that does not go back. PyPI's `purgatory`, `pybreaker`
and `aiobreaker` were considered (docs/decisions/0011): none lets a single request through when it tries again, all read
a clock of their own, and all count failures in a row, which a host that fails every second request never reaches.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from gateway.config.upstream import UpstreamConfig
from gateway.errors import UpstreamMalformed
from gateway.observability.log import at_most_every, state
from gateway.upstreams.failure_causes import Cause, cause_of
from gateway.upstreams.httpx_api import httpx

logger = logging.getLogger("gateway")

LOGGED_EVERY = 60.0
"""Seconds between two log lines about failures of one host by one cause."""
LEAST_SHARE = 0.1
"""The share of its requests that a host gets at least after it came back."""
LATE = Cause("timeout", "no response before the deadline")
# ASCII that is visible, but for `"`, `#` and the backslash; no segment of the path is `.` or `..`.
_INSIDE = re.compile(r"(?![^?]*/\.{1,2}(?:[/?]|$))/[!$-\[\]-~]*")


@dataclass(frozen=True, slots=True)
class Base:
    """Scheme, host, port and prefix of an upstream; `origin` is the first three."""

    scheme: str
    netloc: bytes
    prefix: str
    sent_host: bytes
    """The `Host` of requests that have none of the client's."""
    origin: str

    @classmethod
    def of(cls, url: str, host: str | None = None) -> Base:
        parsed = httpx.URL(url)
        prefix = parsed.raw_path.decode("ascii").rstrip("/")
        origin = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"
        return cls(parsed.scheme, parsed.netloc, prefix, host.encode("ascii") if host else parsed.netloc, origin)

    def path(self, target: str) -> str:
        """The path and query of `target` below this base. As it starts with a slash and contains nothing that ends a
        path but the one `?`, every server and every URL parser finds this target in it, byte for byte.

        Raises UpstreamMalformed: such a target is a bug of the caller, and nothing is sent.
        """
        if not _INSIDE.fullmatch(target):
            raise UpstreamMalformed("gateway", "a target outside its upstream's base URL")
        return self.prefix + target

    def join(self, target: str) -> str:
        """The URL of `target` below this base. Raises UpstreamMalformed."""
        return self.origin + self.path(target)


class BreakerState(Enum):
    CLOSED = 0
    """Requests go through."""
    HALF_OPEN = 1
    """One request goes through, to try."""
    OPEN = 2
    """None goes through."""


CLOSED, HALF_OPEN, OPEN = BreakerState


@dataclass(slots=True)
class _Count:
    began: float = float("-inf")
    all: int = 0
    failed: int = 0
    by_client: dict[bytes, int] = field(default_factory=dict)


MOST_OF_ONE = 0.5
"""The share of a breaker's failures that may be one client's: its credentials, or its requests, can be the cause."""
MOST_CLIENTS = 1000
"""Clients that are counted separately within half a window; the failures of more count as anyone's."""


class Breaker:
    """The circuit breaker of one host: opens if at least `failures` requests, and half of all, failed within `window`.

    Of one client's failures at most half of that number count, if the client is known.

    After `rest` it lets one request through (half-open): success closes it, failure opens it again. `window` and `rest`
    are seconds; requests count that ended within the current half of the window and the one before. With `failures` = 0
    it never opens.
    """

    __slots__ = ("_before", "_failures", "_half", "_now", "_probing", "_rest", "_until", "opened", "series", "state")

    def __init__(self, *, failures: int = 20, window: float = 10.0, rest: float = 2.0) -> None:
        self.state = CLOSED
        self.opened = 0
        """How often it opened."""
        self._failures = failures
        self._half = window / 2
        self._rest = rest
        self._until = 0.0
        self._probing = False
        self.series = 0
        """The permit of requests that are sent in the present state; while it is closed, all are."""
        self._now, self._before = _Count(), _Count()

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name.lower()} failed={self._now.failed + self._before.failed}>"

    def admit(self, now: float) -> int | None:
        """A permit for one request, which reports its result; None if the request must not be sent."""
        if self.state is OPEN and now >= self._until:
            self._enter(HALF_OPEN)
            self._probing = False
        if self.state is CLOSED:
            return self.series
        if self.state is OPEN or self._probing:
            return None
        self._probing = True
        return self.series

    def retry_after(self, now: float) -> float:
        """Seconds until a retry is worthwhile."""
        return max(0.0, self._until - now) if self.state is OPEN else 0.0 if self.state is CLOSED else self._rest

    def succeeded(self, series: int, now: float) -> bool:
        """A request succeeded; whether that has closed it again."""
        if series != self.series:
            return False  # sent before the state changed: it doesn't concern the host's current state
        if self.state is HALF_OPEN:
            self._enter(CLOSED)
            self._now, self._before = _Count(now), _Count()
            return True
        count = self._now
        if now - count.began >= self._half:
            count = self._counted(now)
        count.all += 1
        return False

    def failed(self, series: int, now: float, client: bytes | None = None) -> None:
        """A request failed; `client` names whose credentials it had, if that may be why."""
        if series != self.series:
            return
        if self.state is HALF_OPEN:
            self._open(now)
            return
        count = self._counted(now)
        if client is not None and not self._counts_of(count, client):
            return  # nor among all: its crowd of failures must not hide those of others
        count.all += 1
        count.failed += 1
        failed = count.failed + self._before.failed
        if self._failures and failed >= self._failures and 2 * failed >= count.all + self._before.all:
            self._open(now)

    def _counts_of(self, count: _Count, client: bytes) -> bool:
        """Whether one more failure of a client counts."""
        known = count.by_client.get(client, 0)
        if not known and len(count.by_client) >= MOST_CLIENTS:
            return True
        count.by_client[client] = known + 1
        return known + self._before.by_client.get(client, 0) < max(1.0, self._failures * MOST_OF_ONE)

    def abandoned(self, series: int) -> None:
        """No result: the client disconnected."""
        if series == self.series:
            self._probing = False

    def _counted(self, now: float) -> _Count:
        if now - self._now.began >= self._half:
            self._before = self._now if now - self._now.began < 2 * self._half else _Count()
            self._now = _Count(now)
        return self._now

    def _open(self, now: float) -> None:
        self._enter(OPEN)
        self._until = now + self._rest
        self.opened += 1

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self.series += 1


@dataclass(slots=True)
class Host:
    """A base URL and its circuit breaker. Failures are those of a connection, timeouts, invalid responses, and statuses
    of 5xx."""

    base: Base
    breaker: Breaker
    monotonic: Callable[[], float] = field(default=time.monotonic, repr=False)
    upstream: str = ""
    failures: Counter[str] = field(default_factory=Counter, repr=False)
    """How many requests failed, by their cause."""
    slow_start: float = 0.0
    """Seconds for which it gets a growing share after it came back."""
    healthy: bool = True
    """Whether its active check succeeds; True where it has none."""
    returned: float | None = None
    """When it came back, while it gets a growing share."""
    _credit: float = field(default=0.0, repr=False)
    _told_open: bool = field(default=False, repr=False)
    _logged: dict[str, float] = field(default_factory=dict, repr=False)
    """When a failure of a cause was logged last."""

    @classmethod
    def of(cls, upstream: str, url: str, config: UpstreamConfig, monotonic: Callable[[], float]) -> Host:
        breaker = Breaker(failures=config.breaker_failures, rest=config.breaker_open_for.total_seconds())
        slow_start = config.slow_start.total_seconds()
        return cls(Base.of(url, config.host_sent), breaker, monotonic, upstream, slow_start=slow_start)

    @property
    def name(self) -> str:
        return self.base.netloc.decode("ascii")

    @property
    def usable(self) -> bool:
        """Whether requests may be sent to it, or one to try."""
        return self.healthy and self.breaker.state is not OPEN

    def admit(self) -> int | None:
        """A permit of its breaker for one request; None if none may be sent."""
        if not self.healthy:
            return None
        breaker = self.breaker
        return breaker.series if breaker.state is CLOSED else breaker.admit(self.monotonic())

    def is_its_turn(self) -> bool:
        """Whether a host that came back a moment ago takes this request: ever more of those whose turn is its own."""
        assert self.returned is not None
        passed = self.monotonic() - self.returned
        if passed >= self.slow_start:
            self.returned = None
            return True
        self._credit += max(LEAST_SHARE, passed / self.slow_start)
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def judge(self, reason: str | None) -> None:
        """Its active check has changed: it fails for `reason`, or, with None, succeeds again."""
        self.healthy = reason is None
        if reason is None:
            logger.info("upstream %s: %s is healthy again", self.upstream, self.name, extra=state(self._topic))
            self._come_back()
        else:
            said = "upstream %s: %s is unhealthy and gets no requests: %s"
            logger.warning(said, self.upstream, self.name, reason, extra=state(self._topic, "unhealthy"))

    @property
    def _topic(self) -> str:
        return f"{self.upstream} {self.name}"

    def _come_back(self) -> None:
        if self.slow_start:
            self.returned, self._credit = self.monotonic(), 0.0

    def _closed_again(self) -> None:
        self._told_open = False
        said = "upstream %s: the circuit breaker of %s is closed again"
        logger.info(said, self.upstream, self.name, extra=state(f"breaker of {self._topic}"))
        self._come_back()

    def _failed(self, series: int, client: bytes | None = None) -> None:
        opened = self.breaker.opened
        self.breaker.failed(series, self.monotonic(), client)
        if self.breaker.opened != opened and not self._told_open:
            self._told_open = True
            logger.warning(
                "upstream %s: the circuit breaker of %s is open: at least half of its requests failed (%s)",
                *(self.upstream, self.name, ", ".join(self.failures) or "5xx"),
                extra=state(f"breaker of {self._topic}", "open"),
            )

    @property
    def retry_after(self) -> float:
        return self.breaker.retry_after(self.monotonic())

    def answered(self, series: int, status: int, client: bytes | None) -> None:
        """A request got a response; `client` identifies the client of a failed one, if known."""
        if status >= 500:
            self._failed(series, client)
        elif self.breaker.succeeded(series, self.monotonic()):
            self._closed_again()

    def ended_by(self, series: int, error: BaseException, *, late: bool, lost: bool) -> None:
        """A request ended with `error`: `late`, at its deadline, or `lost`, because its kept-alive connection was
        closed meanwhile, which doesn't concern the host; a new one will show."""
        if isinstance(error, asyncio.CancelledError) and late:  # by the caller's timeout: the host was too slow
            self._failed(series)
            self.failed_by(LATE)
        elif isinstance(error, TimeoutError | httpx.TransportError) and not lost and not _is_ours(error):
            self._failed(series)
        else:
            self.breaker.abandoned(series)

    def broke(self, series: int, cause: Cause) -> None:
        """Its body broke off, or was not HTTP."""
        self._failed(series)
        self.failed_by(cause)

    def failed_by(self, cause: Cause) -> None:
        """Count a failed request, and log it unless one of that cause was logged a moment ago."""
        self.failures[cause.word] += 1
        now = self.monotonic()
        if now - self._logged.get(cause.word, -math.inf) >= LOGGED_EVERY:
            self._logged[cause.word] = now
            logger.warning(
                "upstream %s: a request to %s failed: %s (%s); the next one by this cause is logged after a minute",
                *(self.upstream, self.name, cause.word, cause.text),
                extra=at_most_every(LOGGED_EVERY, f"{cause.word} at {self._topic}"),
            )


def _is_ours(error: Exception) -> bool:
    """Whether a request failed here, and not at its host."""
    kinds = httpx.PoolTimeout | httpx.LocalProtocolError | httpx.UnsupportedProtocol
    return isinstance(error, kinds) or cause_of(error).word == "files"


def in_turn(hosts: Sequence[Host], weights: Sequence[int]) -> list[Host]:
    """A round of the hosts, each as often as its weight says, and spread over the round (nginx's smooth weighted round
    robin). Those with a weight of 0 are not in it."""
    divisor = math.gcd(*weights) or 1
    shares = [weight // divisor for weight in weights]
    total, credit = sum(shares), [0] * len(shares)
    order: list[Host] = []
    for _ in range(total):
        credit = [have + share for have, share in zip(credit, shares, strict=True)]
        most = max(range(len(hosts)), key=lambda at: credit[at])
        credit[most] -= total
        order.append(hosts[most])
    return order
