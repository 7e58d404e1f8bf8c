"""What `@cached` makes of exceptions: an answer where the app's exception handlers make one, else a failure."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

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


done: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    done.clear()


async def work(name: str = "work") -> None:
    done.append(name)


async def failing() -> None:
    raise LookupError("broken work")


async def by_response() -> Response:
    done.append("handler")
    return JSONResponse({"a": 1}, background=BackgroundTask(work))


async def by_stream() -> Response:
    done.append("handler")
    return StreamingResponse(iter([b"a"]), background=BackgroundTask(work))


async def by_tasks(tasks: BackgroundTasks) -> dict[str, int]:
    done.append("handler")
    tasks.add_task(work)
    return {"a": 1}


async def by_failing_response() -> Response:
    return JSONResponse({"a": 1}, background=BackgroundTask(failing))


async def by_failing_tasks(tasks: BackgroundTasks) -> dict[str, int]:
    tasks.add_task(failing)
    return {"a": 1}


def app_of(handler: Any, clock: TurnedClock | None = None, **arguments: Any) -> Gateway:
    router = APIRouter()
    router.get("/it")(cached(**{"ttl": "30s", **arguments})(handler))
    app = create_app({"redis_url": "none"}, log=silent, clock=clock)
    app.include_router(router)
    return app


@pytest.mark.parametrize("handler", [by_response, by_stream, by_tasks], ids=lambda each: each.__name__)
async def test_work_follows_each_call_of_the_handler_and_no_hit(handler: Any) -> None:
    async with running(app_of(handler)) as client:
        for _ in range(3):
            await client.get("/it")
    assert done == ["handler", "work"]


async def test_work_begins_after_the_answer_was_sent() -> None:
    app = app_of(by_response)
    async with running(app):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/it",
            "raw_path": b"/it",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"a")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }

        async def send(message: Any) -> None:
            done.append(message["type"])

        await app(scope, asyncio.Event().wait, send)
    assert done == ["handler", "http.response.start", "http.response.body", "work"]


@pytest.mark.parametrize("handler", [by_failing_response, by_failing_tasks], ids=lambda each: each.__name__)
async def test_work_that_fails_is_logged_and_changes_no_answer(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "gateway"):
        async with running(app_of(handler)) as client:
            answers = [await client.get("/it") for _ in range(2)]
    assert [(each.status_code, each.json()) for each in answers] == [(200, {"a": 1})] * 2
    assert ["broken work" in str(each.exc_info) for each in caplog.records if each.name == "gateway"] == [True]


@pytest.mark.parametrize("handler", [by_response, by_stream, by_tasks], ids=lambda each: each.__name__)
async def test_work_follows_a_refresh_behind_once(handler: Any, clock: TurnedClock) -> None:
    app = app_of(handler, clock, stale_while_revalidate="60s")
    async with running(app) as client:
        await client.get("/it")
        clock.turn(31)
        await client.get("/it")
        await app.engine.settle()
    assert done == ["handler", "work"] * 2


async def test_a_refresh_behind_does_not_wait_for_the_work_that_follows(clock: TurnedClock) -> None:
    release = asyncio.Event()
    calls = 0

    async def handler() -> Response:
        nonlocal calls
        calls += 1
        return JSONResponse(calls, background=BackgroundTask(release.wait if calls == 2 else work))

    app = app_of(handler, clock, stale_while_revalidate="60s")
    async with running(app) as client:
        await client.get("/it")
        clock.turn(31)
        await client.get("/it")
        await app.engine.background.settle()
        assert (await client.get("/it")).json() == 2
        release.set()


async def test_work_follows_a_call_that_several_share_once() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def handler() -> Response:
        started.set()
        await release.wait()
        return JSONResponse(1, background=BackgroundTask(work))

    async with running(app_of(handler)) as client:
        first = asyncio.ensure_future(client.get("/it"))
        await started.wait()
        others = [asyncio.ensure_future(client.get("/it")) for _ in range(5)]
        await asyncio.sleep(0)
        release.set()
        assert {each.status_code for each in await asyncio.gather(first, *others)} == {200}
    assert done == ["work"]


async def test_the_tasks_of_dependencies_follow_hits_too() -> None:
    async def audit(tasks: BackgroundTasks) -> None:
        tasks.add_task(work, "audit")

    async def handler(_: None = Depends(audit)) -> int:
        return 1

    async with running(app_of(handler)) as client:
        await client.get("/it")
        await client.get("/it")
    assert done == ["audit", "audit"]
