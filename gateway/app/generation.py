"""One generation: a FastAPI app, and all that its answers come from under one configuration.

    timing ─► CORS ─► target ─► FastAPI ─► a handler ─► cache engine

Decides which object gets which, and what a reload keeps. Making one starts no process and opens no connection; the
lifespan of its app does. Whose app it is differs: a `Gateway` is a FastAPI itself, a `Cache` is put around one. How
requests are answered is decided below: in `routing`, `aggregates` and `cache`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp

from gateway.advisor.advice import Advice
from gateway.aggregates.builder import Builder
from gateway.aggregates.routes import aggregate_key
from gateway.app.exception_handlers import GATEWAYS_OWN
from gateway.app.middleware import log_ignored
from gateway.app.python_routes import Binding
from gateway.app.worker_state import Answering, WorkerState, shared_store
from gateway.cache.purge_log import PurgeReport
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import Clock, SystemClock
from gateway.config.loader import Loaded, sources_of
from gateway.config.names import did_you_mean
from gateway.config.part_identity import all_tags
from gateway.config.route import RouteConfig
from gateway.config.tls import files_of, fingerprint
from gateway.config.upstream import UpstreamConfig
from gateway.config.validation import without_cache
from gateway.edge.direct_routes import Direct, Patterns
from gateway.edge.guard import Underway
from gateway.edge.hits import Edge
from gateway.edge.passthrough import PassThrough
from gateway.explain.explainer import Explainer
from gateway.explain.routes import HandlerRoute, local_of
from gateway.explain.trace import Trace
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers
from gateway.http.target import below, resolve_below
from gateway.observability.access_log import AccessLog, JsonAccessLog, silent
from gateway.policy.claim_tags import TagNames
from gateway.policy.rules import CachePolicy
from gateway.routing.cors import Cors
from gateway.routing.declared import declare
from gateway.routing.function_calls import FunctionCache, running
from gateway.routing.handler_reading import Public
from gateway.routing.handler_settings import STATE, Runtime
from gateway.routing.handlers import Handlers
from gateway.routing.user_middleware import KnownMiddleware, fields_read, opaque
from gateway.upstreams.client import Upstream
from gateway.upstreams.httpx_api import httpx

if TYPE_CHECKING:
    from gateway.observability.tracing import Tracing


logger = logging.getLogger("gateway")
LEAST_EDGE = 8 * 1024 * 1024
"""Bytes, in each worker, with Redis: if `memory` is small, the edge's knowledge lets it serve from Redis."""
Transport: TypeAlias = httpx.AsyncBaseTransport | Callable[[str], httpx.AsyncBaseTransport]


@dataclass(frozen=True)
class Given:
    """Collaborators that an app is made with, and each of its later generations."""

    store: SharedStore | None = None
    transport: Transport | None = None
    clock: Clock | None = None
    log: AccessLog | None = None
    tracing: Tracing | None = None

    @property
    def traced(self) -> Given:
        """With the tracing that OpenTelemetry's environment variables ask for, if none is given."""
        if self.tracing is None and any(name.startswith("OTEL_") for name in os.environ):
            from gateway.observability.tracing import tracing_of_environment  # imported only if used

            return replace(self, tracing=tracing_of_environment(os.environ))
        return self


class Generation:
    """What answers by one configuration."""

    runtime: Runtime | None = None
    inner: ASGIApp | None = None
    """The app without the gateway's layers; None until it starts."""
    _own: tuple[BaseRoute, ...] = ()
    """Routes for health and documentation."""

    def __init__(self, loaded: Loaded, given: Given, before: Generation | None = None) -> None:
        self.loaded = loaded
        self.config = config = loaded.config if loaded.config.cache else without_cache(loaded.config)
        self.origins = partial(sources_of, loaded)
        self.admin_token = loaded.admin_token
        self.stopping = False
        # What outlasts this generation refers to `answering`: by `self` the first one would never be freed.
        self._answering = answering = Answering(self)
        self._given = given
        self._log = self._made_log()
        self.underway = Underway()
        clock = given.clock or SystemClock()
        self.worker_state: WorkerState = (
            before.worker_state
            if before is not None
            else WorkerState(
                config,
                shared=given.store if given.store is not None else shared_store(config, clock),
                clock=clock,
                log=self._log,
                ttls=lambda: answering.gateway.ttls(),
                identity_changed=lambda: answering.gateway.forget(),
                issuer_transport=self._issuer_transport,
            )
        )
        self.trusted = Trusted(config.trusted_proxies, log_ignored)
        self._cors = self._made_cors()
        state = self.worker_state
        self.metrics, self.engine, self.shared = state.metrics, state.engine, state.shared
        self.purges, self.watch, self.guard = state.purges, state.watch, state.guard
        self.tls_files = {name: fingerprint(files_of(each)) for name, each in config.upstreams.items()}
        """What each upstream's files of certificates and keys contained."""
        self.upstreams = {name: self._upstream(name, each, before) for name, each in config.upstreams.items()}
        self._identity = identity = self.worker_state.providers.of(config.identity, self.upstreams)
        self.declared = declare(config, self.upstreams, self.engine.identity_key, identity, state.limiter)
        self.builder = Builder.of(
            config, self.engine, self.metrics, self.upstreams, self.declared, loaded.aggregates, identity, state.limiter
        )
        self.aggregates = self.builder.all()
        if before is None:
            self.worker_state.show_upstreams(self.upstreams.values())
            self.worker_state.providers.take_over()
        self._direct: dict[str, Direct] = {}
        self._patterns = Patterns(partial(attrgetter("router.routes"), self.app), self._direct)
        functions = FunctionCache(self.engine, lambda: answering.gateway.handlers)
        self.functions: FunctionCache = before.functions if before is not None else functions
        self.edge: Edge | None = None

    @property
    def app(self) -> FastAPI:
        """The app whose routes answer."""
        raise NotImplementedError

    def renewed(self, loaded: Loaded) -> Generation:
        """The next generation: routes and settings of `loaded`, and all else of this one. Nothing of this one changes
        until the next takes over. Raises ConfigError."""
        raise NotImplementedError

    def _made_log(self) -> AccessLog:
        if self._given.log is not None:
            return self._given.log
        return JsonAccessLog(hits=self.config.log_hits) if self.config.access_log else silent

    # --- the edge ------------------------------------------------------------------------------------------

    def new_edge(self) -> Edge | None:
        """What the protocol class may serve from; None if the app's own middleware may refuse a request. If requests
        are traced, the app serves each."""
        middleware = self.app.user_middleware
        if opaque(middleware) is not None or (middleware and self._cors is not None):
            return None
        config = self.config
        edge = Edge(
            self.engine,
            metrics=self.metrics,
            cors=KnownMiddleware(middleware) if middleware else self._cors,
            log=self._log,
            trusted=self.trusted,
            traced=self.is_traced,
            root=config.prefix,
            room=max(config.memory // config.workers // 4, 0 if isinstance(self.shared, NoShared) else LEAST_EDGE),
            left_to_app=fields_read(middleware),
            credentials=[source for each in self._identity.values() for source in each.sources],
            reads=frozenset(name for route in self.declared for name in route.config.content_methods),
        )
        if not self.is_traced and not middleware:
            edge.pass_through = PassThrough(
                engine=self.engine,
                metrics=self.metrics,
                log=self._log,
                trusted=self.trusted or None,
                cors=self._cors,
                patterns=self._patterns,
                underway=self.underway,
                root=config.prefix,
            )
        return edge

    def settle_edge(self) -> None:
        """Make another edge if the app's middleware or tracing is not what it was made for."""
        middleware = self.app.user_middleware
        if self.edge is not None and (
            opaque(middleware) or self.edge.left_to_app != fields_read(middleware) or self.edge.traced != self.is_traced
        ):
            self.edge = self.new_edge()

    @property
    def is_traced(self) -> bool:
        """Whether requests have spans: the gateway's, FastAPI's, or those of opentelemetry-instrumentation-fastapi."""
        native = getattr(self.app, "_native_telemetry", None)
        instrumented = getattr(self.app, "_is_instrumented_by_opentelemetry", False)
        return self._given.tracing is not None or instrumented or (native is not None and bool(native.enabled()))

    def _made_cors(self) -> Cors | None:
        cors = self.config.cors
        if "allow_methods" not in cors.model_fields_set:
            reads = {name for route in self.config.routes.values() for name in route.content_methods}
            cors = cors.model_copy(update={"allow_methods": [*cors.allow_methods, *sorted(reads)]})
        return Cors(cors) if cors.enabled else None

    def forget(self) -> None:
        """Forget entries stored under keys of the previous identity key."""
        self.engine.memory.clear()
        if self.edge is not None:
            self.edge = self.new_edge()

    def changed(self) -> None:
        """Prepare handlers that are new, and make the edge forget what it has learned."""
        latest = self.latest
        if latest.runtime is not None:
            latest.rebind()
            latest.edge = latest.new_edge() if latest.edge is not None else None

    # --- generations ---------------------------------------------------------------------------------------

    @property
    def latest(self) -> Generation:
        """The generation that answers now."""
        return self._answering.gateway

    def take_over(self, before: Generation) -> None:
        """Be the generation that answers from now on, in the place of `before`."""
        assert self.runtime is not None
        if self.app is not before.app:
            for name, value in before.app.state._state.items():
                setattr(self.app.state, name, value)
        if before.runtime is not None:
            self.runtime.lifespan = before.runtime.lifespan
        for each in (self.app, *_mounted(self.app.routes)):
            if each is self.app or getattr(each.state, STATE, None) is before.runtime:
                setattr(each.state, STATE, self.runtime)
        self.worker_state.configure(self.config, self._log)
        for name, upstream in self.upstreams.items():
            if (known := before.upstreams.get(name)) is not None:
                upstream.go_on_counting(known)
        self.worker_state.show_upstreams(self.upstreams.values())
        self.worker_state.providers.take_over()
        self.worker_state.streams.retire(self._would_stream)
        self._answering = before._answering
        self._answering.gateway = self

    def _would_stream(self, of: tuple[object, object]) -> bool:
        """Whether a shared stream would be requested in the same way by this generation."""
        return any(each.upstream is of[0] and each.config == of[1] for each in self.declared)

    def _issuer_transport(self, name: str) -> httpx.AsyncBaseTransport | None:
        transport = self._given.transport
        return transport(f"identity {name}") if callable(transport) else transport

    def _upstream(self, name: str, config: UpstreamConfig, before: Generation | None) -> Upstream:
        """The upstream of that name, with its connections if neither its configuration nor its files did change."""
        known = before.upstreams.get(name) if before and before.tls_files.get(name) == self.tls_files[name] else None
        if known is not None and known.config == config:
            return known
        transport = self._given.transport
        return Upstream(
            name,
            config,
            transport(name) if callable(transport) else transport,
            alone=self.worker_state.alone,
            tracing=self._given.tracing,
        )

    # --- handlers ------------------------------------------------------------------------------------------

    def _bind_handlers(self, overridden: Mapping[str, CachePolicy]) -> None:
        """Check and prepare the handlers that `@cached` wraps, and the upstreams that handlers name. Raises
        ConfigError."""
        self.runtime = Runtime(
            engine=self.engine,
            upstreams=self.upstreams,
            metrics=self.metrics,
            drop_query=tuple(self.config.drop_query),
            max_body=self.config.max_body,
            inner=self._run_inner,
            providers=self._identity,
            rebind=self.rebind,
            bearer=self,
            overridden=overridden,
            off=not self.config.cache,
            public=Public.of(self.config.public_url),
            middleware=self.app.user_middleware,
        )
        self._binding = Binding(self.runtime, self.builder, self.aggregates)
        self.rebind()
        self.edge = self.new_edge()

    async def _run_inner(self, scope: Any, receive: Any, send: Any) -> None:
        """Have the app answer a request without the layers around it."""
        if self.inner is None:
            self.app.middleware_stack = self.app.build_middleware_stack()
        assert self.inner is not None
        await self.inner(scope, receive, send)

    def rebind(self) -> None:
        """Prepare `@cached` handlers that were added since the last time. The app does so itself when it starts, and
        with the first request of such a handler."""
        mounted = list(_mounted(self.app.routes))
        for each in mounted:
            if not hasattr(each.state, STATE):
                setattr(each.state, STATE, self.runtime)
                each.exception_handlers |= {**GATEWAYS_OWN, **each.exception_handlers}
        routes = [route for each in mounted if getattr(each.state, STATE) is self.runtime for route in each.routes]
        self._binding.bind(self.app.routes, self.app.dependency_overrides, routes)

    def _began(self, state: Mapping[str, Any]) -> None:
        assert self.runtime is not None
        self.runtime.lifespan = state

    # --- operations ----------------------------------------------------------------------------------------

    async def purge(
        self,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        routes: Iterable[str] = (),
        everything: bool = False,
        soft: bool = False,
        by: str = "python",
    ) -> PurgeReport:
        """Purge entries: by URL (a path, or one of the gateway's own URLs), tag, route, or all.

        When the report is complete, no response that starts now anywhere contains data fetched before. `soft` makes
        entries stale instead. Raises RequestRefused for an invalid URL, ValueError for an unknown route.
        """
        primaries = [primary for url in keys for primary in self.primary_keys(url)]
        known = self.route_names()
        for route in routes:
            if route not in known:
                raise ValueError(f"there is no route {route!r}{did_you_mean(route, known)}")
        return await self.engine.purge(
            keys=primaries, tags=self.stored_tags(tags), routes=routes, everything=everything, soft=soft, by=by
        )

    def stored_tags(self, tags: Iterable[str]) -> list[str]:
        """The names under which entries have these tags: of those that name claims, digests."""
        templates = [*all_tags((*self.config.routes.values(), *self.written.values())), *self.handlers.tags]
        return TagNames(templates).stored(tags, self.engine.identity_key)

    @property
    def handlers(self) -> Runtime:
        """The context of `@cached` handlers."""
        assert self.runtime is not None
        return self.runtime

    def route_names(self) -> list[str]:
        """The names by which routes can be purged: those of the configuration, those of parts
        (`home.offers`), and those of `@cached` handlers and functions."""
        return [
            *self.config.routes,
            *(name for each in self.aggregates for name in each.part_routes),
            *(route.name for route, _ in self.handlers.bound.values()),
            *self.handlers.functions,
        ]

    def primary_keys(self, url: str) -> list[str]:
        """The primary keys of what the gateway serves at `url`. Raises RequestRefused."""
        parts = urlsplit(url)
        path, query, root = (parts.path or "/").encode(), parts.query.encode(), self.config.prefix
        target = below(resolve_below(path, query, root, self._patterns.slashes), root)
        keys = Handlers(self.engine, self.metrics, self.declared).public_keys(target)
        joined = [aggregate_key(each, target) for each in self.aggregates if each.config.template.match(target.path)]
        return [*keys[:1], *joined[:1], *self.handlers.keys_of(target)]

    async def explain(self, method: str, raw_target: str, headers: Headers = (), content: bytes | None = None) -> Trace:
        """Why a request would get its response, without fetching, storing or counting anything. `content` is the body
        of a QUERY, or of another read that has one."""
        return await self.explainer().explain(method, raw_target, headers, content)

    def explainer(self, *, running: bool = True) -> Explainer:
        """The explainer; without a `running` gateway, by the configuration alone."""
        return Explainer(
            self.declared,
            self.origins,
            self.engine if running else None,
            self.aggregates,
            self.handler_routes(),
            local_of(list(self._own), self.app.router),
            self.config.cors.enabled,
            self.config.prefix,
            self.config.public_url,
        )

    def handler_routes(self) -> list[HandlerRoute]:
        """The paths that Python handlers answer, declared ones and typed aggregates left out."""
        return self._binding.handler_routes({*map(id, self._own)}, self.config.routes)

    @property
    def written(self) -> Mapping[str, RouteConfig]:
        """The aggregates that are written in Python, by name, as their code has them."""
        return {each.name: each.written for each in self.aggregates if each.written is not None}

    def coded_rules(self) -> Mapping[str, CachePolicy]:
        """The rules of `@cached` handlers, by name, as their code has them."""
        return self.handlers.coded

    def handler_path(self, name: str) -> str:
        """The path of the `@cached` handler of that name; the first if it has several."""
        return next((route.path for route in self.handler_routes() if route.name == name), "(Python)")

    def ttls(self) -> dict[str, float | None]:
        """Each route's TTL in force, in seconds; None if it follows the upstream."""
        routes = [route.engine_route for route in self.declared]
        routes += [route for each in self.aggregates for route in each.own_routes]
        routes += [route for route, _ in self.handlers.bound.values()]
        return {route.name: route.rules.ttl for route in routes}

    async def advice(self) -> list[Advice]:
        """The estimates for each TTL of each route with observations; aggregates have none of their own."""
        ttls = self.ttls()
        return [each for each in await self.watch.advice() if each.route in ttls]

    def expect_lifespan(self) -> None:
        """Called with each connection: without a started lifespan, continue without it."""
        if not self.worker_state.started:
            self.worker_state.go_without_lifespan()

    @asynccontextmanager
    async def lifespan(self, outer: object = None) -> AsyncIterator[None]:
        """The lifespan for an app that mounts this one, which Starlette runs for the outer app alone:
        `FastAPI(lifespan=gateway.lifespan)`."""
        async with self.app.router.lifespan_context(self.app):
            yield

    def _live_around(self) -> None:
        """Have the app's lifespan start this generation before what else it does, and stop the latest after it."""
        inner: Callable[[Any], AbstractAsyncContextManager[Any]] = self.app.router.lifespan_context

        @asynccontextmanager
        async def around(app: Any) -> AsyncIterator[Any]:
            await self.start()
            try:
                async with inner(app) as state:
                    yield state
            finally:
                await self.stop()

        self.app.router.lifespan_context = around

    async def start(self) -> None:
        await self.worker_state.start()
        running.begin(self.functions)
        if "fastapi_cache" in sys.modules:
            from gateway.fastapi_cache2 import backend

            backend.register(self.engine, budget=self.config.redis_budget.total_seconds())

    async def stop(self) -> None:
        running.end(self.functions)
        self.worker_state.lag.stop()
        if "fastapi_cache" in sys.modules:
            from gateway.fastapi_cache2 import backend

            backend.unregister(self.engine)
        await self.worker_state.aclose()
        await self.engine.aclose()
        if self.latest.edge is not None:
            self.latest.edge.forget()  # what it has learned leads back to it, past the garbage collector
        for upstream in self.latest.upstreams.values():
            await upstream.aclose()
        await self.watch.aclose()
        await self.purges.aclose()
        await self.shared.aclose()
        if self._given.tracing is not None:
            await asyncio.to_thread(self._given.tracing.close)


def _mounted(routes: Sequence[BaseRoute]) -> Iterator[FastAPI]:
    """The sub-applications, and theirs, which have no cache of their own."""
    for route in routes:
        if isinstance(route, Mount) and isinstance(route.app, FastAPI) and not isinstance(route.app, Generation):
            yield route.app
            yield from _mounted(route.app.routes)
