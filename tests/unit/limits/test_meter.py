"""GCRA, quotas and credit: what one meter allows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.limits.limiter import VALID
from gateway.limits.meter import LEASE, Ask, LocalMeters, Meter, QuotaPolicy, settle

MINUTE = QuotaPolicy("user", 120, 60.0, 30)
DAY = QuotaPolicy("day", 100, 86_400.0, 100, "day")
MONTH = QuotaPolicy("month", 100, 30 * 86_400.0, 100, "month")
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()


def ask(policy: QuotaPolicy = MINUTE, **settings: object) -> Ask:
    return Ask(policy, b"one", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("burst", [1, 2, 30])
def test_the_burst_is_exact(burst: int) -> None:
    meter, policy = Meter(), QuotaPolicy("user", 120, 60.0, burst)
    replies = [settle(meter, ask(policy, demand=1), "a", NOON) for _ in range(burst + 1)]
    assert [reply.granted for reply in replies] == [1] * burst + [0]


def test_a_refused_request_passes_after_the_wait_and_not_before() -> None:
    meter = Meter()
    settle(meter, ask(demand=30), "a", NOON)
    wait = settle(meter, ask(demand=1), "a", NOON).wait
    assert wait == pytest.approx(0.5)
    assert settle(meter, ask(demand=1), "a", NOON + wait - 0.01).granted == 0
    assert settle(meter, ask(demand=1), "a", NOON + wait).granted == 1


def test_of_several_requests_as_many_pass_as_are_left() -> None:
    reply = settle(Meter(), ask(demand=40), "a", NOON)
    assert (reply.granted, reply.extra, reply.spent) == (30, 0, 30)


def test_a_rate_below_one_a_minute_regains_one_request_in_its_time() -> None:
    meter, policy = Meter(), QuotaPolicy("rare", 1, 600.0, 1)
    assert settle(meter, ask(policy, demand=1), "a", NOON).granted == 1
    assert settle(meter, ask(policy, demand=1), "a", NOON + 599).wait == pytest.approx(1.0)
    assert settle(meter, ask(policy, demand=1), "a", NOON + 600).granted == 1


def test_credit_is_spent_when_it_is_given_and_regained_when_it_is_returned() -> None:
    meter = Meter()
    assert settle(meter, ask(demand=1, want=5), "a", NOON).extra == 5
    assert settle(meter, ask(demand=0), "b", NOON).spent == 6
    assert settle(meter, ask(back=5), "a", NOON).spent == 1


def test_nothing_is_regained_of_what_workers_hold() -> None:
    meter = Meter()
    settle(meter, ask(demand=1, want=5), "a", NOON)
    assert settle(meter, ask(demand=30), "b", NOON + 2).granted == 25


def test_workers_hold_half_of_a_burst_at_most() -> None:
    meter = Meter()
    extras = [settle(meter, ask(want=1000), worker, NOON).extra for worker in "abcdefgh"]
    assert extras[0] == 7
    assert sum(extras) == 15


def test_credit_of_a_worker_that_is_gone_stays_spent_and_stops_nobody_after_its_lease() -> None:
    meter = Meter()
    settle(meter, ask(demand=1, want=7), "a", NOON)
    settle(meter, ask(), "b", NOON + LEASE + 0.1)
    assert settle(meter, ask(demand=30), "b", NOON + LEASE + 7).granted == 30


def test_what_passed_without_credit_is_spent_too_and_taken_back_where_it_did_not_count() -> None:
    meter = Meter()
    assert settle(meter, ask(debt=4), "a", NOON).spent == 4
    assert settle(meter, ask(debt=-1), "a", NOON).spent == 3
    assert settle(meter, ask(debt=-9), "a", NOON).spent == 0


def test_what_a_worker_knows_counts_where_the_meter_is_new() -> None:
    meter = Meter()
    assert settle(meter, ask(floor=20.0), "a", NOON).spent == 20
    assert settle(meter, ask(floor=25.0), "b", NOON).spent == 20
    assert settle(meter, ask(floor=25.0, restore=True), "b", NOON).spent == 25


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_gives_one_burst_or_takes_two_bursts_time(jump: float) -> None:
    meter, now = Meter(), NOON
    settle(meter, ask(demand=20, want=2), "a", now)
    now += jump
    passed = settle(meter, ask(demand=100), "b", now).granted
    assert passed <= 30
    assert settle(meter, ask(demand=1), "b", now + 2 * 30 * 0.5).granted == 1


def test_a_rate_that_a_reload_lowers_or_raises_holds_from_then_on() -> None:
    meter = Meter()
    settle(meter, ask(QuotaPolicy("user", 1, 3600.0, 10), demand=10), "a", NOON)
    fast = QuotaPolicy("user", 100, 1.0, 100)
    assert settle(meter, ask(fast, demand=1), "a", NOON).granted == 0
    assert settle(meter, ask(fast, demand=1), "a", NOON + 2).granted == 1


def test_a_quota_begins_again_with_its_calendar_period() -> None:
    assert (DAY.span(NOON), MONTH.span(NOON), MINUTE.span(NOON)) == ("2026-11-29", "2026-11", "")
    assert DAY.ends(NOON) == NOON + 12 * 3600
    assert MONTH.ends(NOON) == NOON + 36 * 3600
    assert MONTH.ends(datetime(2026, 12, 31, tzinfo=UTC).timestamp()) == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    meters = LocalMeters()
    assert meters.settle(ask(DAY, demand=101), NOON).granted == 100
    assert meters.settle(ask(DAY, demand=1), NOON + 12 * 3600 - 1).granted == 0
    assert meters.settle(ask(DAY, demand=1), NOON + 12 * 3600).granted == 1


def test_local_meters_are_bounded_and_forgotten_once_they_say_nothing() -> None:
    meters = LocalMeters(most=100)
    for number in range(1000):
        meters.settle(Ask(MINUTE, b"%d" % number, demand=1), NOON)
    assert len(meters) == 100
    meters.sweep(NOON + 0.4)
    assert len(meters) == 100
    meters.sweep(NOON + 0.6)
    assert len(meters) == 0


def test_a_meter_of_a_past_day_is_forgotten() -> None:
    meters = LocalMeters()
    meters.settle(ask(DAY, demand=1), NOON)
    meters.sweep(NOON)
    assert len(meters) == 1
    meters.sweep(NOON + 86_400)
    assert len(meters) == 0


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 9), st.floats(0, 3)), max_size=60),
)
@example(4, [("a", 0, 1, 0.0), ("b", 0, 0, 3.0), ("a", 0, 0, 1.0), ("a", 4, 0, 0.0)])  # credit after its lease
def test_over_all_workers_no_more_passes_than_burst_and_rate(
    burst: int, turns: list[tuple[str, int, int, float]]
) -> None:
    """Each worker asks now and then, uses all its credit at the last moment that it may, and never returns any."""
    meter, policy = Meter(), QuotaPolicy("user", 2, 1.0, burst)
    credit: dict[str, tuple[int, float]] = {}
    now, passed = NOON, []
    for worker, demand, want, pause in turns:
        now += pause
        count, until = credit.pop(worker, (0, now))
        passed += [min(now, until)] * count
        reply = settle(meter, Ask(policy, b"", demand, want), worker, now)
        passed += [now] * reply.granted
        credit[worker] = reply.extra, now + VALID
    for count, until in credit.values():
        passed += [min(now, until)] * count
    passed.sort()
    # In any span at most `burst + 2 * seconds`: a bucket that leaks at the rate never holds more than the burst.
    level, before = 0.0, NOON
    for at in passed:
        level = max(0.0, level - 2 * (at - before)) + 1
        assert level <= burst + 1e-3
        before = at
