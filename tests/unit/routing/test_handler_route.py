"""The route of a `@cached` handler with dependencies: they run for each request, and nothing else does."""

# Without postponed annotations, as handlers here depend on local names.
import contextlib
import gc
import json
import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.dependencies import utils
from fastapi.security import APIKeyHeader

from gateway import cached
from gateway.app.gateway import Gateway
from gateway.routing import handler_route
from gateway.routing.handler_route import HandlerApp
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import gateway

PLAIN = b"GET /o/1 HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n"


class Story:
    """A gateway with the handler /o/{n}, which depends on `dependency`, and one connection to it."""

    def __init__(self, dependency: Any, *, scope: Any = None, app: Gateway | None = None, **arguments: Any) -> None:
        self.app = app or gateway(StubUpstream(lambda _: httpx.Response(200)), {}, clock=TurnedClock())
        self.calls = 0
        self.ended: list[str] = []

        async def answer(n: int, value: Annotated[Any, Depends(dependency, scope=scope)]) -> Any:
            self.calls += 1
            return {"n": n, "value": value}

        self.app.get("/o/{n}")(cached(ttl="30s", **arguments)(answer))
        self.line = Line(Counted(self.app))

    async def ask(self, fields: bytes = b"", *, target: bytes = b"/o/1") -> tuple[int, Any, bytes]:
        """The status, the body, and the head."""
        said = await asked(self.line, PLAIN.replace(b"/o/1", target) % fields)
        head, _, body = said.partition(b"\r\n\r\n")
        return int(head[9:12]), json.loads(body) if body else None, head.lower()


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list with an element for each request of which the stored response was not written by the edge."""
    found: list[bool] = []
    called = HandlerApp._called

    async def counted(self: HandlerApp, *args: Any) -> Any:
        found.append(True)
        return await called(self, *args)

    monkeypatch.setattr(HandlerApp, "_called", counted)
    return found


async def test_dependencies_run_for_each_request_and_may_refuse_any(handled: list[bool]) -> None:
    seen: list[int] = []

    def dependency() -> int:
        seen.append(1)
        if len(seen) == 5:
            raise HTTPException(403, "no more")
        return 7

    story = Story(dependency)
    said = [await story.ask() for _ in range(6)]
    assert [status for status, _, _ in said] == [200, 200, 200, 200, 403, 200]
    assert [body for status, body, _ in said if status == 200] == [{"n": 1, "value": 7}] * 5
    assert (len(seen), story.calls) == (6, 1)
    assert len(handled) == 1  # the edge wrote the others
    assert [b"cache-status: gateway; hit" in head for _, _, head in said] == [False, True, True, True, False, True]


async def test_each_request_is_counted_once() -> None:
    story = Story(lambda: 1)
    for _ in range(5):
        await story.ask()
    text = story.app.metrics.render().decode()
    counted = [line for line in text.splitlines() if line.startswith("gateway_requests_total{") and "Story" in line]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == 5


@pytest.mark.parametrize("kind", ["declared", "request", "scheme"])
async def test_no_user_gets_the_response_of_another(kind: str, handled: list[bool]) -> None:
    def declared(x_api_key: Annotated[str, Header()]) -> str:
        return x_api_key

    def request(request: Request) -> str:
        return request.headers["x-api-key"]

    story = Story({"declared": declared, "request": request, "scheme": APIKeyHeader(name="x-api-key")}[kind])
    users = (b"ann", b"bob", b"ann", b"bob", b"ann", b"bob", b"bob")
    for user in users:
        status, body, _ = await story.ask(b"X-Api-Key: %b\r\n" % user)
        assert (status, body) == (200, {"n": 1, "value": user.decode()})
    assert story.calls == 2
    assert len(handled) < len(users)


async def test_what_no_key_can_hold_is_not_shared() -> None:
    story = Story(lambda request: 1)

    def dependency(request: Request) -> str:
        return f"{request.client and request.client.host} {request.headers.get('x-forwarded-for')}"

    story = Story(dependency)
    for number in range(4):
        status, body, _ = await story.ask(b"X-Forwarded-For: %d\r\n" % number)
        assert (status, body["value"]) == (200, f"192.0.2.1 {number}")
    assert story.calls == 4


async def test_what_a_dependency_adds_to_a_response_is_in_each() -> None:
    done: list[int] = []

    def dependency(response: Response, tasks: BackgroundTasks) -> int:
        done.append(0)
        response.headers["x-number"] = str(len(done))
        tasks.add_task(done.append, 1)
        return 1

    story = Story(dependency)
    for number in (1, 3, 5, 7):
        _, _, head = await story.ask()
        assert b"x-number: %d\r\n" % number in head
    assert (story.calls, done) == (1, [0, 1] * 4)


@pytest.mark.parametrize("scope", [None, "function", "request"])
async def test_dependencies_with_yield_end_with_each_request(scope: Any) -> None:
    ended: list[int] = []

    def dependency() -> Iterator[int]:
        yield 1
        ended.append(1)

    story = Story(dependency, scope=scope)
    for number in range(1, 5):
        assert (await story.ask())[0] == 200
        assert len(ended) == number
    assert story.calls == 1


async def test_a_dependency_that_fails_at_its_end_before_the_response_is_an_error_on_hits_too() -> None:
    fails: list[int] = []

    def dependency() -> Iterator[int]:
        yield 1
        if fails:
            raise HTTPException(409, "late")

    story = Story(dependency, scope="function")
    assert [(await story.ask())[0] for _ in range(3)] == [200] * 3
    fails.append(1)
    assert (await story.ask())[0] == 409


async def test_overrides_are_called_on_hits() -> None:
    def dependency() -> int:
        return 1

    story = Story(dependency)
    seen: list[int] = []

    def override() -> int:
        seen.append(1)
        return 1

    story.app.dependency_overrides[dependency] = override
    for _ in range(4):
        assert (await story.ask())[0] == 200
    assert (len(seen), story.calls) == (4, 1)


async def test_what_does_not_validate_is_refused_as_by_fastapi() -> None:
    def dependency(x_age: Annotated[int, Header(ge=1)]) -> int:
        return x_age

    story, plain = Story(dependency), FastAPI()

    @plain.get("/o/{n}")
    async def answer(n: int, value: Annotated[int, Depends(dependency)]) -> None: ...

    def told(body: Any) -> list[Any]:
        return [(each["type"], each["loc"], each["msg"]) for each in body["detail"]]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(plain), base_url="http://g") as client:
        for target, age in (("/o/1", "2"), ("/o/1", "2"), ("/o/1", "0"), ("/o/x", "2"), ("/o/x", "x"), ("/o/1", "")):
            expected = await client.get(target, headers={"x-age": age})
            status, body, _ = await story.ask(b"X-Age: %b\r\n" % age.encode(), target=target.encode())
            assert status == expected.status_code
            assert status == 200 or told(body) == told(expected.json())


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.delattr(utils, "solve_dependencies"),
        lambda patch: patch.setattr(utils, "solve_dependencies", lambda request, dependant, other: None),
    ],
)
async def test_with_another_fastapi_its_own_app_answers_and_the_log_says_so(
    change: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    handled: list[bool],
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "gateway"):
        patch.setattr(handler_route, "_told", False)
        change(patch)
        assert handler_route._solver() is None
        story = Story(lambda: 5)
        story.app._dispatch.found({"type": "http", "path": "/o/1", "method": "GET"})
    assert sum("solves dependencies by an unknown function" in each.message for each in caplog.records) == 1
    assert [(await story.ask())[1]["value"] for _ in range(3)] == [5] * 3
    assert (story.calls, handled) == (1, [])


async def test_a_dependency_that_swallows_an_error_is_an_error_of_the_app() -> None:
    def dependency() -> Iterator[int]:
        with contextlib.suppress(Exception):
            yield 1

    def refusing(value: Annotated[int, Depends(dependency)]) -> int:
        raise HTTPException(418)

    assert (await Story(refusing).ask())[0] == 500


async def test_nothing_of_a_request_waits_for_the_garbage_collector() -> None:
    story = Story(lambda: 1)

    @story.app.get("/plain")
    async def plain() -> int:
        return 1

    for target in (b"/o/1", b"/plain"):
        for _ in range(3):
            await story.ask(target=target)
        while gc.collect():  # what one round frees may have referred to more garbage, past the garbage collector
            pass
        gc.disable()
        try:
            for _ in range(5):
                await story.ask(target=target)
            assert gc.collect() == 0
        finally:
            gc.enable()
