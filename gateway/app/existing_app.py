"""`Cache(app)`: the gateway's cache in a FastAPI app that exists.

    app = FastAPI()
    cache = Cache(app, redis_url="redis://cache:6379/0")

Decides what of such an app is touched: its handlers that `@cached` wraps, and its lifespan. All else stays the app's:
middleware, exception handlers, error bodies, WebSockets, sub-applications, paths as clients write them, and every
response that no cached handler made. How a cached handler is answered is decided below, as for a `Gateway`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.app.dependency_overrides import Overrides
from gateway.app.exception_handlers import GATEWAYS_OWN
from gateway.app.gateway import Configuration, configuration
from gateway.app.generation import Generation, Given, Transport
from gateway.app.generations import forget_endpoints
from gateway.app.head_requests import HeadOfCached
from gateway.app.middleware import Layers, Outermost
from gateway.app.openapi_security import secure_handlers
from gateway.app.protected_resource import Admissions, ProtectedResources
from gateway.app.worker_state import SERVED
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import Clock
from gateway.config.admin import tokens_of
from gateway.config.identity import IssuerConfig
from gateway.config.loader import Loaded
from gateway.context import SCOPE_KEY, RequestContext
from gateway.errors import ConfigError, ConfigProblem, RequestRefused
from gateway.explain.middleware import Explaining
from gateway.http.headers import Headers
from gateway.observability.access_log import AccessLog, silent
from gateway.routing.handler_settings import STATE

if TYPE_CHECKING:
    from gateway.observability.tracing import Tracing


class Cache(Generation):
    """The cache of the `@cached` handlers of `app`, which may be added to it before or after.

    `config` and the collaborators are as for a `Gateway`; `settings` are single settings of the configuration, which
    replace those of `config`. Upstreams may be among them, for handlers; routes may not, as they would need the
    gateway's own layers.

    Raises ConfigError for an invalid configuration, and ValueError for an app that has a cache.
    """

    def __init__(
        self,
        app: FastAPI,
        config: Configuration = None,
        *,
        store: SharedStore | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        log: AccessLog | None = None,
        tracing: Tracing | None = None,
        **settings: Any,
    ) -> None:
        if hasattr(app.state, STATE):
            raise ValueError("the app has a cache already; use Cache once, and not for a Gateway")
        forget_endpoints()  # those of apps that are no longer used
        self._stack = _Stack(self)
        given = Given(store, transport, clock, log, tracing)
        self._make(app, configuration(config, settings), given.traced)
        setattr(app.state, STATE, self.runtime)
        for kind, handler in GATEWAYS_OWN.items():
            app.exception_handlers.setdefault(kind, handler)
        app.dependency_overrides = self._overrides = Overrides(app.dependency_overrides)
        self._overrides.apps.add(self)
        self._live_around()
        self._stack.put_around(app)
        self._stack.describe(app)
        app.router.middleware_stack = HeadOfCached(app.router.middleware_stack, app.router, lambda: self.latest.runtime)

    def _make(self, app: FastAPI, loaded: Loaded, given: Given, before: Cache | None = None) -> None:
        self._app = app
        _refuse_routes(loaded)
        Generation.__init__(self, loaded, given, before)
        self._layers: ASGIApp | None = None
        self._bind_handlers(loaded.handlers)

    @property
    def app(self) -> FastAPI:
        """The app that the cache is in."""
        return self._app

    def renewed(self, loaded: Loaded) -> Cache:
        """The next generation: settings of `loaded`, and all else of this one. Nothing of this one changes until the
        next takes over. Raises ConfigError."""
        fresh = Cache.__new__(Cache)
        fresh._stack = self._stack
        fresh._make(self._app, loaded, self._given, self)
        return fresh

    @property
    def inner(self) -> ASGIApp | None:  # type: ignore[override]
        """The app without the cache's layers; None until it starts."""
        return self._stack.inner

    def _made_cors(self) -> None:
        """None: the app has its own."""

    def _made_log(self) -> AccessLog:
        """The server logs requests, unless the setting is there."""
        wanted = "access_log" in self.config.model_fields_set or SERVED.get() is not None
        return super()._made_log() if wanted else self._given.log or silent

    @property
    def layers(self) -> ASGIApp:
        """The layers of this generation around the app."""
        if self._layers is None:
            assert self.inner is not None
            own = partial(SeenLayers, metrics=self.metrics, log=self._log, trusted=self.trusted, cors=None)
            app = own(self.inner, self.config, began=self._began, slashes=self._patterns.slashes)
            tokens = tokens_of("read", self.config.admin_tokens, self.admin_token)
            self._layers = Explaining(app, self.explain, tokens=tokens, trusted=self.trusted)
        return self._layers

    def expect_lifespan(self) -> None:
        """Without Redis, nothing is lost where the lifespan does not run, as in tests."""
        if not isinstance(self.shared, NoShared):
            super().expect_lifespan()


class _Stack:
    """The middleware stack of an app with a cache: the latest generation's layers, and the app's own stack in them."""

    def __init__(self, first: Cache) -> None:
        self._first = first
        self.inner: ASGIApp | None = None

    def put_around(self, app: FastAPI) -> None:
        build = app.build_middleware_stack

        def build_with_cache() -> ASGIApp:
            latest = self._first.latest
            latest.rebind()  # the app may have been given more since
            latest.settle_edge()
            self.inner = build()
            return Outermost(self)

        app.build_middleware_stack = build_with_cache  # type: ignore[method-assign]

    def describe(self, app: FastAPI) -> None:
        """Have the app's OpenAPI document say what handlers ask of credentials; where some are configured, the app
        serves the metadata to which a 401 leads, too."""
        build = app.openapi

        def with_security() -> dict[str, Any]:
            latest = self._first.latest
            latest.rebind()
            document = build()
            secure_handlers(document, latest.handlers)
            return document

        app.openapi = with_security  # type: ignore[method-assign]
        if self._first.config.identity:
            ProtectedResources(self._resources).add_to(app)

    def _resources(self) -> tuple[Mapping[str, IssuerConfig], Admissions]:
        latest = self._first.latest
        return latest.config.identity, latest.handlers.admissions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        latest = self._first.latest
        assert isinstance(latest, Cache)
        if scope["type"] == "http" and not latest.worker_state.started:
            latest.expect_lifespan()
        await latest.layers(scope, receive, send)


class SeenLayers(Layers):
    """Finds the normalised target, by which responses are stored, and leaves a request as it is; and so all responses
    that no cached handler made.

    A request whose path the gateway would refuse, or read as another one, is answered by the app without the cache.
    """

    def _with_diagnostics(self, exchange: RequestContext, headers: Headers) -> Headers:
        return super()._with_diagnostics(exchange, headers) if exchange.route else headers

    async def _is_for_the_app(self, scope: Scope, exchange: RequestContext, send: Send) -> bool:
        if not self._is_known(scope, exchange):
            del scope[SCOPE_KEY]
        return True

    def _is_known(self, scope: Scope, exchange: RequestContext) -> bool:
        normalised = {**scope}
        try:
            target = self._apply(normalised, exchange)
        except RequestRefused:
            return False
        if get_route_path(normalised) != get_route_path(scope):
            return False
        scope["raw_path"] = target.path.encode() if scope["path"] == target.decoded else normalised["raw_path"]
        exchange.target = target
        exchange.scope = {name: value for name, value in scope.items() if name != SCOPE_KEY}
        return True


def _refuse_routes(loaded: Loaded) -> None:
    """Raises ConfigError for settings that an app with a `Cache` can't have."""
    found = [name for name in ("routes", "include") if getattr(loaded.config, name)]
    if found:
        message = "an app with a Cache has its own routes; make the app by Gateway() for those of the configuration"
        raise ConfigError([ConfigProblem("", found[0], message)])
