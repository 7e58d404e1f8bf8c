"""So many at once, few that wait, the others told at once; refreshes behind take what is left. A budget
bounds repetitions."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.observability.trace_context import BEHIND
from gateway.upstreams.bulkhead import Bulkhead, Full, RetryBudget


async def waiting(bulkhead: Bulkhead) -> asyncio.Task[float]:
    task = asyncio.ensure_future(bulkhead.enter())
    await asyncio.sleep(0)
    return task


async def test_places_are_taken_then_some_wait_then_the_next_is_told_at_once() -> None:
    bulkhead = Bulkhead(2, 1, patience=60.0)
    places = [await bulkhead.enter(), await bulkhead.enter()]
    third = await waiting(bulkhead)
    with pytest.raises(Full):
        await bulkhead.enter()
    assert (bulkhead.taken, bulkhead.waiting, bulkhead.shed) == (2, 1, 1)
    bulkhead.leave(places.pop())
    bulkhead.leave(places.pop())
    bulkhead.leave(await third)
    assert (bulkhead.taken, bulkhead.waiting) == (0, 0)


async def test_a_place_goes_to_the_one_who_waited_longest() -> None:
    bulkhead = Bulkhead(1, 5, patience=60.0)
    place = await bulkhead.enter()
    first, second = await waiting(bulkhead), await waiting(bulkhead)
    bulkhead.leave(place)
    await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
    assert (first.done(), second.done()) == (True, False)
    bulkhead.leave(first.result())
    bulkhead.leave(await second)


async def test_nobody_waits_who_would_wait_too_long() -> None:
    now = 0.0
    bulkhead = Bulkhead(1, 100, patience=2.0, monotonic=lambda: now)
    place = await bulkhead.enter()
    now = 1.0
    second = await waiting(bulkhead)  # the place is held for a second so far
    now = 1.5
    with pytest.raises(Full) as full:
        await bulkhead.enter()  # two before it, a second and a half each
    assert full.value.retry_after == 3.0
    bulkhead.leave(place)
    bulkhead.leave(await second)


async def test_refreshes_behind_neither_wait_nor_take_the_last_places() -> None:
    bulkhead = Bulkhead(4, 10, patience=60.0)
    token = BEHIND.set(True)
    try:
        places = [await bulkhead.enter() for _ in range(3)]
        with pytest.raises(Full):
            await bulkhead.enter()
    finally:
        BEHIND.reset(token)
    places.append(await bulkhead.enter())
    for place in places:
        bulkhead.leave(place)
    assert bulkhead.taken == 0


async def test_after_random_cancellations_no_place_is_lost_and_none_taken_twice() -> None:
    bulkhead = Bulkhead(5, 20, patience=60.0)
    chance = random.Random(7)
    most = 0

    async def visit() -> None:
        nonlocal most
        place = await bulkhead.enter()
        try:
            most = max(most, bulkhead.taken)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            bulkhead.leave(place)

    for _ in range(300):
        tasks = [asyncio.ensure_future(visit()) for _ in range(20)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 10):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (bulkhead.taken, bulkhead.waiting) == (0, 0)
    assert most == 5
    assert bulkhead._entered == pytest.approx(0.0, abs=1e-3)


async def test_while_it_is_narrowed_fewer_places_are_given_and_those_taken_are_not_handed_over() -> None:
    narrowed = False
    bulkhead = Bulkhead(3, 5, patience=60.0, narrow=1, narrowed=lambda: narrowed)
    places = [await bulkhead.enter() for _ in range(3)]
    fourth = await waiting(bulkhead)
    narrowed = True
    bulkhead.leave(places.pop())
    bulkhead.leave(places.pop())
    await asyncio.sleep(0)
    assert (fourth.done(), bulkhead.taken) == (False, 1)
    bulkhead.leave(places.pop())
    bulkhead.leave(await fourth)
    narrowed = False
    assert (bulkhead.places, bulkhead.taken) == (3, 0)


@given(st.lists(st.booleans(), max_size=400))
def test_the_budget_never_gives_more_than_its_share_and_its_reserve(asked: list[bool]) -> None:
    budget = RetryBudget(0.1, reserve=5.0)
    for retry in asked:
        budget.asked()
        if retry:
            budget.take()
    assert budget.spent <= 5 + 0.1 * len(asked) + 1e-6
    assert budget.spent + budget.denied == sum(asked)


def test_a_budget_of_nothing_gives_nothing() -> None:
    assert not RetryBudget(0.0).take()


def test_the_budget_is_shown_with_what_it_did() -> None:
    assert repr(RetryBudget(0.1)) == "<RetryBudget 10.0 left, 0 spent, 0 denied>"
