"""`@cached` for FastAPI handlers: the same engine that declared routes use, behind a decorator.

    @router.get("/products/{id}/summary")
    @cached(ttl="30s", tags=["product:{id}"])
    async def summary(id: int, catalog: Annotated[Upstream, upstream("catalog")]) -> Summary: ...

What the handler returns comes back on a hit as it was: status, headers, body. FastAPI still solves the dependencies of
each request first, so one that refuses, refuses on a hit too. Whatever the handler and its dependencies declare to
read (query parameters, headers, cookies) is part of the key.
"""

from __future__ import annotations

import functools
import inspect
import logging
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, ParamSpec

from fastapi import Request
from msgspec import structs
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message

from .answers import Answer
from .client import AnswerResponse, ClientLeft
from .engine import Ask
from .errors import RequestRefused, UpstreamError, UpstreamUnreachable
from .exchange import SCOPE_KEY, Exchange, exchange_of
from .handler_answers import fetched_of, handled, serialised
from .handler_key import Unwritable
from .handler_request import READING, Reading, SeenRequest, response_scope
from .handler_settings import MARK, Cached, settings_of
from .headers import Headers, has, without
from .keys import Plan
from .outcome import Outcome, Result
from .policy import TAG_FIELDS, facts_of
from .remembered import Recall
from .runtime import Runtime, runtime_of
from .runtime import upstream as upstream
from .templates import render_tag
from .upstreams import Fetched

P = ParamSpec("P")
logger = logging.getLogger("gateway")
_REPLAY = "gateway.replay"
_NO_ANSWERS = (UpstreamError, RequestRefused, ClientLeft)


def cached(
    *,
    ttl: str | timedelta,
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
    edge: bool = False,
    cache: bool = True,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Cache what a FastAPI handler answers to GET and HEAD, for all who ask the same.

    Durations are as in the configuration (`250ms`, `30s`, `5m`); `ttl="origin"` follows the `Cache-Control` that the
    handler itself sets. The key is the path, what the handler and its dependencies declare of the request, the headers
    in `vary` (with a duration; accept and accept-language where it is not set) and, where it takes the Request, the
    query (or `query` of it). What else they read of the Request selects among the answers, as an upstream's `Vary`
    does. What can't be known (the client's address, `request.state` of a middleware, the session, all fields at once)
    makes an answer this client's alone, unless `key` names it: parameters of the handler, or a function of them (and
    of `request`), whose value is part of the key and says who asks.

    A request with Authorization or cookies goes by the cache unless `authorization` or `cookies` say otherwise; what
    they ignore the handler does not see. `tags` may hold path parameters. `deadline` bounds one call. `max_body` is in
    bytes, or a size as in the configuration (`2MiB`).

    With `edge` a fresh answer is given before FastAPI sees the request, as on a declared route: no dependency is solved
    then, so the app is refused at its start where the handler has one that could refuse a request.

    With `cache=False`, or a `ttl` of `0s` without a stale window, every request calls the handler, at once.

    Raises ValueError where an argument means nothing: which, what it was given, and what is allowed.
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
    }

    def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
        return _wrapped(function, settings_of(function, key, given))

    return decorate


def _wrapped(function: Callable[P, Any], settings: Cached) -> Callable[P, Any]:
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    injected: list[inspect.Parameter] = []
    request_name = _parameter(signature, hints, Request, "gateway_request", injected)
    response_name = _parameter(signature, hints, Response, "gateway_response", injected)
    added = {parameter.name for parameter in injected}

    @functools.wraps(function)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        values: dict[str, object] = dict(kwargs)
        request, response = values[request_name], values[response_name]
        assert isinstance(request, Request)
        assert isinstance(response, Response)
        own: Any = {name: value for name, value in values.items() if name not in added}
        call = _Call(functools.partial(function, *args, **own), request, response, settings)
        return await call.serve()

    parameters = [*signature.parameters.values()]
    at = next((i for i, p in enumerate(parameters) if p.kind is inspect.Parameter.VAR_KEYWORD), len(parameters))
    parameters[at:at] = injected
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    setattr(wrapper, MARK, (settings, "gateway_request" if "gateway_request" in added else None))
    return wrapper


def _parameter(
    signature: inspect.Signature,
    hints: dict[str, Any],
    kind: type,
    name: str,
    injected: list[inspect.Parameter],
) -> str:
    """The name of the handler's own parameter of that type, or of one that FastAPI will fill for the wrapper."""
    for own in signature.parameters:
        if hints.get(own) is kind:
            return own
    injected.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind))
    return name


@dataclass
class _Call:
    """One request to a `@cached` handler. `function` has its arguments already."""

    function: Callable[[], Any]
    request: Request
    response: Response
    settings: Cached
    reading: Any = field(init=False)

    def __post_init__(self) -> None:
        # What the dependencies set belongs to this request; what the handler sets, to the answer that is stored.
        self.own_headers = list(self.response.headers.raw)
        self.reading = getattr(self.request, READING, None)
        if isinstance(self.request, SeenRequest):
            self.reading = self.request.reading
            self.request = Request(self.reading.scope)

    async def serve(self) -> Any:
        scope = self.request.scope
        exchange = exchange_of(scope)
        if exchange is None or self.request.method not in ("GET", "HEAD"):
            return await self.value()
        if self.reading is None:
            self.reading = self._prepared(exchange)
        reading = self.reading
        if not isinstance(reading, Reading):
            return await self._past(exchange, reading)
        plan = self._keyed(reading)
        replay = scope.get(_REPLAY)
        if isinstance(replay, _Replay):
            replay.fulfil(plan, await self.fetched())
            self._tell(reading)
            return Response(status_code=204)
        answer = await self._answer(self._ask(runtime_of(self.request), exchange, reading, plan))
        unshared = reading.unshared() is not None
        names = reading.names_so_far if exchange.stored is None else ()
        private = unshared or self.settings.key is not None
        if names or private:
            exchange.downstream = exchange.downstream.varying(names, private=private)
        if unshared and not has(answer.headers, b"cache-control"):
            answer.headers.append((b"cache-control", b"no-store"))
        self._tell(reading)
        answer.headers.extend(self.own_headers)
        return AnswerResponse(_without_tags(answer))

    def _prepared(self, exchange: Exchange) -> Reading | str | None:
        """The reading of a request of which the handler and its dependencies are handed nothing."""
        runtime = runtime_of(self.request)
        prepare = runtime.prepared.get(id(self.settings))
        return None if prepare is None else prepare(self.request, exchange, runtime)

    async def _past(self, exchange: Exchange, why: object) -> Any:
        """What the handler itself answers, to this client alone: `why` the key says so; None where it has none."""
        if _REPLAY in self.request.scope:
            return Response(status_code=503)
        bound = runtime_of(self.request).bound.get(id(self.settings))
        if bound is not None:
            bound[0].takes(exchange)
            names = runtime_of(self.request).so_far(self.settings).names
            # What it reads this time is not recorded, so no Vary can name it.
            exchange.downstream = exchange.downstream.varying(names, private=True)
        if why is None:
            # A router that was changed after it was included has its routes made anew by FastAPI.
            self.request.app.rebind()
        exchange.outcome = Outcome(Result.BYPASS, forward="bypass", detail=str(why or "unprepared"))
        return await self.value()

    def _keyed(self, reading: Reading) -> Plan:
        """The plan of the request, with what `key=` gives in its key."""
        key = self.settings.key
        if key is None:
            return reading.plan
        arguments = getattr(self.function, "keywords", {})
        with reading.covering(key.takes) as request:
            seen = {name: request if isinstance(each, SeenRequest) else each for name, each in arguments.items()}
            try:
                line = key.line(seen, request, reading.keying.identity_key)
            except Unwritable as error:
                reading.note("key", str(error), self.settings.name)
                line = ""
        return structs.replace(reading.plan, base=reading.plan.base + line)

    async def _answer(self, ask: Ask) -> Answer:
        engine, exchange = runtime_of(self.request).engine, ask.exchange
        ask.route.takes(exchange)
        reason = self.reading.reason()
        if reason is not None:  # what dependencies read is known before the cache is asked
            return await engine.pass_by(exchange, "bypass", ask.past, detail=reason)
        if self.settings.edge:
            target = self.reading.target
            exchange.recall = Recall(ask.route, self.settings.origin_name, target, ask.tags, _without_tags, None)
        return engine.at_hand(ask) or await engine.answer(ask)

    def _tell(self, reading: Reading) -> None:
        """Log once what the handler's answers are not shared for."""
        untold = reading.untold()
        if untold is not None:
            logger.warning(
                "the answers of %s are not shared: %s reads %s, which is in no key%s",
                self.settings.name,
                untold.reader,
                untold.what,
                "" if untold.kind == "key" else "; declare what it is made of, or name it by key=",
            )

    def _ask(self, runtime: Runtime, exchange: Exchange, reading: Reading, plan: Plan) -> Ask:
        settings = self.settings
        route, _ = runtime.bound[id(settings)]
        return Ask(
            route=route,
            plan=plan,
            facts=facts_of(exchange.method, exchange.headers, route.rules),
            headers=reading.headers,
            exchange=exchange,
            origin=_HandlerOrigin(self),
            past=self.fetched,
            refresh=lambda: _ReplayOrigin(runtime, exchange, settings, plan),
            tags=tuple(render_tag(tag, self._parameters()) for tag in settings.tags),
        )

    def _parameters(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.request.path_params.items()}

    async def value(self) -> Any:
        """What the handler itself returns, or raises."""
        function = self.function
        inner = function.func if isinstance(function, functools.partial) else function
        if inspect.iscoroutinefunction(inner):
            return await function()
        return await run_in_threadpool(function)

    async def fetched(self) -> Fetched:
        """The handler's answer as the engine takes it; an exception is the answer that its exception handler makes of
        it. One without a handler is raised, and so is a failure of an upstream, which is no answer."""
        try:
            fetched = await self._answered(await self.value())
        except _NO_ANSWERS:
            raise
        except Exception as error:
            response = await handled(SeenRequest(self.reading, "an exception handler"), error)
            fetched = await self._answered(response)
        return structs.replace(fetched, reads=self.reading)

    async def _answered(self, value: Any) -> Fetched:
        if isinstance(value, Response):
            return await fetched_of(value, response_scope(self.reading))
        return await serialised(value, self.request, self.response, self.own_headers)


def _without_tags(answer: Answer) -> Answer:
    return Answer(answer.status, without(answer.headers, *TAG_FIELDS), answer.body)


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


class _Replay:
    def __init__(self) -> None:
        self.fetched: Fetched | None = None
        self.plan: Plan | None = None

    def fulfil(self, plan: Plan, fetched: Fetched) -> None:
        self.plan = plan
        self.fetched = fetched


@dataclass(frozen=True)
class _ReplayOrigin:
    """The answers of a request replayed through the app, so that dependencies made for it live while it runs."""

    runtime: Runtime
    exchange: Exchange
    settings: Cached
    plan: Plan

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def deadline(self) -> float:
        return self.settings.deadline

    def refusal(self) -> None:
        """None: a handler is never full."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        """Raises UpstreamUnreachable where the request no longer reaches the handler: a dependency refused it."""
        replay = _Replay()
        first = self.exchange
        copy = Exchange(
            first.request_id,
            first.began,
            "GET",
            first.client,
            first.scheme,
            first.host,
            first.target,
            first.headers,
        )
        scope = {
            **first.scope,
            "method": "GET",
            SCOPE_KEY: copy,
            _REPLAY: replay,
            "state": {**first.scope.get("state", {})},
        }
        await self.runtime.inner(scope, _no_body, _ignore)
        if replay.fetched is None:
            raise UpstreamUnreachable(self.name, "the replayed request did not reach its handler")
        if replay.plan is None or replay.plan.base != self.plan.base:
            await replay.fetched.body.aclose()
            raise UpstreamUnreachable(self.name, "the replayed request has another key now")
        return replay.fetched


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignore(message: Message) -> None:
    return None
