"""Background tasks and requests under way: held until they end, and waited for."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.cache.background import Background, end


async def test_a_task_that_fails_is_reported_and_the_others_go_on() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    background, done = Background(), asyncio.Event()

    async def failing() -> None:
        raise RuntimeError("broken")

    async def working() -> None:
        done.set()

    background.spawn(failing())
    background.spawn(working())
    await background.settle()
    assert done.is_set()
    assert [str(context["exception"]) for context in reported] == ["broken"]
    assert len(background) == 0


async def test_settling_waits_for_what_tasks_start_and_outlasting_does_not() -> None:
    background, gate, begin = Background(), asyncio.Event(), asyncio.Event()

    async def starting() -> None:
        await begin.wait()
        background.spawn(waiting())

    async def waiting() -> None:
        await gate.wait()

    background.spawn(starting())
    outlasted = asyncio.ensure_future(background.outlast())
    await asyncio.sleep(0)
    begin.set()
    await asyncio.wait_for(outlasted, 5)
    assert len(background) == 1
    settled = asyncio.ensure_future(background.settle())
    await asyncio.sleep(0)
    assert not settled.done()
    gate.set()
    await asyncio.wait_for(settled, 5)
    assert len(background) == 0


async def test_draining_leaves_what_is_late_and_cancelling_ends_it_without_a_report() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    background = Background()
    background.spawn(asyncio.Event().wait())  # type: ignore[arg-type]
    await background.drain(0.01)
    assert len(background) == 1
    await background.cancel()
    assert (len(background), reported) == (0, [])


async def test_draining_waits_for_what_tasks_start() -> None:
    background, done = Background(), asyncio.Event()

    async def starting() -> None:
        background.spawn(ending())

    async def ending() -> None:
        await asyncio.sleep(0)
        done.set()

    background.spawn(starting())
    await background.drain(5)
    assert done.is_set()


async def test_a_task_that_loses_its_cancellation_ends_by_the_next_one() -> None:
    lost: list[str] = []

    async def losing() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append("the first")

    task = asyncio.ensure_future(losing())
    await asyncio.sleep(0)
    await asyncio.wait_for(end(task), 5)
    assert (task.cancelled(), lost) == (True, ["the first"])
    await end(task)
    await end(None)


async def test_nothing_under_way_is_nothing_to_wait_for() -> None:
    background = Background()
    for waiting in (background.settle(), background.outlast(), background.drain(60), background.cancel()):
        await asyncio.wait_for(waiting, 5)


async def test_work_begins_at_the_next_turn_and_is_waited_for_as_a_task_or_a_future() -> None:
    background, future, done = Background(), asyncio.get_running_loop().create_future(), list[str]()

    async def work() -> None:
        done.append("task")

    def begin() -> asyncio.Future[None]:
        done.append("future")
        return future

    background.begin(work)
    background.begin(begin)
    assert (done, len(background)) == ([], 2)
    settling = asyncio.ensure_future(background.settle())
    while done != ["future", "task"]:
        await asyncio.sleep(0)
    assert not settling.done()
    future.set_result(None)
    await settling
    assert len(background) == 0


async def test_work_that_is_to_begin_is_cancelled_with_the_rest() -> None:
    background, future = Background(), asyncio.get_running_loop().create_future()
    background.begin(lambda: future)
    await background.cancel()
    assert future.cancelled()
    assert len(background) == 0
