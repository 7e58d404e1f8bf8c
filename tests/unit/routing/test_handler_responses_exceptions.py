"""What `@cached` makes of exceptions: an answer where the app's exception handlers make one, else a failure."""

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse

from gateway import cached, create_app
from gateway.app.gateway import Gateway
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running


class Absent(Exception):
    pass


class VeryAbsent(Absent):
    pass


class Broken(Exception):
    pass


def no_thing(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": type(error).__name__}, 404)


async def broken(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "broken"}, 502)


async def teapot(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "teapot"}, 418)


class Shop:
    """An app whose only handler answers, or raises `error`."""

    def __init__(self, clock: TurnedClock, **arguments: Any) -> None:
        self.error: Exception | None = None
        self.calls = 0
        router = APIRouter()
        router.get("/thing")(cached(**{"ttl": "10s", **arguments})(self.thing))
        self.app: Gateway = create_app({"redis_url": "none"}, log=silent, clock=clock)
        self.app.include_router(router)
        self.app.add_exception_handler(Absent, no_thing)
        self.app.add_exception_handler(Broken, broken)
        self.app.add_exception_handler(418, teapot)

    async def thing(self) -> dict[str, int]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return {"calls": self.calls}


async def after(shop: Shop, clock: TurnedClock, error: Exception, seconds: float = 11) -> httpx.Response:
    """The answer to a request for what was stored and is old by now, where the handler raises `error`."""
    async with running(shop.app) as client:
        await client.get("/thing")
        shop.error = error
        clock.turn(seconds)
        response = await client.get("/thing")
        await shop.app.engine.settle()
        return response


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (Absent(), 404, {"error": "Absent"}),
        (VeryAbsent(), 404, {"error": "VeryAbsent"}),
        (HTTPException(418), 418, {"error": "teapot"}),
    ],
    ids=["class", "subclass", "status"],
)
async def test_what_an_exception_handler_makes_is_the_answer_though_an_old_one_is_there(
    clock: TurnedClock, error: Exception, status: int, body: dict[str, str]
) -> None:
    response = await after(Shop(clock), clock, error)
    assert (response.status_code, response.json()) == (status, body)


@pytest.mark.parametrize("error", [Broken(), LookupError("no handler")], ids=["made a 502", "unhandled"])
async def test_the_old_answer_stands_in_for_failures(clock: TurnedClock, error: Exception) -> None:
    response = await after(Shop(clock), clock, error)
    assert (response.status_code, response.json()) == (200, {"calls": 1})


async def test_without_an_old_answer_a_failure_is_what_the_exception_handler_makes_of_it(clock: TurnedClock) -> None:
    shop = Shop(clock)
    shop.error = Broken()
    async with running(shop.app) as client:
        response = await client.get("/thing")
    assert (response.status_code, response.json()) == (502, {"error": "broken"})


async def test_a_refresh_behind_stores_what_an_exception_handler_makes(clock: TurnedClock) -> None:
    shop = Shop(clock, stale_while_revalidate="60s")
    assert (await after(shop, clock, Absent())).status_code == 200
    async with running(shop.app) as client:
        response = await client.get("/thing")
    assert (response.status_code, shop.calls) == (404, 2)
