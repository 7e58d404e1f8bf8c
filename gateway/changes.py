"""How often content changes, estimated from fetches that did or did not bring something new. Pure.

A fetch tells only whether there was a change since the one before, not how many, and fetches come at irregular gaps;
counting changes and dividing by time would estimate too little. The estimator is the one of Cho and Garcia-Molina
("Estimating Frequency of Change", ACM TOIT 3(3), 2003, section 5): the change rate of greatest likelihood for
irregular gaps, with half an unchanged fetch added, which at equal gaps is their -log((n - X + 0.5) / (n + 0.5)) / I
for X changes in n fetches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

_STEPS = 8  # to a doubling of the gap
_LEAST_GAP = 0.001
NORMAL_95 = 1.96
RULE_OF_THREE = 3.0
"""No event in a time T: the rate is below 3 / T with 95 % confidence."""


@dataclass(frozen=True, slots=True)
class ChangeRate:
    """Changes a second, with the bounds of 95 % confidence, from so many fetches of which so many had changed.

    `high` is None where nothing was compared yet.
    """

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
    """What fetches of stored content have shown, by the gap since the fetch before (in steps of 9 %)."""

    _changed: dict[int, _Gaps] = {}
    _unchanged: _Gaps = msgspec.field(default_factory=_Gaps)

    def __bool__(self) -> bool:
        return bool(self._changed) or bool(self._unchanged.fetches)

    def __repr__(self) -> str:
        rate = self.rate()
        return f"<Changes {rate.changed} of {rate.fetches} fetches, {rate.rate:.3g}/s>"

    def add(self, gap: float, *, changed: bool) -> None:
        """A fetch that came `gap` seconds after the one before it for the same key."""
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
