"""The state of one worker that survives reloads: its tiers, flights, counters and guard."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.advisor.traffic import AdviceExchange, LocalAdvice, Traffic, Watch
from gateway.app.collectors import (
    AdviceCollector,
    EngineCollector,
    IdentityCollector,
    LimitCollector,
    StreamCollector,
    UpstreamCollector,
    WebSocketCollector,
)
from gateway.cache.engine import Engine
from gateway.cache.memory import Memory
from gateway.cache.overload import Governor, LoopLag
from gateway.cache.purge_log import LocalPurges, PurgeLog
from gateway.cache.redis.advice import RedisAdvice
from gateway.cache.redis.errors import Reason
from gateway.cache.redis.fleet_key import FleetKey
from gateway.cache.redis.purge_log import RedisPurges
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.cache.warm_start import Hottest
from gateway.clock import Clock, SystemClock
from gateway.config.models import Config
from gateway.edge.certificate import Certificate
from gateway.edge.guard import ConnectionGuard
from gateway.identity.credential_log import CredentialLog, LocalCredentials, RedisCredentials
from gateway.identity.providers import Providers
from gateway.identity.records import Codec
from gateway.limits.limiter import Limiter
from gateway.observability.access_log import AccessLog
from gateway.observability.metrics import Metrics
from gateway.policy.identity_key import KEY_BYTES, IdentityKey, derived
from gateway.streams.shared_stream import SharedStreams
from gateway.upstreams.client import Upstream
from gateway.upstreams.httpx_api import httpx

if TYPE_CHECKING:
    from gateway.app.generation import Generation

logger = logging.getLogger("gateway")
NO_LIFESPAN = (
    "the lifespan of the gateway's app has not run: Redis is not used, entries in memory are not reused where there is "
    "a Redis, as no purge is received, and /readyz returns 503. Starlette does not run the lifespan of a mounted app: "
    "pass it to the outer one, FastAPI(lifespan=gateway.lifespan); with uvicorn, do not set --lifespan off"
)


@dataclass(slots=True)
class Answering:
    """The generation that answers now: one object for all generations of a worker; of one that is prepared, itself."""

    gateway: Generation


class WorkerState:
    """Made of the worker's first configuration; `ttls` returns each route's TTL in force, in seconds;
    `identity_changed` is called when digests use another key from now on. `issuer_transport` makes a transport for
    requests to an issuer of tokens."""

    def __init__(
        self,
        config: Config,
        *,
        shared: SharedStore,
        clock: Clock,
        log: AccessLog,
        ttls: Callable[[], dict[str, float | None]],
        identity_changed: Callable[[], None],
        issuer_transport: Callable[[str], httpx.AsyncBaseTransport | None] = lambda name: None,
    ) -> None:
        self.metrics = Metrics()
        self.started = False
        """Whether the lifespan has begun; it stays so when it has ended."""
        self._without_lifespan = False
        self.workers: tuple[int, int] | None = None
        """How many workers are ready, of how many; None without a supervisor."""
        self.certificate: Certificate | None = None
        """The public listener's, if the supervisor's workers speak TLS."""
        self.websockets = WebSocketCollector()
        self.metrics.register(self.websockets)
        self._upstreams: UpstreamCollector | None = None
        self._shown: list[Upstream] = []
        self.shared = shared
        self._allow_records(config)
        blind = None if config.purge_disconnect_grace == "forever" else config.purge_disconnect_grace.total_seconds()
        self.purges: PurgeLog = shared.purge_log(clock, blind) if isinstance(shared, RedisStore) else LocalPurges(clock)
        traffic = Traffic(clock)
        exchange: AdviceExchange = (
            shared.advice_exchange(clock) if isinstance(shared, RedisStore) else LocalAdvice(clock)
        )
        self.watch = Watch(traffic, exchange, ttls)
        secret = config.record_secret
        key = IdentityKey(derived(secret) if secret else secrets.token_bytes(KEY_BYTES))
        self._fleet_key = (
            FleetKey(shared, key, identity_changed) if isinstance(shared, RedisStore) and not secret else None
        )
        self.engine = Engine(
            identity_key=key,
            traffic=traffic,
            memory=Memory(config.memory // config.workers),
            shared=shared,
            clock=clock,
            purges=self.purges,
            retry_after=config.retry_after.total_seconds(),
            compression=config.compression,
            hit_for_miss=config.hit_for_miss.total_seconds(),
            shared_budget=config.redis_budget.total_seconds(),
            shared_secret=secret,
            governor=Governor(config.overload_lag.total_seconds()),
        )
        self.credentials = _credential_log(shared, clock, secret)
        self.credentials.records.longest = config.max_token_age.total_seconds()
        self.providers = Providers(
            store=shared, clock=clock, identity_key=key, credentials=self.credentials, transport=issuer_transport
        )
        meters = shared.meters() if isinstance(shared, RedisStore) else None
        self.limiter = Limiter(clock, key, meters, workers=config.workers)
        self._limits = bool(config.rate_limits)
        self.hottest = Hottest(
            self.engine.tiers,
            config.warm_start if isinstance(shared, RedisStore) else 0,
            leads=lambda: isinstance(exchange, RedisAdvice) and exchange.leads,
        )
        self.lag = LoopLag(self._observe_lag)
        self.metrics.register(EngineCollector(self.engine))
        self.metrics.register(AdviceCollector(self.watch.told))
        self.metrics.register(IdentityCollector(self.providers))
        self.streams = SharedStreams()
        self.metrics.register(StreamCollector(self.streams))
        self.metrics.register(LimitCollector(self.limiter))
        self.guard = ConnectionGuard(config, metrics=self.metrics, log=log)

    @property
    def upstreams_away(self) -> list[str]:
        """The upstreams that have no usable host."""
        return [upstream.name for upstream in self._shown if not upstream.usable]

    def show_upstreams(self, upstreams: Iterable[Upstream]) -> None:
        """Check these upstreams' hosts, and show them in the metrics, no longer those of the call before."""
        self._shown = list(upstreams)
        shown, self._upstreams = self._upstreams, UpstreamCollector(self._shown)
        self.metrics.register(self._upstreams, instead_of=shown)
        for upstream in self._shown if self.started else ():
            upstream.start()

    def show_certificate(self, certificate: Certificate) -> None:
        """Show it on `/readyz` and in the metrics."""
        self.certificate = certificate
        self.metrics.register(certificate)

    def configure(self, config: Config, log: AccessLog) -> None:
        """Apply another configuration, as far as it can change while the worker runs."""
        self.engine.configure(
            retry_after=config.retry_after.total_seconds(),
            hit_for_miss=config.hit_for_miss.total_seconds(),
        )
        self.guard.configure(config, log)
        self.credentials.records.longest = config.max_token_age.total_seconds()
        self._limits = bool(config.rate_limits)
        if self.started and self._limits:
            self.limiter.start()
        self._allow_records(config)

    def _allow_records(self, config: Config) -> None:
        if isinstance(self.shared, RedisStore):
            self.shared.allow(config.largest_record)

    @property
    def limits_by_share(self) -> bool:
        """Whether there are rate limits, and each worker uses its share of them alone."""
        return self._limits and self.limiter.by_share

    def alone(self) -> bool:
        """Whether the tier that all share is away, so that each worker fetches for itself."""
        return isinstance(self.shared, RedisStore) and not self.shared.available

    def _observe_lag(self, lag: float) -> None:
        self.metrics.loop_lag(lag)
        self.engine.governor.observe(lag, self.engine.under_way)

    def go_without_lifespan(self) -> None:
        """Serve requests before a lifespan has begun: Redis is left alone, as no purge is received."""
        if self._without_lifespan:
            return
        self._without_lifespan = True
        logger.error(NO_LIFESPAN)
        if isinstance(self.shared, RedisStore):
            self.shared.leave_alone(Reason("lifespan", "the lifespan of the app has not run"))

    async def start(self) -> None:
        self.started = True
        for upstream in self._shown:
            upstream.start()
        self.lag.start()
        await self.shared.start()
        if self._fleet_key is not None:
            await self._fleet_key.start()
        if isinstance(self.purges, RedisPurges) and self.alone():
            self.purges.begin()  # requests are served meanwhile, from memory
        else:
            await self.purges.start()
        await self.watch.start()
        await self.hottest.start()
        await self.providers.start()
        if self._limits:
            self.limiter.start()

    async def aclose(self) -> None:
        await self.streams.aclose()
        await self.limiter.aclose()
        await self.providers.aclose()
        if self._fleet_key is not None:
            await self._fleet_key.aclose()
        await self.hottest.aclose()


def _credential_log(shared: SharedStore, clock: Clock, secret: bytes) -> CredentialLog:
    """Where API keys and revocations are: beside the cache, for the fleet that shares one."""
    codec = Codec(IdentityKey(derived(secret)) if secret else None)
    if not isinstance(shared, RedisStore):
        return LocalCredentials(clock, codec)
    client, prefix = shared.stream_place()
    return RedisCredentials(client, clock, codec, prefix=prefix)


@dataclass(frozen=True)
class Served:
    """What `gateway serve MODULE:APP` has that the app's code can't know: the address of the embedded Redis,
    the configuration of an app whose code names none, and options of the command line, by setting."""

    redis_url: str = "none"
    file: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


SERVED: ContextVar[Served | None] = ContextVar("gateway_served", default=None)
"""Set while `gateway serve` imports the module of an app, for the apps that it makes."""


def shared_store(config: Config, clock: Clock) -> SharedStore:
    """The tier that `redis_url` names. `gateway serve` starts that of `embedded`; elsewhere there is none then."""
    served, url = SERVED.get(), config.redis_url
    if url == "embedded":
        url = "none" if served is None else served.redis_url
    if url == "none":
        return NoShared()
    return RedisStore(
        url,
        prefix=config.redis_prefix,
        budget=config.redis_budget.total_seconds(),
        clock=clock if isinstance(clock, SystemClock) else None,
    )
