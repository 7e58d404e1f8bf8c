"""A fleet of workers on one Redis: what passes over all of them with it, without it, and while it goes and comes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

import pytest

from gateway.limits.limiter import Limiter
from gateway.limits.meter import QuotaPolicy
from gateway.policy.identity_key import UNKEYED
from gateway.testing import TurnedClock
from tests.support.limits import Fleet, per_second, renamed
from tests.support.scale import size

WINDOWS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
USER = per_second(20, 20)


async def overloaded(
    policy: QuotaPolicy, events: Callable[[Fleet, float], None] = lambda fleet, passed: None, *, number: int = 4
) -> Fleet:
    """A fleet that got ten times as much as the limit allows."""
    rnd, fleet = random.Random(17), Fleet(number)
    await fleet.turn(0)
    began, step = fleet.clock.now(), policy.interval / 10
    while (passed := fleet.clock.now() - began) < size("limit_seconds"):
        events(fleet, passed)
        await fleet.request(policy, rnd.randrange(number))
        await fleet.turn(step)
    return fleet


def assert_bounded(fleet: Fleet, policy: QuotaPolicy) -> None:
    for window in WINDOWS:
        assert fleet.most_in(window) <= policy.burst + 1.1 * window / policy.interval + 1e-6, window


@pytest.mark.parametrize(("rate", "burst"), [(20, 20), (20, 1), (2, 5), (30, 100)])
async def test_at_ten_times_its_limit_a_subject_gets_its_burst_and_its_rate(rate: int, burst: int) -> None:
    policy = per_second(rate, burst)
    fleet = await overloaded(policy)
    assert_bounded(fleet, policy)
    assert len(fleet.passed) >= burst + 0.9 * rate * (size("limit_seconds") - 1) - 1


@pytest.mark.parametrize(("rate", "burst"), [(20, 20), (20, 1), (2, 5), (100, 1000)])
async def test_a_client_at_nine_tenths_of_its_rate_is_never_refused(rate: int, burst: int) -> None:
    rnd, fleet, policy = random.Random(17), Fleet(), per_second(rate, burst)
    await fleet.turn(0)
    for _ in range(rate * size("limit_seconds")):
        assert (await fleet.request(policy, rnd.randrange(4))).admitted
        await fleet.turn(policy.interval / 0.9)


async def test_a_client_that_moves_between_workers_finds_the_credit_that_others_did_not_use() -> None:
    fleet, policy = Fleet(), per_second(20, 20)
    for worker in range(8):
        for _ in range(18):
            assert (await fleet.request(policy, worker)).admitted
            await fleet.turn(policy.interval / 0.9)


async def test_the_request_after_the_wait_passes() -> None:
    fleet, policy = Fleet(), QuotaPolicy("user", 120, 60.0, 30)
    await fleet.turn(0)
    while (verdict := await fleet.request(policy, 0)).admitted:
        pass
    assert len(fleet.passed) == 30
    assert verdict.wait == pytest.approx(0.5)
    await fleet.turn(verdict.wait)
    assert (await fleet.request(policy, 3)).admitted


@pytest.mark.parametrize(("rate", "burst"), [(20, 20), (20, 1), (2, 5), (30, 100)])
@pytest.mark.parametrize("loses", [False, True])
async def test_the_bound_holds_while_redis_goes_and_comes_with_or_without_its_data(
    rate: int, burst: int, loses: bool
) -> None:
    def killed(fleet: Fleet, passed: float) -> None:
        away = 3 <= passed < 6 or 8 <= passed < 8.5
        if loses and fleet.redis.away and not away:
            fleet.redis.lose()
        fleet.redis.away = away

    policy = per_second(rate, burst)
    assert_bounded(await overloaded(policy, killed), policy)


async def test_without_redis_a_tenth_of_the_rate_passes_over_the_fleet() -> None:
    def killed(fleet: Fleet, passed: float) -> None:
        if passed >= 1 and not fleet.redis.away:
            fleet.redis.away = True
            fleet.passed.clear()

    fleet = await overloaded(per_second(100, 20), killed)
    seconds = size("limit_seconds") - 1
    assert 0.08 * 100 * seconds <= len(fleet.passed) <= 0.1 * 100 * seconds + 1
    assert sum(sum(worker.shared.values()) for worker in fleet.workers) == len(fleet.passed)


async def test_what_passed_without_redis_is_told_to_it_when_it_answers_again() -> None:
    fleet, policy = Fleet(), per_second(10, 10)
    await fleet.turn(0)
    await fleet.request(policy, 0)
    fleet.redis.away = True
    for _ in range(3):
        await fleet.turn(4.0)
        assert (await fleet.request(policy, 0)).admitted
    fleet.redis.away = False
    await fleet.turn(1.0)
    await fleet.turn(0.0)
    (meter,) = fleet.redis.meters.values()
    assert meter.mark is not None
    assert meter.mark - fleet.clock.now() == pytest.approx(0.3, abs=0.01)


async def test_that_redis_is_away_is_said_once_and_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(1)
    with caplog.at_level(logging.INFO, "gateway"):
        await fleet.turn(0)
        fleet.redis.away = True
        for _ in range(5):
            await fleet.request(USER, 0)
            await fleet.turn(1)
        assert fleet.workers[0].by_share
        fleet.redis.away = False
        await fleet.turn(1)
    assert not fleet.workers[0].by_share
    away, back = [record.message for record in caplog.records]
    assert "each worker lets its share pass" in away
    assert "answers again" in back


async def test_a_redis_that_lost_its_data_is_told_what_workers_know_to_be_spent() -> None:
    fleet, policy = Fleet(2), QuotaPolicy("user", 1, 60.0, 20)
    await fleet.turn(0)
    for _ in range(10):
        await fleet.request(policy, 0)
        await fleet.request(policy, 1)
    fleet.redis.lose()
    await fleet.turn(1.0)
    await fleet.turn(1.0)
    await fleet.turn(1.0)
    assert not (await fleet.request(policy, 0)).admitted
    assert not (await fleet.request(policy, 1)).admitted


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_a_clock_of_redis_that_jumps_gives_one_burst_at_most(jump: float) -> None:
    def jumped(fleet: Fleet, passed: float) -> None:
        if passed >= 6 and not fleet.redis.skew:
            fleet.redis.skew = jump

    fleet = await overloaded(USER, jumped)
    assert fleet.most_in(30.0) <= 2 * USER.burst + 1.1 * size("limit_seconds") * 20
    late = [at for at in fleet.passed if at > fleet.clock.now() - 3]
    assert len(late) >= 40


async def test_requests_at_once_get_exactly_the_burst() -> None:
    fleet, policy = Fleet(), QuotaPolicy("user", 1, 60.0, 25)
    verdicts = await asyncio.gather(*(fleet.request(policy, number) for number in range(200)))
    assert sum(verdict.admitted for verdict in verdicts) == 25


async def test_what_a_client_that_has_gone_was_granted_serves_the_next() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 1, 60.0, 2)
    waiting = [asyncio.ensure_future(fleet.request(policy, 0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    verdicts = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(each, "admitted", None) for each in verdicts] == [None, True, True]


async def test_one_request_now_and_then_costs_one_ask_and_no_credit() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 120, 60.0, 5)
    await fleet.turn(0)
    for asked in range(1, 6):
        assert (await fleet.request(policy, 0)).admitted
        assert fleet.redis.asked == asked
        await fleet.turn(2.0)


async def test_a_busy_subject_passes_by_credit_without_waiting() -> None:
    fleet, policy = Fleet(1), per_second(10_000, 10_000)
    await fleet.turn(0)
    worker, at_once = fleet.workers[0], 0
    for _ in range(2000):
        if worker.admit((policy.text, b"one"), fleet.clock.now()):
            at_once += 1
        else:
            await fleet.request(policy, 0)
        await fleet.settled()
        await fleet.turn(0.001)
    assert at_once >= 1990
    assert fleet.redis.asked < 40


async def test_a_subject_that_nobody_knows_does_not_pass_at_once() -> None:
    worker = Fleet(1).workers[0]
    assert not worker.admit((USER.text, b"unknown"), 0.0)


async def test_of_a_large_burst_each_worker_has_a_share_that_needs_no_credit() -> None:
    fleet, policy = Fleet(2), per_second(1000, 100)
    await fleet.turn(0)
    first = await asyncio.gather(*(fleet.request(policy, number) for number in range(200)))
    assert 100 <= sum(verdict.admitted for verdict in first) <= 110
    await fleet.settled()
    assert not (await fleet.request(policy, 0)).admitted


async def test_credit_is_void_after_two_seconds_and_returned() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 1, 60.0, 100)
    await fleet.turn(0)
    for _ in range(4):
        await fleet.request(policy, 0)
        await fleet.turn(0.1)
    assert fleet.workers[0].admit((policy.text, b"one"), fleet.clock.now())
    assert not fleet.workers[0].admit((policy.text, b"one"), fleet.clock.now() + 2.0)
    await fleet.turn(2.0)
    await fleet.turn(1.0)
    (meter,) = fleet.redis.meters.values()
    assert meter.held == {}
    assert meter.mark is not None
    assert (meter.mark - fleet.clock.now()) / 60 == pytest.approx(5, abs=0.1)


async def test_a_worker_that_stops_returns_its_credit() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 1, 60.0, 100)
    for _ in range(4):
        await fleet.request(policy, 0)
        await fleet.turn(0.1)
    await fleet.workers[0].aclose()
    (meter,) = fleet.redis.meters.values()
    assert meter.held == {}


async def test_another_rate_of_the_same_limit_counts_what_was_spent() -> None:
    fleet = Fleet(2)
    for number in range(20):
        assert (await fleet.request(QuotaPolicy("user", 1, 60.0, 20), number)).admitted
    assert not (await fleet.request(QuotaPolicy("user", 1, 30.0, 20), 0)).admitted
    assert (await fleet.request(renamed(USER, "other"), 0)).admitted


async def test_a_request_that_does_not_count_is_taken_back() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 1, 60.0, 2)
    for _ in range(5):
        assert (await fleet.request(policy, 0)).admitted
        fleet.workers[0].give_back(policy, b"one")


async def test_a_quota_is_exact_over_all_workers_and_whole_again_on_the_next_day() -> None:
    fleet, policy = Fleet(), QuotaPolicy("day", 50, 86_400.0, 50, "day")
    verdicts = [await fleet.request(policy, number) for number in range(60)]
    assert sum(verdict.admitted for verdict in verdicts) == 50
    midnight = policy.ends(fleet.clock.now())
    assert verdicts[-1].wait == pytest.approx(midnight - fleet.clock.now())
    await fleet.turn(verdicts[-1].wait)
    assert (await fleet.request(policy, 0)).admitted


async def test_without_redis_a_tenth_of_a_quota_passes_besides() -> None:
    fleet, policy = Fleet(), QuotaPolicy("day", 200, 86_400.0, 200, "day")
    fleet.redis.away = True
    verdicts = [await fleet.request(policy, number) for number in range(100)]
    assert sum(verdict.admitted for verdict in verdicts) == 20
    assert 0 < verdicts[-1].wait <= 10


async def test_many_subjects_take_bounded_memory_and_each_keeps_its_limit() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 1, 3600.0, 1)
    worker = fleet.workers[0]
    worker._most = 2000
    subjects = [b"%d" % number for number in range(size("limit_subjects"))]
    for at in range(0, len(subjects), 1000):
        verdicts = await asyncio.gather(*(worker.acquire(policy, key) for key in subjects[at : at + 1000]))
        assert all(verdict.admitted for verdict in verdicts)
    assert len(worker) == 2000
    for key in (subjects[0], subjects[-1]):  # of which one is forgotten here, and known to Redis
        assert not (await worker.acquire(policy, key)).admitted


async def test_a_flood_of_subjects_gives_nobody_a_share_again() -> None:
    fleet, policy = Fleet(1), QuotaPolicy("user", 100, 1000.0, 100)
    worker = fleet.workers[0]
    worker._most = 50
    fleet.redis.away = True
    passed = 0
    for turn in range(20):
        await fleet.turn(10.0 if turn == 0 else 1.0)
        passed += (await worker.acquire(policy, b"one")).admitted
        for number in range(60):
            await worker.acquire(policy, b"%d" % (turn * 100 + number))
    assert passed <= 1


async def test_the_only_worker_without_redis_has_the_whole_limit() -> None:
    clock = TurnedClock()
    worker, policy = Limiter(clock, UNKEYED), QuotaPolicy("user", 120, 60.0, 30)
    verdicts = [await worker.acquire(policy, b"one") for _ in range(31)]
    assert [verdict.admitted for verdict in verdicts] == [True] * 30 + [False]
    assert (verdicts[0].remaining, verdicts[-1].remaining) == (29, 0)
    clock.turn(verdicts[-1].wait)
    assert (await worker.acquire(policy, b"one")).admitted
    assert not worker.by_share


async def test_what_is_known_of_a_subject_is_told_without_counting() -> None:
    worker = Limiter(TurnedClock(), UNKEYED)
    assert worker.known(USER, b"one") is None
    await worker.acquire(USER, b"one")
    assert [worker.known(USER, b"one").remaining for _ in range(3)] == [19, 19, 19]  # type: ignore[union-attr]


async def test_a_check_of_credit_takes_no_more_than_some_microseconds() -> None:
    worker, policy = Limiter(TurnedClock(), UNKEYED), per_second(1_000_000, 1_000_000)
    for _ in range(30):
        await worker.acquire(policy, b"one")
    subject, now = (policy.text, b"one"), 1_800_000_000.0
    began = time.perf_counter()
    passed = sum(worker.admit(subject, now) for _ in range(20_000))
    assert passed == 20_000
    assert (time.perf_counter() - began) / 20_000 < 20e-6
