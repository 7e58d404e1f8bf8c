"""Figures between two readings of the metrics."""

from __future__ import annotations

from gateway.admin.figures import Between, Reading

BEFORE = """\
gateway_requests_total{route="item",outcome="hit",status="2xx"} 10.0
gateway_request_seconds_bucket{outcome="hit",le="0.001"} 10.0
gateway_request_seconds_bucket{outcome="hit",le="0.1"} 10.0
gateway_request_seconds_bucket{outcome="hit",le="+Inf"} 10.0
"""
AFTER = """\
gateway_requests_total{route="item",outcome="hit",status="2xx"} 100.0
gateway_requests_total{route="item",outcome="miss",status="2xx"} 10.0
gateway_requests_total{route="",outcome="local",status="4xx"} 20.0
gateway_request_seconds_bucket{outcome="hit",le="0.001"} 80.0
gateway_request_seconds_bucket{outcome="hit",le="0.1"} 100.0
gateway_request_seconds_bucket{outcome="hit",le="+Inf"} 100.0
gateway_upstream_requests_total{upstream="api",result="2xx"} 10.0
gateway_upstream_requests_total{upstream="api",result="timeout"} 4.0
gateway_breaker_state{upstream="api",host="a"} 0.0
gateway_breaker_state{upstream="api",host="b"} 2.0
gateway_breaker_state{upstream="other",host="c"} 0.0
gateway_upstream_healthy{upstream="api",host="a"} 1.0
gateway_upstream_healthy{upstream="api",host="b"} 0.0
gateway_upstream_healthy{upstream="other",host="c"} 1.0
gateway_memory_bytes 1000.0
gateway_redis_available 1.0
gateway_redis_batches_total 20.0
gateway_redis_seconds_total 0.04
"""


def test_figures_tell_what_happened_between_two_readings() -> None:
    figures = Between(Reading(BEFORE, 100.0), Reading(AFTER, 102.0)).figures()
    assert figures.rate == 60.0
    assert figures.hit_ratio == 0.9
    hit = figures.outcomes["hit"]
    assert (hit.rate, hit.p50, hit.p99) == (45.0, 0.001, 0.1)
    assert (figures.routes["item"].rate, figures.routes["item"].hit_ratio) == (50.0, 0.9)
    api, other = figures.upstreams["api"], figures.upstreams["other"]
    assert (api.rate, api.failed, api.breaker, api.unhealthy) == (7.0, 2.0, 2, 1)
    assert (other.rate, other.breaker, other.unhealthy) == (0.0, 0, 0)
    assert (figures.memory_bytes, figures.redis_available, figures.redis_milliseconds) == (1000.0, True, 2.0)


def test_a_worker_that_took_its_figures_with_it_makes_no_negative_rate() -> None:
    figures = Between(Reading(AFTER, 100.0), Reading(BEFORE, 101.0)).figures()
    assert figures.rate == 0.0
    assert figures.hit_ratio is None
