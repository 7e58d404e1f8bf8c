"""What a worker knows of a subject, and what it says of a request."""

from __future__ import annotations

import pytest

from gateway.limits.bucket import Bucket
from gateway.limits.meter import QuotaPolicy

NOW = 1_800_000_000.0
MINUTE = QuotaPolicy("user", 60, 60.0, 10)


def test_what_is_spent_is_regained_at_the_rate() -> None:
    bucket = Bucket(MINUTE, b"one", NOW, 0)
    bucket.spent = 4.0
    assert [bucket.spent_now(NOW + seconds) for seconds in (0, 1, 10)] == [4, 3, 0]


def test_a_quota_regains_nothing() -> None:
    bucket = Bucket(QuotaPolicy("day", 10, 86_400.0, 10, "day"), b"one", NOW, 0)
    bucket.spent = 4.0
    assert bucket.spent_now(NOW + 1000) == 4
    assert bucket.verdict(NOW).reset == bucket.ends - NOW


def test_what_remains_is_what_is_not_spent_and_the_credit() -> None:
    bucket = Bucket(MINUTE, b"one", NOW, 0)
    bucket.spent, bucket.credit, bucket.until, bucket.debt = 6.0, 3, NOW + 1, 1
    verdict = bucket.verdict(NOW)
    assert (verdict.admitted, verdict.remaining, verdict.reset) == (True, 6, pytest.approx(7.0))
    assert bucket.verdict(NOW + 1).remaining == 4


def test_a_refused_request_has_nothing_left_and_a_time_to_wait() -> None:
    verdict = Bucket(MINUTE, b"one", NOW, 0).verdict(NOW, wait=2.5)
    assert (verdict.admitted, verdict.remaining, verdict.wait) == (False, 0, 2.5)
