"""Full rounds of the garbage collector walk what is new, and find in the end what has broken off among the old."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from gateway.server.process import Garbage
from gateway.testing import TurnedClock


@pytest.fixture(autouse=True)
def _the_collector_as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    assert gc.get_threshold() == thresholds


class Ring:
    def __init__(self) -> None:
        self.me = self


def begun(clock: TurnedClock, *, idle: bool = True) -> tuple[Garbage, list[float]]:
    rounds: list[float] = []
    garbage = Garbage(rounds.append, idle=lambda: idle, monotonic=clock.now)
    garbage.thaw()
    return garbage, rounds


def young_rounds(number: int) -> None:
    for _ in range(number):
        gc.collect(1)


def test_a_round_comes_after_four_of_the_middle_generation_and_freezes_what_it_leaves(clock: TurnedClock) -> None:
    garbage, rounds = begun(clock)
    kept = [[number] for number in range(5000)]
    young_rounds(3)
    garbage.look()
    assert len(rounds) == 1
    frozen = gc.get_freeze_count()
    young_rounds(1)
    garbage.look()
    assert len(rounds) == 2
    assert gc.get_freeze_count() - frozen >= len(kept)
    assert all(seconds >= 0 for seconds in rounds)


def test_a_cycle_that_breaks_off_among_what_is_frozen_is_found_when_that_is_thawed(clock: TurnedClock) -> None:
    ring = Ring()
    gone = weakref.ref(ring)
    garbage, rounds = begun(clock)
    del ring
    young_rounds(4)
    garbage.look()
    assert gone() is not None
    clock.turn(601)
    garbage.look()
    assert gone() is None
    assert len(rounds) == 3


def test_a_thaw_waits_for_an_idle_moment_but_for_a_minute_only(clock: TurnedClock) -> None:
    garbage, rounds = begun(clock, idle=False)
    garbage.thaw_soon()
    garbage.look()
    clock.turn(59)
    garbage.look()
    assert len(rounds) == 1
    clock.turn(2)
    garbage.look()
    assert len(rounds) == 2


def test_where_much_has_gathered_it_is_thawed_before_its_time(clock: TurnedClock) -> None:
    garbage, rounds = begun(clock)
    gathered = [[number] for number in range(200_000 + gc.get_freeze_count())]
    gc.freeze()
    clock.turn(11)
    garbage.look()
    assert len(rounds) == 2
    assert gathered


async def test_it_begins_without_a_round_and_cpython_begins_only_few_young_ones_until_it_ends() -> None:
    rounds: list[float] = []
    gc.disable()
    running = asyncio.ensure_future(Garbage(rounds.append).run())
    await asyncio.sleep(0)
    assert gc.get_threshold() == (7000, 2, 1_000_000)
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
    assert rounds == []
    running.cancel()
    await asyncio.wait([running])
