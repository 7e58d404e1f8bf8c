"""Requests for aggregates: their keys and selections, the handlers of their routes, and the way without ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote_plus

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.splice_plan import joinable
from gateway.cache.engine import Engine
from gateway.cache.request import CacheRequest
from gateway.cache.respond import Answer, problem
from gateway.config.part_graph import near
from gateway.config.part_values import Values
from gateway.context import RequestContext, exchange_of
from gateway.errors import RequestRefused
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers, first, sent_value
from gateway.http.target import Slashes, Target, query_name
from gateway.observability.metrics import Metrics
from gateway.policy.keys import is_identity, plan, primary_key
from gateway.policy.rules import directives_of
from gateway.routing.admitting import let_in
from gateway.routing.declared import has_body, local_path, purge_response
from gateway.routing.fast_path import BlockCache, FastPath, InterimClient
from gateway.routing.responses import AnswerResponse, Client
from gateway.upstreams.response import WholeBody

PARTS = "parts"
"""The query parameter by which clients select parts."""


def aggregate_key(aggregate: Aggregate, target: Target) -> str:
    """The primary key of an aggregate's answer at a target of the public side."""
    shown = _selected(aggregate, target)
    return primary_key(aggregate.origin, _key_target(target.path, _counted(aggregate, target), shown))


def _key_target(path: str, counted: tuple[str, ...], shown: tuple[str, ...] | None) -> str:
    pairs = list(counted)
    if shown is not None:
        pairs.append(f"{PARTS}={','.join(shown)}")
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _counted(aggregate: Aggregate, target: Target) -> tuple[str, ...]:
    """The pairs of the client's query that a part sees: they are in the key as they are passed on."""
    return tuple(pair for pair in target.query if query_name(pair) in aggregate.kit.plan.query)


def _selected(aggregate: Aggregate, target: Target) -> tuple[str, ...] | None:
    """The parts that the client requests; None: all. Raises RequestRefused."""
    known = aggregate.config.parts
    asked = [unquote_plus(pair.partition("=")[2]) for pair in target.query if query_name(pair) == PARTS]
    if not asked or not aggregate.config.selectable:
        return None
    names = set(filter(None, ",".join(asked).split(",")))
    if not names:
        raise RequestRefused(f"parts is empty; known parts: {', '.join(known)}", reason="parts")
    for name in names:
        if name not in known:
            raise RequestRefused(f"Unknown part{near(name, known)}", reason="parts")
    return tuple(name for name in known if name in names)


class AggregateRequest(msgspec.Struct, frozen=True):
    """One request for an aggregate: the target of its key, the values for its parts, and the parts to show."""

    target: str
    values: Values
    shown: tuple[str, ...]


def asked_of(
    aggregate: Aggregate, path: str, target: Target, headers: Headers, *, plain: bool = False
) -> AggregateRequest:
    """The request for `path`, which is `plain` if it has neither dots nor encoded characters, and there is no query.
    Raises RequestRefused."""
    parameters = aggregate.config.template.match(path)
    if parameters is None:
        raise RequestRefused("The path does not match its route.", 404)
    reads, header = aggregate.kit.plan.reads, {}
    if reads:
        header = {name: value for name in reads if (value := sent_value(headers, name)) is not None}
    if plain:
        return AggregateRequest(path, Values(parameters, (), header, plain=True), aggregate.all_parts)
    selected, counted = _selected(aggregate, target), _counted(aggregate, target)
    shown = aggregate.all_parts if selected is None else selected
    return AggregateRequest(_key_target(path, counted, selected), Values(parameters, counted, header), shown)


class Again(msgspec.Struct, frozen=True):
    """How an aggregate served a request: the edge's data for the next one of its line. None of the request's fields are
    kept with it, which may be of 32 KiB. `path` and `plain` as for `asked_of`."""

    aggregate: Aggregate
    path: str
    plain: bool
    target: Target

    def recall(self, line: bytes) -> tuple[FastPath, Target | None]:
        return self.fast_path(), self.target

    def fast_path(self) -> FastPath:
        """Without `ask`: no joined response is served stale from memory and refreshed behind; its parts are."""
        aggregate, asked = self.aggregate, asked_of(self.aggregate, self.path, self.target, (), plain=self.plain)
        return FastPath(
            route=aggregate.route,
            origin=aggregate.origin,
            target=asked.target,
            tags=aggregate.tags(asked.values, None),
            public=lambda answer: answer,
            ask=None,
            joinable=lambda other: joinable(aggregate, other, asked.values, asked.shown),
        )


@dataclass(frozen=True)
class AggregateHandlers:
    """Makes the handlers of aggregates."""

    engine: Engine
    metrics: Metrics

    def handler(self, aggregate: Aggregate) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            exchange = exchange_of(request.scope)
            assert exchange is not None
            aggregate.route.takes(exchange)
            if request.method == "PURGE":
                return await self._purge(exchange, aggregate)
            if request.method not in ("GET", "HEAD"):
                answer = problem(exchange, 405, "An aggregate is read-only.")
                answer.headers.append((b"allow", b"GET, HEAD"))
                return AnswerResponse(answer)
            refusal = await let_in(
                aggregate.admission, aggregate.limits, exchange, self.engine.identity_key, self.metrics
            )
            if refusal is not None:
                return AnswerResponse(refusal)
            return await self._read(request, exchange, aggregate)

        handle.__name__ = aggregate.name
        handle.__doc__ = aggregate.config.description
        return handle

    async def _read(self, request: Request, exchange: RequestContext, aggregate: Aggregate) -> Response:
        ask = self.ask(exchange, aggregate, local_path(request))
        if isinstance(exchange.recall, Again):
            exchange.recall = exchange.recall.fast_path()
        client = Client(request.receive)
        client.expect_no_body()
        answer = aggregate.at_hand(ask)
        if answer is None:
            answer = await client.while_there(aggregate.answer(ask))
        return AnswerResponse(whole_bytes(answer, head=ask.facts.head), client)

    def ask(
        self,
        exchange: RequestContext,
        aggregate: Aggregate,
        path: str,
        block: BlockCache | None = None,
        *,
        plain: bool = False,
        stays: bool = False,
    ) -> CacheRequest:
        """The request for the aggregate at `path`, below the app's mount path, and what makes the edge's data for the
        next one (`RequestContext.recall`). `block` is the header block of `exchange`, if it was parsed before;
        `plain` as for `asked_of`. Raises RequestRefused."""
        assert exchange.target is not None
        headers, route = exchange.headers, aggregate.route
        asked = asked_of(aggregate, path, exchange.target, headers, plain=plain)
        known = None if block is None else block.planned[route, exchange.method]
        if known is not None:
            fields, facts = known
            planned = fields.plan(aggregate.origin, asked.target)
        else:
            planned = plan(route.keying, aggregate.origin, asked.target, headers, has_body=has_body(headers))
            facts = directives_of(exchange.method, headers, route.rules)
        if aggregate.follows_origin:
            # Its upstream sees the client's identity, though that is not in a key: a failure is shared only between
            # equal identities.
            own = [pair for pair in headers if is_identity(pair[0].decode("latin-1"))]
            planned = structs.replace(planned, forward=(*planned.forward, *own))
        if facts.authorized:
            # Where a part passes it on, the aggregate's cache is bypassed; else it is part of the key, or ignored.
            facts = structs.replace(facts, authorized=False)
        if aggregate.admission is None and not aggregate.counts_hits:
            exchange.recall = Again(aggregate, path, plain, exchange.target)
        return aggregate.ask(exchange, planned, facts, asked.values, asked.shown, block, stays=stays)

    async def _purge(self, exchange: RequestContext, aggregate: Aggregate) -> Response:
        """The PURGE method: the whole that the URL names, from the networks that the route lists."""
        if exchange.client not in Trusted(aggregate.config.purge_from):
            return AnswerResponse(problem(exchange, 403, "PURGE is not allowed from this address."))
        assert exchange.target is not None
        key = aggregate_key(aggregate, exchange.target)
        soft = first(exchange.headers, b"soft-purge") == "1"
        return purge_response(await self.engine.purge(keys=[key], soft=soft, by=f"PURGE from {exchange.client}"))


def whole_bytes(answer: Answer, *, head: bool) -> Answer:
    """The response with its body as bytes, if that is complete; without it, for a HEAD."""
    if not isinstance(answer.body, WholeBody):
        return answer
    return Answer(answer.status, answer.headers, b"" if head else answer.body.content)


class DirectAggregate:
    """A route of the configuration with parts, in the form of `edge.direct_routes.Direct`."""

    __slots__ = ("aggregate", "engine_route", "handlers", "reads", "slashes")

    def __init__(self, handlers: AggregateHandlers, aggregate: Aggregate) -> None:
        self.handlers, self.aggregate, self.engine_route = handlers, aggregate, aggregate.route
        self.slashes: Slashes = aggregate.config.encoded_slashes
        self.reads = aggregate.admission is None and not aggregate.counts_hits

    def ask(
        self,
        exchange: RequestContext,
        client: InterimClient,
        block: BlockCache | None = None,
        *,
        plain: bool = False,
    ) -> CacheRequest:
        """Raises RequestRefused."""
        assert exchange.target is not None
        if self.aggregate.limits is not None:
            exchange.allowance = self.aggregate.limits.allowance()
        return self.handlers.ask(exchange, self.aggregate, exchange.target.path, block, plain=plain, stays=True)

    async def answer(self, ask: CacheRequest) -> Answer:
        return self.aggregate.at_hand(ask) or await self.aggregate.answer(ask)

    def public(self, answer: Answer, ask: CacheRequest) -> Answer:
        return whole_bytes(answer, head=ask.facts.head)
