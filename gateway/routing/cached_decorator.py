"""`@cached` for FastAPI handlers: the same engine that declared routes use, behind a decorator.

    @router.get("/products/{id}/summary")
    @cached(ttl="30s", tags=["product:{id}"])
    async def summary(id: int, catalog: Annotated[Upstream, upstream("catalog")]) -> Summary: ...

What the handler returns comes back on a hit as it was: status, headers, body. FastAPI still solves the dependencies of
each request first, so one that refuses, refuses on a hit too. Whatever the handler and its dependencies declare to
read (query parameters, headers, cookies) is part of the key.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, ParamSpec

from fastapi import Request
from msgspec import structs
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from gateway.cache.request import CacheRequest
from gateway.cache.respond import Answer
from gateway.context import Outcome, RequestContext, Result, exchange_of
from gateway.errors import RequestRefused, UpstreamError
from gateway.http.headers import Headers, has, without
from gateway.observability.log import ONCE
from gateway.policy.keys import Plan
from gateway.policy.rules import directives_of
from gateway.policy.storability import TAG_FIELDS
from gateway.routing.fast_path import FastPath
from gateway.routing.function_calls import Outside
from gateway.routing.handler_endpoint import Called, Wrapped, endpoint_of
from gateway.routing.handler_key import Unwritable
from gateway.routing.handler_limits import count_late, count_miss
from gateway.routing.handler_reading import KEY, READING, Reading, Unknown
from gateway.routing.handler_replay import ReplayOrigin, replay_of
from gateway.routing.handler_request import SeenRequest, response_scope
from gateway.routing.handler_responses import fetched_of, handled, route_of, serialised
from gateway.routing.handler_settings import (
    CACHED_AS,
    MARK,
    UNJUDGED,
    WHO_KEY,
    Cached,
    Judged,
    Marked,
    Runtime,
    not_stored,
    runtime_of,
    settings_of,
)
from gateway.routing.handler_tags import rendered
from gateway.routing.handler_value import CONDITIONS, FIELD, fetched_value, kind_of, put_headers
from gateway.routing.principal import admit_late
from gateway.routing.responses import AnswerResponse, ClientLeft, RaisedAnswer
from gateway.upstreams.response import Fetched

P = ParamSpec("P")
logger = logging.getLogger("gateway")
_NO_ANSWERS = (UpstreamError, RequestRefused, ClientLeft)


def cached(
    *,
    ttl: str | timedelta | Callable[[Any], str | int | float | timedelta | None],
    stale_while_revalidate: str | timedelta | None = None,
    stale_if_error: str | timedelta | None = None,
    negative_ttl: str | timedelta = "5s",
    client_ttl: str | timedelta | None = None,
    tags: typing.Sequence[str] = (),
    vary: typing.Sequence[str] | None = None,
    key: Callable[..., object] | typing.Sequence[str] | None = None,
    query: typing.Sequence[str] | None = None,
    authorization: Literal["pass", "ignore", "key"] = "pass",
    cookies: Literal["pass", "ignore"] | typing.Sequence[str] = "pass",
    deadline: str | timedelta = "30s",
    max_body: int | str | None = None,
    edge: bool | None = None,
    cache: bool = True,
    when: Callable[[Any], object] | None = None,
    identity: typing.Sequence[str] | None = None,
    per: typing.Sequence[str] | None = None,
    require: typing.Mapping[str, Any] | None = None,
    optional: bool = False,
    rate_limits: typing.Sequence[str] = (),
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Cache a FastAPI handler's responses to GET and HEAD, shared by all clients with the same inputs; or the values
    of a function that is no handler, by its arguments (`function_calls`).

    Durations are as in the configuration (`250ms`, `30s`, `5m`); `ttl="origin"` follows the `Cache-Control` that the
    handler itself sets. A function as `ttl` gets the handler's value and returns a duration (or seconds), or None to
    store nothing; `when` gets it and returns whether to store it. Both say so in `Cache-Control`. The key contains
    the path, the inputs that the handler and its dependencies declare, the
    headers in `vary` (with a duration; default: accept and accept-language) and, if it takes the Request, the query (or
    `query` of it). Other fields that they read from the Request select among the responses, as an upstream's `Vary`
    does. Inputs that can't be in a key (the client's address, `request.state` of a middleware, the session, all fields
    at once) make a response private to its client, unless `key` covers them: parameters of the handler, or a function
    of them (and of `request`), whose value becomes part of the key and identifies the client.

    A request with Authorization or cookies bypasses the cache unless `authorization` or `cookies` say otherwise; what
    they ignore is hidden from the handler. `tags` may contain path parameters. `deadline` bounds one call. `max_body`
    is in bytes, or a size as in the configuration (`2MiB`).

    A fresh response is served before FastAPI sees the request, as on a declared route, if that is provably equivalent:
    the handler takes only declared parameters, and no other code of the app runs for a request. `edge=False` always
    uses the app. `edge=True` requires no proof: dependencies are not solved then, so the app refuses to start if the
    handler has one that could refuse a request.

    `identity` names providers of the setting `identity`, one of which must have verified a request's credential, and
    `per` the claims that responses depend on, each part of the key; `require` and `optional` are as for a route. The
    handler takes a `Principal`, of which it can read the claims in `per`. With `per` alone, any provider will do.

    `rate_limits` names limits of the setting `rate_limits`, by which requests to the handler are counted.

    With `cache=False`, or a `ttl` of `0s` without a stale window, every request calls the handler, without waiting.

    Raises ValueError for an invalid argument: its name, its value, and what is allowed.
    """

    given = {
        "ttl": ttl,
        "stale_while_revalidate": stale_while_revalidate,
        "stale_if_error": stale_if_error,
        "negative_ttl": negative_ttl,
        "client_ttl": client_ttl,
        "tags": tags,
        "vary": vary,
        "query": query,
        "authorization": authorization,
        "cookies": cookies,
        "deadline": deadline,
        "max_body": max_body,
        "edge": edge,
        "cache": cache,
        "identity": identity,
        "per": per,
        "require": require or {},
        "optional": optional,
        "rate_limits": rate_limits,
    }

    def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
        return _wrapped(function, settings_of(function, key, when, given))

    return decorate


def _wrapped(function: Callable[P, Any], settings: Cached) -> Callable[P, Any]:
    try:
        wrapped = Wrapped.of(function)
    except ValueError as error:
        raise ValueError(f"@cached on {settings.name}: {error}") from None
    outside = Outside(function, settings, lambda: wrapped.coder)
    endpoint = endpoint_of(wrapped, lambda called: _Call(called, settings).serve(), outside)
    marked = Marked(settings, wrapped.injected_request, wrapped.injected[0].name, endpoint)
    setattr(endpoint, MARK, marked)
    with suppress(AttributeError):  # a bound method has no attributes of its own
        setattr(function, CACHED_AS, endpoint)
    return endpoint


@dataclass
class _Call:
    """One request to a `@cached` handler."""

    called: Called
    settings: Cached
    reading: Any = field(init=False)
    background: BackgroundTask | None = None
    returned: Any = None
    raised: Exception | None = None
    left: bool = False
    """Whether an answer was given, or none is to be."""

    def __post_init__(self) -> None:
        self.request, self.response = self.called.request, self.called.response
        # What the dependencies set belongs to this request; what the handler sets, to the answer that is stored.
        self.own_headers = list(self.response.headers.raw)
        self.reading = getattr(self.request, READING, None)
        if isinstance(self.request, SeenRequest):
            self.reading = self.request.reading
            self.request = Request(self.reading.scope)

    async def serve(self) -> Any:
        scope = self.request.scope
        if self.settings.identity is not None and WHO_KEY not in scope:
            await admit_late(self.request, self.settings)
            self.reading = None
        if self.settings.rate_limits:
            await count_late(self.request, self.settings)
        exchange = exchange_of(scope)
        if exchange is None or self.request.method not in ("GET", "HEAD"):
            return await self.value()
        if self.reading is None:
            self.reading = self._prepared(exchange)
        reading = self.reading
        if self.called.decorated and exchange.method == "HEAD":
            reading = "decorated"
        if not isinstance(reading, Reading):
            return await self._past(exchange, reading)
        plan = self._keyed(reading)
        replay = replay_of(scope)
        if replay is not None:
            replay.fulfil(plan, await self.fetched())
            self._tell(reading)
            return self._given(Answer(204, [], b""))
        try:
            answer = await self._answer(self._ask(runtime_of(self.request), exchange, reading, plan))
        except BaseException:
            self._leave()
            raise
        unshared = reading.unshared() is not None
        names = reading.names_so_far if exchange.stored is None else ()
        private = unshared or self.settings.key is not None
        if names or private:
            exchange.downstream = exchange.downstream.varying(names, private=private)
        if unshared and not has(answer.headers, b"cache-control"):
            answer.headers.append((b"cache-control", b"no-store"))
        self._tell(reading)
        return self._value_of(answer) if self.called.decorated else self._given(answer)

    def _given(self, answer: Answer) -> Response:
        """An answer as the response of this request. Raises it where decorators above are to be given no response."""
        answer.headers.extend(self.own_headers)
        response = self._followed(_without_tags(answer))
        if self.called.decorated and kind_of(answer) != "response":
            raise RaisedAnswer(response)
        return response

    def _value_of(self, answer: Answer) -> Any:
        """The result for the decorators above: the handler's value, or its exception."""
        kind = kind_of(answer)
        if kind in ("value", "object"):
            put_headers(answer, self.request, self.response, self.own_headers)
            if kind == "object" or not isinstance(answer.body, bytes):
                return self.returned
            return self.called.wrapped.coder.read(answer.body)
        if kind is None and self.raised is not None:
            raise self.raised
        return self._given(answer)

    def _followed(self, answer: Answer) -> AnswerResponse:
        """A response, and the work that follows once it is sent."""
        self.left = True
        response = AnswerResponse(answer)
        response.background = self.background
        return response

    def _leave(self) -> None:
        """Run the follow-up work of the handler's call, which has no response to follow."""
        self.left = True
        if self.background is not None:
            runtime_of(self.request).engine.following.spawn(self.background())

    def _follow(self, background: BackgroundTask | None) -> None:
        """Run a response's follow-up work after the response; at once if the handler ended after its client was served
        otherwise."""
        if background is None:
            return
        first = self.background
        if self.left or first is None:
            self.background = background
        else:
            self.background = BackgroundTasks([first, background])
        if self.left:
            self._leave()

    def _prepared(self, exchange: RequestContext) -> Reading | str | None:
        """The reading of a request of which the handler and its dependencies are handed nothing."""
        runtime = runtime_of(self.request)
        prepare = runtime.prepared.get(id(self.settings))
        return None if prepare is None else prepare(self.request, exchange, runtime)

    async def _past(self, exchange: RequestContext, why: object) -> Any:
        """The handler's own response, for this client only: `why` the key says so; None if it has no key."""
        if replay_of(self.request.scope) is not None:
            return Response(status_code=503)
        await count_miss(self.request)
        bound = runtime_of(self.request).bound.get(id(self.settings))
        if bound is not None:
            bound[0].takes(exchange)
            names = runtime_of(self.request).so_far(self.settings).names
            # Its reads are not recorded this time, so no Vary can name them.
            exchange.downstream = exchange.downstream.varying(names, private=True)
        if why is None:
            # A router that was changed after it was included has its routes made anew by FastAPI.
            runtime_of(self.request).rebind()
        exchange.outcome = Outcome(Result.BYPASS, forward="bypass", detail=str(why or "unprepared"))
        return await self.value()

    def _keyed(self, reading: Reading) -> Plan:
        """The plan of the request, with the value of `key=` in its key."""
        key, base = self.settings.key, reading.plan.base
        if self.called.decorated:
            base += "\n:value"
        if key is None:
            return structs.replace(reading.plan, base=base) if self.called.decorated else reading.plan
        arguments = self.called.function.keywords
        request = SeenRequest(reading, KEY)
        with reading.covering(key.takes):
            seen = {name: request if isinstance(each, SeenRequest) else each for name, each in arguments.items()}
            try:
                line = key.line(seen, request, reading.keying.identity_key)
            except Unwritable as error:
                reading.note("key", str(error), self.settings.name)
                line = ""
        return structs.replace(reading.plan, base=base + line)

    async def _answer(self, ask: CacheRequest) -> Answer:
        engine, exchange = runtime_of(self.request).engine, ask.exchange
        ask.route.takes(exchange)
        reason = self.reading.reason()
        if reason is not None:  # the reads of dependencies are known before the cache lookup
            return await engine.pass_by(exchange, "bypass", ask.past, detail=reason)
        target, origin, solved = self.reading.target, self.settings.origin_name, not self._is_for_the_edge()
        shown = not solved or (self.settings.key is None and self.settings.edge is None)
        if shown and WHO_KEY not in self.request.scope:
            exchange.recall = FastPath(ask.route, origin, target, ask.wanted.tags, _without_tags, None, solved=solved)
        return engine.at_hand(ask) or await engine.answer(ask)

    def _is_for_the_edge(self) -> bool:
        """Whether the edge may serve the next request of this line. Routes that FastAPI made later are checked
        first."""
        runtime, tree = runtime_of(self.request), route_of(self.request).dependant
        known = runtime.edge.get(id(tree))
        if known is None:
            runtime.rebind()
            known = runtime.edge.setdefault(id(tree), Judged(tree, UNJUDGED))
        return known.against is None

    def _tell(self, reading: Reading) -> None:
        """Log once what the handler's answers are not shared for."""
        untold = reading.untold()
        if untold is not None:
            logger.warning(
                "responses of %s are not shared: %s reads %s, which isn't part of the key%s",
                self.settings.name,
                untold.reader,
                untold.what,
                "" if untold.kind == "key" else "; declare the inputs that it depends on, or name it with key=",
                extra=ONCE,
            )

    def _ask(self, runtime: Runtime, exchange: RequestContext, reading: Reading, plan: Plan) -> CacheRequest:
        settings = self.settings
        route, _ = runtime.bound[id(settings)]
        headers, sent = reading.headers, exchange.headers
        if self.called.decorated:  # a value is whole: conditions and ranges are of what the decorators make of it
            headers, sent = without(headers, *CONDITIONS), without(sent, *CONDITIONS)
        return CacheRequest(
            route=route,
            plan=plan,
            facts=directives_of(exchange.method, sent, route.rules),
            headers=headers,
            exchange=exchange,
            origin=_HandlerOrigin(self),
            past=self.fetched,
            wanted=structs.replace(route.selection, plan=plan, headers=headers, tags=self._tags(runtime, exchange)),
            refresh=lambda: ReplayOrigin(runtime, exchange, settings, plan),
        )

    def _tags(self, runtime: Runtime, exchange: RequestContext) -> tuple[str, ...]:
        settings, who = self.settings, exchange.principal
        asked = settings.identity
        claims = {} if who is None or asked is None else who.texts(asked.per)
        key = runtime.engine.identity_key
        return rendered(settings.tags, self.reading.tree, self.request.path_params, key, claims)

    async def value(self) -> Any:
        """The handler's own return value or exception."""
        if self.called.wrapped.is_coroutine:
            return await self.called.function()
        return await run_in_threadpool(self.called.function)

    async def fetched(self) -> Fetched:
        """The handler's response for the engine; for an exception, the response of its exception handler. One without
        an exception handler is raised, and so is an upstream failure, which is not a response."""
        try:
            value = await self.value()
            fetched = await self._answered(value, marked=self.called.decorated)
            if self.settings.by_value is not None:
                fetched = self.settings.by_value.applied(value, fetched)
        except _NO_ANSWERS:
            raise
        except Exception as error:
            response = await handled(SeenRequest(self.reading, "an exception handler"), error)
            fetched = await self._answered(response)
            if self.called.decorated:
                self.raised, fetched = error, not_stored(fetched)
        return structs.replace(fetched, reads=self.reading)

    async def _answered(self, value: Any, *, marked: bool = False) -> Fetched:
        if isinstance(value, Response):
            fetched = await fetched_of(value, response_scope(self.reading))
            self._follow(value.background)
            return structs.replace(fetched, headers=[*fetched.headers, (FIELD, b"response")]) if marked else fetched
        if self.called.decorated:
            return self._valued(value)
        return await serialised(value, self.request, self.response, self.own_headers)

    def _valued(self, value: Any) -> Fetched:
        self.returned = value
        text = self.called.wrapped.coder.written(value)
        unknown = Unknown("value", "a value", self.settings.name)
        if text is None and runtime_of(self.request).so_far(self.settings).is_news(unknown):
            logger.warning(
                "responses of %s are not stored: a decorator above @cached uses the value, which JSON doesn't "
                "preserve; annotate the return type, or write the decorator below @cached",
                self.settings.name,
                extra=ONCE,
            )
        return fetched_value(text, self.request, self.response, self.own_headers)


def _without_tags(answer: Answer) -> Answer:
    return Answer(answer.status, without(answer.headers, FIELD, *TAG_FIELDS), answer.body)


@dataclass(frozen=True)
class _HandlerOrigin:
    """The answers of a handler's call, with the dependencies of the request that made it."""

    call: _Call

    @property
    def name(self) -> str:
        return self.call.settings.name

    @property
    def deadline(self) -> float:
        return self.call.settings.deadline

    def refusal(self) -> None:
        """None: a handler is never full."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        return await self.call.fetched()
