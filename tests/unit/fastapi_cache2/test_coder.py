"""What FastAPI handlers return, encoded and decoded again."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi_cache.decorator import cache
from msgspec import msgpack
from pydantic import BaseModel, ConfigDict, RootModel, SecretStr

from gateway.fastapi_cache2.backend import GatewayBackend
from gateway.fastapi_cache2.coder import GatewayCoder
from tests.support.fastapi_cache2 import (
    Cat,
    Counter,
    Include,
    Item,
    Part,
    Point,
    engine_of,
    hit,
    returning,
    shop,
)


class Colour(Enum):
    RED = "red"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    id: UUID
    on: date
    tags: set[str]


class Dog(BaseModel):
    name: str


class Kind(BaseModel):
    kind: Literal["kind"] = "kind"


class Numbers(RootModel[list[int]]):
    pass


class Slug(str):
    __slots__ = ()


class Metres(float):
    pass


class Owner:
    def __init__(self) -> None:
        self.name = "a"


def an_item() -> Item:
    return Item(id=1, label="y", parts=[Part(partName="a"), Part(partName="b", note="n")])


ODD = {
    "decimal": Decimal("1.10"),
    "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
    "naive": datetime(2026, 1, 2),
    "day": date(2026, 1, 2),
    "took": timedelta(seconds=1.5),
    "id": UUID(int=7),
    "colour": Colour.RED,
    "great": 2**70,
    "bytes": b"abc",
    "tuple": (1, {"deep": [None, True, 1.5]}),
    "set": {1},
    "by day": {date(2026, 1, 2): Decimal(3)},
    "by number": {1: "one"},
}
RETURNED = {
    "a model": (Item, an_item),
    "a model, its type unsaid": (None, an_item),
    "a list of models": (list[Item], lambda: [an_item(), an_item()]),
    "models by name": (dict[str, Item], lambda: {"a": an_item()}),
    "a model in plain data": (dict[str, Any], lambda: {"item": an_item()}),
    "a strict model": (Strict, lambda: Strict(id=UUID(int=7), on=date(2026, 1, 2), tags={"a"})),
    "one of two like models": (Cat | Dog, lambda: Dog(name="d")),
    "a model told apart by a default": (Cat | Kind, Kind),
    "a root model": (Numbers, lambda: Numbers([1, 2])),
    "a dataclass": (Point, lambda: Point(1, Decimal("2.50"))),
    "plain data": (dict[str, Any], lambda: ODD),
    "plain data, its type unsaid": (None, lambda: ODD),
    "text": (str, lambda: "grün"),
    "bytes": (bytes, lambda: b"abc"),
    "nothing": (None, lambda: None),
    "a list": (list[int], lambda: [1, 2]),
    "text of a class of its own": (None, lambda: Slug("a-b")),
    "a number of a class of its own": (None, lambda: Metres(1.5)),
    "an object of no type that JSON knows": (None, lambda: {"path": Path("/a/b"), "owner": Owner()}),
    "a type with a note that has no hash": (Annotated[int, ["a note"]], lambda: 7),
}
KEYED = pytest.mark.parametrize("own_key", [False, True], ids=["the library's key", "a key of its own"])


@KEYED
@pytest.mark.parametrize("what", RETURNED)
async def test_a_hit_gives_the_bytes_that_the_call_gave(include: Include, what: str, own_key: bool) -> None:
    kind, make = RETURNED[what]
    router = APIRouter()
    router.get("/")(returning(make, kind, own_key=own_key))
    async with shop(include, router) as client:
        first, second = await client.get("/"), await client.get("/")
    assert (first.status_code, hit(first), hit(second)) == (200, False, True)
    assert second.content == first.content
    assert second.headers["etag"] == first.headers["etag"]


@KEYED
@pytest.mark.parametrize("what", [name for name, (kind, _) in RETURNED.items() if kind not in (None, dict[str, Any])])
async def test_a_hit_leaves_out_what_had_not_been_set(include: Include, what: str, own_key: bool) -> None:
    kind, make = RETURNED[what]
    router = APIRouter()
    router.get("/", response_model=kind, response_model_exclude_unset=True)(returning(make, kind, own_key=own_key))
    async with shop(include, router) as client:
        first, second = await client.get("/"), await client.get("/")
    assert (first.status_code, hit(first), hit(second)) == (200, False, True)
    assert second.content == first.content


async def test_a_model_comes_back_as_a_response_model_alone_names_it(include: Include) -> None:
    router = APIRouter()

    @router.get("/", response_model=Item, response_model_exclude_unset=True)
    @cache(expire=30)
    async def item():  # type: ignore[no-untyped-def]
        return an_item()

    async with shop(include, router) as client:
        first, second = await client.get("/"), await client.get("/")
    assert hit(second)
    assert second.content == first.content
    assert "at" not in second.json()


async def test_what_a_response_model_filters_is_filtered_on_a_hit(include: Include) -> None:
    router = APIRouter()

    class User(BaseModel):
        name: str
        password: str

    class Shown(BaseModel):
        name: str

    @router.get("/", response_model=Shown)
    @cache(expire=30)
    async def user() -> User:
        return User(name="a", password="secret")

    async with shop(include, router) as client:
        await client.get("/")
        response = await client.get("/")
    assert hit(response)
    assert response.json() == {"name": "a"}


RESPONSES = {
    "404": lambda: JSONResponse({"detail": "gone"}, 404, headers={"x-own": "1"}),
    "201": lambda: JSONResponse({"id": 1}, 201, headers={"location": "/items/1"}),
    "image": lambda: Response(bytes(range(256)), media_type="image/png"),
    "text": lambda: PlainTextResponse("hello"),
    "page": lambda: HTMLResponse("<p>grün</p>"),
    "redirect": lambda: RedirectResponse("/elsewhere", 308),
    "empty": lambda: Response(status_code=204),
}


@pytest.mark.parametrize("what", RESPONSES)
async def test_a_response_keeps_its_status_headers_and_body(include: Include, what: str) -> None:
    router, count = APIRouter(), Counter()

    @router.get("/")
    @cache(expire=30)
    async def handler() -> Response:
        count()
        return RESPONSES[what]()

    async with shop(include, router) as client:
        first, second = await client.get("/"), await client.get("/")
    made = RESPONSES[what]()
    assert count.calls == 1
    assert second.status_code == first.status_code == made.status_code
    assert second.content == first.content == made.body
    assert {name: second.headers[name] for name in made.headers} == dict(made.headers)


PERSONAL = {
    "sets a cookie": lambda: Response("a", headers={"set-cookie": "session=1"}),
    "is private": lambda: Response("a", headers={"cache-control": "max-age=60, private"}),
    "says no-store": lambda: Response("a", headers={"Cache-Control": "no-store"}),
    "is a failure": lambda: JSONResponse({}, 503),
    "is partial": lambda: Response("a", 206, headers={"content-range": "bytes 0-0/9"}),
    "streams": lambda: StreamingResponse(iter([b"a", b"b"])),
}


@pytest.mark.parametrize("what", PERSONAL)
async def test_a_response_is_not_stored_that(include: Include, what: str) -> None:
    router, count = APIRouter(), Counter()

    @router.get("/")
    @cache(expire=30)
    async def handler() -> Response:
        count()
        return PERSONAL[what]()

    async with shop(include, router) as client:
        first, second = await client.get("/"), await client.get("/")
    assert count.calls == 2
    assert (second.status_code, second.content) == (first.status_code, first.content)


async def test_an_iterator_is_left_for_its_reader_and_not_stored() -> None:
    numbers = iter([1, 2])
    backend = GatewayBackend(engine_of())
    await backend.set("k", GatewayCoder.encode({"numbers": numbers}))
    assert list(numbers) == [1, 2]
    assert await backend.get("k") is None


async def test_a_secret_is_not_stored() -> None:
    class Account(BaseModel):
        password: SecretStr

    backend = GatewayBackend(engine_of())
    await backend.set("k", GatewayCoder.encode(Account(password=SecretStr("p"))))
    assert await backend.get("k") is None


NOT_ENCODED = [
    b"",
    b"null",
    b"FC2\x01",
    b"FC2\x01\xff",
    b"FC2\x02\xc0",
    b"FC2\x01" + msgpack.encode(["data", b"\xc1", False, None]),
]


@pytest.mark.parametrize("data", NOT_ENCODED)
def test_the_coder_refuses_what_it_did_not_encode(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"wasn't encoded by GatewayCoder|unreadable data"):
        GatewayCoder.decode(data)


def test_bytes_of_any_kind_come_back_as_bytes() -> None:
    assert GatewayCoder.decode(GatewayCoder.encode([bytearray(b"a"), memoryview(b"b")])) == [b"a", b"b"]


def test_the_coder_gives_plain_data_where_the_type_asked_for_is_another() -> None:
    assert GatewayCoder.decode_as_type(GatewayCoder.encode({"a": "x"}), type_=dict[str, int]) == {"a": "x"}
