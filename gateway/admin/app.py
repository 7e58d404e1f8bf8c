"""The admin listener: metrics, health, purging, TTL advice and the console, on its own address.

Decides which requests are allowed. Metrics and health need no token. Everything else needs a bearer token in
Authorization, GATEWAY_ADMIN_TOKEN or one with the role for it (`operators`), which no web page can make a browser send.
After ten invalid tokens in a minute an address is refused for the rest of it, except for a valid token that was used
from that address before. On loopback only IP addresses, `localhost` and the configured name are accepted as `Host` (DNS
rebinding). `console`, `operations` and the engine execute the commands.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admin import console
from gateway.admin.console import encoded, problem
from gateway.admin.credentials import Credentials
from gateway.admin.operations import Operations
from gateway.admin.operators import Operator, Operators
from gateway.app.generation import Generation
from gateway.app.health import ready_response
from gateway.config.admin import Role
from gateway.config.types import check_tags
from gateway.errors import RequestRefused
from gateway.explain.middleware import Attempts
from gateway.explain.trace import render as explained
from gateway.http.target import without_credentials
from gateway.identity.admission import NotAdmitted
from gateway.routing.declared import purge_response

logger = logging.getLogger("gateway")


class KnownHost:
    """ASGI middleware that refuses (421) an unknown `Host` on loopback. `configured` is the host in `admin_listen`.

    A page in a browser on this machine can make its own name resolve to 127.0.0.1 (DNS rebinding), and would then read
    what needs no token. It can't choose `Host`: that is the name it was loaded from.
    """

    def __init__(self, app: ASGIApp, configured: Callable[[], str]) -> None:
        self.app = app
        self._configured = configured

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and on_loopback(scope):
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_known(host, self._configured()):
                refusal = problem(421, "The Host header must be an IP address or localhost.")
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def on_loopback(scope: Scope) -> bool:
    """Whether a request came over TCP to a loopback address."""
    server = scope.get("server")
    return server is not None and _is_loopback(str(server[0]))


def is_known(host: str, configured: str) -> bool:
    """Whether a `Host`, with or without its port, is an address, `localhost` or the configured name."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().removesuffix(".")
    return name in ("localhost", configured.lower()) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


MAX_BODY = 1024 * 1024
WRONG_TOKENS = 10
CHANGES = 600
"""Both a minute, from one address."""


class ExplainOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /explain`: a request as a client would send it."""

    target: str
    method: str = "GET"
    headers: list[tuple[str, str]] = []
    data: str | None = None


class PurgeOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /purge`: what to purge, and whether softly."""

    keys: list[str] = []
    tags: list[str] = []
    routes: list[str] = []
    all: bool = False
    soft: bool = False
    by: str = ""

    def shown(self, tags: Iterable[str]) -> str:
        """For the audit list; `tags` are the names under which entries have them."""
        names = [*(f"key {without_credentials(key)}" for key in self.keys), *(f"tag {tag}" for tag in tags)]
        names += [*(f"route {route}" for route in self.routes), *(["everything"] if self.all else [])]
        return ", ".join(names)[:500] + (", softly" if self.soft else "")


Handler = Callable[[Request], Awaitable[Response]]


class Admin:
    """The handlers of one worker's admin app. `gateway` returns the current generation, `render` the metrics of all
    workers; `operations` is None if the app was made without a server, and then has no overrides."""

    def __init__(
        self,
        gateway: Callable[[], Generation],
        token: str | None,
        render: Callable[[], Awaitable[bytes]] | None,
        operations: Operations | None,
    ) -> None:
        self._gateway = gateway
        self._operators = Operators(gateway, token)
        self._render = render if render is not None else self._own_metrics
        self._operations = operations
        self._wrong_tokens = Attempts(WRONG_TOKENS)
        self._changes = Attempts(CHANGES)
        self._known: set[str] = set()
        """The addresses that have used the valid token."""

    def app(self) -> Starlette:
        routes = [
            Route("/metrics", self.metrics),
            Route("/healthz", self.alive),
            Route("/readyz", self.ready),
            Route("/purge", self.guarded(self.purge, "purge"), methods=["POST"]),
            Route("/explain", self.guarded(self.explain, "read"), methods=["POST"]),
            Route("/advice", self.guarded(self.advice, "read")),
            *self._of_credentials(),
        ]
        if self._operations is not None:
            routes += self._operating(self._operations)
        known = Middleware(KnownHost, configured=self._configured_host)
        return Starlette(routes=routes, middleware=[known])

    def _of_credentials(self) -> list[Route]:
        at = Credentials(self._gateway, _body, lambda name, request: by(request, name), self._note)
        return [
            Route("/keys", self.guarded(at.keys, "read")),
            Route("/keys", self.guarded(at.create, "revoke"), methods=["POST"]),
            Route("/keys", self.guarded(at.revoke_keys_of, "revoke"), methods=["DELETE"]),
            Route("/keys/{key}", self.guarded(at.revoke_key, "revoke"), methods=["DELETE"]),
            Route("/keys/{key}/rotate", self.guarded(at.rotate, "revoke"), methods=["POST"]),
            Route("/revocations", self.guarded(at.revocations, "read")),
            Route("/revocations", self.guarded(at.revoke, "revoke"), methods=["POST"]),
        ]

    async def _note(self, what: str, detail: str, by: str) -> None:
        if self._operations is not None:
            await self._operations.note(what, detail, by=by)

    def _configured_host(self) -> str:
        return self._gateway().config.admin_listen.rpartition(":")[0].strip("[]")

    def _operating(self, operations: Operations) -> list[Route]:
        async def overrides(request: Request) -> Response:
            return await console.overrides(operations)

        async def set_override(request: Request) -> Response:
            return await console.set_override(operations, await _body(request), partial(by, request))

        async def end_override(request: Request) -> Response:
            route, setting = request.path_params["route"], request.path_params["setting"]
            given = by(request, request.query_params.get("by", ""))
            return await console.end_override(operations, route, setting, given)

        async def routes(request: Request) -> Response:
            return await console.routes(self._gateway(), operations)

        async def settings(request: Request) -> Response:
            return console.settings(operations)

        async def audit(request: Request) -> Response:
            return await console.audit(operations)

        async def live(request: Request) -> Response:
            return console.live(operations, self._render)

        async def home(request: Request) -> Response:
            return RedirectResponse("console")

        return [
            Route("/", home),
            Route("/console", console.page),
            Route("/console/{file}", console.page),
            Route("/overrides", self.guarded(overrides, "read")),
            Route("/overrides", self.guarded(set_override, "ttl"), methods=["POST"]),
            Route("/overrides/{route}/{setting}", self.guarded(end_override, "ttl"), methods=["DELETE"]),
            Route("/routes", self.guarded(routes, "read")),
            Route("/settings", self.guarded(settings, "read")),
            Route("/audit", self.guarded(audit, "read")),
            Route("/live", self.guarded(live, "read")),
        ]

    # --- for everyone --------------------------------------------------------------------------------------

    async def _own_metrics(self) -> bytes:
        return self._gateway().metrics.render()

    async def metrics(self, request: Request) -> Response:
        return Response(await self._render(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        return ready_response(self._gateway())

    # --- with the token ------------------------------------------------------------------------------------------

    def guarded(self, handler: Handler, role: Role) -> Handler:
        """`handler`, for requests of operators with that role; an invalid body is a 400 with the reason."""

        async def guard(request: Request) -> Response:
            refusal = await self._refusal(request, role)
            if refusal is not None:
                return refusal
            try:
                return await handler(request)
            except RequestRefused as refused:
                return problem(400, refused.detail)
            except (msgspec.MsgspecError, ValueError) as error:
                return problem(400, f"The request is invalid: {error}")

        return guard

    async def _refusal(self, request: Request, role: Role) -> Response | None:
        if not self._operators.exist:
            return problem(403, "An admin token is required, and the gateway has none: GATEWAY_ADMIN_TOKEN is not set.")
        address = address_of(request)
        limited = not self._wrong_tokens.are_left(address)
        if limited and address not in self._known:
            return _too_many("Too many failed attempts from this address; try again in a minute.")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            operator = await self._operators.of(given.strip()) if scheme.lower() == "bearer" and given else None
        except NotAdmitted as away:
            return problem(503, away.detail)
        if operator is None:
            if limited:
                return _too_many("Too many failed attempts from this address; try again in a minute.")
            if given:
                self._wrong_tokens.count(address)
            response = problem(401, "A token is required (GATEWAY_ADMIN_TOKEN), sent as `Authorization: Bearer …`.")
            response.headers["www-authenticate"] = "Bearer"
            return response
        self._known.add(address)
        if role not in operator.roles:
            logger.warning("admin: %s may not %s %s", operator.who("", address), request.method, request.url.path)
            return problem(403, f"This requires the role {role}, which {operator.name} lacks.")
        request.state.operator = operator
        if request.method != "GET" and not self._changes.count(address):
            return _too_many("Too many requests from this address; try again in a minute.")
        return None

    async def advice(self, request: Request) -> Response:
        return encoded({"routes": await self._gateway().advice()})

    async def purge(self, request: Request) -> Response:
        order = msgspec.json.decode(await _body(request), type=PurgeOrder)
        if not (order.keys or order.tags or order.routes or order.all):
            return problem(400, "Nothing to purge: set keys, tags, routes or all.")
        for key in order.keys:
            self._refuse_another_host(key)
        stored = self._gateway().stored_tags(order.tags)
        if refusal := _refused_tags([tag for tag in order.tags if tag in stored]):
            return problem(400, refusal)
        named = by(request, order.by)
        report = await self._gateway().purge(
            keys=order.keys,
            tags=order.tags,
            routes=order.routes,
            everything=order.all,
            soft=order.soft,
            by=f"admin {named}",
        )
        await self._note("purge", order.shown(stored), named)
        return purge_response(report)

    def _refuse_another_host(self, url: str) -> None:
        """Raises RequestRefused for a URL of a host that is not known to be this gateway."""
        config = self._gateway().config
        given = urlsplit(url).netloc.lower() if "://" in url else ""
        if config.public_url is not None and given not in ("", urlsplit(config.public_url).netloc.lower()):
            raise RequestRefused(
                f"{given} isn't a URL of this gateway (public_url is {config.public_url}); use that, or only the path."
            )
        if config.public_url is None and given and not is_known(given, config.host):
            raise RequestRefused(f"{given} can't be checked without public_url: set it, or use only the path.")

    async def explain(self, request: Request) -> Response:
        order = msgspec.json.decode(await _body(request), type=ExplainOrder)
        self._refuse_another_host(order.target)
        headers = tuple((name.strip().lower().encode(), value.strip().encode()) for name, value in order.headers)
        content = None if order.data is None else order.data.encode()
        trace = await self._gateway().explain(order.method.upper(), order.target, headers, content)
        return encoded({"text": explained(trace)} if request.query_params.get("text") else trace)


def create_admin(
    gateway: Generation | Callable[[], Generation],
    token: str | None = None,
    render: Callable[[], Awaitable[bytes]] | None = None,
    operations: Operations | None = None,
) -> Starlette:
    """The admin app of a gateway; docs/operations.md lists its endpoints.

    `render` returns the metrics of all workers; without it, they are this process's. Without `operations` there are no
    live overrides, no audit list and no console.
    """
    given = gateway
    return Admin((lambda: given) if isinstance(given, Generation) else given, token, render, operations).app()


def _refused_tags(tags: list[str]) -> str | None:
    """Why tags that are stored as they are can't be anything's; None if they can."""
    try:
        check_tags(tags)
    except ValueError as error:
        return f"Nothing was purged: {error}; give each tag by itself."
    return None


def by(request: Request, given: str) -> str:
    """Who makes a change; `given` is the name that the client gave."""
    operator: Operator = request.state.operator
    return operator.who(given, address_of(request))


def address_of(request: Request) -> str:
    return request.client.host if request.client else "socket"


def _too_many(detail: str) -> Response:
    response = problem(429, detail)
    response.headers["retry-after"] = "60"
    return response


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise ValueError(f"it is larger than {MAX_BODY} bytes")
    return body
