"""Estimates how often content changes, from fetches that did or did not return new content, and which TTL meets a
target. Pure.

A fetch shows only whether there was a change since the one before, not how many, and fetches are irregular; dividing
changes by time would underestimate. The estimator is Cho and Garcia-Molina's ("Estimating Frequency of Change", ACM
TOIT 3(3), 2003, section 5): the maximum-likelihood change rate for irregular gaps, with half an unchanged fetch added,
which for equal gaps is their -log((n - X + 0.5) / (n + 0.5)) / I for X changes in n fetches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from gateway.advisor.ttl_ladder import Replay, Rung

_STEPS = 8  # to a doubling of the gap
_LEAST_GAP = 0.001
NORMAL_95 = 1.96
RULE_OF_THREE = 3.0
"""No event in a time T: the rate is below 3 / T with 95 % confidence."""


@dataclass(frozen=True, slots=True)
class ChangeRate:
    """Changes per second, with the bounds of 95 % confidence, from a number of fetches and of changes among them.
    `high` is None if nothing was compared yet."""

    rate: float
    low: float
    high: float | None
    fetches: int
    changed: int


class _Gaps(msgspec.Struct, array_like=True):
    fetches: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        return self.seconds / self.fetches


class Changes(msgspec.Struct, array_like=True):
    """Results of fetches of stored content, by the gap since the previous fetch (in steps of 9 %)."""

    _changed: dict[int, _Gaps] = {}
    _unchanged: _Gaps = msgspec.field(default_factory=_Gaps)

    def __bool__(self) -> bool:
        return bool(self._changed) or bool(self._unchanged.fetches)

    def __repr__(self) -> str:
        rate = self.rate()
        return f"<Changes {rate.changed} of {rate.fetches} fetches, {rate.rate:.3g}/s>"

    def add(self, gap: float, *, changed: bool) -> None:
        """A fetch `gap` seconds after the previous one of the same key."""
        gap = max(gap, _LEAST_GAP)
        gaps = self._changed.setdefault(round(_STEPS * math.log2(gap)), _Gaps()) if changed else self._unchanged
        gaps.fetches += 1
        gaps.seconds += gap

    def merge(self, other: Changes) -> None:
        for step, gaps in other._changed.items():
            mine = self._changed.setdefault(step, _Gaps())
            mine.fetches += gaps.fetches
            mine.seconds += gaps.seconds
        self._unchanged.fetches += other._unchanged.fetches
        self._unchanged.seconds += other._unchanged.seconds

    def rate(self) -> ChangeRate:
        changed = list(self._changed.values())
        number = sum(gaps.fetches for gaps in changed)
        fetches = number + self._unchanged.fetches
        seconds = sum(gaps.seconds for gaps in changed) + self._unchanged.seconds
        if not number:
            return ChangeRate(0.0, 0.0, RULE_OF_THREE / seconds if seconds else None, fetches, 0)
        quiet = self._unchanged.seconds + 0.5 * seconds / fetches
        rate = _most_likely(changed, quiet)
        spread = math.exp(NORMAL_95 / (rate * math.sqrt(_information(changed, rate))))
        return ChangeRate(rate, rate / spread, rate * spread, fetches, number)


def _most_likely(changed: list[_Gaps], quiet: float) -> float:
    """The rate at which the slope of the likelihood is zero, by bisection: the slope falls as the rate grows."""
    low, high = 0.0, 1.0
    while _slope(changed, quiet, high) > 0:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        if _slope(changed, quiet, middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _slope(changed: list[_Gaps], quiet: float, rate: float) -> float:
    return sum(gaps.fetches * _over_expm1(gaps.mean, rate) for gaps in changed) - quiet


def _over_expm1(gap: float, rate: float) -> float:
    changes = rate * gap
    return gap / math.expm1(changes) if changes < 700 else 0.0


def _information(changed: list[_Gaps], rate: float) -> float:
    """Fisher's information on the rate, as observed."""
    total = 0.0
    for gaps in changed:
        changes = min(rate * gaps.mean, 350.0)
        total += gaps.fetches * gaps.mean**2 * math.exp(changes) / math.expm1(changes) ** 2
    return max(total, 1e-300)


LEAST_COMPARISONS = 10
"""Fetches that were compared with those before them, for outdated answers to be predicted at all."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The observations of one route, and the estimate for each TTL. `today` is its TTL in seconds, None if it follows
    the upstream."""

    route: str
    today: float | None
    seconds: float
    requests: int
    keys: int
    sampled: float
    changes: ChangeRate
    rungs: tuple[Rung, ...]

    @property
    def tells(self) -> bool:
        """Whether there was traffic, for at least as long as the shortest TTL: rates of less mean nothing."""
        return self.requests > 0 and self.rungs[0].seen

    @property
    def has_change_rate(self) -> bool:
        """Whether enough fetches were compared for an estimate of outdated responses."""
        return self.changes.fetches >= LEAST_COMPARISONS

    def at(self, ttl: float) -> Rung:
        """The rung of `ttl`, between two rungs in proportion to the logarithm's place."""
        return between(self.rungs, ttl)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The TTL that meets the targets, None if none does; `why` is the reason in words."""

    ttl: float | None
    why: str


def advise(route: str, today: float | None, replay: Replay, changes: ChangeRate) -> Advice:
    return Advice(
        route=route,
        today=today,
        seconds=replay.seconds(),
        requests=replay.requests,
        keys=len(replay),
        sampled=replay.threshold,
        changes=changes,
        rungs=tuple(replay.rungs(changes.rate)),
    )


def recommend(
    advice: Advice, *, max_outdated: float | None = None, max_upstream: float | None = None
) -> Recommendation:
    """The TTL for targets: at most a share of outdated responses (0 to 1), at most so many upstream requests per
    second.

    A short TTL reduces outdated responses, a long one upstream requests. If both targets are given, the longest TTL
    that meets the first is recommended, if it meets the second.
    """
    if not advice.requests:
        return Recommendation(None, "no traffic was seen")
    if not advice.tells:
        return Recommendation(None, "the traffic seen is shorter than the shortest TTL")
    if max_outdated is not None and not advice.has_change_rate:
        return Recommendation(None, _why_unknown(advice.changes.fetches))
    fitting = [
        rung
        for rung in advice.rungs
        if (max_outdated is None or rung.outdated <= max_outdated)
        and (max_upstream is None or rung.upstream <= max_upstream)
    ]
    if not fitting:
        return Recommendation(None, _why_none(advice, max_outdated, max_upstream))
    best = fitting[-1] if max_outdated is not None else fitting[0]
    known = [rung for rung in fitting if rung.seen]
    if not best.seen and known:
        best = known[-1]
        return Recommendation(best.ttl, "longer ones may do too, but there is not enough traffic yet")
    return Recommendation(best.ttl, _why(best, max_outdated, max_upstream))


def _why_unknown(comparisons: int) -> str:
    if not comparisons:
        return "the change rate is unknown: nothing was fetched twice yet"
    times = "one fetch was" if comparisons == 1 else f"{comparisons} fetches were"
    return f"the change rate is uncertain: {times} compared, {LEAST_COMPARISONS} are required"


def _why(rung: Rung, max_outdated: float | None, max_upstream: float | None) -> str:
    words = []
    if max_outdated is not None:
        words.append("the longest that keeps outdated responses within the target")
    if max_upstream is not None:
        words.append("meets the upstream target" if words else "the shortest that meets the upstream target")
    return ", and it ".join(words) or "the shortest of the ladder"


def _why_none(advice: Advice, max_outdated: float | None, max_upstream: float | None) -> str:
    shortest, longest = advice.rungs[0], advice.rungs[-1]
    if max_outdated is not None and shortest.outdated > max_outdated:
        return f"content changes too often: even {shortest.ttl:g} s would leave {shortest.outdated:.1%} outdated"
    if max_upstream is not None and longest.upstream > max_upstream:
        return f"no TTL meets the upstream target: at one day it still gets {longest.upstream:.3g} requests per second"
    return "no TTL meets both targets: those that meet the upstream target leave too many responses outdated"


def between(rungs: tuple[Rung, ...], ttl: float) -> Rung:
    """The estimate for a TTL between two rungs, interpolated."""
    if ttl <= rungs[0].ttl:
        return rungs[0]
    for lower, upper in pairwise(rungs):
        if ttl <= upper.ttl:
            return _mixed(lower, upper, ttl)
    return rungs[-1]


def _mixed(lower: Rung, upper: Rung, ttl: float) -> Rung:
    # With frequent requests, misses are proportional to one over the lifetime: closer than a straight line.
    part = (1 / lower.ttl - 1 / ttl) / (1 / lower.ttl - 1 / upper.ttl)

    def mix(a: float, b: float) -> float:
        return a + (b - a) * part

    straight = (ttl - lower.ttl) / (upper.ttl - lower.ttl)
    return Rung(
        ttl=ttl,
        hit_ratio=mix(lower.hit_ratio, upper.hit_ratio),
        hit_ratio_error=max(lower.hit_ratio_error, upper.hit_ratio_error),
        upstream=mix(lower.upstream, upper.upstream),
        upstream_error=max(lower.upstream_error, upper.upstream_error),
        outdated=lower.outdated + (upper.outdated - lower.outdated) * straight,
        seen=lower.seen and ttl <= upper.ttl and upper.seen,
    )
