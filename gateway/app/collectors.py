"""Figures kept elsewhere, as metrics: read on scrape, so that keeping them costs nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.advisor.advice import Advice
from gateway.cache.engine import Engine
from gateway.cache.purge_log import PurgeCounts
from gateway.cache.shared_store import NoShared, SharedStatistics
from gateway.identity.providers import Providers
from gateway.limits.limiter import Limiter
from gateway.streams.shared_stream import REASONS, SharedStreams
from gateway.upstreams.client import Upstream
from gateway.upstreams.failure_causes import CAUSES
from gateway.upstreams.websocket import WebSocketCounts


class LimitCollector(Collector):
    """What the rate limits of this process do. Their names are those of the configuration."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def collect(self) -> Iterable[Metric]:
        limiter = self._limiter
        refused = CounterMetricFamily(
            "gateway_rate_limit_refused", "Requests over a rate limit, by limit.", labels=("limit",)
        )
        shared = CounterMetricFamily(
            "gateway_rate_limit_shared",
            "Requests that passed by a worker's share of a rate limit while Redis did not answer.",
            labels=("limit",),
        )
        for family, counts in ((refused, limiter.refused), (shared, limiter.shared)):
            for name, count in counts.items():
                family.add_metric((name,), count)
            yield family
        said = "Subjects whose rate limits the process knows."
        yield _gauge("gateway_rate_limit_subjects", said, len(limiter))
        said = "Workers that use their share of the rate limits alone, as Redis does not answer."
        yield _gauge("gateway_rate_limit_by_share", said, limiter.by_share)


class EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        engine = self._engine
        memory = engine.memory.statistics
        yield _gauge("gateway_memory_bytes", "Bytes of the cache in the process.", memory.bytes)
        yield _gauge("gateway_memory_limit_bytes", "Capacity of the cache in the process.", engine.memory.capacity)
        yield _gauge("gateway_memory_entries", "Responses stored in the process.", memory.entries)
        yield _counter("gateway_memory_evictions", "Responses evicted from the process's cache.", memory.evictions)
        yield _counter("gateway_collapsed", "Requests served by another request's fetch (collapsed).", engine.collapsed)
        yield _purges(engine.purged)
        epochs = engine.tiers.purges.epochs
        yield _gauge("gateway_purge_records", "Purges that the process knows.", len(epochs.records))
        yield _gauge("gateway_purge_bytes", "Bytes that they take in the process.", epochs.weight)
        yield _counter("gateway_refreshes", "Background refreshes.", engine.refreshes)
        yield _counter(
            "gateway_unreadable_records", "Records in Redis that could not be read.", engine.tiers.unreadable
        )
        yield _counter(
            "gateway_unstorable_records",
            "Responses not written to Redis, as no gateway would read them.",
            engine.tiers.unstorable,
        )
        yield _counter("gateway_taken", "Responses loaded from Redis into memory at start.", engine.tiers.taken)
        governor = engine.governor
        yield _counter("gateway_shed_refreshes", "Refreshes dropped under overload.", governor.refreshes_shed)
        yield _counter("gateway_shed_misses", "Misses refused with 503 under overload.", governor.misses_shed)
        yield _gauge("gateway_flights", "Fetches in flight that requests can wait for.", len(engine.flights))
        shared = getattr(engine.shared, "statistics", SharedStatistics())
        if not isinstance(engine.shared, NoShared):  # an alert on 0 would fire where no Redis is configured
            yield _gauge(
                "gateway_redis_available",
                "1 if Redis is in use, 0 if it is unavailable; absent without a Redis.",
                engine.shared.available,
            )
        yield _counter("gateway_redis_reads", "Keys read from Redis.", shared.reads)
        yield _counter("gateway_redis_writes", "Keys written to Redis.", shared.writes)
        yield _counter("gateway_redis_batches", "Round trips to Redis.", shared.batches)
        yield _counter("gateway_redis_failures", "Round trips that failed or took too long.", shared.failures)
        yield _counter(
            "gateway_redis_dropped_writes", "Writes dropped because Redis was unavailable or too slow.", shared.dropped
        )
        yield _counter(
            "gateway_redis_oversized", "Records too large to be read from Redis, or written.", shared.oversized
        )
        yield _counter("gateway_redis_seconds", "Time spent in round trips to Redis.", shared.seconds)


class AdviceCollector(Collector):
    def __init__(self, told: Callable[[], Iterable[Advice]]) -> None:
        self._told = told

    def collect(self) -> Iterable[Metric]:
        said = "The advisor's estimate for the route at its TTL: "
        ratio = GaugeMetricFamily("gateway_predicted_hit_ratio", said + "the hit ratio.", labels=("route",))
        load = GaugeMetricFamily(
            "gateway_predicted_upstream_requests", said + "upstream requests a second.", labels=("route",)
        )
        outdated = GaugeMetricFamily(
            "gateway_predicted_outdated_ratio", said + "the share of outdated answers.", labels=("route",)
        )
        for advice in self._told():
            if advice.today is not None and advice.tells:
                rung = advice.at(advice.today)
                ratio.add_metric((advice.route,), rung.hit_ratio)
                load.add_metric((advice.route,), rung.upstream)
                outdated.add_metric((advice.route,), rung.outdated)
        yield from (ratio, load, outdated)


class WebSocketCollector(Collector):
    """The counts of the upstreams' WebSockets, over all reloads."""

    def __init__(self) -> None:
        self._counts: dict[str, WebSocketCounts] = {}

    def counts(self, upstream: str) -> WebSocketCounts:
        return self._counts.setdefault(upstream, WebSocketCounts())

    def collect(self) -> Iterable[Metric]:
        opened = GaugeMetricFamily("gateway_websockets", "Open WebSockets.", labels=("upstream",))
        closed = CounterMetricFamily(
            "gateway_websockets_closed", "WebSockets that ended.", labels=("upstream", "by", "code")
        )
        messages = CounterMetricFamily(
            "gateway_websocket_messages", "Messages of WebSockets that ended.", labels=("upstream", "sender")
        )
        for upstream, counts in self._counts.items():
            opened.add_metric((upstream,), float(counts.open))
            for (by, code), number in counts.closed.items():
                closed.add_metric((upstream, by, code), float(number))
            for sender, number in counts.messages.items():
                messages.add_metric((upstream, sender), float(number))
        yield from (opened, closed, messages)


class UpstreamCollector(Collector):
    def __init__(self, upstreams: list[Upstream]) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterable[Metric]:
        yield self._gauges("gateway_upstream_in_flight", "Requests in flight.", lambda u: u.places.taken)
        yield self._gauges("gateway_upstream_waiting", "Requests queued for a connection.", lambda u: u.places.waiting)
        yield self._counters(
            "gateway_upstream_shed", "Requests refused with 503: connection queue full.", lambda u: u.shed
        )
        yield self._counters("gateway_upstream_repeated", "Requests retried.", lambda u: u.budget.spent)
        yield self._counters(
            "gateway_upstream_not_repeated", "Requests not retried: retry budget used up.", lambda u: u.budget.denied
        )
        state = GaugeMetricFamily(
            "gateway_breaker_state",
            "State of the host's circuit breaker: 0 closed, 1 half-open, 2 open.",
            labels=("upstream", "host"),
        )
        opened = CounterMetricFamily("gateway_breaker_opened", "How often it was.", labels=("upstream", "host"))
        for upstream in self._upstreams:
            for host in upstream.hosts:
                state.add_metric((upstream.name, host.name), float(host.breaker.state.value))
                opened.add_metric((upstream.name, host.name), float(host.breaker.opened))
        yield from (state, opened, self._failures(), self._healthy())
        yield from self._names()

    def _healthy(self) -> Metric:
        healthy = GaugeMetricFamily("gateway_upstream_healthy", "1 if a host is used.", labels=("upstream", "host"))
        for upstream in self._upstreams:
            for host in upstream.hosts:
                healthy.add_metric((upstream.name, host.name), float(host.usable))
        return healthy

    def _failures(self) -> Metric:
        failed = CounterMetricFamily(
            "gateway_upstream_failures", "Requests that failed, by the cause.", labels=("upstream", "host", "cause")
        )
        for upstream in self._upstreams:
            for host in upstream.hosts:
                for cause in CAUSES:
                    failed.add_metric((upstream.name, host.name, cause), float(host.failures[cause]))
        return failed

    def _names(self) -> Iterable[Metric]:
        addresses = GaugeMetricFamily(
            "gateway_upstream_addresses", "Addresses that a name leads to.", labels=("upstream", "name")
        )
        for upstream in self._upstreams:
            for name in upstream.names.known() if upstream.names is not None else ():
                addresses.add_metric((upstream.name, name.host), float(len(name.peers)))
        yield addresses
        yield self._counters(
            "gateway_upstream_lookups_failed", "Look-ups of names that failed.", lambda u: u.lookups_failed
        )

    def _gauges(self, name: str, text: str, of: Callable[[Upstream], float]) -> Metric:
        return self._filled(GaugeMetricFamily(name, text, labels=("upstream",)), of)

    def _counters(self, name: str, text: str, of: Callable[[Upstream], float]) -> Metric:
        return self._filled(CounterMetricFamily(name, text, labels=("upstream",)), of)

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, of: Callable[[Upstream], float]) -> Metric:
        for upstream in self._upstreams:
            family.add_metric((upstream.name,), float(of(upstream)))
        return family


class IdentityCollector(Collector):
    """Figures of the identities that are configured; none without any."""

    def __init__(self, providers: Providers) -> None:
        self._providers = providers

    def collect(self) -> Iterable[Metric]:
        if not self._providers.names:
            return
        records = self._providers.credentials.records
        yield _gauge("gateway_api_keys", "API keys that the process knows, ended ones included.", len(records.keys))
        yield _gauge("gateway_revocations", "Revocations that the process knows.", len(records.revocations))
        yield _gauge(
            "gateway_credential_records_unusable",
            "Records of API keys and revocations in Redis that can't be used.",
            len(records.unusable),
        )
        asked = CounterMetricFamily(
            "gateway_introspections", "Answers about opaque tokens.", labels=("identity", "result")
        )
        for each in self._providers.introspectors:
            for result in ("active", "inactive", "failed"):
                asked.add_metric((each.name, result), float(each.answers[result]))
        yield asked


class StreamCollector(Collector):
    """The shared event streams of a worker."""

    def __init__(self, streams: SharedStreams) -> None:
        self._streams = streams

    def collect(self) -> Iterable[Metric]:
        streams = self._streams
        yield _gauge("gateway_shared_streams", "Event streams from upstreams that clients share.", len(streams))
        yield _gauge("gateway_shared_stream_clients", "Clients of shared event streams.", streams.clients)
        opened = CounterMetricFamily(
            "gateway_shared_stream_requests", "Requests for shared event streams, sent upstream.", labels=("kind",)
        )
        opened.add_metric(("first",), float(streams.counts.opened))
        opened.add_metric(("again",), float(streams.counts.reopened))
        yield opened
        cut = CounterMetricFamily("gateway_shared_stream_cuts", "Clients of shared streams cut.", labels=("reason",))
        for reason in REASONS:
            cut.add_metric((reason,), float(streams.counts.cut[reason]))
        yield cut


def _purges(purged: PurgeCounts) -> Metric:
    family = CounterMetricFamily("gateway_purges", "Purges by result.", labels=("result",))
    family.add_metric(("complete",), float(purged.complete))
    family.add_metric(("unconfirmed",), float(purged.unconfirmed))
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=float(value))
