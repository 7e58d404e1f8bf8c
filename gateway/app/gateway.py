"""One generation of the gateway as a FastAPI app, and `create_app`, which makes the first: the composition root.

    timing ─► CORS ─► target ─► FastAPI ─► a handler ─► cache engine

Decides which object gets which, and what a reload keeps. Constructing an app starts no process and opens no
connection; its lifespan does. How requests are answered is decided below: in `routing`, `aggregates` and `cache`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import __version__
from gateway.advisor.advice import Advice
from gateway.aggregates.routes import Builder, aggregate_key
from gateway.app.dependency_overrides import WatchedOverrides
from gateway.app.dispatch import Dispatch, FrameworkLayers, Recording
from gateway.app.exception_handlers import exception_handlers
from gateway.app.middleware import Layers, OtherSlash, log_ignored
from gateway.app.openapi import OPENAPI, show_validation_problems
from gateway.app.python_routes import Binding
from gateway.app.routes import AppRoutes
from gateway.app.worker_state import Answering, WorkerState, shared_store
from gateway.cache.background import Underway
from gateway.cache.purge_log import PurgeReport
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import Clock, SystemClock
from gateway.config.loader import Loaded, load, sources_of
from gateway.config.models import Config
from gateway.config.names import did_you_mean
from gateway.config.route import RouteConfig
from gateway.config.upstream import UpstreamConfig
from gateway.config.validation import of_mapping
from gateway.edge.hits import Edge
from gateway.edge.passthrough import Direct, PassThrough, Patterns
from gateway.explain.explainer import Explainer, Origins, no_origins
from gateway.explain.middleware import Explaining
from gateway.explain.routes import HandlerRoute, local_of
from gateway.explain.trace import Trace
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers
from gateway.http.target import below, resolve_below
from gateway.observability.access_log import AccessLog, JsonAccessLog, silent
from gateway.policy.rules import CachePolicy
from gateway.routing.cors import Cors
from gateway.routing.declared import declare
from gateway.routing.handler_reading import Public
from gateway.routing.handler_settings import STATE, Runtime
from gateway.routing.handlers import Handlers
from gateway.upstreams.client import Upstream

if TYPE_CHECKING:
    from gateway.observability.tracing import Tracing


logger = logging.getLogger("gateway")
LEAST_EDGE = 8 * 1024 * 1024
"""Bytes, in each worker, with Redis: if `memory` is small, the edge's knowledge lets it serve from Redis."""
Transport = httpx.AsyncBaseTransport | Callable[[str], httpx.AsyncBaseTransport]


def create_app(
    config: Config | Loaded | Mapping[str, Any] | Path | str | None = None,
    *,
    store: SharedStore | None = None,
    transport: Transport | None = None,
    clock: Clock | None = None,
    log: AccessLog | None = None,
    tracing: Tracing | None = None,
) -> Gateway:
    """The gateway as a FastAPI app.

    `config` is a Config (or a Loaded, which also has the source of each value), a mapping of its form, or the path of a
    YAML file (then `.env` and the environment apply too). `store` is the shared tier; without one it is made from
    `redis_url`, where `embedded` requires `gateway serve`: an app made here alone has only its memory. `transport`
    sends requests to all upstreams, or makes a transport for an upstream's name. `clock` is the time by which entries
    age. `tracing` creates spans; without it OpenTelemetry's environment variables decide.

    Raises ConfigError for an invalid file, pydantic.ValidationError for an invalid mapping.
    """
    loaded = _configuration(config)
    clock = clock or SystemClock()
    shared = store if store is not None else shared_store(loaded.config, clock)
    if tracing is None and any(name.startswith("OTEL_") for name in os.environ):
        from gateway.observability.tracing import tracing_of_environment  # imported only if used

        tracing = tracing_of_environment(os.environ)
    gateway = Gateway(loaded.config, shared=shared, transport=transport, clock=clock, log=log, tracing=tracing)
    gateway.origins = partial(sources_of, loaded)
    gateway.admin_token = loaded.admin_token
    return gateway


@dataclass(frozen=True)
class _Given:
    """Collaborators that each generation is made with."""

    transport: Transport | None
    log: AccessLog | None
    tracing: Tracing | None


class Gateway(FastAPI):
    """FastAPI with the gateway's layers around its own, so that errors carry their headers too."""

    dependency_overrides: Any = WatchedOverrides()

    def __init__(
        self,
        config: Config,
        *,
        shared: SharedStore,
        transport: Transport | None,
        clock: Clock,
        log: AccessLog | None,
        tracing: Tracing | None = None,
        before: Gateway | None = None,
        handler_rules: Mapping[str, CachePolicy] | None = None,
        overridden: Mapping[str, RouteConfig] | None = None,
    ) -> None:
        self.config = config
        self.origins: Origins = no_origins
        self.admin_token: str | None = None
        self.stopping = False
        # What outlasts this generation refers to `answering`: by `self` the first one would never be freed.
        self._answering = answering = Answering(self)
        self._given = _Given(transport, log, tracing)
        self._log = log if log is not None else (JsonAccessLog(hits=config.log_hits) if config.access_log else silent)
        self._included: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.underway = Underway()
        self.lasting: WorkerState = (
            before.lasting
            if before is not None
            else WorkerState(
                config,
                shared=shared,
                clock=clock,
                log=self._log,
                ttls=lambda: answering.gateway.ttls(),
                identity_changed=lambda: answering.gateway.forget(),
            )
        )
        self.trusted = Trusted(config.trusted_proxies, log_ignored)
        self._cors = Cors(config.cors) if config.cors.enabled else None
        self.metrics, self.engine, self.shared = self.lasting.metrics, self.lasting.engine, self.lasting.shared
        self.purges, self.watch, self.door = self.lasting.purges, self.lasting.watch, self.lasting.door
        self.upstreams = {name: self._upstream(name, each, before) for name, each in config.upstreams.items()}
        self.declared = declare(config, self.upstreams, self.engine.identity_key)
        self.builder = Builder.of(config, self.engine, self.metrics, self.upstreams, self.declared, overridden or {})
        self.aggregates = self.builder.all()
        if before is None:
            self.lasting.show_upstreams(self.upstreams.values())
        self._direct: dict[str, Direct] = {}
        self._patterns = Patterns(lambda: self.router.routes, self._direct)
        self.edge: Edge | None = self._edge()
        self.inner: ASGIApp | None = None
        self._recording = Recording(self)
        documented = config.docs != "off" or config.redoc != "off"
        super().__init__(
            title="Gateway",
            version=__version__,
            openapi_url=OPENAPI if documented else None,
            docs_url=None,
            redoc_url=None,
            lifespan=_lifespan,
            exception_handlers=exception_handlers(validation_errors=config.validation_errors),
        )
        OtherSlash(self.router)
        self._dispatch = self.router.middleware_stack = Dispatch(self.router, self.router.middleware_stack)
        routes = AppRoutes(self, config, self.engine, self.metrics, self.declared, self.aggregates, self._direct)
        self._own = routes.add_own()
        routes.add_configured()
        self._bind_handlers(handler_rules or {})

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the body that a request which does not validate gets."""
        if self.openapi_schema is None and self.config.validation_errors == "problem":
            show_validation_problems(super().openapi())
        return super().openapi()

    def _edge(self) -> Edge:
        """What the protocol class may serve from. If requests are traced, the app serves each."""
        config = self.config
        edge = Edge(
            self.engine,
            metrics=self.metrics,
            cors=self._cors,
            log=self._log,
            trusted=self.trusted,
            traced=self._given.tracing is not None,
            root=config.prefix,
            room=max(config.memory // config.workers // 4, 0 if isinstance(self.shared, NoShared) else LEAST_EDGE),
        )
        if self._given.tracing is None:
            edge.passages = PassThrough(
                engine=self.engine,
                metrics=self.metrics,
                log=self._log,
                trusted=self.trusted,
                cors=self._cors,
                patterns=self._patterns,
                underway=self.underway,
                root=config.prefix,
            )
        return edge

    def forget(self) -> None:
        """Forget entries stored under keys of the previous identity key."""
        self.engine.memory.clear()
        if self.edge is not None:
            self.edge = self._edge()

    def _upstream(self, name: str, config: UpstreamConfig, before: Gateway | None) -> Upstream:
        """The upstream of that name, with its connections if its configuration did not change."""
        known = before.upstreams.get(name) if before is not None else None
        if known is not None and known.config == config:
            return known
        transport = self._given.transport
        return Upstream(
            name,
            config,
            transport(name) if callable(transport) else transport,
            alone=self.lasting.alone,
            tracing=self._given.tracing,
        )

    def renewed(self, loaded: Loaded) -> Gateway:
        """The next generation: routes and settings of `loaded`, and all else of this one. Nothing of this one changes
        until the next takes over. Raises ConfigError."""
        fresh = Gateway(
            loaded.config,
            shared=self.shared,
            clock=self.engine.clock,
            transport=self._given.transport,
            log=self._given.log,
            tracing=self._given.tracing,
            before=self,
            handler_rules=loaded.handlers,
            overridden=loaded.aggregates,
        )
        fresh.origins = partial(sources_of, loaded)
        fresh.admin_token = loaded.admin_token
        fresh.user_middleware += self.user_middleware
        fresh.dependency_overrides = self.dependency_overrides
        for args, kwargs in self._included:
            fresh.include_router(*args, **kwargs)
        return fresh

    def take_over(self, before: Gateway) -> None:
        """Be the generation that answers from now on, in the place of `before`."""
        runtime = getattr(self.state, STATE)
        for name, value in before.state._state.items():
            setattr(self.state, name, value)
        runtime.lifespan = getattr(before.state, STATE).lifespan
        setattr(self.state, STATE, runtime)
        self.lasting.configure(self.config, self._log)
        for name, upstream in self.upstreams.items():
            if (known := before.upstreams.get(name)) is not None:
                upstream.go_on_counting(known)
        self.lasting.show_upstreams(self.upstreams.values())
        self._answering = before._answering
        self._answering.gateway = self

    @property
    def latest(self) -> Gateway:
        """The generation that answers now."""
        return self._answering.gateway

    def build_middleware_stack(self) -> ASGIApp:
        # Starlette calls this before the lifespan, or the first request where there is none: `app.get` has added its
        # routes by then.
        if hasattr(self, "_binding"):
            self.rebind()
            self.edge = None if self.user_middleware else self.edge
        self.inner = FrameworkLayers.around(self._dispatch, super().build_middleware_stack(), self.router)
        own = partial(Layers, metrics=self.metrics, log=self._log, trusted=self.trusted, cors=self._cors)
        app: ASGIApp = own(self.inner, self.config, began=self._began, slashes=self._patterns.slashes)
        if self._given.tracing is not None:
            from gateway.observability.tracing import TracedRequests

            app = TracedRequests(app, self._given.tracing)
        return Explaining(app, self.explain, token=self.admin_token, trusted=self.trusted)

    def _began(self, state: Mapping[str, Any]) -> None:
        runtime: Runtime = getattr(self.state, STATE)
        runtime.lifespan = state

    def _bind_handlers(self, overridden: Mapping[str, CachePolicy]) -> None:
        """Check and prepare the handlers that `@cached` wraps, and the upstreams that handlers name."""

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            if self.middleware_stack is None:
                self.middleware_stack = self.build_middleware_stack()
            assert self.inner is not None
            await self.inner(scope, receive, send)

        runtime = Runtime(
            engine=self.engine,
            upstreams=self.upstreams,
            metrics=self.metrics,
            drop_query=tuple(self.config.drop_query),
            max_body=self.config.max_body,
            inner=inner,
            overridden=overridden,
            public=Public.of(self.config.public_url),
            middleware=self.user_middleware,
        )
        setattr(self.state, STATE, runtime)
        self._binding = Binding(runtime, self.builder, self.aggregates)
        self.rebind()

    def rebind(self) -> None:
        """Prepare `@cached` handlers of routers that were included after the app was made."""
        self._binding.bind(self.routes, self.dependency_overrides)

    def include_router(self, *args: Any, **kwargs: Any) -> None:
        super().include_router(*args, **kwargs)
        if hasattr(self.state, STATE):
            self._included.append((args, kwargs))
            self.changed()

    def add_middleware(self, *args: Any, **kwargs: Any) -> None:
        super().add_middleware(*args, **kwargs)
        self.changed()

    def changed(self) -> None:
        """Make the edge forget what it has learned. Middleware may refuse a request, so there is no edge then."""
        latest = self.latest
        if hasattr(latest.state, STATE):
            latest.rebind()
            latest.edge = latest._edge() if latest.edge is not None and not latest.user_middleware else None

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
            keys=primaries, tags=tags, routes=routes, everything=everything, soft=soft, by=by
        )

    def route_names(self) -> list[str]:
        """The names by which routes can be purged: those of the configuration, those of parts
        (`home.offers`), and those of `@cached` handlers."""
        runtime: Runtime = getattr(self.state, STATE)
        parts = [name for each in self.aggregates for name in each.part_routes]
        return [*self.config.routes, *parts, *(route.name for route, _ in runtime.bound.values())]

    def primary_keys(self, url: str) -> list[str]:
        """The primary keys of what the gateway serves at `url`. Raises RequestRefused."""
        parts = urlsplit(url)
        path, query, root = (parts.path or "/").encode(), parts.query.encode(), self.config.prefix
        target = below(resolve_below(path, query, root, self._patterns.slashes), root)
        keys = Handlers(self.engine, self.metrics, self.declared).public_keys(target)
        runtime: Runtime = getattr(self.state, STATE)
        joined = [aggregate_key(each, target) for each in self.aggregates if each.config.template.match(target.path)]
        return [*keys[:1], *joined[:1], *runtime.keys_of(target)]

    async def explain(self, method: str, raw_target: str, headers: Headers = ()) -> Trace:
        """Why a request would get its response, without fetching, storing or counting anything."""
        return await self.explainer().explain(method, raw_target, headers)

    def explainer(self, *, running: bool = True) -> Explainer:
        """The explainer; without a `running` gateway, by the configuration alone."""
        return Explainer(
            self.declared,
            self.origins,
            self.engine if running else None,
            self.aggregates,
            self.handler_routes(),
            local_of(self._own, self.router),
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
        runtime: Runtime = getattr(self.state, STATE)
        return runtime.coded

    def handler_path(self, name: str) -> str:
        """The path of the `@cached` handler of that name; the first if it has several."""
        return next((route.path for route in self.handler_routes() if route.name == name), "(Python)")

    def ttls(self) -> dict[str, float | None]:
        """Each route's TTL in force, in seconds; None if it follows the upstream."""
        runtime: Runtime = getattr(self.state, STATE)
        routes = [route.engine_route for route in self.declared]
        routes += [route for each in self.aggregates for route in each.own_routes]
        routes += [route for route, _ in runtime.bound.values()]
        return {route.name: route.rules.ttl for route in routes}

    async def advice(self) -> list[Advice]:
        """The estimates for each TTL of each route with observations; aggregates have none of their own."""
        ttls = self.ttls()
        return [each for each in await self.watch.advice() if each.route in ttls]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.lasting.started and scope["type"] != "lifespan":
            self.expect_lifespan()  # mounted: the protocol class sees the outer app
        if self.middleware_stack is None or scope["type"] != "http" or self.root_path or self._recording.is_on():
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.middleware_stack(scope, receive, send)

    def expect_lifespan(self) -> None:
        """Called with each connection: without a started lifespan, continue without it."""
        if not self.lasting.started:
            self.lasting.go_without_lifespan()

    @asynccontextmanager
    async def lifespan(self, outer: object = None) -> AsyncIterator[None]:
        """The lifespan for an app that mounts this one, which Starlette runs for the outer app alone:
        `FastAPI(lifespan=gateway.lifespan)`."""
        async with self.router.lifespan_context(self):
            yield

    async def start(self) -> None:
        await self.lasting.start()
        if "fastapi_cache" in sys.modules:
            from gateway.fastapi_cache2 import backend

            backend.register(self.engine, budget=self.config.redis_budget.total_seconds())

    async def stop(self) -> None:
        self.lasting.lag.stop()
        if "fastapi_cache" in sys.modules:
            from gateway.fastapi_cache2 import backend

            backend.unregister(self.engine)
        await self.lasting.aclose()
        await self.engine.aclose()
        for upstream in self.latest.upstreams.values():
            await upstream.aclose()
        await self.watch.aclose()
        await self.purges.aclose()
        await self.shared.aclose()
        if self._given.tracing is not None:
            await asyncio.to_thread(self._given.tracing.close)


def _configuration(config: Config | Loaded | Mapping[str, Any] | Path | str | None) -> Loaded:
    if isinstance(config, Loaded):
        return config
    if isinstance(config, Config | Mapping):
        return Loaded(of_mapping(config), {}, ())
    loaded = load(Path(config) if config is not None else None)
    for warning in loaded.warnings:
        logger.warning(warning)
    return loaded


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, Gateway)
    await app.start()
    try:
        yield
    finally:
        await app.stop()
