"""Declared routes: from the configuration to handlers.

A declared route is a handler that a factory makes. It matches the normalised path, decides once what of the request
may reach the upstream, and leaves the rest to the engine.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from msgspec import structs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import __version__
from .answers import Answer, problem
from .client import AnswerResponse, Client
from .config import DEFAULT_VARY, Config, RouteConfig
from .engine import Ask, Engine, Route
from .errors import RequestRefused
from .exchange import INTERIM_KEY, Exchange, exchange_of
from .headers import Headers, first, has, values, without
from .identity_key import IdentityKey
from .inside import REFERRING
from .keys import Keying, plan, primary_key
from .metrics import Metrics
from .passing import VIA, UpstreamOrigin, send_past
from .policy import TAG_FIELDS, Rules, facts_of
from .proxies import Trusted
from .purges import Report
from .references import Asked, References
from .remembered import Block, Recall
from .targets import Target, normalise, pair_name, select_query
from .templates import PathTemplate, TargetTemplate, compile_target, render_tag
from .transport import Interim
from .upstreams import Fetched, Upstream

USER_AGENT = (b"user-agent", f"cached-gateway/{__version__}".encode())
IDENTITY = (b"accept-encoding", b"identity")
# Tells an upstream that it may speak to us by Surrogate-Control (Edge Architecture 1.0).
CAPABILITY = (b"surrogate-capability", b'gateway="Surrogate/1.0"')


@dataclass(frozen=True)
class Declared:
    """A route of the configuration, ready to be asked."""

    name: str
    config: RouteConfig
    upstream: Upstream
    engine_route: Route
    target: TargetTemplate
    allowed: frozenset[str] | None
    dropped: tuple[str, ...]

    @property
    def template(self) -> PathTemplate:
        return self.config.template

    @cached_property
    def inside(self) -> PathTemplate:
        """The template of what the upstream is asked for, to read the upstream's own paths back by."""
        text = self.target.path
        for name in self.template.parameters:
            if f"{{{name}:path}}" in self.template.text:
                text = text.replace(f"{{{name}}}", f"{{{name}:path}}")
        return PathTemplate(text)

    def upstream_target(self, path: str, query: Iterable[str]) -> tuple[str, dict[str, str]]:
        """The normalised target to ask the upstream for, and the path's parameters. Raises RequestRefused."""
        parameters = self.template.match(path)
        if parameters is None:
            raise RequestRefused("The path does not have the form of its route.", 404)
        return self._target(parameters, select_query(query, self.allowed, self.dropped)), parameters

    def whole_target(self, parameters: dict[str, str], query: Iterable[str]) -> str:
        """The same for a request that passes by the cache: no answer is shared, so its query stays whole."""
        return self._target(parameters, query)

    def _target(self, parameters: dict[str, str], query: Iterable[str]) -> str:
        upstream_path, fixed = self.target.ask(parameters)
        return str(Target(upstream_path, tuple(sorted((*fixed, *query), key=pair_name)), ""))


def declare(config: Config, upstreams: Mapping[str, Upstream], identity_key: IdentityKey) -> list[Declared]:
    """The declared routes of one upstream each, the more specific first."""
    constants = public_constants(config)
    declared = [
        _declared(name, route, config, upstreams, keying_of(route, constants, identity_key))
        for name, route in config.routes.items()
        if not route.parts
    ]
    return sorted(declared, key=lambda each: each.template.specificity)


def _declared(
    name: str,
    route: RouteConfig,
    config: Config,
    upstreams: Mapping[str, Upstream],
    keying: Keying,
) -> Declared:
    max_body = config.max_body if route.max_body is None else route.max_body
    return Declared(
        name=name,
        config=route,
        upstream=upstreams[route.upstream],
        engine_route=Route(name, rules_of(route), keying, max_body),
        target=compile_target(route.target_text, route.template.parameters),
        allowed=frozenset(route.query) if route.query is not None else None,
        dropped=tuple(config.drop_query if route.drop_query is None else route.drop_query),
    )


def rules_of(route: RouteConfig) -> Rules:
    """A route's cache rules, in seconds."""

    def seconds(value: Any) -> float | None:
        return None if value is None else value.total_seconds()

    return Rules(
        ttl=None if route.ttl == "origin" else route.ttl.total_seconds(),
        stale_while_revalidate=seconds(route.stale_while_revalidate),
        stale_if_error=seconds(route.stale_if_error),
        negative_ttl=route.negative_ttl.total_seconds(),
        client_ttl=seconds(route.client_ttl),
        request_directives=route.request_directives == "honour",
        authorization_keyed=route.authorization != "pass",
        cache=route.cache,
    )


def keying_of(route: RouteConfig, constants: tuple[tuple[bytes, bytes], ...], identity_key: IdentityKey) -> Keying:
    own = route.ttl != "origin"
    names = tuple(sorted(set(route.vary if route.vary is not None else DEFAULT_VARY)))
    cookies: tuple[str, ...] | None = None if route.cookies == "pass" else ()
    if isinstance(route.cookies, list):
        cookies = tuple(sorted(set(route.cookies)))
    return Keying(
        vary=names if own else None,
        authorization=route.authorization,
        cookies=cookies,
        constants=(*constants, *((USER_AGENT, IDENTITY) if own else (CAPABILITY,))),
        identity_key=identity_key,
    )


def public_constants(config: Config) -> tuple[tuple[bytes, bytes], ...]:
    """What every fetch that may be stored tells the upstream of us: nothing of any client."""
    if config.public_url is None:
        return (VIA,)
    public = urlsplit(config.public_url)
    return (
        VIA,
        (b"x-forwarded-host", public.netloc.encode("latin-1")),
        (b"x-forwarded-proto", public.scheme.encode("latin-1")),
    )


def _nothing(path: str) -> None:
    return None


@dataclass(frozen=True)
class Handlers:
    """Makes the handlers of declared routes. `serving` as `References` has it."""

    engine: Engine
    metrics: Metrics
    declared: list[Declared] = field(default_factory=list)
    serving: Callable[[str], Declared | None] = _nothing

    def handler(self, route: Declared) -> Callable[[Request], Awaitable[Response]]:
        """The handler of a declared route, for every method."""

        async def handle(request: Request) -> Response:
            exchange = exchange_of(request.scope)
            assert exchange is not None
            assert exchange.target is not None
            route.engine_route.takes(exchange)
            client = Client(request.receive)
            path, root = local_path(request), root_of(request)
            target, parameters = route.upstream_target(path, exchange.target.query)
            asked = Asked(route, target, str(structs.replace(exchange.target, path=path)), root)
            interim = self.interim(interim_of(request), asked)
            origin = UpstreamOrigin(route.upstream, target, exchange.request_id, self.metrics, interim)
            if request.method == "PURGE":
                return await self._purge(exchange, route, origin, parameters)
            if request.method not in ("GET", "HEAD"):
                return await self._pass(client, exchange, asked, origin, parameters)
            return await self._read(client, exchange, asked, origin, parameters)

        handle.__name__ = route.name
        handle.__doc__ = route.config.description
        return handle

    def recall(self, asked: Asked, origin: UpstreamOrigin, parameters: dict[str, str]) -> Recall:
        """What the edge needs to answer the next request of this line."""
        route = asked.route
        silent = structs.replace(origin, interim=None)
        return Recall(
            route=route.engine_route,
            origin=route.upstream.name,
            target=origin.target,
            tags=self._tags(route, parameters),
            public=lambda answer: self.public(answer, asked),
            ask=lambda exchange: self.ask(
                exchange, route, structs.replace(silent, request_id=exchange.request_id), parameters, None
            ),
        )

    def _tags(self, route: Declared, parameters: dict[str, str]) -> tuple[str, ...]:
        decoded = {name: unquote(value) for name, value in parameters.items()}
        return tuple(render_tag(tag, decoded) for tag in route.config.tags)

    def ask(
        self,
        exchange: Exchange,
        route: Declared,
        origin: UpstreamOrigin,
        parameters: dict[str, str],
        body: AsyncIterator[bytes] | None,
        *,
        block: Block | None = None,
        stays: bool = False,
    ) -> Ask:
        """`block` is the header block of `exchange`, where it was judged before; `stays` as `Ask` has it."""
        headers = exchange.headers
        keying = route.engine_route.keying
        if block is not None and "x-request-id" not in (keying.vary or ()):
            planned, facts = block.plan(route.engine_route, exchange.method, route.upstream.name, origin.target)
        else:
            planned = plan(keying, route.upstream.name, origin.target, headers, has_body=body is not None)
            facts = facts_of(exchange.method, headers, route.engine_route.rules)

        async def past() -> Fetched:
            assert exchange.target is not None
            whole = route.whole_target(parameters, exchange.target.query)
            return await send_past(self.engine, exchange, route.engine_route, origin, body, whole)

        return Ask(
            route=route.engine_route,
            plan=planned,
            facts=facts,
            headers=headers,
            exchange=exchange,
            origin=origin,
            past=past,
            tags=self._tags(route, parameters),
            stays=stays,
        )

    async def _read(
        self,
        client: Client,
        exchange: Exchange,
        asked: Asked,
        origin: UpstreamOrigin,
        parameters: dict[str, str],
    ) -> Response:
        with_body = has_body(exchange.headers)
        ask = self.ask(exchange, asked.route, origin, parameters, client.body() if with_body else None)
        exchange.recall = self.recall(asked, origin, parameters)
        at_hand = self.engine.at_hand(ask)
        if at_hand is not None:
            return AnswerResponse(self.public(at_hand, asked))
        if not with_body:
            client.expect_no_body()
        answer = await client.while_there(self.engine.answer(ask))
        return AnswerResponse(self.public(answer, asked), client)

    async def _purge(
        self, exchange: Exchange, route: Declared, origin: UpstreamOrigin, parameters: dict[str, str]
    ) -> Response:
        """The PURGE method, as Varnish and Squid know it: the URL it names, from the networks that the route lists."""
        if exchange.client not in Trusted(route.config.purge_from):
            return AnswerResponse(problem(exchange, 403, "PURGE is not allowed from here."))
        soft = first(exchange.headers, b"soft-purge") == "1"
        target = primary_key(route.upstream.name, origin.target)
        report = await self.engine.purge(keys=[target], soft=soft, by=f"PURGE from {exchange.client}")
        return purge_response(report)

    async def _pass(
        self, client: Client, exchange: Exchange, asked: Asked, origin: UpstreamOrigin, parameters: dict[str, str]
    ) -> Response:
        route = asked.route
        body = client.body() if has_body(exchange.headers) else None
        if body is None:
            client.expect_no_body()

        async def send() -> Fetched:
            assert exchange.target is not None
            whole = route.whole_target(parameters, exchange.target.query)
            return await send_past(self.engine, exchange, route.engine_route, origin, body, whole)

        answer = await client.while_there(
            self.engine.pass_by(
                exchange,
                "method",
                send,
                invalidates=None
                if exchange.method == "OPTIONS"
                else lambda fetched: self._invalidated(route, exchange, origin.target, fetched),
                keep=(lambda fetched: self._representation(route, exchange, origin, fetched))
                if exchange.method == "POST"
                else None,
            )
        )
        return AnswerResponse(self.public(answer, asked), client)

    def _representation(
        self, route: Declared, exchange: Exchange, origin: UpstreamOrigin, fetched: Fetched
    ) -> Ask | None:
        """The GET that a POST's answer would answer too: its `Content-Location` is its own target."""
        location = first(fetched.headers, b"content-location")
        target = primary_key(route.upstream.name, origin.target)
        if location is None or target not in self._same_origin(route, exchange, location):
            return None
        engine_route, headers = route.engine_route, exchange.headers
        asked = plan(engine_route.keying, route.upstream.name, origin.target, headers)
        if asked.bypass is not None or not engine_route.follows_origin:
            return None

        async def past() -> Fetched:
            return fetched

        facts = facts_of("GET", headers, engine_route.rules)
        return Ask(engine_route, asked, facts, headers, exchange, origin, past)

    def _invalidated(self, route: Declared, exchange: Exchange, target: str, fetched: Fetched) -> list[str]:
        """The primary keys that a successful unsafe request makes void: its target's, and those of `Location` and
        `Content-Location` where they are of the same origin (RFC 9111 §4.4)."""
        name = route.upstream.name
        void = [primary_key(name, target)]
        path = target.partition("?")[0]
        if path != target:
            void.append(primary_key(name, path))
        for field_name in (b"location", b"content-location"):
            for value in values(fetched.headers, field_name):
                void += self._same_origin(route, exchange, value.decode("latin-1"))
        return void

    def _same_origin(self, route: Declared, exchange: Exchange, reference: str) -> list[str]:
        """Keys of a URL reference, read as the upstream means it and as a client would."""
        try:
            parts = urlsplit(reference)
            if not parts.path.startswith("/"):
                return []
            found = normalise(parts.path.encode("latin-1"), parts.query.encode("latin-1"))
        except (RequestRefused, ValueError):
            return []
        keys = []
        if not parts.netloc or any(reference.startswith(base + "/") for base in route.upstream.config.bases):
            keys.append(primary_key(route.upstream.name, _below_base(str(found), route.upstream, parts.netloc)))
        if not parts.netloc or parts.netloc.lower() == exchange.host:
            keys += self.public_keys(found)
        return keys

    def public_keys(self, target: Target) -> list[str]:
        """The primary keys of what the declared routes serve at a target of the public side."""
        for route in self.declared:
            if route.template.match(target.path) is not None:
                return [primary_key(route.upstream.name, route.upstream_target(target.path, target.query)[0])]
        return []

    def public(self, answer: Answer, asked: Asked) -> Answer:
        """The answer as clients may see it: an upstream's own address stays inside, and so do its tags."""
        hidden = frozenset() if asked.route.config.expose_tags else TAG_FIELDS
        if not any(name in REFERRING or name in hidden for name, _ in answer.headers):
            return answer
        headers = self._references.mapped(without(answer.headers, *hidden), asked)
        return Answer(answer.status, headers, answer.body)

    def interim(self, interim: Interim | None, asked: Asked) -> Interim | None:
        """Passes on interim responses as clients may see them."""
        if interim is None:
            return None
        return lambda status, headers: interim(status, self._references.mapped(headers, asked))

    @cached_property
    def _references(self) -> References:
        return References(self.declared, self.serving)


def purge_response(report: Report) -> Response:
    """A purge's report: 200 where every living worker has confirmed it, 202 where not yet."""
    body = {
        "complete": report.complete,
        "confirmed": report.confirmed,
        "workers": report.workers,
        "seconds": round(report.seconds, 4),
    }
    return JSONResponse(body, 200 if report.complete else 202, headers={"cache-control": "no-store"})


def _below_base(target: str, upstream: Upstream, netloc: str) -> str:
    prefix = urlsplit(upstream.config.bases[0]).path
    return target[len(prefix) :] if netloc and prefix and target.startswith(prefix + "/") else target


def local_path(request: Request) -> str:
    """The normalised path below the place where the app is mounted."""
    path: str = request.scope["raw_path"].decode("ascii")
    root = root_of(request)
    return path[len(root) :] if root and path.startswith(root) else path


def root_of(request: Request) -> str:
    """The place where the app is mounted, encoded as in a path."""
    return quote(request.scope.get("root_path", ""), safe="/%:@!$&'()*+,;=~-._")


def interim_of(request: Request) -> Interim | None:
    """How to pass an interim response on to the client, where the server under us can."""
    return typing.cast(Interim | None, request.scope.get("extensions", {}).get(INTERIM_KEY))


def has_body(headers: Headers) -> bool:
    length = first(headers, b"content-length")
    return has(headers, b"transfer-encoding") or (length is not None and length.strip() != "0")
