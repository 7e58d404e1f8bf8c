"""The console's figures from the metrics: rates, ratios and quantiles between two consecutive readings.

They come from the same text that Prometheus reads, so the console and a dashboard can't disagree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]
ANSWERED_BY_CACHE = frozenset(("hit", "stale", "stale_error"))
THROUGH_CACHE = ANSWERED_BY_CACHE | frozenset(("revalidated", "miss"))
FAILED = frozenset(("5xx", "error", "timeout", "unreachable", "malformed", "busy", "resting"))


class Latency(msgspec.Struct, frozen=True):
    """Requests per second and their latency: the bucket bounds (seconds) of the median and the 99th percentile.

    None if there were no requests, or the bound is beyond the last bucket.
    """

    rate: float
    p50: float | None
    p99: float | None


class UpstreamFigures(msgspec.Struct, frozen=True):
    """One upstream. `breaker` is 0 closed, 1 trying, 2 open, the worst of its hosts. `unhealthy` counts the hosts that
    get no requests, by their circuit breaker or their check."""

    rate: float
    failed: float
    p50: float | None
    p99: float | None
    in_flight: float
    breaker: int
    unhealthy: int


class RouteFigures(msgspec.Struct, frozen=True):
    rate: float
    hit_ratio: float | None


class Figures(msgspec.Struct, frozen=True):
    """A moment of all workers of this machine. Rates are a second."""

    at: float
    rate: float
    hit_ratio: float | None
    outcomes: dict[str, Latency]
    upstreams: dict[str, UpstreamFigures]
    routes: dict[str, RouteFigures]
    refused: float
    collapsed: float
    refreshes: float
    memory_bytes: float
    memory_limit: float
    memory_entries: float
    evictions: float
    workers: float
    """Those that answer."""
    workers_unresponsive: float
    """Those that were killed as unresponsive since the start."""
    worker_deaths: float
    redis_available: bool | None
    """None without a configured Redis."""
    redis_milliseconds: float | None
    redis_failures: float


class Reading:
    """The samples of one text of metrics, taken at an instant (seconds)."""

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self._samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                values = self._samples[sample.name]
                values[labels] = values.get(labels, 0.0) + sample.value

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.each(name, **labels))

    def each(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        wanted = labels.items()
        for key, value in self._samples.get(name, {}).items():
            found = dict(key)
            if all(found.get(label) == text for label, text in wanted):
                yield found, value

    def values(self, name: str, label: str) -> list[str]:
        """The values that a label takes, sorted."""
        return sorted({found[label] for found, _ in self.each(name) if label in found})

    def largest(self, name: str, **labels: str) -> float:
        return max((value for _, value in self.each(name, **labels)), default=0.0)


class Between:
    """The differences between two readings."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.before = before
        self.after = after
        self.seconds = max(after.at - before.at, 1e-6)

    def rate(self, name: str, **labels: str) -> float:
        # A worker that was replaced can take its figures with it: never a negative rate.
        grown = self.after.sum(name, **labels) - self.before.sum(name, **labels)
        return round(max(0.0, grown) / self.seconds, 3)

    def quantiles(self, name: str, **labels: str) -> tuple[float | None, float | None]:
        """The upper bounds of the buckets that hold the median and the 99th percentile."""
        counts: dict[float, float] = defaultdict(float)
        for sign, reading in ((1, self.after), (-1, self.before)):
            for found, value in reading.each(f"{name}_bucket", **labels):
                counts[float(found["le"])] += sign * value
        total = max(counts.values(), default=0.0)
        return _bound(counts, 0.5 * total), _bound(counts, 0.99 * total)

    def hit_ratio(self, **labels: str) -> float | None:
        rates = {outcome: self.rate("gateway_requests_total", outcome=outcome, **labels) for outcome in THROUGH_CACHE}
        total = sum(rates.values())
        return round(sum(rates[outcome] for outcome in ANSWERED_BY_CACHE) / total, 4) if total else None

    def figures(self) -> Figures:
        after = self.after
        batches = self.rate("gateway_redis_batches_total")
        return Figures(
            at=after.at,
            rate=self.rate("gateway_requests_total"),
            hit_ratio=self.hit_ratio(),
            outcomes={
                outcome: Latency(
                    self.rate("gateway_requests_total", outcome=outcome),
                    *self.quantiles("gateway_request_seconds", outcome=outcome),
                )
                for outcome in after.values("gateway_requests_total", "outcome")
            },
            upstreams={name: self._upstream(name) for name in self._upstream_names()},
            routes={
                name: RouteFigures(self.rate("gateway_requests_total", route=name), self.hit_ratio(route=name))
                for name in after.values("gateway_requests_total", "route")
                if name
            },
            refused=self.rate("gateway_refused_requests_total"),
            collapsed=self.rate("gateway_collapsed_total"),
            refreshes=self.rate("gateway_refreshes_total"),
            memory_bytes=after.sum("gateway_memory_bytes"),
            memory_limit=after.sum("gateway_memory_limit_bytes"),
            memory_entries=after.sum("gateway_memory_entries"),
            evictions=self.rate("gateway_memory_evictions_total"),
            workers=after.sum("gateway_workers"),
            workers_unresponsive=after.sum("gateway_workers_unresponsive_total"),
            worker_deaths=after.sum("gateway_worker_deaths_total"),
            redis_available=self._redis_available(),
            redis_milliseconds=round(self.rate("gateway_redis_seconds_total") / batches * 1000, 3) if batches else None,
            redis_failures=self.rate("gateway_redis_failures_total"),
        )

    def _redis_available(self) -> bool | None:
        values = [value for _, value in self.after.each("gateway_redis_available")]
        return max(values) > 0 if values else None

    def _upstream_names(self) -> Iterable[str]:
        counted = self.after.values("gateway_upstream_requests_total", "upstream")
        return sorted({*counted, *self.after.values("gateway_breaker_state", "upstream")})

    def _upstream(self, name: str) -> UpstreamFigures:
        results = self.after.values("gateway_upstream_requests_total", "result")
        failed = [result for result in results if result in FAILED]
        return UpstreamFigures(
            self.rate("gateway_upstream_requests_total", upstream=name),
            sum(self.rate("gateway_upstream_requests_total", upstream=name, result=result) for result in failed),
            *self.quantiles("gateway_upstream_seconds", upstream=name),
            self.after.sum("gateway_upstream_in_flight", upstream=name),
            int(self.after.largest("gateway_breaker_state", upstream=name)),
            sum(1 for _, value in self.after.each("gateway_upstream_healthy", upstream=name) if not value),
        )


def _bound(counts: dict[float, float], wanted: float) -> float | None:
    if wanted <= 0:
        return None
    bound = next((bound for bound in sorted(counts) if counts[bound] >= wanted), float("inf"))
    return bound if bound != float("inf") else None
