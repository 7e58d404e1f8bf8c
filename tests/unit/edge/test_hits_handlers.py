"""`@cached` handlers at the edge: what the app would answer, byte for byte, or nothing at all."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Header, HTTPException, Query, Response
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, FutureDate
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Router

from gateway import Upstream, cached, upstream
from gateway.app.gateway import Gateway
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Both, Changing, Counted, Line, Side, asked, living
from tests.support.gateways import gateway
from tests.support.scale import size

EXAMPLES = size("handler_stories")
SHOP = upstream("api")
REFUSING = 3
"""The version at which the dependency refuses."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Page(BaseModel, extra="forbid"):
    page: int = Field(1, ge=1, alias="p")
    tags: list[str] = Field(default_factory=list)


class Fields(BaseModel):
    x_tenant: str = Field(min_length=2)


def written(app: Gateway, changing: Changing) -> None:
    """Handlers with each kind of parameter; the last ones are not for the edge."""

    def unless_refused() -> None:
        if changing.version == REFUSING:
            raise HTTPException(401, "no")

    router, guarded = APIRouter(prefix="/h"), APIRouter(prefix="/guarded", dependencies=[Depends(unless_refused)])

    def said(*values: object) -> PlainTextResponse:
        headers = {"cache-control": changing.headers["cache-control"]} if "cache-control" in changing.headers else {}
        return PlainTextResponse(f"{changing.version} {values}", changing.status, headers=headers)

    @router.api_route("/query/{id}", methods=["GET", "HEAD"])
    @cached(ttl="10s", tags=["t:{id}"], stale_while_revalidate="5s")
    async def query(id: int, n: int = 0, q: Annotated[list[str] | None, Query(alias="Q")] = None) -> Any:
        return said(id, n, q)

    @router.get("/kinds/{uid}")
    @cached(ttl="10s", client_ttl="3s")
    def kinds(uid: UUID, colour: Colour = Colour.RED, way: Literal["up", "down"] = "up", flag: bool = False) -> Any:
        return said(uid, colour, way, flag)

    @router.get("/model")
    @cached(ttl="10s")
    async def model(page: Annotated[Page, Query()]) -> Any:
        return said(page)

    @router.get("/header")
    @cached(ttl="10s", vary=[])
    async def header(n: Annotated[int, Header(alias="X-N", ge=1)], x_tag: Annotated[list[str] | None, Header()] = None) -> Any:  # fmt: skip  # noqa: E501
        return said(n, x_tag)

    @router.get("/fields")
    @cached(ttl="10s")
    async def fields(fields: Annotated[Fields, Header()]) -> Any:
        return said(fields)

    @router.get("/cookie")
    @cached(ttl="10s", cookies="ignore", authorization="key")
    async def cookie(a: Annotated[int, Cookie()] = 0) -> Any:
        return said(a)

    @router.get("/origin")
    @cached(ttl="origin")
    async def origin(n: int = 0) -> Any:
        return said(n)

    @router.get("/value", status_code=203)
    @cached(ttl="10s")
    async def value(response: Response, tasks: BackgroundTasks, n: float = 1) -> dict[str, float]:
        response.headers["x-made"] = str(changing.version)
        tasks.add_task(str)
        if n > 8:
            raise HTTPException(404, "too much")
        return {"n": n, "version": changing.version}

    @router.get("/shop")
    @cached(ttl="10s")
    async def shop(api: Annotated[Upstream, SHOP], n: int = 0) -> Any:
        return said(n)

    @guarded.get("/query/{id}")
    @cached(ttl="10s")
    async def beneath(id: int, n: int = 0) -> Any:
        return said(id, n)

    for each in (router, guarded):
        app.include_router(each)
    app.include_router(router, prefix="/twice", dependencies=[Depends(unless_refused)])


ANYWHERE: dict[str, list[str]] = {
    "X-N": ["1", "01", "0", "x", "1 ", "", "+1"],
    "X-Tag": ["a", "a, b", "b,a"],
    "X-Tenant": ["ann", "a", "bob"],
    "Cookie": ["a=1", "a=01; b=2", "a=x", "b=3"],
    "Authorization": ["Bearer x"],
    "Accept": ["application/json"],
    "Accept-Language": ["de"],
    "If-None-Match": ["*", '"v1"'],
    "Range": ["bytes=0-2"],
    "Cache-Control": ["no-cache", "max-age=2", "only-if-cached"],
    "Connection": ["X-N", "close, X-Tenant", "X-Tag"],
    "X-Request-ID": ["abc"],
    "Origin": ["https://app.test"],
    "X-Forwarded-Prefix": ["/p"],
    "Content-Length": ["0"],
}
_UID = "6c84fb90-12c4-11e1-840d-7b25c5ee775a"
PATHS = (
    *(
        "/h/query/1",
        "/h/query/01",
        "/h/query/x",
        "/h/query/1?n=1",
        "/h/query/1?n=01",
        "/h/query/1?n=x",
        "/h/query/1?n=",
    ),
    *("/h/query/1?n=1&n=2", "/h/query/1?n=2&n=1", "/h/query/1?Q=a&Q=b", "/h/query/1?Q=b&Q=a", "/h/query/1?q=a"),
    *("/h/query/1?n=1&utm_source=x", "/h/query/1?utm_source=x&n=1", "/h/query/%31", "/h//query/1", "/h/query/1/"),
    *(f"/h/kinds/{_UID}", f"/h/kinds/{_UID.upper()}", "/h/kinds/1", f"/h/kinds/{_UID}?colour=blue&flag=on"),
    *(f"/h/kinds/{_UID}?colour=pink", f"/h/kinds/{_UID}?way=up", f"/h/kinds/{_UID}?way=left&flag=1"),
    *("/h/model", "/h/model?p=1", "/h/model?p=0", "/h/model?p=1&tags=a", "/h/model?p=1&junk=2", "/h/model?page=2"),
    *("/h/header", "/h/header", "/h/fields", "/h/fields?x=1", "/h/cookie", "/h/cookie?a=2", "/h/origin?n=1"),
    *("/h/value", "/h/value?n=1.0", "/h/value?n=9", "/h/value?n=nan", "/h/value?n=1e400", "/h/shop", "/h/shop?n=1"),
    *("/h/nothing", "/guarded/query/1", "/guarded/query/1?n=1", "/twice/h/query/1", "/twice/h/header", "/twice/h/shop"),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(("GET", "GET", "GET", "GET", "HEAD", "POST", "OPTIONS")))
    lines = [f"{method} {draw(st.sampled_from(PATHS))} HTTP/{draw(st.sampled_from(('1.1', '1.1', '1.1', '1.0')))}"]
    lines.append("Host: gateway.test")
    names = draw(st.lists(st.sampled_from(sorted(ANYWHERE)), max_size=3, unique=True))
    lines += [f"{name}: {draw(st.sampled_from(ANYWHERE[name]))}" for name in names]
    if method == "POST" and not any(line.startswith("Content-Length") for line in lines):
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode()


def refusing() -> None:
    raise HTTPException(503, "the shop is closed")


class HandlerSide(Side):
    async def override(self, *, replaced: bool) -> None:
        if replaced:
            self.app.dependency_overrides[SHOP.dependency] = refusing
        else:
            self.app.dependency_overrides.clear()


class HandlersBoth(Both):
    async def live(self, story: list[tuple[str, Any]]) -> None:
        for side in self.sides:
            side.app.dependency_overrides.clear()
        await super().live(story)

    async def ask(self, kind: str, what: Any) -> bytes:
        if kind == "override":
            for side in self.sides:
                assert isinstance(side, HandlerSide)
                await side.override(replaced=what)
            return b""
        return await super().ask(kind, what)


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from((*("ask", "again") * 4, "turn", "purge", "say", "override")))
    match kind:
        case "ask":
            return kind, draw(requests())
        case "turn":
            return kind, draw(st.sampled_from((0.5, 3.0, 9.5, 12.0)))
        case "purge":
            what = draw(st.sampled_from(({"tags": ["t:1"]}, {"keys": ["/h/query/1?n=1"]}, {"everything": True})))
            return kind, {**what, "soft": draw(st.booleans())}
        case "say":
            control = draw(st.sampled_from(({"cache-control": "max-age=5"}, {"cache-control": "no-store"}, {})))
            return kind, (draw(st.sampled_from((200, 200, 404, 503))), control, draw(st.integers(1, 3)))
        case "override":
            return kind, draw(st.booleans())
        case _:
            return kind, None


CORS = {"allow_origins": ["https://app.test"]}


def make_both() -> HandlersBoth:
    side = partial(HandlerSide, written=written, routes={}, cors=CORS)
    return HandlersBoth(Changing(), side, {"cache-control": "max-age=10"})


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[asyncio.Runner, HandlersBoth]]:
    yield from living(make_both)


def get(path: str, *fields: str) -> tuple[str, Any]:
    return "ask", "\r\n".join([f"GET {path} HTTP/1.1", "Host: gateway.test", *fields, "", ""]).encode()


SHOPPING = [get("/h/shop")] * 3
OVERRIDDEN = [*SHOPPING, ("override", True), *SHOPPING, ("override", False), *SHOPPING]
_WARM = [get("/twice/h/query/1")] * 2 + [get("/h/query/1")] * 2 + [get("/guarded/query/1")] * 2
REFUSED = [*_WARM, ("say", (200, {}, REFUSING)), *_WARM]
HEADERS = [get("/h/header", f"X-N: {value}") for value in ("1", "1", "x", "01", "0", "1")] + [get("/h/header")]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=st.lists(steps(), min_size=3, max_size=25))
@example(story=OVERRIDDEN)
@example(story=REFUSED)
@example(story=HEADERS)
def test_the_edge_never_answers_a_handlers_request_otherwise_than_the_app(
    both: tuple[asyncio.Runner, HandlersBoth], story: list[tuple[str, Any]]
) -> None:
    runner, gateways = both
    runner.run(gateways.live(story))


def test_the_edge_counted_what_the_app_counted_and_answered_much_of_it(
    both: tuple[asyncio.Runner, HandlersBoth],
) -> None:
    with_edge, without = both[1].sides
    assert sorted(with_edge.counts()) == sorted(without.counts())
    assert with_edge.counted.asked < 0.95 * without.counted.asked or without.sent < 1000


# --- single promises ---------------------------------------------------------------------------------------


def app_of(add: Callable[[Gateway], object], **settings: Any) -> Counted:
    app = gateway(StubUpstream(lambda _: httpx.Response(200, text="up")), {}, clock=TurnedClock(), **settings)
    add(app)
    return Counted(app)


def plain(app: Gateway | APIRouter, *, path: str = "/o/1", **arguments: Any) -> None:
    @app.get(path)
    @cached(ttl="30s", **arguments)
    async def answer(n: int = 0) -> int:
        return n


def against(app: Gateway) -> dict[str, str | None]:
    app.rebind()  # as the first request does
    return {each.path: each.cached.against for each in app.handler_routes() if each.cached is not None}


async def asked_app(counted: Counted, *requests: bytes) -> list[bytes]:
    """The answers on one connection."""
    line = Line(counted)
    return [await asked(line, request) for request in requests]


GET_ONE = b"GET /o/1 HTTP/1.1\r\nHost: gateway.test\r\n\r\n"


@pytest.mark.parametrize(("arguments", "asks"), [({}, 1), ({"edge": True}, 1), ({"edge": False}, 3)])
async def test_a_handler_with_declared_parameters_alone_is_answered_at_the_edge_unless_it_says_no(
    arguments: dict[str, Any], asks: int
) -> None:
    counted = app_of(partial(plain, **arguments))
    answers = await asked_app(counted, GET_ONE, GET_ONE, GET_ONE)
    assert counted.asked == asks
    assert [b"; hit" in each for each in answers] == [False, True, True]
    assert against(counted.app)["/o/1"] == (None if asks == 1 else "edge=False")


async def test_middleware_that_is_added_later_is_asked_for_each_request_though_no_lifespan_runs() -> None:
    counted = app_of(plain)
    counted.app.add_middleware(Refusing)
    answers = await asked_app(counted, GET_ONE, GET_ONE, GET_ONE)
    assert [each[9:12] for each in answers] == [b"418"] * 3
    assert against(counted.app)["/o/1"] == "the app has middleware of its own, Refusing"


class Refusing:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return await PlainTextResponse("no", 418)(scope, receive, send)
        return await self.app(scope, receive, send)


async def test_a_router_that_is_included_later_stands_where_the_app_has_it() -> None:
    first, second = APIRouter(), APIRouter()
    plain(second)
    counted = app_of(lambda app: [app.include_router(each) for each in (first, second)])
    assert b"; hit" in (await asked_app(counted, GET_ONE, GET_ONE, GET_ONE))[2]

    @first.get("/o/1")
    async def other() -> str:
        return "another"

    counted.app.include_router(APIRouter())
    assert (await asked_app(counted, GET_ONE))[0].endswith(b'"another"')


async def test_the_next_generation_has_the_overrides_of_the_last_and_heeds_those_that_come() -> None:
    first = gateway(StubUpstream(lambda _: httpx.Response(200)), {}, clock=TurnedClock())
    plain_shop(first)
    app = Generations(first)
    app.reload(Loaded(first.config, {}, ()))
    plain_shop(app.current)
    line = Line(app)
    assert b"; hit" in [await asked(line, GET_ONE) for _ in range(3)][2]
    first.dependency_overrides[SHOP.dependency] = refusing
    assert b" 503 " in await asked(line, GET_ONE)
    assert against(app.current)["/o/1"] == "dependency_overrides replaces the upstream api"
    first.dependency_overrides.clear()
    assert [b"; hit" in await asked(line, GET_ONE) for _ in range(2)] == [True, True]
    assert against(app.current)["/o/1"] is None


def plain_shop(app: Gateway) -> None:
    @app.get("/o/1")
    @cached(ttl="30s")
    async def shop(api: Annotated[Upstream, SHOP]) -> str:
        return "shop"


async def test_a_gateway_that_is_mounted_answers_for_itself() -> None:
    """Its middleware may refuse; the same handler has the same key in the outer one."""
    router = APIRouter()
    plain(router)
    inner = gateway(StubUpstream(lambda _: httpx.Response(200)), {}, clock=TurnedClock())
    inner.include_router(router)
    asks = 0

    class Second:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            nonlocal asks
            asks += 1
            if asks > 1:
                return await PlainTextResponse("no", 418)(scope, receive, send)
            return await self.app(scope, receive, send)

    inner.add_middleware(Second)

    def both(app: Gateway) -> None:
        app.include_router(router)
        app.mount("/in", inner)

    counted = app_of(both)
    within = GET_ONE.replace(b"/o/1", b"/in/o/1")
    answers = await asked_app(counted, GET_ONE, GET_ONE, within, within)
    assert [each[9:12] for each in answers] == [b"200", b"200", b"200", b"418"]


def test_a_plain_app_that_is_mounted_has_no_say_about_the_edge() -> None:
    counted = app_of(lambda app: (app.mount("/in", FastAPI()), plain(app)))
    assert against(counted.app)["/o/1"] is None


def _by_host(app: Gateway) -> None:
    app.router.routes.append(Host("other.test", Router()))
    plain(app)


class Versioned(APIRoute):
    pass


class Deaf(APIRouter):
    pass


def _beside(kind: type[APIRoute]) -> Callable[[Gateway], None]:
    def add(app: Gateway) -> None:
        router = APIRouter(route_class=kind)
        plain(router)
        app.include_router(router)

    return add


def _in(router: APIRouter) -> Callable[[Gateway], None]:
    def add(app: Gateway) -> None:
        plain(router)
        outer = APIRouter()
        outer.include_router(router)
        app.include_router(outer)

    return add


KINDS = {
    "a Host route": (_by_host, "the route Host before it, or its own, may choose by more than the path"),
    "a route class": (_beside(Versioned), "its route is a Versioned, which may run code for each request"),
    "a router class": (_in(Deaf()), "the router Deaf may choose by more than the path"),
    "a router's dependency": (_in(APIRouter(dependencies=[Depends(refusing)])), f"it depends on {__name__}.refusing"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_may_answer_otherwise_for_a_request_keeps_a_handler_at_the_app(kind: str) -> None:
    add, why = KINDS[kind]
    counted = app_of(add)
    assert against(counted.app)["/o/1"] == why
    await asked_app(counted, GET_ONE, GET_ONE, GET_ONE)
    assert counted.asked == 3


async def test_a_date_that_must_be_in_the_future_is_validated_each_time() -> None:
    def add(app: Gateway) -> None:
        @app.get("/o/1")
        @cached(ttl="30s")
        async def answer(day: FutureDate) -> str:
            return str(day)

    assert against(app_of(add).app)["/o/1"] == "the parameter day is validated by the time of the request"
