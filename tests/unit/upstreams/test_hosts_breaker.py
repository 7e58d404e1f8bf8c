"""A host that fails is left alone, then tried by one request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams.hosts import Breaker, BreakerState


def opened(*, at: float = 0.0, rest: float = 2.0) -> Breaker:
    breaker = Breaker(failures=3, rest=rest)
    for _ in range(3):
        series = breaker.admit(at)
        assert series is not None
        breaker.failed(series, at)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_it_opens_at_the_number_of_failures_and_not_before() -> None:
    breaker = Breaker(failures=3)
    for count in range(3):
        assert breaker.state is BreakerState.CLOSED, count
        breaker.failed(breaker.admit(0.0) or 0, 0.0)
    assert (breaker.state, breaker.opened) == (BreakerState.OPEN, 1)


def test_the_failures_of_one_client_do_not_open_it_and_count_with_those_of_others() -> None:
    breaker = Breaker(failures=4)
    for at in range(100):
        breaker.failed(breaker.admit(at / 10) or 0, at / 10, client=b"1")
    assert breaker.state is BreakerState.CLOSED
    breaker.failed(breaker.admit(9.9) or 0, 9.9, client=b"2")
    assert breaker.state is BreakerState.CLOSED
    breaker.failed(breaker.admit(9.9) or 0, 9.9, client=b"3")
    assert breaker.state is BreakerState.OPEN


def test_it_stays_closed_while_more_than_half_succeed() -> None:
    breaker = Breaker(failures=3)
    for at in range(300):
        (breaker.failed if at % 3 == 0 else breaker.succeeded)(breaker.admit(at / 100) or 0, at / 100)
    assert breaker.state is BreakerState.CLOSED


def test_failures_older_than_the_window_do_not_count() -> None:
    breaker = Breaker(failures=3, window=10.0)
    for at in (0.0, 11.0, 22.0, 33.0, 44.0):
        breaker.failed(breaker.admit(at) or 0, at)
    assert breaker.state is BreakerState.CLOSED


def test_while_open_nothing_goes_through_and_it_says_for_how_long() -> None:
    breaker = opened(at=100.0, rest=2.0)
    assert breaker.admit(101.9) is None
    assert breaker.retry_after(100.5) == 1.5


def test_after_its_rest_one_request_goes_through_and_no_second() -> None:
    breaker = opened()
    assert breaker.admit(2.0) is not None
    assert breaker.state is BreakerState.HALF_OPEN
    assert [breaker.admit(at) for at in (2.0, 3.0, 60.0)] == [None] * 3


def test_a_trial_that_succeeds_closes_it_and_one_that_fails_opens_it_again() -> None:
    breaker = opened()
    series = breaker.admit(2.0)
    assert series is not None
    breaker.failed(series, 2.1)
    assert (breaker.state, breaker.admit(4.0), breaker.opened) == (BreakerState.OPEN, None, 2)
    series = breaker.admit(4.2)
    assert series is not None
    breaker.succeeded(series, 4.3)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.admit(4.3) is not None


def test_a_trial_whose_client_left_gives_its_place_to_the_next() -> None:
    breaker = opened()
    series = breaker.admit(2.0)
    assert series is not None
    breaker.abandoned(series)
    assert breaker.admit(2.0) is not None


def test_what_was_sent_before_it_opened_says_nothing_of_the_trial() -> None:
    breaker = Breaker(failures=3)
    old = breaker.admit(0.0)
    assert old is not None
    for _ in range(3):
        breaker.failed(breaker.admit(0.0) or 0, 0.0)
    breaker.admit(2.0)
    breaker.succeeded(old, 2.1)
    assert breaker.state is BreakerState.HALF_OPEN


def test_zero_failures_never_open_it() -> None:
    breaker = Breaker(failures=0)
    for _ in range(100):
        breaker.failed(breaker.admit(0.0) or 0, 0.0)
    assert breaker.state is BreakerState.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed", "leave"]), st.floats(0, 3)), max_size=60))
def test_never_more_than_one_trial_is_under_way(steps: list[tuple[str, float]]) -> None:
    breaker, now, out = Breaker(failures=2), 0.0, list[int]()
    for step, seconds in steps:
        now += seconds
        if step == "ask":
            series = breaker.admit(now)
            if series is not None:
                out.append(series)
        elif out:
            series = out.pop(0)
            if step == "leave":
                breaker.abandoned(series)
            else:
                (breaker.failed if step == "fail" else breaker.succeeded)(series, now)
        if breaker.state is BreakerState.HALF_OPEN:
            assert out.count(breaker.series) <= 1


def test_it_shows_its_state() -> None:
    assert repr(Breaker()) == "<Breaker closed failed=0>"


def test_what_was_sent_before_the_state_changed_says_nothing() -> None:
    breaker = opened()
    breaker.failed(0, 1.0)
    breaker.abandoned(0)
    breaker.succeeded(0, 1.0)
    assert (breaker.state, breaker.opened) == (BreakerState.OPEN, 1)
