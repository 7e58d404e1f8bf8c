"""The client's leaving interrupts the work for it, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from gateway.routing.responses import Client, ClientLeft


class Line:
    """A client's connection: `hang_up` is its leaving."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def hang_up(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}


def _there(line: Line) -> Client:
    client = Client(line.receive)
    client.expect_no_body()
    return client


async def test_work_is_interrupted_when_the_client_leaves_and_its_task_is_not_left_cancelled() -> None:
    line, ended = Line(), asyncio.Event()

    async def work() -> None:
        line.hang_up()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientLeft):
        await _there(line).while_there(work())

    task = asyncio.current_task()
    assert ended.is_set()
    assert task is not None
    assert task.cancelling() == 0


async def test_cancelling_the_task_itself_is_not_taken_for_the_client_s_leaving() -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(_there(Line()).while_there(work()))
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_leaves_while_the_work_ends_gets_what_it_came_to() -> None:
    line = Line()

    async def work() -> str:
        line.hang_up()
        return "done"

    assert await _there(line).while_there(work()) == "done"
    await asyncio.sleep(0)  # the listening task ends; it must not cancel this one


async def test_a_deadline_within_the_work_stays_a_deadline() -> None:
    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await _there(Line()).while_there(work())


async def test_a_deadline_around_the_work_stays_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await _there(Line()).while_there(asyncio.Event().wait())
