"""Several hosts of one upstream: their weights, and what is passed over."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.upstream import UpstreamConfig
from gateway.upstreams.client import Upstream
from tests.support.raw import always, ask, raw_upstream


def order(*urls: str) -> str:
    upstream = Upstream("up", UpstreamConfig.model_validate({"urls": urls}))
    return "".join(host.name[0] for host in upstream._order)


def test_hosts_without_weights_are_used_in_turn() -> None:
    assert order("http://a", "http://b", "http://c") == "abc"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((5, 1, 1), "aabacaa"),
        ((2, 1), "aba"),
        ((90, 10), "aaaaabaaaa"),
        ((1, 0), "a"),
        ((0, 3, 3), "bc"),
        ((100, 50), "aba"),
    ],
)
def test_a_round_has_each_host_as_often_as_its_weight_says_and_spread(weights: tuple[int, ...], expected: str) -> None:
    assert order(*(f"http://{name} weight={weight}" for name, weight in zip("abc", weights, strict=False))) == expected


@pytest.mark.parametrize("method", ["GET", "OPTIONS"], ids=["plain", "session"])
async def test_requests_go_to_hosts_by_their_weights(method: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name for name in (b"a", b"b")]
        one, other = [await stack.enter_async_context(raw_upstream(always(each))) for each in answers]
        upstream = Upstream("up", UpstreamConfig.model_validate({"urls": f"{one.url} weight=9, {other.url}"}))
        counted = Counter([(await ask(upstream, method=method))[1] for _ in range(40)])
        assert counted == {b"a": 36, b"b": 4}
        await upstream.aclose()


async def test_a_host_that_refuses_is_replaced_whatever_its_weight() -> None:
    async with raw_upstream(always(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")) as raw:
        urls = ["http://127.0.0.1:1 weight=100", f"{raw.url} weight=1"]
        upstream = Upstream(
            "up", UpstreamConfig.model_validate({"urls": urls, "retry_budget": 1, "breaker_failures": 3})
        )
        for _ in range(20):
            assert await ask(upstream) == (200, b"b")
        assert upstream.hosts[0].failures["refused"] == 3  # then its breaker is open
        await upstream.aclose()


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["http://a weight=101"], "weight from 0 to 100"),
        (["http://a weight=-1"], "weight from 0 to 100"),
        (["http://a weight=x"], "weight from 0 to 100"),
        (["http://a weight=0", "http://b weight=0"], "all weights are 0"),
        (["weight=1"], "must be an http:// or https:// URL"),
        (["http://a b", "http://c"], "weight from 0 to 100"),
        (["http://a weigt=2"], "weight from 0 to 100"),
    ],
)
def test_a_weight_that_is_none_is_refused(urls: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UpstreamConfig.model_validate({"urls": urls})
