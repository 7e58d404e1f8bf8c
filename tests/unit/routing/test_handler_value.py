"""Decorators of the app's own above `@cached` run for each request, and are given what the handler returned."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from gateway import cached, create_app
from gateway.errors import ConfigError
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running

Handler = Callable[..., Any]


class Item(BaseModel):
    id: int
    name: str = "x"


class Absent(Exception):
    pass


def envelope(function: Handler) -> Handler:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return {"data": await function(*args, **kwargs)}

    return wrapper


def sync_envelope(function: Handler) -> Handler:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return {"data": function(*args, **kwargs)}

    return wrapper


def default(function: Handler) -> Handler:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except Absent:
            return "default"

    return wrapper


def audit(seen: list[Any]) -> Callable[[Handler], Handler]:
    def decorate(function: Handler) -> Handler:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append(await function(*args, **kwargs))
            return seen[-1]

        return wrapper

    return decorate


def explicit(function: Handler) -> Handler:
    @functools.wraps(function)
    async def wrapper(q: int = 1) -> Any:
        return await function(q=q)

    return wrapper


async def dictionary(q: int = 1) -> dict[str, int]:
    return {"q": q}


async def unannotated():  # type: ignore[no-untyped-def]
    return {"a": [1, None, "ü"]}


def sync() -> list[int]:
    return [1]


async def model() -> Item:
    return Item(id=1)


async def headers(response: Response, request: Request) -> list[Item]:
    response.headers["x-set"] = request.url.path
    response.status_code = 203
    return [Item(id=1)]


def app_of(handler: Handler, *above: Callable[[Handler], Handler], clock: Any = None, **arguments: Any) -> Any:
    made = cached(**{"ttl": "30s", **arguments})(handler)
    for decorator in above:
        made = decorator(made)
    router = APIRouter()
    router.get("/it", response_model=None)(made)
    app = create_app({"redis_url": "none"}, log=silent, clock=clock)
    app.include_router(router)

    async def absent(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "absent"}, 404)

    app.add_exception_handler(Absent, absent)
    return app


async def asked(app: Any, **headers: str) -> list[httpx.Response]:
    async with running(app) as client:
        return [await client.get("/it", headers=headers) for _ in range(2)]


def is_hit(response: httpx.Response) -> bool:
    return response.headers["cache-status"].startswith("gateway; hit")


@pytest.mark.parametrize(
    ("handler", "decorator", "data"),
    [
        (dictionary, envelope, {"q": 1}),
        (unannotated, envelope, {"a": [1, None, "ü"]}),
        (model, envelope, {"id": 1, "name": "x"}),
        (sync, envelope, [1]),
        (sync, sync_envelope, [1]),
    ],
)
async def test_an_envelope_is_put_around_the_value_on_misses_and_hits(
    handler: Handler, decorator: Callable[[Handler], Handler], data: Any
) -> None:
    miss, hit = await asked(app_of(handler, decorator), **{"if-none-match": "*"})
    assert miss.json() == hit.json() == {"data": data}
    assert (is_hit(miss), is_hit(hit)) == (False, True)


async def test_an_audit_is_given_the_model_on_hits_too() -> None:
    seen: list[Any] = []
    answers = await asked(app_of(model, audit(seen)))
    assert seen == [Item(id=1)] * 2
    assert [each.json() for each in answers] == [{"id": 1, "name": "x"}] * 2


async def test_status_and_headers_of_the_handler_stay() -> None:
    miss, hit = await asked(app_of(headers, envelope))
    for answer in (miss, hit):
        assert (answer.status_code, answer.headers["x-set"]) == (203, "/it")
        assert "gateway-handler-returned" not in answer.headers
    assert miss.json() == hit.json() == {"data": [{"id": 1, "name": "x"}]}


async def test_a_response_is_passed_on_as_one() -> None:
    async def handler() -> Response:
        return PlainTextResponse("text", headers={"x-set": "1"})

    seen: list[Any] = []
    miss, hit = await asked(app_of(handler, audit(seen)))
    assert miss.text == hit.text == "text"
    assert all(isinstance(each, Response) for each in seen)
    assert is_hit(hit)
    assert "gateway-handler-returned" not in hit.headers


async def test_a_value_that_json_does_not_bring_back_is_given_as_it_is_and_not_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler():  # type: ignore[no-untyped-def]
        return Item(id=1)

    seen: list[Any] = []
    with caplog.at_level(logging.WARNING, "gateway"):
        answers = await asked(app_of(handler, audit(seen)))
    assert seen == [Item(id=1)] * 2
    assert not any(map(is_hit, answers))
    assert sum("annotate the return type" in each.message for each in caplog.records) == 1


async def test_what_the_handler_raises_reaches_the_decorator_as_it_was_raised() -> None:
    async def handler() -> dict[str, int]:
        raise Absent

    assert [each.json() for each in await asked(app_of(handler, default))] == ["default"] * 2
    assert [each.status_code for each in await asked(app_of(handler, envelope))] == [404] * 2


async def test_an_http_error_is_its_answer() -> None:
    async def handler() -> dict[str, int]:
        raise HTTPException(403, "no")

    assert [each.status_code for each in await asked(app_of(handler, envelope))] == [403] * 2


async def test_a_refresh_behind_goes_through_the_decorators(clock: TurnedClock) -> None:
    calls: list[int] = []

    async def handler() -> dict[str, int]:
        calls.append(1)
        return {"calls": len(calls)}

    app = app_of(handler, envelope, clock=clock, stale_while_revalidate="60s")
    async with running(app) as client:
        await client.get("/it")
        clock.turn(31)
        assert (await client.get("/it")).json() == {"data": {"calls": 1}}
        await app.engine.settle()
        assert (await client.get("/it")).json() == {"data": {"calls": 2}}


# --- refused -----------------------------------------------------------------------------------------------


def test_a_decorator_that_passes_nothing_on_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"dictionary has a decorator above @cached.*accept \*\*kwargs.*below @cached"
    ):
        app_of(dictionary, explicit)


def test_edge_below_a_decorator_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"edge=True.*remove edge=True"):
        app_of(dictionary, envelope, edge=True)


def test_cached_above_the_route_is_refused() -> None:
    router = APIRouter()

    @cached(ttl="30s")
    @router.get("/wrong")
    async def wrong() -> int:
        return 1

    app = create_app({"redis_url": "none"}, log=silent)
    with pytest.raises(ConfigError, match=r"wrong has @cached above the decorator of its route /wrong.*below it"):
        app.include_router(router)


async def test_a_handler_may_have_a_plain_route_beside_the_cached_one() -> None:
    router = APIRouter()
    router.get("/plain")(dictionary)
    router.get("/it")(cached(ttl="30s")(dictionary))
    app = create_app({"redis_url": "none"}, log=silent)
    app.include_router(router)
    assert is_hit((await asked(app))[1])
