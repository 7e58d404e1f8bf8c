"""flight: one fetch a key, told to all who wait at once; whoever leaves takes nothing from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gateway.cache.flight import Failed, Flight, Landed, Landing, Marks, NotShareable
from gateway.policy.entry import Entry, Life
from gateway.upstreams.response import Fetched, WholeBody

LANDED = Landed(
    Entry(key="k", primary="k", born=2.0, started=1.0, initial_age=0.0, status=200, headers=(), body=b"", life=Life()),
    status=200,
    kept=True,
)


class OpenBody(WholeBody):
    """A body that knows whether it was closed."""

    content: bytes = b""
    closed: bool = False

    async def aclose(self) -> None:
        self.closed = True


def alone(body: OpenBody) -> NotShareable:
    return NotShareable(Fetched(200, (), body), "no-store")


def _any(stored: Entry) -> bool:
    return True


async def started(*waits: Coroutine[Any, Any, Landing | None]) -> list[asyncio.Task[Landing | None]]:
    """The waits as tasks, each of them waiting by now."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    begun = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(begun.set_result, None)
    await begun
    return tasks


async def left(task: asyncio.Task[Landing]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_all_who_wait_are_told_the_same_landing() -> None:
    flight = Flight("k")
    tasks = await started(flight.lead(), *(flight.wait(_any) for _ in range(99)))
    assert flight.waiting == 100
    await flight.land(LANDED)
    assert all(landing is LANDED for landing in await asyncio.gather(*tasks))
    assert flight.waiting == 0


async def test_who_comes_after_the_landing_is_told_it_at_once() -> None:
    flight = Flight("k")
    await flight.land(LANDED)
    assert await flight.wait(_any) is LANDED


async def test_a_failure_is_told_as_any_landing() -> None:
    flight = Flight("k")
    failed = Failed(503)
    (task,) = await started(flight.wait(_any))
    await flight.land(failed)
    assert await task is failed


@pytest.mark.parametrize("leading", [True, False], ids=["who began it", "who joined it"])
async def test_who_leaves_does_not_end_the_flight_for_the_others(leading: bool) -> None:
    flight = Flight("k")
    waits = [flight.lead(), flight.wait(_any)]
    leaver, stayer = await started(*(waits if leading else reversed(waits)))
    await left(leaver)
    assert flight.waiting == 1
    await flight.land(LANDED)
    assert await stayer is LANDED


async def test_a_flight_that_everyone_has_left_still_lands() -> None:
    flight = Flight("k")
    for task in await started(flight.lead(), flight.wait(_any)):
        await left(task)
    await flight.land(LANDED)
    assert flight.waiting == 0
    assert flight.landing.result() is LANDED


async def test_a_response_for_one_client_stays_open_for_it() -> None:
    flight, body = Flight("k"), OpenBody()
    (task,) = await started(flight.lead())
    await flight.land(alone(body))
    assert isinstance(await task, NotShareable)
    assert not body.closed


async def test_a_response_for_one_client_is_closed_where_that_client_left_before() -> None:
    flight, body = Flight("k"), OpenBody()
    leader, waiter = await started(flight.lead(), flight.wait(_any))
    await left(leader)
    await flight.land(alone(body))
    assert body.closed
    assert isinstance(await waiter, NotShareable)


async def test_a_response_for_one_client_is_closed_where_that_client_leaves_as_it_lands() -> None:
    flight, body = Flight("k"), OpenBody()
    (leader,) = await started(flight.lead())
    await flight.land(alone(body))
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert body.closed


async def test_a_response_for_one_client_is_not_closed_because_a_waiter_leaves() -> None:
    flight, body = Flight("k"), OpenBody()
    leader, waiter = await started(flight.lead(), flight.wait(_any))
    await flight.land(alone(body))
    await left(waiter)
    assert isinstance(await leader, NotShareable)
    assert not body.closed


async def test_leaving_as_a_stored_response_lands_closes_nothing() -> None:
    flight = Flight("k")
    (leader,) = await started(flight.lead())
    await flight.land(LANDED)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert flight.landing.result() is LANDED


async def test_a_flight_tells_when_it_began_and_which_purges_were_known_then() -> None:
    flight = Flight("k", stamp="generation 17-0", began=5.0)
    assert (flight.key, flight.stamp, flight.began) == ("k", "generation 17-0", 5.0)


async def test_a_flight_shows_its_state() -> None:
    flight = Flight("k")
    assert repr(flight) == "<Flight 'k' under way waiting=0>"
    await flight.land(LANDED)
    assert repr(flight) == "<Flight 'k' landed waiting=0>"


# --- marks -------------------------------------------------------------------------------------------------


def test_a_mark_is_active_until_its_time() -> None:
    marks = Marks()
    marks.put("a", until=10.0)
    assert marks.active("a", now=9.9)
    assert not marks.active("a", now=10.0)


def test_what_was_never_marked_is_not_active() -> None:
    assert not Marks().active("a", now=0.0)


def test_a_mark_that_ended_is_forgotten() -> None:
    marks = Marks()
    marks.put("a", until=10.0)
    marks.active("a", now=11.0)
    assert len(marks) == 0


def test_a_mark_can_be_renewed() -> None:
    marks = Marks()
    marks.put("a", until=10.0)
    marks.put("a", until=20.0)
    assert marks.active("a", now=15.0)
    assert len(marks) == 1


def test_marks_that_have_ended_go_while_others_are_looked_for() -> None:
    marks = Marks()
    for number in range(5):
        marks.put(f"{number}", until=10.0)
    marks.put("a", until=20.0)
    left = [len(marks) for _ in range(3) if not marks.active("b", now=11.0)]
    assert left == [4, 2, 1]
    assert marks.active("a", now=11.0)


def test_a_mark_behind_one_that_lasts_ends_in_its_time() -> None:
    marks = Marks()
    marks.put("a", until=20.0)
    marks.put("b", until=10.0)
    assert not marks.active("b", now=11.0)
    assert marks.active("a", now=11.0)


def test_marks_are_bounded_and_the_oldest_go_first() -> None:
    marks = Marks(limit=2)
    for key in ("a", "b", "a", "c"):
        marks.put(key, until=10.0)
    assert len(marks) == 2
    assert [key for key in "abc" if marks.active(key, now=0.0)] == ["a", "c"]


async def test_whom_a_head_cannot_serve_leaves_before_the_rest_has_come() -> None:
    flight = Flight("k")
    stays, leaves = await started(flight.wait(_any), flight.wait(lambda stored: stored.key != "k"))
    flight.promise(lambda: LANDED.stored)
    assert await leaves is None
    assert flight.waiting == 1
    await flight.land(LANDED)
    assert await stays is LANDED


async def test_those_who_are_released_wait_no_more_and_nor_does_who_comes_later() -> None:
    flight = Flight("k")
    (waiter,) = await started(flight.wait(_any))
    flight.release()
    assert await waiter is None
    assert await flight.wait(_any) is None
    await flight.land(LANDED)
    assert await flight.lead() is LANDED
