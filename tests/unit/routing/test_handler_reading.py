"""What a handler reads without declaring it: it is part of the variant, or the response is not shared."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import HTTPConnection

from gateway import cached
from gateway.testing import running
from tests.support.handlers import ANN, BOB, Fields, app_of, asked, is_hit, of


async def test_what_is_read_of_the_request_selects_among_the_answers() -> None:
    async def handler(request: Request) -> str:
        if request.headers.get("x-a") == "1":
            return request.headers.get("x-b", "none")
        return "other"

    requests: list[Fields] = [{"x-a": "0", "x-b": "1"}, {"x-a": "1", "x-b": "1"}, {"x-a": "1", "x-b": "2"}]
    first, second, third, again = await asked(app_of(of(handler)), *requests, requests[1])
    assert [each.json() for each in (first, second, third, again)] == ["other", "1", "2", "1"]
    assert is_hit(again)


async def test_what_a_connection_or_a_sync_dependency_reads_is_in_the_key() -> None:
    def user(connection: HTTPConnection) -> str:
        return connection.headers.get("x-user", "")

    def handler(user: Annotated[str, Depends(user)]) -> str:
        return user

    ann, bob, again = await asked(app_of(of(handler)), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), again.json(), is_hit(again)) == ("ann", "bob", "ann", True)


async def test_who_waited_takes_an_answer_only_where_its_own_request_agrees() -> None:
    gate, calls = asyncio.Event(), []

    async def handler(request: Request) -> str:
        user = request.headers["x-user"]
        calls.append(user)
        await gate.wait()
        return user

    async with running(app_of(of(handler))) as client:
        waiting = [asyncio.ensure_future(client.get("/it", headers={"x-user": f"{i % 5}"})) for i in range(20)]
        while not calls:
            await asyncio.sleep(0)
        gate.set()
        answers = await asyncio.gather(*waiting)
    assert [each.json() for each in answers] == [f"{i % 5}" for i in range(20)]


async def test_what_a_stream_reads_while_it_is_sent_is_in_the_key() -> None:
    async def handler(request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            yield "for "
            yield request.headers.get("x-user", "")

        return StreamingResponse(pieces())

    ann, bob, again = await asked(app_of(of(handler)), ANN, BOB, ANN)
    assert (ann.text, bob.text, again.text, is_hit(again)) == ("for ann", "for bob", "for ann", True)


def all_headers(request: Request) -> object:
    return dict(request.headers)


def raw_scope(request: Request) -> object:
    return str(request.scope["headers"])


def wrapped_again(request: Request) -> object:
    return Request(request.scope).headers.get("x-user")


def copied_scope(request: Request) -> object:
    return str({**request.scope}["headers"])


def address(request: Request) -> object:
    return [request.client and request.client.host, request.headers.get("x-user"), request.headers.get("x-real-ip")]


async def whole_body(request: Request) -> object:
    return [len(await request.body()), request.headers["x-user"]]


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (all_headers, "headers"),
        (raw_scope, "headers"),
        (wrapped_again, "headers"),
        (copied_scope, "scope"),
        (address, "client"),
        (whole_body, "body"),
    ],
)
async def test_what_no_key_can_hold_is_not_shared_and_told_once(
    handler: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gateway"):
        answers = await asked(app_of(of(handler)), ANN, BOB, ANN, ANN)
    assert ["ann" in each.text for each in answers] == [True, False, True, True]
    assert not any(map(is_hit, answers))
    assert {each.headers["cache-status"].rpartition("detail=")[2] for each in answers} == {f"reads-{reason}"}
    assert {each.headers["cache-control"] for each in answers} == {"no-store"}
    told = [each.getMessage() for each in caplog.records if "are not shared" in each.getMessage()]
    assert len(told) == 1
    assert handler.__qualname__ in told[0]


async def test_names_of_a_clients_choosing_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request, name: str) -> str:
        return str(getattr(request.state, name, None))

    async with running(app_of(of(handler))) as client:
        for each in range(5):
            await client.get(f"/it?name=a{each}")
    assert caplog.text.count("are not shared") == 1


async def test_unshared_answers_keep_their_own_directives() -> None:
    async def handler(request: Request, response: Response) -> str:
        response.headers["cache-control"] = "public, max-age=5"
        return str(request.client)

    (answer,) = await asked(app_of(of(handler)), {})
    assert answer.headers["cache-control"] == "private, max-age=5"


@pytest.mark.parametrize("status", [200, 500])
async def test_answers_that_are_not_stored_say_what_they_were_made_of(status: int) -> None:
    async def handler(request: Request) -> Response:
        return Response(request.headers.get("x-user", "") * 100, status, headers={"cache-control": "max-age=60"})

    ann, bob = await asked(app_of(of(handler, max_body="1B")), ANN, BOB)
    for answer in (ann, bob):
        assert "x-user" in answer.headers["vary"]
        assert "private" in answer.headers["cache-control"]


async def test_answers_that_go_by_the_cache_say_what_others_were_made_of() -> None:
    async def handler(request: Request, response: Response) -> str:
        response.headers["cache-control"] = "public, max-age=60"
        return request.headers.get("x-user", "")

    _, past = await asked(app_of(of(handler)), ANN, {**BOB, "cookie": "a=b"})
    assert "detail=cookie" in past.headers["cache-status"]
    assert "x-user" in past.headers["vary"]
    assert "private" in past.headers["cache-control"]


async def test_state_that_a_dependency_left_follows_from_what_it_read() -> None:
    def user(request: Request) -> None:
        request.state.user = request.headers.get("x-user")

    async def handler(request: Request) -> str:
        return str(request.state.user)

    router = APIRouter(dependencies=[Depends(user)])
    router.get("/it")(cached(ttl="30s")(handler))
    ann, bob, again = await asked(app_of(router), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), is_hit(again)) == ("ann", "bob", True)
