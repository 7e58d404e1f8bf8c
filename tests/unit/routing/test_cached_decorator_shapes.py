"""The shapes of FastAPI handlers: under `@cached` each answers as under plain FastAPI, on a miss and on a hit."""

import enum
import functools
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from pydantic import BaseModel, Field, RootModel, computed_field
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection

from gateway import cached
from tests.support.handlers import answers_of, is_hit, taking


class Item(BaseModel):
    id: int
    secret: str | None = None
    made: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    named: str = Field("x", serialization_alias="theName")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.id * 2


@dataclass
class Point:
    x: int
    y: Decimal


class Colour(enum.Enum):
    RED = "red"


async def dictionary() -> Any:
    return {"a": 1, "when": date(2026, 1, 2), "ü": None}


def sync() -> dict[str, int]:
    return {"a": 1}


async def model() -> Item:
    return Item(id=1)


async def models() -> list[Item]:
    return [Item(id=1), Item(id=2)]


async def dataclass_() -> Point:
    return Point(1, Decimal("1.50"))


async def enumeration() -> Colour:
    return Colour.RED


async def nothing() -> None:
    return None


async def text() -> str:
    return "text"


async def response() -> Response:
    return Response(b"\x00\xff", media_type="image/png", headers={"x-made": "1", "link": "</a>; rel=next"})


async def json_response() -> JSONResponse:
    return JSONResponse({"a": 1}, status_code=203)


async def html() -> HTMLResponse:
    return HTMLResponse("<p>")


async def redirect() -> RedirectResponse:
    return RedirectResponse("/elsewhere?q=1", 301)


async def url_text() -> Any:
    return "/elsewhere"


async def no_content() -> None:
    return None


async def streaming() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    return StreamingResponse(pieces(), media_type="text/csv", headers={"content-disposition": "attachment"})


def sync_streaming() -> StreamingResponse:
    def pieces() -> Iterator[str]:
        yield "a"
        yield "b"

    return StreamingResponse(pieces())


async def file() -> FileResponse:
    return FileResponse(pathlib.Path(__file__), filename="a.py")


async def error() -> None:
    raise HTTPException(410, "gone", headers={"x-why": "old"})


async def status_on_response(response: Response) -> dict[str, int]:
    response.status_code = 203
    response.headers["x-set"] = "1"
    return {"a": 1}


async def subclass_parameter(response: JSONResponse) -> dict[str, int]:
    response.headers["x-set"] = "1"
    return {"a": 1}


async def request_and_response(request: Request, response: Response) -> dict[str, str]:
    response.headers["x-set"] = "1"
    return {"path": request.url.path}


async def annotated_response(response: Annotated[Response, "doc"]) -> dict[str, int]:
    response.headers["x-set"] = "1"
    return {"a": 1}


async def connection(conn: HTTPConnection) -> dict[str, str]:
    return {"path": conn.url.path}


async def keyword_only(*, q: int = 2) -> dict[str, int]:
    return {"q": q}


def opened() -> Iterator[str]:
    yield "session"


async def sets_header(response: Response) -> None:
    response.headers["x-dependency"] = "1"


async def yield_dependency(session: Annotated[str, Depends(opened)]) -> dict[str, str]:
    return {"session": session}


async def header_dependency(_: Annotated[None, Depends(sets_header)]) -> dict[str, int]:
    return {"a": 1}


async def cookie(response: Response) -> dict[str, int]:
    response.set_cookie("a", "1")
    return {"a": 1}


async def with_tasks(tasks: BackgroundTasks) -> dict[str, int]:
    tasks.add_task(sync)
    return {"a": 1}


async def with_background() -> Response:
    return PlainTextResponse("done", background=BackgroundTask(sync))


class Methods:
    def __init__(self, name: str) -> None:
        self.name = name

    async def bound(self, q: int = 1) -> dict[str, Any]:
        return {"name": self.name, "q": q}

    def bound_sync(self) -> str:
        return self.name

    async def __call__(self, request: Request) -> str:
        return self.name + request.url.path


class SyncCallable:
    def __call__(self, q: int = 3) -> int:
        return q


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return {"logged": await function(*args, **kwargs)}

    return wrapper


def sync_logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return {"logged": function(*args, **kwargs)}

    return wrapper


class Child(Item):
    more: int = 5


class Numbers(RootModel[list[int]]):
    pass


class Custom(Response):
    media_type = "application/x-custom"

    def render(self, content: Any) -> bytes:
        return repr(content).encode()


async def root_model() -> Numbers:
    return Numbers([1, 2])


async def child() -> Item:
    return Child(id=1)


async def union() -> Item | Point:
    return Point(1, Decimal("2"))


async def json_types() -> Any:
    return {"t": (1, 2), "u": UUID(int=1), "e": Colour.RED, "d": Decimal("1.5")}


async def several_lines(response: Response) -> int:
    response.headers.append("x-set", "1")
    response.headers.append("x-set", "2")
    return 1


async def memory_view() -> Response:
    return Response(memoryview(b"abc"))


async def empty_status(response: Response) -> None:
    response.status_code = 204


PLAIN = PlainTextResponse
SHAPES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "dictionary": (dictionary, {}),
    "sync": (sync, {}),
    "model": (model, {}),
    "list of models": (models, {}),
    "dataclass": (dataclass_, {}),
    "enum": (enumeration, {}),
    "None": (nothing, {}),
    "text": (text, {}),
    "response": (response, {}),
    "JSONResponse": (json_response, {}),
    "html": (html, {}),
    "response_class=html": (text, {"response_class": HTMLResponse}),
    "response_class=plain": (text, {"response_class": PLAIN}),
    "redirect": (redirect, {}),
    "response_class=redirect": (url_text, {"response_class": RedirectResponse}),
    "response_class=redirect, status": (url_text, {"response_class": RedirectResponse, "status_code": 301}),
    "204": (no_content, {"status_code": 204}),
    "status_code=203": (sync, {"status_code": 203}),
    "exclude": (model, {"response_model_exclude": {"made"}}),
    "include": (model, {"response_model_include": {"id"}}),
    "exclude_none": (model, {"response_model_exclude_none": True}),
    "exclude_unset": (model, {"response_model_exclude_unset": True}),
    "by_alias=False": (model, {"response_model_by_alias": False}),
    "response_model=None": (model, {"response_model": None}),
    "response_model": (dictionary, {"response_model": dict[str, Any]}),
    "streaming": (streaming, {}),
    "sync streaming": (sync_streaming, {}),
    "file": (file, {}),
    "status on the response": (status_on_response, {}),
    "subclass of Response": (subclass_parameter, {}),
    "Request and Response": (request_and_response, {}),
    "Annotated Response": (annotated_response, {}),
    "HTTPConnection": (connection, {}),
    "keyword only": (keyword_only, {}),
    "yield dependency": (yield_dependency, {}),
    "header of a dependency": (header_dependency, {}),
    "route dependency": (sync, {"dependencies": [Depends(sets_header)]}),
    "background tasks": (with_tasks, {}),
    "background": (with_background, {}),
    "method": (Methods("m").bound, {}),
    "sync method": (Methods("m").bound_sync, {}),
    "callable": (Methods("m"), {}),
    "sync callable": (SyncCallable(), {}),
    "partial": (functools.partial(taking, "f"), {}),
    "decorated below": (logged(model), {"response_model": None}),
    "sync decorated below": (sync_logged(sync), {"response_model": None}),
    "root model": (root_model, {}),
    "child": (child, {}),
    "union": (union, {}),
    "types of JSON": (json_types, {}),
    "several lines of a header": (several_lines, {}),
    "custom response": (dictionary, {"response_class": Custom}),
    "memoryview": (memory_view, {}),
    "204 on the response": (empty_status, {}),
    "exclude_defaults": (model, {"response_model_exclude_defaults": True}),
    "lambda": (lambda: 1, {}),
    "HEAD": (sync, {"methods": ["GET", "HEAD"]}),
}
OWN_HEADERS = ("content-type", "location", "content-disposition", "link", "x-made", "x-set", "x-dependency", "x-why")


async def plain_answer(handler: Callable[..., Any], options: dict[str, Any], method: str = "GET") -> httpx.Response:
    app = FastAPI()
    app.router.add_api_route("/it", handler, **options)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
        return await client.request(method, "/it")


async def cached_answers(
    handler: Callable[..., Any], options: dict[str, Any], method: str = "GET", **arguments: Any
) -> list[httpx.Response]:
    router = APIRouter()
    router.add_api_route("/it", cached(ttl="30s", **arguments)(handler), **options)
    return await answers_of(router, method)


def shown(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    headers = {name: response.headers[name] for name in OWN_HEADERS if name in response.headers}
    return response.status_code, response.content, headers


@pytest.mark.parametrize("name", SHAPES)
async def test_a_handler_answers_as_under_plain_fastapi(name: str) -> None:
    handler, options = SHAPES[name]
    plain = await plain_answer(handler, options)
    miss, hit = await cached_answers(handler, options)
    assert shown(miss) == shown(plain)
    assert shown(hit) == shown(plain)
    assert is_hit(hit) == (plain.status_code != 307), hit.headers["cache-status"]


@pytest.mark.parametrize("handler", [streaming, file, with_background, sync], ids=lambda each: each.__name__)
async def test_head_answers_as_under_plain_fastapi_and_has_no_body(handler: Callable[..., Any]) -> None:
    options = {"methods": ["GET", "HEAD"]}
    plain = await plain_answer(handler, options, "HEAD")
    for answer in await cached_answers(handler, options, "HEAD"):
        assert (answer.status_code, answer.headers["content-type"]) == (200, plain.headers["content-type"])
        assert answer.content == b""


async def test_a_cookie_that_the_handler_sets_is_this_clients_alone() -> None:
    for answer in await cached_answers(cookie, {}):
        assert answer.headers["set-cookie"] == "a=1; Path=/; SameSite=lax"
        assert not is_hit(answer)


async def test_an_error_keeps_its_status_and_headers() -> None:
    for answer in await cached_answers(error, {}):
        assert (answer.status_code, answer.headers["x-why"]) == (410, "old")
