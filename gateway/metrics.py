"""What is counted, for Prometheus. The names are fixed here and documented in docs/operations.md.

Labels take their values from the configuration and from closed sets, never from what a client sent, so their number
is bounded. Children with labels are bound once and kept: looking one up costs as much as counting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .advice import Advice
from .engine import Engine
from .outcome import Outcome, Result
from .shared import SharedStatistics
from .upstreams import Upstream

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Tally:
    """A count kept as plain numbers, for those who count a hundred thousand times a second; `Metrics.flush` adds it to
    the counters. `slow` counts by bucket those that took longer than the first bucket's bound."""

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
        if seconds > SECONDS[0]:
            self.add_slow(seconds)

    def add_slow(self, seconds: float) -> None:
        self.slow[bisect_left(SECONDS, seconds)] += 1


class PartTally:
    """How often a part became of the same, as a plain number."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Metrics:
    """The counters of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gateway_requests", "Requests answered.", ("route", "outcome", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "gateway_request_seconds",
            "Time from the request's arrival to the end of its answer.",
            ("outcome",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._upstream = Counter(
            "gateway_upstream_requests",
            "Requests sent to upstreams, by what came of them: a status class or a kind of failure.",
            ("upstream", "result"),
            registry=self.registry,
        )
        self._upstream_seconds = Histogram(
            "gateway_upstream_seconds",
            "Time until an upstream's response head came.",
            ("upstream",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "gateway_refused_requests",
            "Requests refused before any route saw them, by the reason.",
            ("reason",),
            registry=self.registry,
        )
        self._tallies: dict[tuple[str, Result, str], Tally] = {}
        self._part_tallies: dict[tuple[str, str, str], PartTally] = {}
        self._loop_lag = Histogram(
            "gateway_loop_lag_seconds",
            "How late the event loop is, measured twenty times a second.",
            buckets=LAGS,
            registry=self.registry,
        )
        self._collections = Histogram(
            "gateway_garbage_collection_seconds",
            "Full rounds of the garbage collector, in which nobody is answered.",
            buckets=LAGS,
            registry=self.registry,
        )
        self._parts = Counter(
            "gateway_parts",
            "Parts of aggregates, by what became of them, each time they were joined.",
            ("route", "part", "outcome"),
            registry=self.registry,
        )
        self._count_part = lru_cache(maxsize=4096)(self._parts.labels)
        self._count_request = lru_cache(maxsize=4096)(self._requests.labels)
        self._observe_seconds = lru_cache(maxsize=64)(self._seconds.labels)
        self._count_upstream = lru_cache(maxsize=4096)(self._upstream.labels)
        self._observe_upstream = lru_cache(maxsize=1024)(self._upstream_seconds.labels)
        self._upstreams: _UpstreamCollector | None = None

    def watch(self, engine: Engine) -> None:
        """Show an engine's own figures, read when they are asked for."""
        self.registry.register(_EngineCollector(engine))

    def watch_advice(self, told: Callable[[], Iterable[Advice]]) -> None:
        """Show what the advisor says of the TTLs in force, read when it is asked for."""
        self.registry.register(_AdviceCollector(told))

    def watch_upstreams(self, upstreams: Iterable[Upstream]) -> None:
        """Show the places, breakers and budgets of upstreams, read when they are asked for; no longer those of
        the call before."""
        if self._upstreams is not None:
            self.registry.unregister(self._upstreams)
        self._upstreams = _UpstreamCollector(list(upstreams))
        self.registry.register(self._upstreams)

    def request(self, route: str, outcome: Outcome, status: int, seconds: float) -> None:
        self._count_request(route, outcome.result.value, f"{status // 100}xx").inc()
        self._observe_seconds(outcome.result.value).observe(seconds)

    def tally(self, route: str, result: Result, status: int) -> Tally:
        """The tally of requests with this outcome; the same as calling `request` for each."""
        return self._tallies.setdefault((route, result, f"{status // 100}xx"), Tally())

    def flush(self) -> None:
        """Add the tallies to the counters."""
        for (route, result, status), tally in self._tallies.items():
            if tally.count:
                self._count_request(route, result.value, status).inc(tally.count)
                _observe(self._observe_seconds(result.value), tally)
                tally.clear()
        for (route, part, outcome), joined in self._part_tallies.items():
            if joined.count:
                self._count_part(route, part, outcome).inc(joined.count)
                joined.count = 0

    def part_tally(self, route: str, part: str, outcome: str) -> PartTally:
        """The tally of how often the part became of this; the same as calling `part` for each time."""
        return self._part_tallies.setdefault((route, part, outcome), PartTally())

    def part(self, route: str, part: str, outcome: str) -> None:
        self._count_part(route, part, outcome).inc()

    def upstream(self, name: str, result: str, seconds: float) -> None:
        self._count_upstream(name, result).inc()
        self._observe_upstream(name).observe(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def collected(self, seconds: float) -> None:
        """A full round of the garbage collector took so long."""
        self._collections.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """All of it as it is now."""
        self.flush()
        return self.registry.collect()

    def render(self) -> bytes:
        """All of it, in Prometheus's text format."""
        self.flush()
        return generate_latest(self.registry)


def _observe(histogram: Histogram, tally: Tally) -> None:
    """What `observe` does, for many at once; prometheus-client has no public way, and a test holds this one."""
    histogram._sum.inc(tally.seconds)
    quick = tally.count - sum(tally.slow)
    for bucket, count in zip(histogram._buckets, [quick, *tally.slow[1:]], strict=True):
        if count:
            bucket.inc(count)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        engine = self._engine
        memory = engine.memory.statistics
        yield _gauge("gateway_memory_bytes", "Bytes of the cache in the process.", memory.bytes)
        yield _gauge("gateway_memory_limit_bytes", "What it may take.", engine.memory.capacity)
        yield _gauge("gateway_memory_entries", "Responses stored in the process.", memory.entries)
        yield _counter("gateway_memory_evictions", "Responses evicted from it.", memory.evictions)
        yield _counter("gateway_collapsed", "Requests answered by a fetch made for another.", engine.collapsed)
        yield _counter("gateway_refreshes", "Refreshes behind a stale answer.", engine.refreshes)
        yield _counter(
            "gateway_unreadable_records", "Records in Redis that could not be read.", engine.tiers.unreadable
        )
        yield _counter("gateway_taken", "Responses taken from Redis into memory at the start.", engine.tiers.taken)
        governor = engine.governor
        yield _counter("gateway_shed_refreshes", "Refreshes given up under overload.", governor.refreshes_shed)
        yield _counter("gateway_shed_misses", "Misses told 503 under overload.", governor.misses_shed)
        yield _gauge("gateway_flights", "Fetches under way that others may wait for.", len(engine.flights))
        shared = getattr(engine.shared, "statistics", SharedStatistics())
        yield _gauge(
            "gateway_redis_available",
            "1 while Redis is used, 0 while it is left alone.",
            engine.shared.available,
        )
        yield _counter("gateway_redis_reads", "Keys read from Redis.", shared.reads)
        yield _counter("gateway_redis_writes", "Keys written to Redis.", shared.writes)
        yield _counter("gateway_redis_batches", "Round trips to Redis.", shared.batches)
        yield _counter("gateway_redis_failures", "Round trips that failed or took too long.", shared.failures)
        yield _counter("gateway_redis_dropped_writes", "Writes given up, Redis being away or too slow.", shared.dropped)
        yield _counter("gateway_redis_seconds", "Time spent in round trips to Redis.", shared.seconds)


class _AdviceCollector(Collector):
    def __init__(self, told: Callable[[], Iterable[Advice]]) -> None:
        self._told = told

    def collect(self) -> Iterable[Metric]:
        said = "What the advisor expects of the route at its TTL: "
        ratio = GaugeMetricFamily("gateway_predicted_hit_ratio", said + "the hit ratio.", labels=("route",))
        load = GaugeMetricFamily(
            "gateway_predicted_upstream_requests", said + "upstream requests a second.", labels=("route",)
        )
        outdated = GaugeMetricFamily(
            "gateway_predicted_outdated_ratio", said + "the share of outdated answers.", labels=("route",)
        )
        for advice in self._told():
            if advice.today is not None and advice.requests:
                rung = advice.at(advice.today)
                ratio.add_metric((advice.route,), rung.hit_ratio)
                load.add_metric((advice.route,), rung.upstream)
                outdated.add_metric((advice.route,), rung.outdated)
        yield from (ratio, load, outdated)


class _UpstreamCollector(Collector):
    def __init__(self, upstreams: list[Upstream]) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterable[Metric]:
        yield self._gauges("gateway_upstream_in_flight", "Requests under way.", lambda u: u.places.taken)
        yield self._gauges(
            "gateway_upstream_waiting", "Requests that wait for a connection.", lambda u: u.places.waiting
        )
        yield self._counters("gateway_upstream_shed", "Requests told 503: no place.", lambda u: u.places.shed)
        yield self._counters("gateway_upstream_repeated", "Requests sent a second time.", lambda u: u.budget.spent)
        yield self._counters(
            "gateway_upstream_not_repeated", "Requests not repeated: no budget.", lambda u: u.budget.denied
        )
        state = GaugeMetricFamily(
            "gateway_breaker_state",
            "0 while a host is asked, 1 while one request tries it, 2 while it is left alone.",
            labels=("upstream", "host"),
        )
        opened = CounterMetricFamily("gateway_breaker_opened", "How often it was.", labels=("upstream", "host"))
        for upstream in self._upstreams:
            for host in upstream.hosts:
                state.add_metric((upstream.name, host.name), float(host.breaker.state.value))
                opened.add_metric((upstream.name, host.name), float(host.breaker.opened))
        yield from (state, opened)

    def _gauges(self, name: str, text: str, of: Callable[[Upstream], float]) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=("upstream",)), of)

    def _counters(self, name: str, text: str, of: Callable[[Upstream], float]) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=("upstream",)), of)

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, of: Callable[[Upstream], float]) -> Metric:
        for upstream in self._upstreams:
            family.add_metric((upstream.name,), float(of(upstream)))
        return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=float(value))
