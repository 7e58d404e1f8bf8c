"""The gateway as a FastAPI app: routes of the configuration, handlers, and aggregates, behind one cache.

Decides what of FastAPI's own arguments the gateway answers itself (documentation, exception handlers, lifespan), and
what of an app its next generation takes over. What answers requests is made in `generation`, and by `routing`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastapi import FastAPI
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import __version__
from gateway.aggregates.aggregate import Aggregate
from gateway.app.dependency_overrides import WatchedOverrides
from gateway.app.dispatch import Dispatch, FrameworkLayers, Recording
from gateway.app.exception_handlers import exception_handlers
from gateway.app.generation import Generation, Given, Transport
from gateway.app.generations import forget_endpoints
from gateway.app.head_requests import HeadOfCached
from gateway.app.middleware import Layers, OtherSlash, Outermost
from gateway.app.openapi import OPENAPI, show_validation_problems
from gateway.app.openapi_security import add_schemes, secure_handlers
from gateway.app.routes import AppRoutes, WebSocketRelays, takes_websockets
from gateway.app.worker_state import SERVED
from gateway.cache.shared_store import SharedStore
from gateway.clock import Clock
from gateway.config.admin import tokens_of
from gateway.config.environment import CACHE_SWITCH
from gateway.config.loader import Loaded, load
from gateway.config.models import Config
from gateway.config.validation import of_mapping
from gateway.errors import ConfigError, ConfigProblem
from gateway.explain.middleware import Explaining
from gateway.observability.access_log import AccessLog
from gateway.observability.log import ONCE
from gateway.routing.declared import Declared
from gateway.routing.handler_route import handler_app
from gateway.routing.handler_settings import STATE

if TYPE_CHECKING:
    from gateway.observability.tracing import Tracing


logger = logging.getLogger("gateway")
Configuration: TypeAlias = Config | Loaded | Mapping[str, Any] | Path | str | None


def create_app(
    config: Configuration = None,
    *,
    store: SharedStore | None = None,
    transport: Transport | None = None,
    clock: Clock | None = None,
    log: AccessLog | None = None,
    tracing: Tracing | None = None,
) -> Gateway:
    """`Gateway(…)` without arguments of FastAPI's own."""
    return Gateway(config, store=store, transport=transport, clock=clock, log=log, tracing=tracing)


class Gateway(Generation, FastAPI):
    """A FastAPI app with the routes of a configuration, and the gateway's layers around FastAPI's own, so that errors
    carry their headers too.

    `config` is a Config (or a Loaded, which also has the source of each value), a mapping of its form, or the path of a
    YAML file (then `.env` and the environment apply too). `store` is the shared tier; without one it is made from
    `redis_url`, where `embedded` requires `gateway serve`: an app made here alone has only its memory. `transport`
    sends requests to all upstreams, or makes a transport for an upstream's name. `clock` is the time by which entries
    age. `tracing` creates spans; without it OpenTelemetry's environment variables decide.

    All other arguments are FastAPI's. Its `docs_url` and `redoc_url` replace the settings `docs` and `redoc`; its
    `dependencies` are those of handlers, so they can't be combined with declared routes.

    Raises ConfigError for an invalid file or mapping.
    """

    dependency_overrides: Any = WatchedOverrides()

    def __init__(
        self,
        config: Configuration = None,
        *,
        store: SharedStore | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        log: AccessLog | None = None,
        tracing: Tracing | None = None,
        **fastapi: Any,
    ) -> None:
        forget_endpoints()  # those of apps that are no longer used
        given = Given(store, transport, clock, log, tracing)
        self._make(configuration(config), given.traced, fastapi)

    def _make(self, loaded: Loaded, given: Given, fastapi: dict[str, Any], before: Gateway | None = None) -> None:
        Generation.__init__(self, loaded, given, before)
        self._fastapi = fastapi
        self._recording = Recording(self)
        self._own_handlers = exception_handlers(
            validation_errors=self.config.validation_errors, http_errors=self.config.http_errors
        )
        docs, redoc, document = self._pages()
        FastAPI.__init__(
            self,
            **{
                "title": "Gateway",
                "version": __version__,
                **{name: value for name, value in fastapi.items() if before is None or name not in _OF_THE_FIRST},
                "openapi_url": document,
                "docs_url": None,
                "redoc_url": None,
                "dependencies": None,
                "routes": None,
                "exception_handlers": {**self._own_handlers, **(fastapi.get("exception_handlers") or {})},
            },
        )
        if fastapi.get("redirect_slashes", True):
            OtherSlash(self.router)
        self._dispatch = Dispatch(
            self.router, self.router.middleware_stack, lambda context: handler_app(context, self.runtime)
        )
        self.router.middleware_stack = HeadOfCached(self._dispatch, self.router, lambda: self.runtime)
        routes = AppRoutes(
            *(self, self.config, self.engine, self.metrics, self.declared, self.aggregates, self._direct),
            handlers=lambda target: self.handlers.admissions(target),
            streams=self.worker_state.streams,
            relays=WebSocketRelays(self.guard, self.worker_state.websockets, self._cors),
        )
        self._own = tuple(routes.add_own(docs, redoc))
        self._check_dependencies(fastapi.get("dependencies"))
        routes.add_configured()
        self._made_here = frozenset(map(id, self.router.routes))
        if before is None:
            self.router.routes.extend(fastapi.get("routes") or ())
            self._live_around()
        else:
            self._take_from(before)
        self._bind_handlers(loaded.handlers)
        setattr(self.state, STATE, self.runtime)

    def _pages(self) -> tuple[str, str, str | None]:
        """The paths of the documentation pages, `off` for none, and of the OpenAPI document, None for none."""
        docs = self._fastapi.get("docs_url", self.config.docs) or "off"
        redoc = self._fastapi.get("redoc_url", self.config.redoc) or "off"
        document = self._fastapi.get("openapi_url", None if docs == redoc == "off" else OPENAPI)
        return (docs, redoc, document) if document else ("off", "off", None)

    def _check_dependencies(self, dependencies: Any) -> None:
        """Have the handlers that are added from now on depend on the app's `dependencies`. Raises ConfigError."""
        if dependencies and (self.declared or self.aggregates):
            raise ConfigError([ConfigProblem("", "dependencies", _DEPENDENCIES)])
        self.router.dependencies = list(dependencies or ())

    @property
    def app(self) -> FastAPI:
        """This app itself."""
        return self

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with security schemes, and the body that a request which does not validate gets."""
        if self.openapi_schema is None:
            document = super().openapi()
            routes: list[Declared | Aggregate] = [*self.declared, *self.aggregates]
            add_schemes(document, (each.admission for each in routes if each.admission is not None))
            secure_handlers(document, self.handlers)
            if self.config.validation_errors == "problem":
                show_validation_problems(document)
        return super().openapi()

    # --- generations ---------------------------------------------------------------------------------------

    def renewed(self, loaded: Loaded) -> Gateway:
        """The next generation: routes and settings of `loaded`, and all else of this one. Nothing of this one changes
        until the next takes over. Raises ConfigError."""
        fresh = type(self).__new__(type(self))
        fresh._make(loaded, self._given, self._fastapi, self)
        return fresh

    def _take_from(self, before: Gateway) -> None:
        """Have what the app's code gave the generation before: routes, middleware, exception handlers, and such."""
        first, rest = before._users_routes()
        self.router.routes[:] = [*first, *self.router.routes, *rest]
        self.user_middleware[:] = before.user_middleware
        self.exception_handlers |= {
            kind: handler
            for kind, handler in before.exception_handlers.items()
            if before._own_handlers.get(kind) is not handler
        }
        self.dependency_overrides = before.dependency_overrides
        self.webhooks = before.webhooks
        if "openapi" in vars(before):
            vars(self)["openapi"] = vars(before)["openapi"]  # `app.openapi = …`, as FastAPI's documentation has it

    def _users_routes(self) -> tuple[list[BaseRoute], list[BaseRoute]]:
        """The routes that the app's code added, those that stand before the gateway's own apart."""
        routes = self.router.routes
        at = next((i for i, each in enumerate(routes) if id(each) in self._made_here), len(routes))
        return routes[:at], [each for each in routes[at:] if id(each) not in self._made_here]

    # --- FastAPI -------------------------------------------------------------------------------------------

    def build_middleware_stack(self) -> ASGIApp:
        # Starlette calls this before the lifespan, or the first request where there is none: `app.get` has added its
        # routes by then.
        self.rebind()
        self.settle_edge()
        self.inner = FrameworkLayers.around(self._dispatch, super().build_middleware_stack(), self.router)
        own = partial(Layers, metrics=self.metrics, log=self._log, trusted=self.trusted, cors=self._cors)
        app: ASGIApp = own(self.inner, self.config, began=self._began, slashes=self._patterns.slashes)
        if self._given.tracing is not None:
            from gateway.observability.tracing import TracedRequests

            app = TracedRequests(app, self._given.tracing)
        tokens = tokens_of("read", self.config.admin_tokens, self.admin_token)
        return Outermost(Explaining(app, self.explain, tokens=tokens, trusted=self.trusted))

    @property
    def takes_websockets(self) -> bool:
        """Whether a route takes WebSockets; otherwise `Upgrade` is ignored (RFC 9110 §7.8)."""
        return takes_websockets(self.routes)

    def include_router(self, *args: Any, **kwargs: Any) -> None:
        super().include_router(*args, **kwargs)
        self.changed()

    def add_middleware(self, *args: Any, **kwargs: Any) -> None:
        super().add_middleware(*args, **kwargs)
        self.changed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.worker_state.started and scope["type"] != "lifespan":
            self.expect_lifespan()  # mounted: the protocol class sees the outer app
        if self.middleware_stack is None or scope["type"] != "http" or self.root_path or self._recording.is_on():
            await FastAPI.__call__(self, scope, receive, send)
            return
        scope["app"] = self
        await self.middleware_stack(scope, receive, send)


_OF_THE_FIRST = frozenset(("routes", "middleware", "lifespan", "on_startup", "on_shutdown"))
"""Arguments of FastAPI's whose effect later generations take from the one before, or that run once."""
_DEPENDENCIES = (
    "dependencies of the app are for handlers, and declared routes would be answered without them; give them to the "
    "routers of your handlers: APIRouter(dependencies=…)"
)


def configuration(config: Configuration, settings: Mapping[str, Any] | None = None) -> Loaded:
    """The configuration that an app is given, with single `settings` in place of its own. Raises ConfigError."""
    loaded = _loaded(config)
    served, switch = SERVED.get(), os.environ.get(CACHE_SWITCH)
    settings = {**(settings or {}), **({"cache": switch} if switch else {})}
    settings |= served.options if served is not None else {}
    if not settings:
        return loaded
    given = of_mapping(settings)
    changed = {name: getattr(given, name) for name in given.model_fields_set}
    return replace(loaded, config=loaded.config.model_copy(update=changed), tree={**loaded.tree, **settings})


def _loaded(config: Configuration) -> Loaded:
    if isinstance(config, Loaded):
        return config
    if isinstance(config, Config | Mapping):
        return Loaded(of_mapping(config), {}, (), tree=config if isinstance(config, dict) else {})
    served = SERVED.get()
    file = served.file if config is None and served is not None else config
    loaded = load(Path(file) if file is not None else None)
    for warning in loaded.warnings:
        logger.warning(warning, extra=ONCE)
    return loaded
