"""The configuration of `rate_limits`: whom a limit counts, which requests, and how many may pass. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from gateway.config.names import did_you_mean
from gateway.config.types import Model

if TYPE_CHECKING:
    from gateway.config.route import RouteConfig

CLIENT, KEY = "client", "key"
"""Values of `by` that name no claim."""
PLAN_CLAIM = "claim"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
CALENDARS = ("day", "month")
MOST = 1_000_000
"""Requests a second that a limit can allow."""
_RATE = re.compile(r"([0-9]+)\s*/\s*([0-9]*)\s*([a-z]+)")
_UNITS = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "day": "d"}
_LONGEST = 30 * 86_400


def parse_rate(text: str) -> tuple[int, float]:
    """Requests, and the seconds in which so many pass: `120/m`, `1/10m`. Raises ValueError."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} isn't a rate; expected requests and a time, such as 20/s, 120/m or 1/10m")
    unit = _UNITS.get(match[3], match[3])
    if unit not in SECONDS:
        raise ValueError(f"{match[3]!r} isn't a unit of time; expected s, m, h or d{did_you_mean(unit, list(SECONDS))}")
    count, period = int(match[1]), float((int(match[2]) if match[2] else 1) * SECONDS[unit])
    if not count or not period or period > _LONGEST:
        raise ValueError(f"{text!r} must allow at least one request, in at most 30d")
    if count / period > MOST:
        raise ValueError(f"{text!r} is more than {MOST} a second, which no limit can count")
    return count, period


def parse_quota(text: str) -> tuple[int, str]:
    """Requests, and the calendar period in which so many pass: `100000/month`. Raises ValueError."""
    count, slash, period = text.strip().lower().partition("/")
    period = period.strip()
    if not slash or not count.strip().isdecimal() or not int(count):
        raise ValueError(f"{text!r} isn't a quota; expected requests and a period, such as 5000/day or 100000/month")
    if period not in CALENDARS:
        near = did_you_mean(period, CALENDARS)
        raise ValueError(f"{period!r} isn't a period of a quota; expected day or month{near}; for others use `rate`")
    if int(count) > 2**48:
        raise ValueError(f"{text!r} is more than can be counted")
    return int(count), period


def _checked_rate(text: str) -> str:
    parse_rate(text)
    return text


def _checked_quota(text: str) -> str:
    parse_quota(text)
    return text


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


Rate = Annotated[str, AfterValidator(_checked_rate)]
Quota = Annotated[str, AfterValidator(_checked_quota)]


class RateLimitConfig(Model):
    """How many requests of one subject pass: a limit that routes name in their `rate_limits`."""

    by: str
    """Whose requests are counted together: a claim of the credential (`sub`), `key` (the API key), or `client` (the
    address; of IPv6 its /64). A request without the claim or key is counted by its address."""
    rate: Rate | None = None
    """Requests and a time, such as `20/s`, `120/m` or `1/10m`."""
    burst: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=1_000_000_000)] | None = None
    """With `rate`: how many requests may come at once. Default: as many as the rate allows in its time."""
    quota: Quota | None = None
    """In place of `rate`: requests of a calendar day or month (UTC), such as `100000/month`."""
    counts: Literal["all", "misses", "refused"] = "all"
    """Which requests count: all; `misses`, which need the upstream; or `refused`, whose credential the gateway refuses
    (400, 401, 403). `refused` requires `by: client`."""
    plans: dict[str, str] = {}
    """The claim that names a plan, as `claim`, and rates or quotas of plans: `{claim: plan, gold: 600/m}`. Of all
    others `rate` or `quota` holds. A plan's burst is `burst`, in proportion to its rate."""

    @field_validator("by")
    @classmethod
    def _subject(cls, value: str) -> str:
        if not value or value != value.strip():
            raise ValueError("must be a claim such as sub, key, or client")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.rate is None) == (self.quota is None):
            raise ValueError("requires either `rate`, such as 120/m, or `quota`, such as 100000/month")
        if self.quota is not None and self.burst is not None:
            raise ValueError("burst requires `rate`; a quota may be used at any speed")
        if self.counts == "refused" and (self.by != CLIENT or self.plans or self.quota is not None):
            raise ValueError("`counts: refused` requires `by: client` and a `rate`: who sent the request is not known")
        if self.plans:
            self._check_plans()
        return self

    def _check_plans(self) -> None:
        if PLAN_CLAIM not in self.plans or len(self.plans) == 1:
            raise ValueError(
                "plans requires `claim`, the claim that names the plan, and a plan: {claim: plan, gold: 600/m}"
            )
        check = parse_rate if self.rate is not None else parse_quota
        for name, text in self.plans.items():
            if name != PLAN_CLAIM:
                try:
                    check(text)
                except ValueError as error:
                    raise ValueError(f"plans: {name}: {error}") from None

    @property
    def needs_identity(self) -> tuple[str, str] | None:
        """The setting that requires `identity` on a route, and what is counted by it; None if none does."""
        if self.by != CLIENT:
            return "by", f"by {self.by}"
        if self.plans:
            return "plans", f"by the plan in {self.plans[PLAN_CLAIM]}"
        return ("counts", "refused credentials") if self.counts == "refused" else None


def rate_limit_problems(
    routes: Mapping[str, RouteConfig], limits: Mapping[str, RateLimitConfig]
) -> Iterator[tuple[tuple[str, ...], str, object]]:
    """Limits that routes name and that there are not, or that count by what a route without `identity` does not know:
    the place, what is wrong, and the value."""
    for route, config in routes.items():
        for name, message in unusable_limits(config.rate_limits, limits, identified=bool(config.identity)):
            yield ("routes", route, "rate_limits"), message, config.rate_limits
            needs = limits[name].needs_identity if name in limits else None
            if needs is not None:
                used = f"requires `identity` on the route {route}, which names {name} in `rate_limits`"
                yield ("rate_limits", name, needs[0]), used, getattr(limits[name], needs[0])


def unusable_limits(
    names: Iterable[str], limits: Mapping[str, RateLimitConfig], *, identified: bool
) -> Iterator[tuple[str, str]]:
    """Of the limits that one route names those that it can't have, each with what is wrong; `identified` is whether it
    has `identity`."""
    for name in names:
        limit = limits.get(name)
        if limit is None:
            yield name, f"there is no rate limit {name!r}{did_you_mean(name, list(limits))}"
        elif not identified and (needs := limit.needs_identity) is not None:
            yield name, f"{name} counts {needs[1]}, which requires `identity` on the route"
