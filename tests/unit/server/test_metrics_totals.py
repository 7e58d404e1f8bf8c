"""The metrics of several workers, told as those of one gateway."""

from __future__ import annotations

import pytest

from gateway.server.metrics_totals import Family, lasting, total


def counter(value: float, *, result: str = "hit", created: float | None = None) -> Family:
    samples = [("gateway_requests_total", (("result", result),), value)]
    if created is not None:
        samples.append(("gateway_requests_created", (("result", result),), created))
    return Family("gateway_requests", "counter", "Requests.", samples)


def gauge(name: str, value: float) -> Family:
    return Family(name, "gauge", "Text.", [(name, (), value)])


def histogram(*buckets: float) -> Family:
    samples = [("seconds_bucket", (("le", str(place)),), each) for place, each in enumerate(buckets)]
    return Family("seconds", "histogram", "Seconds.", [*samples, ("seconds_count", (), buckets[-1])])


def test_counters_add_up_for_each_set_of_labels() -> None:
    (family,) = total([[counter(2)], [counter(3)], [counter(5, result="miss")]])
    assert (family.name, family.kind, family.text) == ("gateway_requests", "counter", "Requests.")
    assert family.samples == [
        ("gateway_requests_total", (("result", "hit"),), 5),
        ("gateway_requests_total", (("result", "miss"),), 5),
    ]


def test_a_histogram_adds_up_bucket_by_bucket() -> None:
    assert total([[histogram(1, 4, 6)], [histogram(0, 2, 9)]]) == [histogram(1, 6, 15)]


def test_a_counter_of_all_workers_began_with_the_first_of_them() -> None:
    (family,) = total([[counter(2, created=50.0)], [counter(3, created=40.0)]])
    assert family.samples[1] == ("gateway_requests_created", (("result", "hit"),), 40.0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gateway_memory_bytes", 3.0),
        ("gateway_redis_available", 1.0),  # what one of them cannot reach is worth an alarm
        ("gateway_breaker_state", 2.0),
    ],
)
def test_a_gauge_is_the_sum_but_where_one_worker_alone_is_worth_an_alarm(name: str, told: float) -> None:
    assert total([[gauge(name, 2.0)], [gauge(name, 1.0)]]) == [gauge(name, told)]


def test_what_only_one_worker_has_is_told_as_it_is() -> None:
    assert total([[counter(2)], [gauge("gateway_memory_bytes", 7.0)], []]) == [
        counter(2),
        gauge("gateway_memory_bytes", 7.0),
    ]


def test_of_a_worker_that_has_ended_what_it_counted_still_counts_and_its_gauges_do_not() -> None:
    assert lasting([counter(2), gauge("gateway_memory_bytes", 7.0), histogram(1)]) == [counter(2), histogram(1)]


def test_adding_up_changes_nothing_that_a_worker_told() -> None:
    told = [[counter(2)], [counter(3)]]
    assert total(told) == total(told)
    assert told == [[counter(2)], [counter(3)]]
