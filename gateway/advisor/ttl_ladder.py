"""Replays live traffic against a ladder of TTLs to estimate the effect of each. Pure.

For a sample of keys, chosen by a hash so that a key is permanently in or out, each rung of the ladder is a cache that
stores only the time of its last fetch. The cost is bounded by the rungs that expire: while none expires, a request is
only counted. Scaling a sample of keys to all of them is SHARDS (Waldspurger et al., FAST 2015), with its correction for
the number of sampled requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import msgspec

LADDER: tuple[float, ...] = (
    *(1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0),
    *(600.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 43_200.0, 86_400.0),
)
"""The lifetimes that are tried, in seconds: from a second to a day."""
TICK = 0.1
"""Requests for one key within this many seconds are one sighting; a tenth of the shortest rung."""
LEAST_KEYS = 200
MOST_KEYS = 1000
MOST_SIGHTINGS = 1000
"""For a busy route only the minimum of keys is sampled: if one worker has more sightings than this between two
deliveries, which are a second apart. Each costs some 3 µs, from recording to replay."""
SHARE = 0.01
JITTER = 0.1
FORGET_AFTER = 86_400.0
SPARE = 1.1
"""How many more than the minimum of keys remain when the sample shrinks."""
_HASHES = 1 << 64
_LAST_HASH = _HASHES - 1
_PER_HASH = 2.0**-64
_FIRST = itemgetter(1)
_LEAST_AGE = 0.01


class Sighting(NamedTuple):
    """Requests for one key within one tick: the key's hash (64 bits), the first and last instant, and their number."""

    key: int
    first: float
    last: float
    number: int


class KeyLadder:
    """One key's rungs. `fetched` and `ends` hold when each fetched last, and when that fetch's life ends."""

    __slots__ = ("_before", "_lot", "_next", "_seen", "_times", "born", "ends", "fetched", "last", "misses", "requests")

    def __init__(self, key: int, at: float) -> None:
        self.born = at
        self.last = at
        self.requests = 0
        self._lot = key | 1
        self.misses = [1] * len(LADDER)  # the first request is a miss on every rung
        self.fetched = [at] * len(LADDER)
        self.ends = [at + life * (1.0 - JITTER * self._draw()) for life in LADDER]
        self._times = 0.0  # the sum of all requests' instants, counted from `born`
        self._seen = [1] * len(LADDER)
        self._before = [0.0] * len(LADDER)
        self._next = min(self.ends)

    def observe(self, sighting: Sighting, ages: Ages) -> None:
        """Count the requests of a sighting; a rung whose life has ended fetches at the first request after it."""
        _, first, last, number = sighting
        self.last = last
        if last >= self._next:
            for rung, end in enumerate(self.ends):
                if last >= end:
                    # Where it ends within the tick, the tick's last request is the first known to come after it.
                    before = 0 if first >= end else number - 1
                    self._fetch(rung, first if first >= end else last, before, first, ages)
            self._next = min(self.ends)
        self.requests += number
        self._times += number * ((first + last) / 2 - self.born)

    def _fetch(self, rung: int, at: float, before: int, first: float, ages: Ages) -> None:
        self._close(rung, before, first, ages)
        self.misses[rung] += 1
        self.fetched[rung] = at
        self.ends[rung] = at + LADDER[rung] * (1.0 - JITTER * self._draw())
        self._seen[rung] = self.requests + before + 1
        self._before[rung] = self._times + before * (first - self.born) + (at - self.born)

    def _close(self, rung: int, before: int, first: float, ages: Ages) -> None:
        """Record the ages of the responses served by a fetch that has expired."""
        served = self.requests + before - self._seen[rung]
        if self.misses[rung] and served > 0:
            times = self._times + before * (first - self.born) - self._before[rung]
            ages.add(rung, served, times / served - (self.fetched[rung] - self.born))

    def open_ages(self, ages: Ages) -> None:
        """Record the ages of the responses served by unexpired fetches."""
        for rung in range(len(LADDER)):
            self._close(rung, 0, self.last, ages)

    def forget_counts(self) -> None:
        """Reset the counts; each rung keeps its state."""
        self.requests, self._times = 0, 0.0
        self.misses = [0] * len(LADDER)
        self._seen = [0] * len(LADDER)
        self._before = [0.0] * len(LADDER)

    def _draw(self) -> float:
        """A number in [0, 1) (Knuth's linear congruence): the jitter of a lifetime, the same in each replay."""
        self._lot = (self._lot * 6364136223846793005 + 1442695040888963407) & _LAST_HASH
        return self._lot * _PER_HASH


class Ages:
    """The ages of each rung's responses: their number by mean age, in steps of a square root of two."""

    def __init__(self) -> None:
        self._bins: list[Counter[int]] = [Counter() for _ in LADDER]

    def add(self, rung: int, answers: int, mean_age: float) -> None:
        self._bins[rung][round(2 * math.log2(max(mean_age, _LEAST_AGE) / _LEAST_AGE))] += answers

    def outdated(self, rung: int, change_rate: float) -> float:
        """How many of a rung's responses were outdated, if the content changes `change_rate` times a second
        (Poisson)."""
        return sum(
            answers * _outdated_share(_LEAST_AGE * 2 ** (step / 2), change_rate)
            for step, answers in self._bins[rung].items()
        )

    def copy(self) -> Ages:
        other = Ages()
        other._bins = [Counter(each) for each in self._bins]
        return other

    def merge(self, other: Ages) -> None:
        for mine, theirs in zip(self._bins, other._bins, strict=True):
            mine.update(theirs)


def _outdated_share(mean_age: float, change_rate: float) -> float:
    """The share of outdated answers among those with ages spread evenly from 0 to twice `mean_age`."""
    changes = 2 * mean_age * change_rate
    return 1.0 + math.expm1(-changes) / changes if changes > 1e-9 else 0.0


@dataclass(frozen=True, slots=True)
class Rung:
    """The estimates for a TTL: the share of responses from the cache and upstream requests per second, with their
    standard errors from sampling; `seen` is False if it is longer than the observed traffic."""

    ttl: float
    hit_ratio: float
    hit_ratio_error: float
    upstream: float
    upstream_error: float
    outdated: float
    seen: bool


@dataclass
class _Window:
    began: float
    requests: int = 0
    ages: Ages = field(default_factory=Ages)
    ended: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    """Requests and misses of each key in a window that has ended."""


class Replay:
    """The ladder of one route, fed with the accesses of its sampled keys in order of time.

    `window` (seconds) is how long a figure counts: reports cover the last one to two windows.
    """

    def __init__(
        self,
        at: float,
        *,
        window: float = 3600.0,
        least_keys: int = LEAST_KEYS,
        most_keys: int = MOST_KEYS,
        share: float = SHARE,
    ) -> None:
        self.threshold = 1.0
        """The share of all keys that is sampled: those whose hash is below it."""
        self._keys: dict[int, KeyLadder] = {}
        self._least_keys = least_keys
        self._most_keys = most_keys
        self._share = share
        self._length = window
        self._now = _Window(at)
        self._before: _Window | None = None
        self._last = at

    def __repr__(self) -> str:
        return f"<Replay {len(self._keys)} keys, {self.threshold:.3g} of all>"

    def __len__(self) -> int:
        return len(self._keys)

    def count(self, requests: int) -> None:
        """Count all requests of the route, those of sampled keys among them."""
        self._now.requests += requests

    def lower(self, threshold: float) -> None:
        """Sample at most `threshold` of all keys from now on, and reset the counts; it never rises again."""
        if threshold < self.threshold:
            self.threshold = threshold
            self._keys = {key: ladder for key, ladder in self._keys.items() if sampled(key, threshold)}
            for ladder in self._keys.values():
                ladder.forget_counts()
            self._before, self._now = None, _Window(self._last)

    def observe(self, sightings: Iterable[Sighting]) -> None:
        bound = self.threshold * _HASHES
        for sighting in sightings:
            key, first, last, _ = sighting
            if key >= bound:
                continue
            if last > self._last:
                self._turn(last)
            ladder = self._keys.get(key)
            if ladder is None:
                ladder = self._keys[key] = KeyLadder(key, first)
            ladder.observe(sighting, self._now.ages)
        while len(self._keys) > 2 * self._wanted_keys():
            self.lower(self.threshold / 2)

    def reach(self, now: float) -> None:
        """Declare that nothing before `now` follows: rates include the time without requests."""
        if now > self._last:
            self._turn(now)

    def _wanted_keys(self) -> float:
        return min(self._most_keys, max(self._least_keys, self._share * len(self._keys) / self.threshold))

    def _turn(self, now: float) -> None:
        self._last = now
        if now - self._now.began < self._length:
            return
        for ladder in self._keys.values():
            ladder.open_ages(self._now.ages)
        self._now.ended = {key: (ladder.requests, ladder.misses) for key, ladder in self._keys.items()}
        for ladder in self._keys.values():
            ladder.forget_counts()
        self._keys = {key: ladder for key, ladder in self._keys.items() if now - ladder.last < FORGET_AFTER}
        self._before, self._now = self._now, _Window(now)

    # --- what came of it -----------------------------------------------------------------------------------

    @property
    def requests(self) -> int:
        """All requests of the route in the windows that count."""
        return self._now.requests + (self._before.requests if self._before else 0)

    def seconds(self) -> float:
        """The observed duration."""
        return max(self._last - (self._before or self._now).began, 1e-9)

    def rungs(self, change_rate: float) -> list[Rung]:
        """The estimate for each TTL of the ladder, if content changes `change_rate` times a second."""
        ages = self._now.ages.copy()
        for ladder in self._keys.values():
            ladder.open_ages(ages)
        if self._before is not None:
            ages.merge(self._before.ages)
        counts = list(self._counts())
        return [self._rung(index, counts, ages, change_rate) for index in range(len(LADDER))]

    def _rung(self, index: int, counts: list[tuple[int, list[int]]], ages: Ages, change_rate: float) -> Rung:
        caught = sum(requests for requests, _ in counts)
        misses = [each[index] for _, each in counts]
        requests = max(self.requests, caught, 1)
        upstream = min(sum(misses) / self.threshold, float(requests))
        spread = math.sqrt(sum(n * n for n in misses) * (1 - self.threshold)) / self.threshold
        outdated = ages.outdated(index, change_rate) / max(caught, 1)
        return Rung(
            ttl=LADDER[index],
            hit_ratio=1.0 - upstream / requests,
            hit_ratio_error=min(1.0, spread / requests),
            upstream=upstream / self.seconds(),
            upstream_error=spread / self.seconds(),
            outdated=min(1.0, outdated),
            seen=LADDER[index] <= self.seconds(),
        )

    def _counts(self) -> Iterator[tuple[int, list[int]]]:
        ended = self._before.ended if self._before is not None else {}
        for key, ladder in self._keys.items():
            requests, misses = ended.get(key, (0, None))
            both = ladder.misses if misses is None else [a + b for a, b in zip(ladder.misses, misses, strict=True)]
            yield ladder.requests + requests, both
        yield from (counts for key, counts in ended.items() if key not in self._keys and sampled(key, self.threshold))


def sampled(key: int, threshold: float) -> bool:
    """Whether a key is in a sample of `threshold` of all keys."""
    return key < threshold * _HASHES


class Sight(msgspec.Struct, gc=False):
    """The sighting of one key in one tick: while `until` (seconds) is in the future, callers increment `requests` here
    without calling the Recorder."""

    count: int = 0
    first: float = 0.0
    last: float = 0.0
    until: float = 0.0


class Recorder:
    """What one worker sees of one route's keys, gathered for the replay.

    `seen` is called for each request that could be answered from the cache: a look-up and a count. Keys are unsigned
    hashes of 64 bits, the same in all workers.
    """

    def __init__(self, *, most_keys: int = MOST_KEYS) -> None:
        self.threshold = 1.0
        self.requests = 0
        self._most_keys = most_keys
        self._sights: dict[int, Sight] = {}
        self._unsampled = Sight()
        self._unsampled.until = math.inf
        self._out: list[Sighting] = []

    def seen(self, key: int, now: float) -> Sight:
        """Count a request, and return where to count the next ones for `key`."""
        self.requests += 1
        sight = self._sights.get(key)
        if sight is None:
            if key >= self.threshold * _HASHES:
                return self._unsampled
            return self._new(key, Sight(1, now, now, now + TICK))
        if now < sight.until:
            sight.count += 1
            sight.last = now
            return sight
        if sight.count:
            self._out.append(Sighting(key, sight.first, sight.last, sight.count))
        sight.count, sight.first, sight.last, sight.until = 1, now, now, now + TICK
        return sight

    def add(self, key: int, first: float, last: float, number: int) -> None:
        """As `seen`, for requests within one tick that the caller has counted itself."""
        self.requests += number
        if key < self.threshold * _HASHES:
            if key not in self._sights:
                self._new(key, Sight())
            self._out.append(Sighting(key, first, last, number))

    def _new(self, key: int, sight: Sight) -> Sight:
        self._sights[key] = sight
        if len(self._sights) > self._most_keys:
            self.lower(self.threshold / 2)
        return sight

    def lower(self, threshold: float) -> None:
        if threshold < self.threshold:
            self.threshold = threshold
            self._sights = {key: sight for key, sight in self._sights.items() if sampled(key, threshold)}

    def take(self) -> tuple[int, list[Sighting]]:
        """All requests, and the sightings of sampled keys, since the last call. Keys not seen since are forgotten."""
        for key, sight in self._sights.items():
            if sight.count:
                self._out.append(Sighting(key, sight.first, sight.last, sight.count))
            sight.until = -math.inf  # a caller that still holds it calls again
        requests, self.requests = self.requests, 0
        sightings, self._out = self._out, []
        sightings.sort(key=_FIRST)
        if len(sightings) > MOST_SIGHTINGS and len(self._sights) > LEAST_KEYS * SPARE:
            self.lower(self.threshold * max(0.5, LEAST_KEYS * SPARE / len(self._sights)))
        self._sights.clear()
        return requests, sightings
