"""Prometheus metrics. Their names are stable and documented in docs/operations.md.

Label values come from the configuration and from closed sets, never from client input, so their number is bounded.
Children with labels are bound once and kept: a lookup costs as much as counting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.context import Outcome, Result

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Tally:
    """A count in plain numbers, for callers that count a hundred thousand times per second; `Metrics.flush` adds it to
    the counters. `slow` counts by bucket; those within the first bucket's bound may be missing there."""

    __slots__ = ("count", "seconds", "slow")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.slow = [0] * (len(SECONDS) + 1)

    def add(self, seconds: float) -> None:
        """Count a request that took so long."""
        self.count += 1
        self.seconds += seconds
        self.slow[bisect_left(SECONDS, seconds)] += 1

    def add_slow(self, seconds: float) -> None:
        self.slow[bisect_left(SECONDS, seconds)] += 1


class PartTally:
    """How often a part had the same state, as a plain number."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Metrics:
    """The metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tallies: dict[tuple[str, Result, int], Tally] = {}
        self._part_tallies: dict[tuple[str, str, str], PartTally] = {}
        self._upstream_tallies: dict[tuple[str, str], Tally] = {}
        self._make_counters(partial(Counter, registry=self.registry))
        self._make_histograms(partial(Histogram, registry=self.registry))

    def _make_counters(self, counter: Callable[[str, str, tuple[str, ...]], Counter]) -> None:
        requests = counter("gateway_requests", "Requests answered.", ("route", "outcome", "status"))
        said = "Requests sent to upstreams, by result: a status class or a kind of failure."
        upstream = counter("gateway_upstream_requests", said, ("upstream", "result"))
        said = "Parts of aggregates by state, counted each time they are joined."
        parts = counter("gateway_parts", said, ("route", "part", "outcome"))
        said = "Requests refused before routing, by reason."
        self._refused = counter("gateway_refused_requests", said, ("reason",))
        self._count_request = lru_cache(maxsize=4096)(requests.labels)
        self._count_upstream = lru_cache(maxsize=4096)(upstream.labels)
        self._count_part = lru_cache(maxsize=4096)(parts.labels)

    def _make_histograms(self, histogram: Callable[..., Histogram]) -> None:
        said = "Time from the request's arrival to the end of its response."
        seconds = histogram("gateway_request_seconds", said, ("outcome",), buckets=SECONDS)
        said = "Time to the upstream's response head."
        upstream_seconds = histogram("gateway_upstream_seconds", said, ("upstream",), buckets=SECONDS)
        said = "Event loop delay, measured twenty times a second."
        self._loop_lag = histogram("gateway_loop_lag_seconds", said, buckets=LAGS)
        said = "Full garbage collections, which block the event loop."
        self._collections = histogram("gateway_garbage_collection_seconds", said, buckets=LAGS)
        self._observe_seconds = lru_cache(maxsize=64)(seconds.labels)
        self._observe_upstream = lru_cache(maxsize=1024)(upstream_seconds.labels)

    def register(self, collector: Collector, *, instead_of: Collector | None = None) -> None:
        """Register a collector that is read with the metrics, in place of `instead_of`."""
        if instead_of is not None:
            self.registry.unregister(instead_of)
        self.registry.register(collector)

    def request(self, route: str, outcome: Outcome, status: int, seconds: float) -> None:
        """Count an answered request."""
        tally = self._tallies.get((route, outcome.result, status // 100))
        (self.tally(route, outcome.result, status) if tally is None else tally).add(seconds)

    def tally(self, route: str, result: Result, status: int) -> Tally:
        """The tally of requests with this outcome, for callers that keep it."""
        kind = route, result, status // 100
        tally = self._tallies.get(kind)
        if tally is None:
            tally = self._tallies[kind] = Tally()
        return tally

    def flush(self) -> None:
        """Add the tallies to the counters."""
        for (route, result, status), tally in self._tallies.items():
            if tally.count:
                self._count_request(route, result.value, f"{status}xx").inc(tally.count)
                _observe(self._observe_seconds(result.value), tally)
                tally.clear()
        for (name, said), tally in self._upstream_tallies.items():
            if tally.count:
                self._count_upstream(name, said).inc(tally.count)
                _observe(self._observe_upstream(name), tally)
                tally.clear()
        for (route, part, outcome), joined in self._part_tallies.items():
            if joined.count:
                self._count_part(route, part, outcome).inc(joined.count)
                joined.count = 0

    def part_tally(self, route: str, part: str, outcome: str) -> PartTally:
        """The tally of how often the part had this state; the same as calling `part` each time."""
        return self._part_tallies.setdefault((route, part, outcome), PartTally())

    def part(self, route: str, part: str, outcome: str) -> None:
        self._count_part(route, part, outcome).inc()

    def upstream(self, name: str, result: str, seconds: float) -> None:
        tally = self._upstream_tallies.get((name, result))
        if tally is None:
            tally = self._upstream_tallies[name, result] = Tally()
        tally.add(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def collected(self, seconds: float) -> None:
        """A full round of the garbage collector took so long."""
        self._collections.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """All metrics now."""
        self.flush()
        return self.registry.collect()

    def render(self) -> bytes:
        """All of it, in Prometheus's text format."""
        self.flush()
        return generate_latest(self.registry)


def _observe(histogram: Histogram, tally: Tally) -> None:
    """`observe` for many values at once; prometheus-client has no public way, and a test checks this one."""
    histogram._sum.inc(tally.seconds)
    slow = tally.slow[1:]
    for bucket, count in zip(histogram._buckets, [tally.count - sum(slow), *slow], strict=True):
        if count:
            bucket.inc(count)
