"""The handlers of declared routes: from a request to the cache's response.

Decides what a method does (GET and HEAD use the cache, and so do QUERY and the methods that the route declares as
reads; PURGE purges, all others bypass it), which keys a successful
unsafe request invalidates (RFC 9111 §4.4), and which upstream addresses clients may see. `cache` decides whether an
entry is fresh, and how it is fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from gateway.cache.engine import Engine
from gateway.cache.request import CacheRequest
from gateway.cache.respond import Answer, limit_reached, problem
from gateway.context import RequestContext, exchange_of
from gateway.errors import RequestRefused, UpstreamTimeout
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers, first, values, without
from gateway.http.target import Slashes, Target, normalise, resolve
from gateway.identity.principal import Principal
from gateway.observability.log import ONCE
from gateway.observability.metrics import Metrics
from gateway.policy.content import TOO_LARGE as CONTENT_TOO_LARGE
from gateway.policy.content import ContentRules
from gateway.policy.freshness import SAFE_METHODS
from gateway.policy.keys import plan, primary_key
from gateway.policy.rules import directives_of
from gateway.policy.storability import TAG_FIELDS, passed_on
from gateway.routing.admitting import is_preflight, let_in
from gateway.routing.declared import Declared, announced, has_body, interim_of, local_path, purge_response, root_of
from gateway.routing.fast_path import FastPath, PlanCache
from gateway.routing.location import REFERRING
from gateway.routing.references import Asked, References
from gateway.routing.responses import (
    TOO_LARGE,
    AnswerResponse,
    Client,
    chained,
    read_up_to,
    too_large_request,
)
from gateway.routing.upstream_request import UpstreamOrigin, send_past
from gateway.streams.shared_stream import LAST_EVENT_ID, SharedStreams, may_be_shared
from gateway.upstreams.client import Upstream
from gateway.upstreams.request import Interim
from gateway.upstreams.response import Fetched

logger = logging.getLogger("gateway")
_READS = ("GET", "HEAD", "OPTIONS", "PURGE")
_NOT_PUBLIC = REFERRING | TAG_FIELDS
_NAME = itemgetter(0)


def _nothing(path: str) -> None:
    return None


class DeclaredRequest(CacheRequest, frozen=True, kw_only=True):
    """A request of a declared route."""

    asked: Asked


@dataclass(frozen=True, slots=True)
class Handlers:
    """Makes the handlers of declared routes. `serving` as `References` has it."""

    engine: Engine
    metrics: Metrics
    declared: list[Declared] = field(default_factory=list)
    serving: Callable[[str], Declared | None] = _nothing
    streams: SharedStreams = field(default_factory=SharedStreams)
    _warned: set[tuple[str, str]] = field(default_factory=set)
    _references: References = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_references", References(self.declared, self.serving))

    def handler(self, route: Declared) -> Callable[[Request], Awaitable[Response]]:
        """The handler of a declared route, for every method."""

        largest = route.config.max_request_body

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except RequestRefused as refused:
                if refused.reason == TOO_LARGE:
                    self.metrics.refused(refused.reason)
                raise

        async def answer(request: Request) -> Response:
            exchange = exchange_of(request.scope)
            assert exchange is not None
            assert exchange.target is not None
            route.engine_route.takes(exchange)
            refusal = self._refusal(route, exchange)
            if refusal is None:
                refusal = await let_in(route.admission, route.limits, exchange, self.engine.identity_key, self.metrics)
            if refusal is not None:
                return AnswerResponse(refusal)
            client = Client(request.receive, largest)
            if largest is not None and announced(exchange.headers) > largest:
                raise too_large_request()
            path, root = local_path(request), root_of(request)
            query = exchange.target.query
            target, _ = route.upstream_target(path, query)
            asked = Asked(route, target, path, query, root)
            send = interim_of(request)
            interim = None if send is None else partial(self.interim, send, asked)
            origin = route.origin(target, exchange.request_id, self.metrics, interim)
            if request.method == "PURGE":
                return await self._purge(exchange, route, origin)
            if route.content is not None and request.method in route.content.methods:
                return await self._read_content(route.content, client, exchange, asked, origin)
            if request.method not in ("GET", "HEAD"):
                return await self._pass(client, exchange, asked, origin)
            return await self._read(client, exchange, asked, origin)

        handle.__name__ = route.name
        handle.__doc__ = route.config.description
        return handle

    def _refusal(self, route: Declared, exchange: RequestContext) -> Answer | None:
        """The answer to a request whose method the route does not let pass; None where it does."""
        method = exchange.method
        if route.passes(method):
            if method not in _READS and route.config.reads_by_default and not route.is_content_read(method):
                self._warn(route, method)
            return None
        if method != "OPTIONS":
            answer = problem(exchange, 405, f"This route takes {route.allow.decode()} only.")
        elif is_preflight(exchange):
            return None  # a preflight is the upstream's to answer, where the gateway's own CORS did not
        else:
            answer = Answer(204, [], b"")
        answer.headers.extend([(b"allow", route.allow), *route.accept_query])
        return answer

    def _warn(self, route: Declared, method: str) -> None:
        """Log once what passes in this release alone."""
        if (route.name, method) not in self._warned:
            self._warned.add((route.name, method))
            logger.warning(
                "route %s: %s passes, as `methods` is not set; the next release responds 405, as the route has a ttl of"
                " its own. Set methods: [GET, %s] to keep it, or methods: [GET] to refuse it now",
                *(route.name, method, method),
                extra=ONCE,
            )

    def recall(self, ask: DeclaredRequest) -> FastPath:
        """The edge's data for the next request of this line."""
        assert isinstance(ask.origin, UpstreamOrigin)
        again, content = AskedAgain(self, ask.asked, ask.exchange.target), ask.origin.content
        if content is None:
            return self.recalled(again)
        again = structs.replace(again, origin=structs.replace(ask.origin, interim=None))
        return self.recalled(again, content.line(ask.route.keying.identity_key), ask.exchange.method)

    def recalled(self, again: AskedAgain, content: str = "", method: str = "") -> FastPath:
        """The edge's data for requests as `again` makes them."""
        asked, limits = again.asked, again.asked.route.limits
        return FastPath(
            route=asked.route.engine_route,
            origin=asked.route.upstream.name,
            target=asked.target,
            tags=self._tags(asked) if asked.route.is_tagged else (),
            public=_Public(self, asked),
            ask=again,
            content=content,
            method=method,
            admission=asked.route.admission,
            refuses=limits.refuses_many if limits is not None and limits.of_refused else None,
            admit=limits.admits_hit if limits is not None and asked.route.counts_hits else None,
        )

    def _tags(self, asked: Asked, principal: Principal | None = None) -> tuple[str, ...]:
        decoded = {name: unquote(value) for name, value in asked.route.parameters(asked.path).items()}
        return asked.route.tags(decoded, principal)

    def ask(
        self,
        exchange: RequestContext,
        asked: Asked,
        origin: UpstreamOrigin,
        body: AsyncIterator[bytes] | bytes | None = None,
        *,
        block: PlanCache | None = None,
        stays: bool = False,
    ) -> DeclaredRequest:
        """`block` is the header block of `exchange`, if it was parsed before; `stays` as in `CacheRequest`. `body` is
        what the client sent, for a bypass; that of a read whose content is in its key is in `origin`."""
        declared, headers, content = asked.route, exchange.headers, origin.content
        route, name = declared.engine_route, declared.upstream.name
        if content is not None:
            headers = without(headers, b"range", b"if-range")  # a range is one of a GET (RFC 9110 §14.2)
        known = None if block is None else block.planned[route, exchange.method]
        if known is not None:
            fields, facts = known
            planned = fields.plan(name, asked.target)
        else:
            with_body = body is not None and content is None
            planned = plan(route.keying, name, asked.target, headers, has_body=with_body, content=content)
            facts = directives_of(exchange.method, headers, route.rules)
        tags = self._tags(asked, exchange.principal) if declared.is_tagged else ()
        wanted = structs.replace(route.selection, plan=planned, headers=headers, tags=tags)
        past = _Past(self, exchange, asked, origin, body)
        return DeclaredRequest(route, planned, facts, headers, exchange, origin, past, wanted, stays=stays, asked=asked)

    async def past(
        self,
        exchange: RequestContext,
        asked: Asked,
        origin: UpstreamOrigin,
        body: AsyncIterator[bytes] | bytes | None,
    ) -> Fetched:
        """The upstream's response to a request that bypasses the cache. Raises UpstreamError."""
        assert exchange.target is not None
        route = asked.route
        whole = route.whole_target(route.parameters(asked.path), exchange.target.query)
        return await send_past(self.engine, exchange, route.engine_route, origin, body, whole)

    async def _read(
        self,
        client: Client,
        exchange: RequestContext,
        asked: Asked,
        origin: UpstreamOrigin,
    ) -> Response:
        with_body = has_body(exchange.headers)
        ask = self.ask(exchange, asked, origin, client.body() if with_body else None)
        if asked.route.shares_streams:
            answer = await client.while_there(self.streamed(ask))
            return AnswerResponse(self.public(answer, asked), client)
        if not with_body:
            client.expect_no_body()
        return await self._answered(client, ask)

    async def _answered(self, client: Client, ask: DeclaredRequest) -> Response:
        """The response to a read, without a wait if it is in memory."""
        asked = ask.asked
        ask.exchange.recall = self.recall(ask)
        at_hand = self.engine.at_hand(ask)
        if at_hand is not None:
            return AnswerResponse(self.public(at_hand, asked))
        answer = await client.while_there(self.engine.answer(ask))
        return AnswerResponse(self.public(answer, asked), client)

    async def _read_content(
        self,
        rules: ContentRules,
        client: Client,
        exchange: RequestContext,
        asked: Asked,
        origin: UpstreamOrigin,
    ) -> Response:
        """A read whose content is part of the key, or a bypass if that can't be."""
        origin = structs.replace(origin, sent_as=rules.method(exchange.method))
        pieces = client.body()
        body, refusal = b"", rules.refusal(exchange.headers)
        if refusal is None:
            body = await read_up_to(pieces, rules.largest)
            refusal = CONTENT_TOO_LARGE if len(body) > rules.largest else None
        if refusal is not None:
            return await self._pass_content(refusal, client, exchange, asked, origin, chained(body, pieces))
        origin = structs.replace(origin, content=rules.content(exchange.method, exchange.headers, body))
        ask = self.ask(exchange, asked, origin, body)
        return await self._answered(client, ask)

    async def _pass_content(
        self,
        why: str,
        client: Client,
        exchange: RequestContext,
        asked: Asked,
        origin: UpstreamOrigin,
        body: AsyncIterator[bytes],
    ) -> Response:
        """The same for a read whose content can't be in the key: it bypasses the cache, and invalidates nothing."""
        send = partial(self.past, exchange, asked, origin, body)
        answer = await client.while_there(self.engine.pass_by(exchange, "bypass", send, detail=why))
        return AnswerResponse(self.public(answer, asked), client)

    async def streamed(self, ask: DeclaredRequest) -> Answer:
        """The response of a route with `stream: share`: an event stream is that of all requests with this key."""
        if ask.plan.bypass is not None or ask.facts.head:
            return await self.engine.answer(ask)
        route, exchange, forward, known = ask.asked.route, ask.exchange, ask.plan.forward, False
        reached = None if exchange.allowance is None else await exchange.allowance.refusal(exchange)
        if reached is not None:
            return limit_reached(exchange, reached)
        assert isinstance(ask.origin, UpstreamOrigin)
        origin = structs.replace(ask.origin, interim=None)
        last_id = first(ask.headers, LAST_EVENT_ID)

        async def request(behind: bytes | None) -> Fetched:
            fields = (*forward, (LAST_EVENT_ID, behind)) if behind else forward
            try:
                async with asyncio.timeout(origin.deadline):
                    return await origin.fetch("GET", fields)
            except TimeoutError:
                raise UpstreamTimeout(origin.name, "no response head before the deadline") from None

        async def send() -> Fetched:
            nonlocal known
            fits = partial(may_be_shared, keyed=bool(ask.plan.keyed))
            of = (route.upstream, route.config)
            joined = await self.streams.join(
                *(ask.plan.base, of, None if last_id is None else last_id.encode("latin-1"), request, fits)
            )
            if isinstance(joined, tuple):
                body, headers, known = joined
                return Fetched(200, without(headers, b"content-length", b"date", b"age"), body)
            return await ask.past() if joined is None else joined

        answer = await self.engine.pass_by(exchange, "bypass", send, detail="stream")
        if known:
            exchange.outcome = structs.replace(exchange.outcome, collapsed=True)
        return answer

    async def _purge(self, exchange: RequestContext, route: Declared, origin: UpstreamOrigin) -> Response:
        """The PURGE method, as in Varnish and Squid: purges its URL, for clients in the networks of the route's
        `purge_from`."""
        if exchange.client not in Trusted(route.config.purge_from):
            return AnswerResponse(problem(exchange, 403, "PURGE is not allowed from this address."))
        soft = first(exchange.headers, b"soft-purge") == "1"
        target = primary_key(route.upstream.name, origin.target)
        report = await self.engine.purge(keys=[target], soft=soft, by=f"PURGE from {exchange.client}")
        return purge_response(report)

    async def _pass(self, client: Client, exchange: RequestContext, asked: Asked, origin: UpstreamOrigin) -> Response:
        route = asked.route
        body = client.body() if has_body(exchange.headers) else None
        if body is None:
            client.expect_no_body()
        answer = await client.while_there(
            self.engine.pass_by(
                exchange,
                "method",
                partial(self.past, exchange, asked, origin, body),
                invalidates=None
                if exchange.method in SAFE_METHODS
                else lambda fetched: self._invalidated(route, exchange, origin.target, fetched),
                keep=(lambda fetched: self._representation(route, exchange, origin, fetched))
                if exchange.method == "POST"
                else None,
            )
        )
        return AnswerResponse(self.public(answer, asked), client)

    def _representation(
        self, route: Declared, exchange: RequestContext, origin: UpstreamOrigin, fetched: Fetched
    ) -> CacheRequest | None:
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

        facts = directives_of("GET", headers, engine_route.rules)
        wanted = structs.replace(engine_route.selection, plan=asked, headers=headers)
        return CacheRequest(engine_route, asked, facts, headers, exchange, origin, past, wanted)

    def _invalidated(self, route: Declared, exchange: RequestContext, target: str, fetched: Fetched) -> list[str]:
        """The primary keys that a successful unsafe request invalidates: its target's, and those of `Location` and
        `Content-Location` on the same origin (RFC 9111 §4.4)."""
        name = route.upstream.name
        void = [primary_key(name, target)]
        path = target.partition("?")[0]
        if path != target:
            void.append(primary_key(name, path))
        for field_name in (b"location", b"content-location"):
            for value in values(fetched.headers, field_name):
                void += self._same_origin(route, exchange, value.decode("latin-1"))
        return void

    def _same_origin(self, route: Declared, exchange: RequestContext, reference: str) -> list[str]:
        """Keys of a URL reference, read as the upstream means it and as a client would."""
        try:
            parts = urlsplit(reference)
            if not parts.path.startswith("/"):
                return []
            found = normalise(parts.path.encode("latin-1"), parts.query.encode("latin-1"), "keep")
        except (RequestRefused, ValueError):
            return []
        keys = []
        if not parts.netloc or any(reference.startswith(base + "/") for base in route.upstream.config.named_bases):
            keys.append(primary_key(route.upstream.name, _below_base(str(found), route.upstream, parts.netloc)))
        if not parts.netloc or parts.netloc.lower() == exchange.host:
            with suppress(RequestRefused):  # by a route that takes no encoded slashes
                path, query = parts.path.encode("latin-1"), parts.query.encode("latin-1")
                keys += self.public_keys(resolve(path, query, self._slashes))
        return keys

    def _slashes(self, target: Target) -> Slashes:
        route = next((route for route in self.declared if route.template.match(target.path) is not None), None)
        return "refuse" if route is None else route.config.encoded_slashes

    def public_keys(self, target: Target) -> list[str]:
        """The primary keys of what the declared routes serve at a target of the public side."""
        for route in self.declared:
            if route.template.match(target.path) is not None:
                return [primary_key(route.upstream.name, route.upstream_target(target.path, target.query)[0])]
        return []

    def public(self, answer: Answer, asked: Asked) -> Answer:
        """The answer as clients may see it: an upstream's own address stays inside, and so do its tags."""
        if _NOT_PUBLIC.isdisjoint(map(_NAME, answer.headers)):
            return answer
        hidden = frozenset() if asked.route.config.expose_tags else TAG_FIELDS
        headers = self._references.mapped(without(answer.headers, *hidden), asked)
        return Answer(answer.status, headers, answer.body)

    def interim(self, send: Interim, asked: Asked, status: int, headers: Headers) -> None:
        """Send an interim response as clients may see it: with the fields that a final one would keep."""
        public = self.public(Answer(status, passed_on(headers), b""), asked)
        send(status, asked.route.engine_route.downstream.interim(public.headers))


def _below_base(target: str, upstream: Upstream, netloc: str) -> str:
    prefix = urlsplit(upstream.config.bases[0]).path
    return target[len(prefix) :] if netloc and prefix and target.startswith(prefix + "/") else target


class _Public(msgspec.Struct, frozen=True, gc=False):
    """`Handlers.public` for the responses to one request line; kept for each, so no closure, which is four objects."""

    handlers: Handlers
    asked: Asked

    def __call__(self, answer: Answer) -> Answer:
        return self.handlers.public(answer, self.asked)


class _Past(msgspec.Struct, frozen=True):
    """`Handlers.past` for a request, most of which need no bypass."""

    handlers: Handlers
    exchange: RequestContext
    asked: Asked
    origin: UpstreamOrigin
    body: AsyncIterator[bytes] | bytes | None

    def __call__(self) -> Awaitable[Fetched]:
        return self.handlers.past(self.exchange, self.asked, self.origin, self.body)


class AskedAgain(msgspec.Struct, frozen=True, gc=False):
    """`Handlers.ask` for another request with the same line, of which no interim response is passed on."""

    handlers: Handlers
    asked: Asked
    target: Target | None
    """The public one."""
    origin: UpstreamOrigin | None = None
    """That of a read whose content is in its key; None for others, whose origin is made again."""

    def recall(self, line: bytes) -> tuple[FastPath, Target | None]:
        return self.handlers.recalled(self), self.target

    def __call__(self, exchange: RequestContext) -> CacheRequest:
        asked, handlers = self.asked, self.handlers
        if self.origin is not None:
            origin = structs.replace(self.origin, request_id=exchange.request_id)
        else:
            origin = asked.route.origin(asked.target, exchange.request_id, handlers.metrics)
        return handlers.ask(exchange, asked, origin)


class PlainAgain(msgspec.Struct, frozen=True):
    """The `Recall` of a route's plain lines, which hold all that differs: of thousands, nothing else is kept."""

    handlers: Handlers
    route: Declared

    def recall(self, line: bytes) -> tuple[FastPath, Target | None]:
        path, route = line.split(b" ")[1].decode("ascii"), self.route
        target = Target(path, (), path)
        asked = Asked(route, path if route.keeps_path else route.plain_target(path), path)
        return self.handlers.recalled(AskedAgain(self.handlers, asked, target)), target
