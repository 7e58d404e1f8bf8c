"""`@cached` for FastAPI handlers: the same engine that declared routes use, behind a decorator.

    @router.get("/products/{id}/summary")
    @cached(ttl="30s", tags=["product:{id}"])
    async def summary(id: int, catalog: Annotated[Upstream, upstream("catalog")]) -> Summary: ...

What the handler returns comes back on a hit as it was: status, headers, body. FastAPI still solves the dependencies of
each request first, so one that refuses, refuses on a hit too. Whatever the handler and its dependencies declare to
read (query parameters, headers, cookies) is part of the key.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, ParamSpec, TypeVar

from fastapi import Depends, Request
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, serialize_response
from fastapi.security.base import SecurityBase
from fastapi.utils import is_body_allowed_for_status_code
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Scope

from .answers import Answer
from .client import AnswerResponse
from .config import DEFAULT_VARY, parse_duration
from .engine import Ask, Engine, Route
from .errors import GatewayError, UpstreamUnreachable
from .exchange import SCOPE_KEY, Exchange, exchange_of
from .headers import Headers, without
from .keys import Keying, plan, primary_key
from .metrics import Metrics
from .outcome import Outcome, Result
from .policy import TAG_FIELDS, Rules, facts_of
from .remembered import Recall
from .routes import has_body, local_path
from .targets import Target, select_query
from .templates import render_tag
from .upstreams import Fetched, Upstream, WholeBody

P = ParamSpec("P")
R = TypeVar("R")
STATE = "gateway"
_REPLAY = "gateway.replay"
_MARK = "__gateway_cached__"
_UPSTREAM = "__gateway_upstream__"


@dataclass
class Runtime:
    """What handlers find at `request.app.state.gateway`."""

    engine: Engine
    upstreams: dict[str, Upstream]
    metrics: Metrics
    drop_query: tuple[str, ...]
    max_body: int
    inner: Callable[[Scope, Any, Any], Awaitable[None]]
    contexts: dict[int, RouteContext] = field(default_factory=dict)
    """By the id of the route that a router holds: what including it made of it."""
    late: set[int] = field(default_factory=set)
    """The ids of those whose router was included after the app was made: declared routes stand before them."""
    aggregates: dict[str, Callable[[Request], Awaitable[Response]]] = field(default_factory=dict)
    """The handlers of aggregates that are written in Python, by name."""
    bound: dict[int, tuple[Route, frozenset[str] | None]] = field(default_factory=dict)
    """By the id of a handler's settings: its route for the engine, and the query parameters that count."""
    overridden: typing.Mapping[str, Rules] = field(default_factory=dict)
    """By a handler's name: its rules where live overrides made them other than its code has them."""
    coded: dict[str, Rules] = field(default_factory=dict)
    """By a handler's name: its rules as its code has them."""

    def keys_of(self, target: Target) -> list[str]:
        """The primary keys of what `@cached` handlers answer at a target."""
        keys = []
        for context in self.contexts.values():
            marked = cached_settings(context.endpoint)
            if marked is not None and context.path_regex.fullmatch(target.decoded):
                settings = marked[0]
                pairs = select_query(target.query, self.bound[id(settings)][1], self.drop_query)
                keys.append(primary_key(settings.origin_name, target_text(target.path, pairs)))
        return keys

    def bind(self, settings: Cached, inputs: Inputs) -> None:
        """Make ready a `@cached` handler whose routes declare `inputs`."""
        allowed = settings.query if settings.query is not None else inputs.query
        self.coded[settings.name] = settings.rules
        rules = self.overridden.get(settings.name, settings.rules)
        self.bound[id(settings)] = (replace(settings, rules=rules).route(inputs, self.max_body), allowed)


def target_text(path: str, pairs: typing.Sequence[str]) -> str:
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def upstream(name: str) -> Any:
    """A dependency: the configured upstream of that name. Its existence is checked when the app is made."""

    def get_upstream(request: Request) -> Upstream:
        return runtime_of(request).upstreams[name]

    setattr(get_upstream, _UPSTREAM, name)
    return Depends(get_upstream)


def runtime_of(request: Request) -> Runtime:
    """The gateway that serves `request`. Raises GatewayError where none does."""
    runtime = getattr(request.app.state, STATE, None)
    if not isinstance(runtime, Runtime):
        raise GatewayError(
            "this handler needs the gateway: name its router in the configuration's `include`, or make the app with "
            "gateway.create_app and include the router there"
        )
    return runtime


@dataclass
class Cached:
    """The settings of one `@cached` handler, checked when it is decorated."""

    name: str
    rules: Rules
    vary: tuple[str, ...]
    query: frozenset[str] | None
    authorization: str
    cookies: tuple[str, ...] | None
    tags: tuple[str, ...]
    deadline: float
    max_body: int | None
    edge: bool = False

    @property
    def origin_name(self) -> str:
        return f"@{self.name}"

    def route(self, inputs: Inputs, max_body: int) -> Route:
        """The route as the engine sees it, with what the handler declares to read in its key."""
        cookies = None if self.cookies is None else tuple(sorted({*self.cookies, *inputs.cookies}))
        vary = None if self.rules.ttl is None else tuple(sorted({*self.vary, *inputs.headers}))
        keying = Keying(vary=vary, authorization=self.authorization, cookies=cookies)
        return Route(self.name, self.rules, keying, max_body if self.max_body is None else self.max_body)


@dataclass(frozen=True)
class Inputs:
    """What a handler and its dependencies declare to read. `query` is None where that cannot be known."""

    query: frozenset[str] | None = None
    headers: frozenset[str] = frozenset()
    cookies: frozenset[str] = frozenset()

    def union(self, other: Inputs) -> Inputs:
        known = self.query is not None and other.query is not None
        query = (self.query or frozenset()) | (other.query or frozenset()) if known else None
        return Inputs(query, self.headers | other.headers, self.cookies | other.cookies)


def inputs_of(dependant: Dependant, injected: str | None) -> Inputs:
    """The inputs that a route's dependency tree declares; who takes the Request may read any query parameter."""
    query: set[str] = set()
    headers: set[str] = set()
    cookies: set[str] = set()
    open_ended = False
    for each in _tree(dependant):
        if getattr(each.call, _UPSTREAM, None) is not None:
            continue
        for name, where in _security(each):
            {"header": headers, "query": query, "cookie": cookies}[where].add(name)
        if isinstance(each.call, SecurityBase):
            continue
        own = each is dependant and each.request_param_name == injected
        open_ended = open_ended or (each.request_param_name is not None and not own)
        open_ended = open_ended or each.http_connection_param_name is not None
        for parameter in each.query_params:
            query.add(parameter.alias)
            open_ended = open_ended or hasattr(parameter.field_info.annotation, "model_fields")
        headers |= {parameter.alias.lower().replace("_", "-") for parameter in each.header_params}
        cookies |= {parameter.alias for parameter in each.cookie_params}
    return Inputs(None if open_ended else frozenset(query), frozenset(headers), frozenset(cookies))


def refusing(dependant: Dependant, settings: Cached) -> list[str]:
    """What of a `@cached(edge=True)` handler could refuse a request, or answer it otherwise, though its answer is
    stored: any dependency but an upstream; with `ttl="origin"` also headers it declares, which may be in no key."""
    children = (each.call for each in dependant.dependencies)
    found = [getattr(call, "__name__", repr(call)) for call in children if getattr(call, _UPSTREAM, None) is None]
    if settings.rules.ttl is None:
        found += [f"the header {parameter.alias}" for parameter in dependant.header_params]
    return found


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for child in dependant.dependencies:
        yield from _tree(child)


def _security(dependant: Dependant) -> Iterator[tuple[str, str]]:
    """The API keys that a security scheme reads; other schemes read Authorization, which has a rule of its own."""
    model = getattr(dependant.call, "model", None)
    place = getattr(getattr(model, "in_", None), "value", None)
    if place in ("header", "query", "cookie"):
        name = str(getattr(model, "name", ""))
        yield (name.lower() if place == "header" else name), place


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
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Cache what a FastAPI handler answers to GET and HEAD, for all who ask the same.

    Durations are as in the configuration (`250ms`, `30s`, `5m`); `ttl="origin"` follows the `Cache-Control` that the
    handler itself sets. The key is the path, the query parameters that the handler declares (or `query`), the headers
    in `vary` and those it declares. A request with Authorization or cookies goes by the cache unless `authorization` or
    `cookies` say otherwise. `tags` may hold path parameters. `deadline` bounds one call. `max_body` is in bytes.

    With `edge` a fresh answer is given before FastAPI sees the request, as on a declared route: no dependency is solved
    then, so the app is refused at its start where the handler has one that could refuse a request.

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
    setattr(wrapper, _MARK, (settings, "gateway_request" if "gateway_request" in added else None))
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


def cached_settings(endpoint: Any) -> tuple[Cached, str | None] | None:
    """The settings of a handler that `@cached` wraps, and the name of the Request parameter it added."""
    marked = getattr(endpoint, _MARK, None)
    return marked if isinstance(marked, tuple) else None


def upstream_names(dependant: Dependant) -> set[str]:
    """The upstreams that a dependency tree names."""
    return {name for each in _tree(dependant) if (name := getattr(each.call, _UPSTREAM, None)) is not None}


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
        exchange.route = self.settings.name
        ask = self._ask(runtime, exchange)
        if ask.plan.bypass is not None:
            exchange.outcome = Outcome(Result.BYPASS, forward="bypass", detail=ask.plan.bypass)
            return await self.value()
        if self.settings.edge:
            target = ask.plan.primary.partition("\n")[2]
            exchange.recall = Recall(ask.route, self.settings.origin_name, target, ask.tags, _without_tags, None)
        answer = runtime.engine.at_hand(ask) or await runtime.engine.answer(ask)
        answer.headers.extend(self.own_headers)
        return AnswerResponse(_without_tags(answer))

    def _ask(self, runtime: Runtime, exchange: Exchange) -> Ask:
        settings = self.settings
        assert exchange.target is not None
        route, allowed = runtime.bound[id(settings)]
        pairs = select_query(exchange.target.query, allowed, runtime.drop_query)
        path = local_path(self.request)
        target = target_text(path, pairs)
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
            value = await _handled(self.request, error)
        if isinstance(value, Response):
            return await _fetched_of(value, self.request.scope)
        return await self._serialised(value)

    async def _serialised(self, value: Any) -> Fetched:
        """A returned value as FastAPI would answer it: validated, filtered and serialised by the response model."""
        context = runtime_of(self.request).contexts.get(id(self.request.scope["route"]))
        route = context if context is not None else self.request.scope["route"]
        plain = isinstance(route.response_class, DefaultPlaceholder)
        fast = plain and route.response_field is not None
        content = await serialize_response(
            field=route.response_field,
            response_content=value,
            include=route.response_model_include,
            exclude=route.response_model_exclude,
            by_alias=route.response_model_by_alias,
            exclude_unset=route.response_model_exclude_unset,
            exclude_defaults=route.response_model_exclude_defaults,
            exclude_none=route.response_model_exclude_none,
            dump_json=fast,
        )
        status = self.response.status_code or route.status_code or 200
        if fast:
            made = Response(content, status_code=status, media_type="application/json")
        else:
            made = (route.response_class.value if plain else route.response_class)(content, status_code=status)
        if not is_body_allowed_for_status_code(status):
            made.body = b""
        made.raw_headers.extend(self._handler_headers())
        return Fetched(status, _lowered(made.raw_headers), WholeBody(bytes(made.body)))

    def _handler_headers(self) -> list[tuple[bytes, bytes]]:
        before = list(self.own_headers)
        after = []
        for pair in self.response.headers.raw:
            if pair in before:
                before.remove(pair)
            else:
                after.append(pair)
        return after


def _without_tags(answer: Answer) -> Answer:
    return Answer(answer.status, without(answer.headers, *TAG_FIELDS), answer.body)


def _lowered(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers]


async def _handled(request: Request, error: HTTPException) -> Response:
    handlers = request.app.exception_handlers
    handler = handlers.get(error.status_code)
    if handler is None:
        handler = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
    if handler is None:
        raise error
    # Without the Exchange: what is stored must not name this one request.
    anonymous = Request({key: value for key, value in request.scope.items() if key != SCOPE_KEY}, request.receive)
    response = handler(anonymous, error)
    if inspect.isawaitable(response):
        response = await response
    assert isinstance(response, Response)
    return response


async def _fetched_of(response: Response, scope: Scope) -> Fetched:
    body = getattr(response, "body", None)
    if isinstance(body, bytes | memoryview):
        if response.background is not None:
            await response.background()
        return Fetched(response.status_code, _lowered(response.raw_headers), WholeBody(bytes(body)))
    return await _AsgiBody(response, scope).head()


class _AsgiBody:
    """The body of a response that streams (StreamingResponse, FileResponse): run as ASGI, a piece at a time."""

    def __init__(self, response: Response, scope: Scope) -> None:
        self._response = response
        self._scope = {**scope, "method": "GET"}
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=8)
        self._read: list[bytes] = []
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self._response(self._scope, self._never, self._messages.put)
        finally:
            with suppress(asyncio.QueueFull):
                self._messages.put_nowait(None)

    async def _never(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def head(self) -> Fetched:
        start = await self._messages.get()
        if start is None:
            await self._task
            raise UpstreamUnreachable("handler", "a response that never began")
        return Fetched(start["status"], [*_lowered(start["headers"]), (b"transfer-encoding", b"chunked")]
                       if not any(k.lower() == b"content-length" for k, _ in start["headers"])
                       else _lowered(start["headers"]), self)  # fmt: skip

    async def whole(self, limit: int) -> bytes | None:
        size = 0
        async for chunk in self._pieces():
            self._read.append(chunk)
            size += len(chunk)
            if size > limit:
                return None
        return b"".join(self._read)

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._read:
            yield chunk
        async for chunk in self._pieces():
            yield chunk

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                break
        if self._task.done():
            self._task.result()

    async def aclose(self) -> None:
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait((self._task,))


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
