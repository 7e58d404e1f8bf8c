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
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from .answers import Answer
from .client import AnswerResponse
from .config import DEFAULT_VARY, parse_duration
from .engine import Ask
from .errors import UpstreamUnreachable
from .exchange import SCOPE_KEY, Exchange, exchange_of
from .handler_answers import fetched_of, handled, serialised
from .handler_settings import MARK, Cached
from .headers import Headers, without
from .keys import plan
from .outcome import Outcome, Result
from .policy import TAG_FIELDS, Rules, facts_of
from .remembered import Recall
from .routes import has_body, local_path
from .runtime import Runtime, runtime_of, target_text
from .runtime import upstream as upstream
from .targets import select_query
from .templates import render_tag
from .upstreams import Fetched

P = ParamSpec("P")
_REPLAY = "gateway.replay"


def cached(
    *,
    ttl: str,
    stale_while_revalidate: str | None = None,
    stale_if_error: str | None = None,
    negative_ttl: str = "5s",
    client_ttl: str | None = None,
    tags: typing.Sequence[str] = (),
    vary: typing.Sequence[str] = DEFAULT_VARY,
    query: typing.Sequence[str] | None = None,
    authorization: Literal["pass", "ignore", "key"] = "pass",
    cookies: Literal["pass", "ignore"] | typing.Sequence[str] = "pass",
    deadline: str = "30s",
    max_body: int | None = None,
    edge: bool = False,
    cache: bool = True,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Cache what a FastAPI handler answers to GET and HEAD, for all who ask the same.

    Durations are as in the configuration (`250ms`, `30s`, `5m`); `ttl="origin"` follows the `Cache-Control` that the
    handler itself sets. The key is the path, the query parameters that the handler declares (or `query`), the headers
    in `vary` and those it declares. A request with Authorization or cookies goes by the cache unless `authorization` or
    `cookies` say otherwise. `tags` may hold path parameters. `deadline` bounds one call. `max_body` is in bytes.

    With `edge` a fresh answer is given before FastAPI sees the request, as on a declared route: no dependency is solved
    then, so the app is refused at its start where the handler has one that could refuse a request.

    With `cache=False`, or a `ttl` of `0s` without a stale window, every request calls the handler, at once.

    Raises ValueError for a duration that is none.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
        settings = Cached(
            name=f"{function.__module__}.{function.__qualname__}",
            rules=Rules(
                ttl=None if ttl == "origin" else _seconds(ttl),
                stale_while_revalidate=_optional_seconds(stale_while_revalidate),
                stale_if_error=_optional_seconds(stale_if_error),
                negative_ttl=_seconds(negative_ttl),
                client_ttl=_optional_seconds(client_ttl),
                cache=cache,
            ),
            vary=tuple(name.lower() for name in vary),
            query=frozenset(query) if query is not None else None,
            authorization=authorization,
            cookies={"pass": None, "ignore": ()}[cookies] if isinstance(cookies, str) else tuple(cookies),
            tags=tuple(tags),
            deadline=_seconds(deadline),
            max_body=max_body,
            edge=edge,
        )
        return _wrapped(function, settings)

    return decorate


def _seconds(text: str) -> float:
    return parse_duration(text).total_seconds()


def _optional_seconds(text: str | None) -> float | None:
    return None if text is None else _seconds(text)


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

    def __post_init__(self) -> None:
        # What the dependencies set belongs to this request; what the handler sets, to the answer that is stored.
        self.own_headers = list(self.response.headers.raw)

    async def serve(self) -> Any:
        scope = self.request.scope
        replay = scope.get(_REPLAY)
        if isinstance(replay, _Replay):
            replay.fulfil(await self.fetched())
            return Response(status_code=204)
        exchange = exchange_of(scope)
        runtime = runtime_of(self.request)
        if exchange is None or self.request.method not in ("GET", "HEAD"):
            return await self.value()
        ask = self._ask(runtime, exchange)
        ask.route.takes(exchange)
        bypass = "off" if ask.route.rules.off else ask.plan.bypass
        if bypass is not None:
            exchange.outcome = Outcome(Result.BYPASS, forward="bypass", detail=bypass)
            return await self.value()
        if self.settings.edge:
            target = self._target(runtime, exchange)
            exchange.recall = Recall(ask.route, self.settings.origin_name, target, ask.tags, _without_tags, None)
        answer = runtime.engine.at_hand(ask) or await runtime.engine.answer(ask)
        answer.headers.extend(self.own_headers)
        return AnswerResponse(_without_tags(answer))

    def _ask(self, runtime: Runtime, exchange: Exchange) -> Ask:
        settings = self.settings
        route, _ = runtime.bound[id(settings)]
        target = self._target(runtime, exchange)
        origin = _HandlerOrigin(self)
        return Ask(
            route=route,
            plan=plan(
                route.keying,
                settings.origin_name,
                target,
                exchange.headers,
                has_body=has_body(exchange.headers),
            ),
            facts=facts_of(exchange.method, exchange.headers, route.rules),
            headers=exchange.headers,
            exchange=exchange,
            origin=origin,
            past=self.fetched,
            refresh=lambda: _ReplayOrigin(runtime, exchange, settings),
            tags=tuple(render_tag(tag, self._parameters()) for tag in settings.tags),
        )

    def _target(self, runtime: Runtime, exchange: Exchange) -> str:
        assert exchange.target is not None
        _, allowed = runtime.bound[id(self.settings)]
        return target_text(local_path(self.request), select_query(exchange.target.query, allowed, runtime.drop_query))

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
        """The handler's answer as the engine takes it; an HTTPException is the answer that its handler makes of it."""
        try:
            value = await self.value()
        except HTTPException as error:
            value = await handled(self.request, error)
        if isinstance(value, Response):
            return await fetched_of(value, self.request.scope)
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

    def fulfil(self, fetched: Fetched) -> None:
        self.fetched = fetched


@dataclass(frozen=True)
class _ReplayOrigin:
    """The answers of a request replayed through the app, so that dependencies made for it live while it runs."""

    runtime: Runtime
    exchange: Exchange
    settings: Cached

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
        return replay.fetched


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignore(message: Message) -> None:
    return None
