"""The settings of `rate_limits`, and those of routes that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.loader import load
from gateway.config.models import Config
from gateway.config.rate_limits import RateLimitConfig, parse_quota, parse_rate
from gateway.errors import ConfigError

UPSTREAM = {"shop": {"url": "http://shop.example.com"}}


def problem(**settings: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        RateLimitConfig(**settings)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "count", "period"),
    [
        ("20/s", 20, 1.0),
        ("120/m", 120, 60.0),
        ("1 / 10m", 1, 600.0),
        ("5/2h", 5, 7200.0),
        ("1/30d", 1, 2_592_000.0),
        ("7/minute", 7, 60.0),
        ("1000000/s", 1_000_000, 1.0),
    ],
)
def test_a_rate_is_requests_and_a_time(text: str, count: int, period: float) -> None:
    assert parse_rate(text) == (count, period)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20", "isn't a rate"),
        ("many/s", "isn't a rate"),
        ("-1/s", "isn't a rate"),
        ("1.5/s", "isn't a rate"),
        ("1/w", "isn't a unit of time; expected s, m, h or d"),
        ("0/s", "at least one request"),
        ("1/0m", "at least one request"),
        ("1/31d", "at most 30d"),
        ("1000001/s", "more than 1000000 a second"),
    ],
)
def test_what_is_no_rate_is_refused_with_what_is_expected(text: str, message: str) -> None:
    assert message in problem(by="client", rate=text)


def test_a_quota_is_of_a_day_or_a_month() -> None:
    assert parse_quota("100000/month") == (100_000, "month")
    assert parse_quota("5 / day") == (5, "day")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100000", "isn't a quota"),
        ("0/day", "isn't a quota"),
        ("5/week", "isn't a period of a quota; expected day or month"),
        ("5/months", "did you mean"),
        (f"{2**50}/day", "more than can be counted"),
    ],
)
def test_what_is_no_quota_is_refused_with_what_is_expected(text: str, message: str) -> None:
    assert message in problem(by="client", quota=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "client"}, "requires either `rate`"),
        ({"by": "client", "rate": "1/s", "quota": "1/day"}, "requires either `rate`"),
        ({"by": "client", "quota": "1/day", "burst": 3}, "burst requires `rate`"),
        ({"by": "client", "rate": "1/s", "burst": 0}, "greater than or equal to 1"),
        ({"by": "client", "rate": "1/s", "burst": True}, "must be a whole number"),
        ({"by": "sub", "rate": "1/s", "counts": "refused"}, "requires `by: client`"),
        ({"by": "client", "quota": "1/day", "counts": "refused"}, "requires `by: client` and a `rate`"),
        ({"by": "sub", "rate": "1/s", "plans": {"gold": "2/s"}}, "plans requires `claim`"),
        ({"by": "sub", "rate": "1/s", "plans": {"claim": "plan"}}, "plans requires `claim`"),
        ({"by": "sub", "rate": "1/s", "plans": {"claim": "plan", "gold": "2/month"}}, "plans: gold: 'month' isn't"),
        ({"by": "sub", "quota": "1/day", "plans": {"claim": "plan", "gold": "2/s"}}, "plans: gold: 's' isn't a period"),
        ({"by": " ", "rate": "1/s"}, "must be a claim such as sub, key, or client"),
        ({"by": "client", "rate": "1/s", "counts": "hits"}, "'all', 'misses' or 'refused'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    assert message in problem(**settings)


def config_of(route: dict[str, Any], **limits: Any) -> Config:
    routes = {"home": {"path": "/home", "upstream": "shop", **route}}
    return Config.model_validate({"upstreams": UPSTREAM, "routes": routes, "rate_limits": limits})


def test_a_route_names_limits_that_there_are() -> None:
    with pytest.raises(ValidationError, match="there is no rate limit 'usr'; did you mean user"):
        config_of({"rate_limits": ["usr"]}, user={"by": "client", "rate": "1/s"})


@pytest.mark.parametrize(
    ("limit", "line", "message"),
    [
        ("by: sub, rate: 1/s", "rate_limits.user.by", "counts by sub, which requires `identity`"),
        ("by: client, rate: 1/s, plans: {claim: plan, gold: 2/s}", "rate_limits.user.plans", "the plan in plan"),
        ("by: client, rate: 1/s, counts: refused", "rate_limits.user.counts", "counts refused credentials"),
    ],
)
def test_a_limit_that_needs_identity_names_both_lines_where_the_route_has_none(
    tmp_path: Path, limit: str, line: str, message: str
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "upstreams:\n  shop: {url: 'http://shop.example.com'}\nrate_limits:\n  user: {" + limit + "}\n"
        "routes:\n  home:\n    path: /home\n    upstream: shop\n    rate_limits: [user]\n"
    )
    with pytest.raises(ConfigError) as refused:
        load(path)
    second, first = refused.value.problems
    assert (first.source.rpartition(" ")[2], first.key) == ("9", "routes.home.rate_limits")
    assert message in first.message
    assert (second.source.rpartition(" ")[2], second.key) == ("4", line)
    assert "the route home, which names user" in second.message


def test_an_aggregate_may_have_limits_by_client() -> None:
    parts = {"a": {"upstream": "shop", "path": "/a"}}
    config = Config.model_validate(
        {
            "upstreams": UPSTREAM,
            "routes": {"home": {"path": "/home", "parts": parts, "rate_limits": ["each"]}},
            "rate_limits": {"each": {"by": "client", "rate": "1/s"}},
        }
    )
    assert config.routes["home"].rate_limits == ["each"]
