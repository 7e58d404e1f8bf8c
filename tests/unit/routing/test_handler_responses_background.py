"""What follows the answer of a `@cached` handler: once for each call of it, after the answer, without touching it."""

import asyncio
import logging
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

from gateway import cached, create_app
from gateway.app.gateway import Gateway
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running

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
