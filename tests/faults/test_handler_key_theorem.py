"""The theorem of the key for `@cached` handlers (docs/handlers.md): whoever is answered by what was made for another
would have shown the handler and its dependencies the very same.

A handler is made of random reads, declared and not, some of them only where another says so; its answer is what was
read. Requests go to one gateway. Where one is answered from the cache, it is sent to a second gateway that has stored
nothing: the two answers must be the same. The last test takes the recorder away, and sees the theorem fail.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Cookie, Depends, Header, Query, Request, Response, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from gateway import cached, create_app
from gateway.app.gateway import Gateway
from gateway.observability.access_log import silent
from gateway.routing.handler_reading import Reading
from tests.support.scale import size

EXAMPLES = size("handler_key_pairs")
Read = Callable[[Request], Any]
Sent = tuple[str, str, list[tuple[str, str]]]


class Fields(BaseModel):
    x_tenant: str = ""
    x_user: str = ""


class Crumbs(BaseModel):
    sid: str = ""


def declared_header(x_tenant: Annotated[str, Header()] = "") -> Any:
    return x_tenant


def declared_list(x_tag: Annotated[list[str], Header()] = []) -> Any:  # noqa: B006
    return x_tag


def declared_alias(t: Annotated[str, Header(alias="x_tenant")] = "") -> Any:
    return t


def declared_model(h: Annotated[Fields, Header()]) -> Any:
    return h.model_dump()


def declared_cookie(sid: Annotated[str, Cookie()] = "") -> Any:
    return sid


def declared_cookies(c: Annotated[Crumbs, Cookie()]) -> Any:
    return c.sid


def declared_query(q: str = "", utm_source: Annotated[str, Query()] = "") -> Any:
    return [q, utm_source]


async def declared_key(key: Annotated[Any, Security(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> Any:
    return key


async def declared_cookie_key(key: Annotated[Any, Security(APIKeyCookie(name="sid", auto_error=False))]) -> Any:
    return key


async def declared_bearer(token: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> Any:
    return token and token.credentials


def by_connection(connection: HTTPConnection) -> Any:
    return connection.headers.get("x-user")


def by_state(request: Request) -> Any:
    request.state.left = request.headers.get("x-tenant")
    return None


DEPENDENCIES = [
    *(declared_header, declared_list, declared_alias, declared_model, declared_cookie, declared_cookies),
    *(declared_query, declared_key, declared_cookie_key, by_connection, by_state, declared_bearer),
]


def of_field(name: str) -> Read:
    return lambda request: request.headers.get(name)


READS: list[Read] = [
    *map(of_field, ("x-tenant", "X-User", "accept-language", "host", "x-forwarded-host", "cookie", "authorization")),
    *map(of_field, ("x_tenant", "x-tag", "if-none-match", "connection", "x-real-ip", "x-api-key", "range", "bad name")),
    lambda request: request.headers.getlist("x-tag"),
    lambda request: "x-user" in request.headers,
    lambda request: request.cookies.get("sid"),
    lambda request: sorted(request.cookies.items()),
    lambda request: request.query_params.get("q"),
    lambda request: str(request.query_params),
    lambda request: str(request.url),
    lambda request: request.url.hostname,
    lambda request: str(request.base_url),
    lambda request: str(request.url_for("handler")),
    lambda request: request.method,
    lambda request: request.client and request.client.host,
    lambda request: getattr(request.state, "user", None),
    lambda request: getattr(request.state, "left", None),
    lambda request: request.session.get("user"),
    lambda request: request.get("tenant"),
    lambda request: sorted(request.headers.items()),
    lambda request: Request(request.scope).headers.get("x-user"),
    lambda request: str(request.scope["query_string"]),
    lambda request: str(dict(request.scope)["headers"]),
    lambda request: len(request.headers),
]


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            user = dict(scope["headers"]).get(b"x-user", b"").decode()
            scope["state"] = {"user": user}
            scope = {**scope, "session": {"user": user}, "tenant": user}
        await self.app(scope, receive, send)


def made(reads: list[int], depends: list[int], arguments: dict[str, Any], config: dict[str, Any]) -> Gateway:
    """A gateway with one handler, which answers with all that it and its dependencies read."""

    def collect(**values: Any) -> Any:
        return values

    places = [
        inspect.Parameter(
            f"d{at}", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, Depends(DEPENDENCIES[at])]
        )
        for at in dict.fromkeys(depends)
    ]
    collect.__signature__ = inspect.Signature(places)  # type: ignore[attr-defined]

    async def handler(request: Request, response: Response, given: Annotated[Any, Depends(collect)]) -> Any:
        response.headers["cache-control"] = "max-age=30"
        found: list[Any] = [given]
        for at in reads:
            found.append(READS[at](request))
            if found[-1] in (None, "1", ""):  # what is read next depends on what was read
                found.append(READS[at - 1](request))
        return found

    router = APIRouter()
    router.get("/it")(cached(**arguments)(handler))
    app = create_app({"redis_url": "none", "drop_query": ["utm_*"], **config}, log=silent)
    app.include_router(router)
    app.add_middleware(Middleware)
    return app


FIELDS = [
    *(("X-Tenant", "1"), ("X-Tenant", "2"), ("x_tenant", "1"), ("X-Tenant", "1,"), ("X-Tag", "a"), ("X-Tag", "b, c")),
    *(("X-User", "1"), ("X-User", "2"), ("X-API-Key", "1"), ("X-API-Key", "2"), ("Accept-Language", "de, en")),
    *(("Accept-Language", "en,de"), ("Cookie", "sid=1"), ("Cookie", "sid=2; lang=de"), ("Cookie", "sid=1; sid=2")),
    *(("Authorization", "Bearer 1"), ("Authorization", "Bearer 2"), ("Connection", "x-tenant"), ("Range", "bytes=0-1")),
    *(("X-Forwarded-Host", "evil.test"), ("X-Real-IP", "10.0.0.1"), ("If-None-Match", '"1"'), ("Connection", "x-user")),
]
REQUESTS = st.tuples(
    st.sampled_from(["/it", "/it?q=1", "/it?q=2", "/it?utm_source=1", "/it?q=1&utm_source=2&z=1"]),
    st.sampled_from(["a.test", "b.test"]),
    st.lists(st.sampled_from(FIELDS), max_size=3),
)
ARGUMENTS = st.fixed_dictionaries(
    {
        "ttl": st.sampled_from(["30s", "origin"]),
        "authorization": st.sampled_from(["pass", "key"]),
        "cookies": st.sampled_from(["pass", "ignore", ["sid"], ["lang"]]),
        "query": st.sampled_from([None, ["q"], []]),
        "key": st.sampled_from([None, None, ["given"]]),
    }
)
CONFIG = st.sampled_from([{}, {}, {"public_url": "https://shop.test"}])
HANDLERS = (
    st.lists(st.integers(0, len(READS) - 1), max_size=3),
    st.lists(st.integers(0, len(DEPENDENCIES) - 1), max_size=3),
)


async def crossed(make: Callable[[], Gateway], requests: list[Sent]) -> tuple[int, list[tuple[Sent, str, str]]]:
    """How many hits there were, and the requests whose answer from the cache is another than the one that they get
    where nothing is stored."""
    hits, found = 0, []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make()), base_url="http://gateway.test") as client:
        for each in requests:
            answer = await ask(client, each)
            if "; hit" in answer.headers["cache-status"]:
                hits += 1
                async with httpx.AsyncClient(transport=httpx.ASGITransport(make()), base_url="http://x.test") as alone:
                    own = await ask(alone, each)
                if own.status_code == answer.status_code == 200 and own.text != answer.text:
                    found.append((each, answer.text, own.text))
    return hits, found


async def ask(client: httpx.AsyncClient, sent: Sent) -> httpx.Response:
    target, host, fields = sent
    return await client.get(target, headers=[("Host", host), *fields])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(*HANDLERS, ARGUMENTS, CONFIG, st.lists(REQUESTS, min_size=2, max_size=8))
def test_who_is_answered_from_the_cache_would_have_shown_the_same(
    reads: list[int], depends: list[int], arguments: Any, config: Any, requests: list[Sent]
) -> None:
    twice = [*requests, *requests]
    hits, found = asyncio.run(crossed(lambda: made(reads, depends, arguments, config), twice))
    event(f"hits: {min(hits, 5)}")
    assert found == []


def test_the_theorem_fails_where_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "names", lambda self: ())
    requests: list[Sent] = [("/it", "a.test", [("X-Tenant", who)]) for who in ("3", "4")]
    assert asyncio.run(crossed(lambda: made([0], [], {"ttl": "30s"}, {}), requests))[1]
